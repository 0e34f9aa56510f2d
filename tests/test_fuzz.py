"""Whatever is read from a disk may be damaged in any way: it is read, or refused in one line, and nothing else happens.

Hypothesis draws the damage. Bytes are flipped, cut, put in and taken out; in JSON, a value anywhere in it becomes any
other. No reader may raise anything but ValueError (or an OSError, for a file that is not there), of which `main.py`
makes one line; and what is read in spite of the damage must make sense. The damage is the same each time, so that what
fails here fails for everybody; without `derandomize`, it is another one each time.
"""

import copy
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import main
from chapters.ch02_published import SentencePieceTokenizer, open_tokenizer
from chapters.ch02_tokenization import BPETokenizer
from chapters.ch07_config import GPTConfig
from chapters.ch07_gpt_model import GPT
from chapters.ch08_checkpoint import read_checkpoint
from chapters.ch08_config import TrainConfig
from chapters.ch08_run import read_metrics
from chapters.ch08_store import TokenStore, open_store
from chapters.ch10_journey import Journey
from corpora.documents import TRAIN, VALIDATION, Corpus, Document
from corpora.readers import open_source
from corpora.stories import generate

STORIES = generate(40, seed=3)
many = settings(max_examples=150, deadline=None, derandomize=True,
                suppress_health_check=[HealthCheck.function_scoped_fixture])
few = settings(many, max_examples=40)


# Damage


@st.composite
def damaged(draw: Callable, content: bytes) -> bytes:
    """Return bytes with one to three things done to them."""
    for _ in range(draw(st.integers(1, 3))):
        # Half of the time something happens near the beginning, where files describe themselves.
        near = min(len(content), draw(st.sampled_from([64, len(content)])))
        at, size = draw(st.integers(0, near)), draw(st.sampled_from([1, 1, 2, 8, 64]))
        other = {
            "flip": bytes([content[at] ^ 1 << draw(st.integers(0, 7))]) if at < len(content) else b"",
            "put in": content[at : at + 1] + draw(st.binary(min_size=1, max_size=9)),
            "repeat": content[at : at + size] * 2,
            "zeros": bytes(size),
            "cut off": b"",
        }
        kind = draw(st.sampled_from([*other, "take out"]))
        rest = len(content) if kind == "cut off" else at + (size if kind in ("repeat", "zeros", "take out") else 1)
        content = content[:at] + other.get(kind, b"") + content[rest:]
    return content


# Any JSON, with a liking for what readers stumble over.
ODD = st.sampled_from([None, True, -1, 0, 1, 2, 10**30, -(10**30), 0.5, 1e308, float("nan"), float("inf"), "", "a", "é",
                       "\ud800", "\0", "(", "<s>", [], {}, [[]], {"a": 1}])  # fmt: skip
ANY_JSON = ODD | st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)


def places(value: Any, place: tuple = ()) -> Iterator[tuple]:
    """Yield the way to each value inside a JSON value."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in inside:
        yield (*place, key)
        yield from places(inner, (*place, key))


@st.composite
def changed(draw: Callable, content: dict) -> dict:
    """Return a JSON object in which one or two values are others, are gone, or have a stranger beside them."""
    content = json.loads(json.dumps(content))
    for _ in range(draw(st.integers(1, 2))):
        # Each depth is as likely as another: a vocabulary would outweigh all that describes it.
        by_depth: dict[int, list] = {}
        for place in places(content):
            by_depth.setdefault(len(place), []).append(place)
        *way, last = draw(st.sampled_from(by_depth[draw(st.sampled_from(sorted(by_depth)))]))
        holder = content
        for key in way:
            holder = holder[key]

        kind = draw(st.sampled_from(["another", "another", "gone", "beside"]))
        if kind == "gone":
            del holder[last]
        elif kind == "beside" and isinstance(holder, dict):
            holder[draw(st.text(max_size=8))] = copy.deepcopy(draw(ANY_JSON))
        else:
            holder[last] = copy.deepcopy(draw(ANY_JSON))
        if not content:
            break
    return content


def redrawn(data: st.DataObject, whole: bytes) -> bytes:
    """Return a JSON file with other values in it, or with its bytes damaged."""
    other = changed(json.loads(whole)).map(lambda content: json.dumps(content).encode())
    return data.draw(other | damaged(whole))


def tried(read: Callable[[], Any]) -> tuple[Any, str]:
    """Return what was read and no complaint, or nothing and the one line with which it was refused."""
    try:
        return read(), ""
    except (ValueError, OSError) as error:
        assert len(main.one_line(error).splitlines()) == 1, repr(error)
        return None, str(error)


# Models


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory) -> Path:
    """A whole folder of a small model: with a checksum, as it is written here."""
    folder = tmp_path_factory.mktemp("fuzz") / "model"
    tokenizer = BPETokenizer.train(STORIES, 290)
    torch.manual_seed(1)
    sizes = {"vocab_size": 290, "d_model": 12, "num_layers": 2, "num_heads": 3, "num_kv_heads": 1, "d_ff": 14}
    GPT(GPTConfig(**sizes, max_seq_len=20)).save_pretrained(folder, end_token=tokenizer.eot_id)
    tokenizer.save(folder)
    return folder


@pytest.fixture
def model(model_folder, tmp_path) -> Path:
    """A copy of it to damage, in a folder with a name that messages can be searched for."""
    return shutil.copytree(model_folder, tmp_path / "model")


def opened(folder: Path) -> GPT | None:
    """Return the model of a folder, or None where it is refused by name; one that opens is one that can speak."""
    model, refusal = tried(lambda: GPT.from_pretrained(folder))
    if model is None:
        assert folder.name in refusal
    else:
        assert all(tensor.isfinite().all() for tensor in model.state_dict().values())
        assert model(torch.zeros(1, 1, dtype=torch.long)).shape == (1, 1, model.config.vocab_size)
    return model


@many
@given(data=st.data())
def test_damaged_numbers_of_our_own_are_refused_or_the_very_same(data, model, model_folder):
    file = model / "model.safetensors"
    file.write_bytes(data.draw(damaged((model_folder / file.name).read_bytes())))
    if (read := opened(model)) is not None:
        whole = GPT.from_pretrained(model_folder)
        assert all(map(torch.equal, whole.state_dict().values(), read.state_dict().values()))


@many
@given(data=st.data())
def test_damaged_numbers_of_others_are_refused_or_finite(data, model, model_folder):
    file = model / "model.safetensors"
    save_file(load_file(model_folder / file.name), file)
    file.write_bytes(data.draw(damaged(file.read_bytes())))
    opened(model)


@many
@given(data=st.data())
def test_a_description_of_anything_is_refused_or_makes_sense(data, model, model_folder):
    content = (model_folder / "model.safetensors").read_bytes()
    size = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:size])
    del header["__metadata__"]
    text = json.dumps(data.draw(changed(header))).encode()
    (model / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + content[size:])
    opened(model)


@many
@given(data=st.data())
def test_a_config_of_anything_is_refused_or_makes_sense(data, model, model_folder):
    (model / "config.json").write_bytes(redrawn(data, (model_folder / "config.json").read_bytes()))
    opened(model)


@few
@given(data=st.data())
def test_an_index_of_anything_is_refused_or_makes_sense(data, model, model_folder):
    if (model / "model.safetensors").exists():
        (model / "model.safetensors").rename(model / "part.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(load_file(model / "part.safetensors"), "part.safetensors")}
    (model / "model.safetensors.index.json").write_text(json.dumps(data.draw(changed(index))))
    opened(model)


# Tokenizers


def speaks(folder: Path) -> None:
    """Open a folder's tokenizer; one that opens takes any text, and gives ids that it can read back."""
    tokenizer, _ = tried(lambda: open_tokenizer(folder))
    if tokenizer is not None:
        for text in ("Once upon a time, 123 <|endoftext|>", "grün 🙂\n\n  é\u0301", ""):
            ids, refusal = tried(lambda text=text: tokenizer.encode(text))
            if not refusal:
                back = tokenizer.decode(ids)
                assert isinstance(tokenizer, SentencePieceTokenizer) or tokenizer._compose or back == text
        assert all(type(number) is int for number in [*tokenizer.start_ids, *tokenizer.stop_ids])


@many
@given(data=st.data())
def test_a_tokenizer_of_anything_is_refused_or_speaks(data, model, model_folder):
    (model / "tokenizer.json").write_bytes(redrawn(data, (model_folder / "tokenizer.json").read_bytes()))
    speaks(model)


@many
@given(data=st.data())
def test_a_tokenizer_of_the_other_kind_is_refused_or_speaks(data, model):
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "b", "▁a", "ab"]
    merges = ["▁ a", "a b"]
    steps = {"normalizer": {"type": "Sequence", "normalizers": [
        {"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
        "pre_tokenizer": None, "post_processor": None, "decoder": {"type": "ByteFallback"}}
    added = [{"id": number, "content": pieces[number], "single_word": False, "lstrip": False, "rstrip": False,
              "normalized": False, "special": True} for number in range(3)]
    vocab = {piece: number for number, piece in enumerate(pieces)}
    bpe = {"type": "BPE", "dropout": None, "unk_token": "<unk>", "fuse_unk": True, "byte_fallback": True,
           "vocab": vocab, "merges": merges}
    whole = {"version": "1.0", "added_tokens": added, **steps, "model": bpe}
    (model / "tokenizer.json").write_text(json.dumps(data.draw(changed(whole))))
    speaks(model)


@few
@given(name=st.sampled_from(["generation_config.json", "config.json"]), ends=ANY_JSON)
def test_ends_of_any_kind_leave_a_tokenizer_whole(name, ends, model):
    (model / name).write_text(json.dumps({"eos_token_id": ends}))
    speaks(model)


@pytest.fixture(scope="module")
def tokenizer() -> BPETokenizer:
    return BPETokenizer.train(STORIES, 290)


@many
@given(text=st.text(st.characters(categories=None), max_size=60) | st.text(max_size=60))
def test_any_text_comes_back_or_has_half_a_character(text, tokenizer):
    ids, refusal = tried(lambda: tokenizer.encode(text))
    if refusal:
        assert "half a character" in refusal and any("\ud800" <= letter <= "\udfff" for letter in text)
    else:
        assert tokenizer.decode(ids) == text


@many
@given(ids=st.lists(st.integers(-3, 300) | st.integers(), max_size=20))
def test_any_ids_are_text_or_one_of_them_is_named(ids, tokenizer):
    text, refusal = tried(lambda: tokenizer.decode(ids))
    unknown = [number for number in ids if not 0 <= number < tokenizer.vocab_size]
    assert isinstance(text, str) if not unknown else f"token id {unknown[0]} is unknown" in refusal


# Texts


def texts_of(path: Path) -> None:
    """Read a file; what is read is text that can be written again, and a refusal names the file."""
    texts, refusal = tried(lambda: list(open_source(str(path)).read()))
    if texts is None:
        assert str(path) in refusal and ";" in refusal
    else:
        assert all(text.encode() and not text.isspace() for text in texts)


@many
@given(content=st.binary(max_size=99) | damaged("<|endoftext|>".join(STORIES[:5]).encode()))
def test_any_bytes_are_text_or_refused_with_their_name(content, tmp_path):
    (tmp_path / "a.txt").write_bytes(content)
    texts_of(tmp_path / "a.txt")


LINES = "".join(json.dumps({"text": text, "id": 5}) + "\n" for text in STORIES[:5]).encode()


@many
@given(content=damaged(LINES) | st.lists(ANY_JSON | st.fixed_dictionaries({"text": ANY_JSON}), max_size=3).map(
    lambda rows: "\n".join(map(json.dumps, rows)).encode()))
def test_any_lines_are_texts_or_refused_with_their_name(content, tmp_path):
    (tmp_path / "a.jsonl").write_bytes(content)
    texts_of(tmp_path / "a.jsonl")


# A run: its settings, checkpoint, logs and tokens


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory) -> Path:
    """A run of two steps, and the text beside it."""
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / "text.txt").write_text("<|endoftext|>".join(STORIES), encoding="utf-8")
    sizes = GPTConfig(vocab_size=290, d_model=12, num_layers=1, num_heads=3, d_ff=14, max_seq_len=20)
    steps = TrainConfig(max_steps=2, batch_size=2, eval_every=2, compile="off", dtype="float32")
    journey = Journey.begin(str(folder / "text.txt"), "run", sizes, steps, folder, "python main.py train")
    assert journey.trainer.train()
    return folder / "run"


@pytest.fixture
def run(run_folder, tmp_path) -> Path:
    """A copy of it to damage."""
    shutil.copytree(run_folder.parent, tmp_path / "runs")
    return tmp_path / "runs" / "run"


@few
@given(data=st.data())
def test_settings_of_anything_are_refused_or_go_on(data, run, run_folder):
    whole = (run_folder / "settings.json").read_bytes()
    other = redrawn(data, whole)
    (run / "settings.json").write_bytes(other)
    journey, _ = tried(lambda: Journey.resume(run))
    assert journey is None or journey.trainer.step == 2


@few
@given(data=st.data())
def test_a_damaged_checkpoint_is_refused_or_the_same(data, run, run_folder):
    path = Path("checkpoint", "state.safetensors")
    (run / path).write_bytes(data.draw(damaged((run_folder / path).read_bytes())))
    read, refusal = tried(lambda: read_checkpoint(run / path))
    whole = read_checkpoint(run_folder / path)
    assert "remove it to begin" in refusal if read is None else read[1] == whole[1]
    if read is not None:
        assert all(torch.equal(read[0][name], tensor) for name, tensor in whole[0].items())


@many
@given(data=st.data())
def test_metrics_of_anything_are_refused_or_can_be_drawn(data, run, run_folder):
    (run / "metrics.jsonl").write_bytes(data.draw(damaged((run_folder / "metrics.jsonl").read_bytes())))
    metrics, refusal = tried(lambda: read_metrics(run))
    assert "metrics.jsonl: line" in refusal if metrics is None else all("step" in line for line in metrics)


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    documents = [Document(text, VALIDATION if i % 7 == 3 else TRAIN) for i, text in enumerate(STORIES)]
    return Corpus("few", lambda: iter(documents), "first edition")


@few
@given(data=st.data())
def test_tokens_damaged_in_any_file_are_made_again(data, tmp_path, corpus, tokenizer):
    store: TokenStore = open_store(tmp_path / "cache", corpus, tokenizer)
    whole = {path.name: path.read_bytes() for path in store.folder.iterdir()}
    name = data.draw(st.sampled_from([*sorted(whole), *["about.json"] * 5]))
    other = damaged(whole[name])
    if name == "about.json":
        other |= changed(json.loads(whole[name])).map(lambda about: json.dumps(about).encode())
    (store.folder / name).write_bytes(data.draw(other))
    again = open_store(tmp_path / "cache", corpus, tokenizer)
    assert again.about == store.about
    about = {"about.json"}
    assert {path.name: path.read_bytes() for path in again.folder.iterdir() if path.name not in about} == {
        name: content for name, content in whole.items() if name not in about}
    shutil.rmtree(store.folder)  # A space more in about.json does no harm, and would be there the next time.
