"""Promises of chapter 2's files: what is saved is what is loaded, and a broken file ends in one clear line."""

import json

import pytest
import requests
from transformers import AutoTokenizer

from chapters.ch02_files import bytes_to_letters, letters_to_bytes
from chapters.ch02_splitting import GPT2_PATTERN
from chapters.ch02_tokenization import END_OF_TEXT, BPETokenizer

TEXT = "The king's dog met the queen's cat, 1234 times.\n\n  国王和女王 👩‍👩‍👧‍👦 größere e\u0301te\u0301 \0" * 2
BY_THREES = r"'s|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


@pytest.fixture(scope="module", params=[GPT2_PATTERN, BY_THREES], ids=["gpt2", "threes"])
def trained(request) -> BPETokenizer:
    """A tokenizer of 330 tokens for each split rule, two of them special."""
    return BPETokenizer.train(TEXT, 330, (END_OF_TEXT, "<|pad|>"), request.param)


@pytest.fixture(scope="module")
def plain() -> BPETokenizer:
    """A tokenizer of 300 tokens with the default rule."""
    return BPETokenizer.train(TEXT, 300)


def test_what_is_saved_is_what_is_loaded(trained, tmp_path):
    for target in (tmp_path / "folder", tmp_path / "alone.json"):
        assert trained.save(str(target)).is_file()
        loaded = BPETokenizer.load(str(target))
        for name in ("vocab", "merges", "special_tokens", "pattern"):
            assert getattr(loaded, name) == getattr(trained, name)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["alone.json", "folder"]


def test_auto_tokenizer_knows_the_end_token_and_gives_the_text_back(trained, tmp_path):
    trained.save(tmp_path)
    auto = AutoTokenizer.from_pretrained(tmp_path)
    assert auto.eos_token_id == trained.eot_id and len(auto) == trained.vocab_size
    assert auto.decode(trained.encode(TEXT)) == TEXT


def test_files_that_write_a_merge_as_one_text_are_read(plain, tmp_path):
    content = json.loads(plain.save(tmp_path).read_text("utf-8"))
    content["model"]["merges"] = [" ".join(pair) for pair in content["model"]["merges"]]
    content["model"]["vocab"][END_OF_TEXT] = plain.eot_id
    (tmp_path / "tokenizer.json").write_text(json.dumps(content), "utf-8")
    assert BPETokenizer.load(tmp_path).encode(TEXT) == plain.encode(TEXT)


def test_all_bytes_have_a_visible_letter_and_come_back():
    every = bytes(range(256))
    letters = bytes_to_letters(every)
    assert len(set(letters)) == 256 and letters.isprintable() and " " not in letters
    assert letters_to_bytes(letters) == every


def damage(*keys: str, value: object):
    """A function that puts a wrong value at this place of a parsed file."""
    def change(content: dict) -> None:
        for key in keys[:-1]:
            content = content[key]
        content[keys[-1]] = value

    return change


@pytest.mark.parametrize("change", [
    damage("model", value=None), damage("model", value=[]), damage("model", "type", value="WordPiece"),
    damage("model", "vocab", value=[1, 2]), damage("model", "vocab", value={"a": 0}),
    damage("model", "vocab", "a", value=98), damage("model", "vocab", "a", value="97"),
    damage("model", "vocab", "a", value=True), damage("model", "vocab", "a", value=-1),
    damage("model", "vocab", "▁the", value=999), damage("model", "vocab", "zzz", value=999),
    damage("model", "merges", value=None), damage("model", "merges", value=["a"]),
    damage("model", "merges", value=[[1, 2]]), damage("model", "merges", value=[["zz", "q"]]),
    damage("model", "byte_fallback", value=True), damage("normalizer", value={"type": "NFKC"}),
    damage("added_tokens", value=[{}]), damage("added_tokens", value=7),
    damage("pre_tokenizer", value=None), damage("pre_tokenizer", value={"type": "Whitespace"}),
    damage("pre_tokenizer", "add_prefix_space", value=True),
])
def test_a_broken_file_ends_in_one_line_with_its_name(plain, tmp_path, change):
    content = json.loads(plain.save(tmp_path).read_text("utf-8"))
    change(content)
    (tmp_path / "tokenizer.json").write_text(json.dumps(content), "utf-8")
    with pytest.raises(ValueError) as error:
        BPETokenizer.load(tmp_path)
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)


def test_two_tokens_with_one_id_are_told_as_such(plain, tmp_path):
    content = json.loads(plain.save(tmp_path).read_text("utf-8"))
    content["model"]["vocab"]["a"] = content["model"]["vocab"]["b"]
    (tmp_path / "tokenizer.json").write_text(json.dumps(content), "utf-8")
    with pytest.raises(ValueError, match="two of its tokens have the same id"):
        BPETokenizer.load(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff", b"[" * 100_000, b'{"model": {}}'])
def test_a_file_that_is_no_tokenizer_is_refused(tmp_path, content):
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"tokenizer\.json"):
        BPETokenizer.load(tmp_path)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        BPETokenizer.load(tmp_path / "nowhere")


def test_without_a_network_a_published_name_fails_with_the_way_to_work_offline(monkeypatch, tmp_path):
    def no_network(url: str):
        raise requests.exceptions.ConnectionError(url)

    monkeypatch.setattr(requests, "get", no_network)
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    with pytest.raises(ConnectionError, match="TIKTOKEN_CACHE_DIR") as error:
        BPETokenizer.from_tiktoken("r50k_base")
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="unknown vocabulary 'gpt3': choose one of .*gpt2"):
        BPETokenizer.from_tiktoken("gpt3")
