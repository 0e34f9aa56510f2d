"""Promises of chapter 2 about published tokenizers: each family's file gives the ids that its library gives."""

import json
import unicodedata
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import regex
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM

import main
from chapters.ch02_merges import apply_merges, apply_merges_singly, learn_merges
from chapters.ch02_published import SentencePieceTokenizer, open_tokenizer
from chapters.ch02_splitting import DIGITS_PATTERN, GPT2_PATTERN, newer_letters
from chapters.ch02_tokenization import BPETokenizer
from chapters.ch09_inference import stream_text

unhurried = settings(deadline=None, derandomize=True, database=None, max_examples=100)

# The split patterns as these families publish them.
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
QWEN = LLAMA3.replace("{1,3}", "")
TEXT = (
    "The king's dog met the queen's cat. They've said: \"We'll go!\" and they'd gone, 1234 times in 1999.\n\n"
    "Ein Bär läßt größere Brötchen übrig; 国王和女王在花园里，国王笑了。 👩‍👩‍👧‍👦👩‍👧 e\u0301te\u0301 été "
    "aaaa aaaaaaa aaa\n"
    "\tdef f(x):\n        return x  # 10 000\r\n\r\n    \n   \n The end <|endoftext|> the bed  22 333 4444\n"
)
HARD_TEXTS = [
    "", " ", "a", "\n", "\0", "\0\0\0 \0", "  \n \n\n  x", "x   ", "   x", "\r\n\r\n", "a\r\nb\r c",
    "\u3000\u00a0 \u2028x\x85", "aaaaaaaaaaaaa", "aaa" * 200, "ab" * 400, " " * 700 + "x", "x" + " " * 700 + "7",
    "it's IT'S 'tis ''s 'lll 've 'ſ it'ſ K'LL", "İıſK ß", "1", "12", "1234567890", "a1b22 c333  4444   55555",
    "½ ² ٣ 十二 Ⅷ x²", "1  2   3 \n 4\t5 ", "国王和女王在花园里", "👩‍👩‍👧‍👦🏳️‍🌈 🙂🙂",
    "e\u0301 é E\u0301\u0323 a\u0323\u0301 \u0301x",
    "\u1100\u1161\u11a8 각 \uac00\u11a8", "\u212b \u2126 \u212a \u037e \u1fef \uf900 \U0002f800",
    "\u0344 \u0958 \ufb1d \u2adc",
    "\ufffd\ufffe\uffff\U0010ffff", "<|endoftext|>", "a<|endoftext|><|endoftext|> b", "<|endof",
    "<|im_start|>user\nhi<|im_end|>",
    "<think>\n2 <thinking> </think>", "<s> </s> <unk> <0x41> ▁▁ ▁x", TEXT, TEXT * 3,
]
BYTE_LEVEL = {"add_prefix_space": False}


def layout(pattern: str | None, digits: bool = False):
    """The pre-tokenizer of a family: its pattern before the byte step, or the byte step's own."""
    if pattern:
        split = pre_tokenizers.Split(Regex(pattern), "isolated")
        return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(**BYTE_LEVEL, use_regex=False)])
    byte_level = pre_tokenizers.ByteLevel(**BYTE_LEVEL)
    return pre_tokenizers.Sequence([pre_tokenizers.Digits(True), byte_level]) if digits else byte_level


def every_way(content: dict) -> None:
    """Rewrite the merges as Llama 3's file has them: every way to make each token, in the order of the tokens."""
    vocab = content["model"]["vocab"]
    ways = [
        (vocab[token], vocab[token[:i]], vocab[token[i:]], [token[:i], token[i:]])
        for token in vocab for i in range(1, len(token)) if token[:i] in vocab and token[i:] in vocab
    ]
    content["model"] |= {"merges": [way[3] for way in sorted(ways)], "ignore_merges": True}


def train_family(name: str, folder: Path) -> Path:
    """Let the `tokenizers` library train and save a small tokenizer as this family lays it out."""
    pattern = {"llama3": LLAMA3, "qwen2": QWEN, "qwen3": QWEN}.get(name)
    library = Tokenizer(models.BPE())
    library.pre_tokenizer, library.decoder = layout(pattern, name == "smollm2"), decoders.ByteLevel()
    library.post_processor = processors.ByteLevel(trim_offsets=False)
    if name.startswith("qwen"):
        library.normalizer = normalizers.NFC()

    # GPT-2 has its mark behind all tokens, SmolLM2 before them, the others in a list of their own.
    marks = {"gpt2": ["<|endoftext|>"], "smollm2": ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]}.get(name, [])
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=420, initial_alphabet=alphabet, show_progress=False,
                                  special_tokens=marks if name == "smollm2" else [])
    library.train_from_iterator([TEXT] * 2, trainer)
    marks += {"llama3": ["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"]}.get(name, [])
    marks += ["<|endoftext|>", "<|im_start|>", "<|im_end|>"] if name.startswith("qwen") else []
    library.add_special_tokens([AddedToken(mark, special=True, normalized=False) for mark in marks])
    if name == "qwen3":
        library.add_tokens([AddedToken(mark, normalized=False) for mark in ("<think>", "</think>")])

    # Llama 3 begins every text with a mark of its own, by a template behind the byte step.
    if name == "llama3":
        begin = "<|begin_of_text|>"
        template = processors.TemplateProcessing(f"{begin} $A", special_tokens=[(begin, library.token_to_id(begin))])
        library.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), template])
    content = json.loads(library.to_str())
    if name == "llama3":
        every_way(content)
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(content, ensure_ascii=False), "utf-8")
    return folder


FAMILIES = ["gpt2", "llama3", "qwen2", "qwen3", "smollm2"]


def opened(folder):
    """A folder, its tokenizer as opened here, and the library's own."""
    return folder, open_tokenizer(folder), Tokenizer.from_file(str(folder / "tokenizer.json"))


def ids_that_agree(ours, library: Tokenizer, text: str) -> list[int]:
    """The ids of a text, which are the library's, and which both turn into the same text."""
    ids = ours.encode(text, allow_special=True)
    assert ids == library_ids(library, text)
    assert ours.decode(ids) == library.decode(ids, skip_special_tokens=False)
    return ids


@pytest.fixture(scope="module", params=FAMILIES)
def family(request, tmp_path_factory):
    """One family's folder, its tokenizer as opened here, and the library's own."""
    folder = train_family(request.param, tmp_path_factory.mktemp(request.param))
    return opened(folder)


def library_ids(library: Tokenizer, text: str) -> list[int]:
    return library.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("text", HARD_TEXTS, ids=lambda text: ascii(text[:9]))
def test_a_familys_file_gives_the_ids_and_the_text_that_its_library_gives(family, text):
    _, ours, library = family
    ids = ids_that_agree(ours, library, text)
    assert isinstance(ours, BPETokenizer)
    assert ours.decode(ids) == (unicodedata.normalize("NFC", text) if library.normalizer else text)


@given(text=st.text(max_size=60) | st.text("aAé国 '1٣²\n!sſST\u0301\u0323e\0", max_size=60))
@unhurried
def test_a_familys_ids_agree_with_its_library_on_any_text(family, text):
    assert family[1].encode(text, allow_special=True) == library_ids(family[2], text)


@given(data=st.data())
@unhurried
def test_a_stream_gives_the_ids_of_the_whole_also_where_accents_are_joined(family, data):
    text = data.draw(st.text("ab1 .\u0301\u0323é\u1161\u1100", max_size=80))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    chunks = [text[a:b] for a, b in pairwise([0, *cuts, len(text)])]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("chapters.ch02_splitting.BLOCK_CHARACTERS", data.draw(st.integers(1, 40)))
        assert list(family[1].encode_iterable(chunks)) == library_ids(family[2], text)


def test_what_was_opened_is_saved_so_that_the_library_gives_the_same(family, tmp_path):
    _, ours, library = family
    again, reader = Tokenizer.from_file(str(ours.save(tmp_path))), open_tokenizer(tmp_path)
    for text in HARD_TEXTS:
        assert library_ids(again, text) == library_ids(library, text) == reader.encode(text, allow_special=True)
        assert again.encode(text).ids == library.encode(text).ids
    assert (reader.start_ids, reader.vocab) == (ours.start_ids, ours.vocab)


def test_special_tokens_of_a_file_are_whole_where_allowed_and_text_where_not(family):
    _, ours, library = family
    for name, number in ours.special_tokens.items():
        assert library.token_to_id(name) == number
        assert ours.encode(f"a{name}b", allow_special=True).count(number) == 1
        assert number not in ours.encode(f"a{name}b") and ours.decode(ours.encode(f"a{name}b")) == f"a{name}b"


def test_bulk_encoding_of_a_familys_file_gives_the_same_ids(family):
    _, ours, library = family
    if ours.eot_id is None:
        with pytest.raises(ValueError, match="endoftext"):
            ours.encode_documents(["a"])
        return
    documents = [text for text in HARD_TEXTS if "<|" not in text and "think>" not in text]
    ids, ends = ours.encode_documents(documents)
    for document, start, end in zip(documents, [0, *ends], ends, strict=False):
        assert ids[start:end].tolist() == [*library_ids(library, document), ours.eot_id]


def test_llamas_texts_begin_with_a_mark_of_their_own_and_qwens_with_the_end_of_the_one_before(tmp_path):
    starts = {name: open_tokenizer(train_family(name, tmp_path / name)) for name in ("llama3", "qwen2")}
    assert starts["llama3"].start_ids == [starts["llama3"].special_tokens["<|begin_of_text|>"]]
    assert starts["qwen2"].start_ids == starts["qwen2"].stop_ids == [starts["qwen2"].eot_id]


def test_a_words_own_token_counts_before_merges_only_if_the_file_says_so(tmp_path):
    folder = train_family("gpt2", tmp_path)
    content = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    # "abc" can be made in two ways, and the first merge takes the b away from the only one that is listed.
    vocab = content["model"]["vocab"]
    content["model"]["merges"] = [["b", "c"], ["a", "b"], ["ab", "c"]]
    content["model"]["vocab"] = {letter: vocab[letter] for letter in vocab if len(letter) == 1} | {
        "bc": 500, "ab": 501, "abc": 502}
    for whole, ids in ((False, [vocab["a"], 500]), (True, [502])):
        content["model"]["ignore_merges"] = whole
        (folder / "tokenizer.json").write_text(json.dumps(content), "utf-8")
        assert open_tokenizer(folder).encode("abc") == ids
        assert library_ids(Tokenizer.from_file(str(folder / "tokenizer.json")), "abc") == ids


def test_a_merge_that_stands_before_its_own_parts_is_glued_when_the_library_glues_it(tmp_path):
    folder = train_family("gpt2", tmp_path)
    content = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    letters = {token: number for token, number in content["model"]["vocab"].items() if len(token) == 1}
    content["model"] |= {"vocab": letters | {"ab": 500, "aba": 501}, "merges": [["ab", "a"], ["a", "b"]]}
    (folder / "tokenizer.json").write_text(json.dumps(content), "utf-8")
    library = Tokenizer.from_file(str(folder / "tokenizer.json"))
    for text, ids in (("abab", [501, letters["b"]]), ("ab" * 500, None)):
        assert open_tokenizer(folder).encode(text) == library_ids(library, text)
        assert ids is None or library_ids(library, text) == ids


def test_digits_alone_cut_as_the_two_steps_that_they_stand_for():
    steps = layout(None, digits=True)
    letters = [chr(number) for number in range(0x30000) if regex.match(r"\p{N}", chr(number))]
    letters = sorted(set(letters) - newer_letters())
    text = "".join(f" a{letter}b  {letter}!{letter} \n {letter}" for letter in letters)
    pieces = [text[start:end] for _, (start, end) in steps.pre_tokenize_str(text)]
    assert "".join(pieces) == text
    tokenizer = BPETokenizer({byte: bytes([byte]) for byte in range(256)}, [], {}, DIGITS_PATTERN)
    assert tokenizer._splitter.words(text) == pieces


@given(st.text("ab", max_size=40))
@unhurried
def test_gluing_one_pair_at_a_time_is_the_same_where_merges_are_in_order(text):
    merges = learn_merges({b"abab": 3, b"abba": 2, b"aab": 2, b"bba": 1, b"baab": 4, b"aaaa": 1, b"bbbb": 2}, 12)
    ranks = {pair: rank for rank, pair in enumerate(merges)}
    assert apply_merges_singly(text.encode(), ranks) == apply_merges(text.encode(), ranks)


@st.composite
def glued_by_the_library(draw: Callable) -> tuple[dict[str, int], list[tuple[str, str]], str, list[int]]:
    """Merges in any order, and a text that the library has glued by them: vocabulary, merges, text, ids."""
    tokens = draw(st.lists(st.text("abc", min_size=2, max_size=4), unique=True, min_size=5, max_size=20))
    known = {*"abc", *tokens}
    ways = [(t[:i], t[i:]) for t in tokens for i in range(1, len(t)) if t[:i] in known and t[i:] in known]
    merges = draw(st.permutations(ways))
    vocab = {letter: number for number, letter in enumerate(sorted(known))}
    text = draw(st.text("abc", min_size=4, max_size=40))
    return vocab, merges, text, Tokenizer(models.BPE(vocab, list(merges))).encode(text).ids


@given(example=glued_by_the_library())
@settings(unhurried, max_examples=300)
def test_merges_in_any_order_are_glued_as_the_library_glues_them(example):
    vocab, merges, text, ids = example
    ranks = {(left.encode(), right.encode()): rank for rank, (left, right) in enumerate(merges)}
    ours = [vocab[token.decode()] for token in apply_merges_singly(text.encode(), ranks)]
    assert ours == ids


# SentencePiece's kind


def train_sentencepiece(folder: Path, newer: bool = False) -> Path:
    """Let the library train and save a tokenizer laid out as Llama 2's and TinyLlama's file, or as newer Mistrals'."""
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    marks = ["<unk>", "<s>", "</s>"]
    library = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    library.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    trainer = trainers.BpeTrainer(vocab_size=420, special_tokens=[*marks, *bytes_], show_progress=False,
                                  limit_alphabet=60)
    library.train_from_iterator([TEXT.replace("国", "")] * 2, trainer)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    library.decoder = decoders.Sequence(steps)
    library.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    content = json.loads(library.to_str())

    # Bytes are ordinary pieces; spaces are written as ▁ by a normalizer, or by the pre-tokenizer.
    content["added_tokens"] = [entry for entry in content["added_tokens"] if entry["content"] in marks]
    prepend = {"type": "Prepend", "prepend": "▁"}
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    metaspace = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}
    content["normalizer"] = None if newer else {"type": "Sequence", "normalizers": [prepend, replace]}
    content["pre_tokenizer"] = metaspace if newer else None
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(content, ensure_ascii=False), "utf-8")
    return folder


@pytest.fixture(scope="module", params=["normalizer", "metaspace"])
def sentencepiece(request, tmp_path_factory):
    """A folder of this kind in either layout, its tokenizer as opened here, and the library's own."""
    folder = train_sentencepiece(tmp_path_factory.mktemp("pieces"), request.param == "metaspace")
    return opened(folder)


@pytest.mark.parametrize("text", HARD_TEXTS, ids=lambda text: ascii(text[:9]))
def test_sentencepieces_kind_gives_the_ids_and_the_text_of_its_library(sentencepiece, text):
    _, ours, library = sentencepiece
    ids = ids_that_agree(ours, library, text)
    assert isinstance(ours, SentencePieceTokenizer)
    assert [*ours.start_ids, *ids] == library.encode(text).ids


@given(text=st.text(max_size=40))
@unhurried
def test_a_stream_of_sentencepieces_ids_says_the_text_with_the_space_before_it(sentencepiece, text):
    _, ours, _ = sentencepiece
    ids = ours.encode(text)
    assert "".join(stream_text(ours, ids)).removeprefix(" ") == ours.decode(ids)
    if text[:1] not in ("▁", " "):
        assert ours.decode(ids) == text.replace("▁", " ")


def test_a_continuation_keeps_the_space_between_it_and_the_prompt(sentencepiece):
    _, ours, _ = sentencepiece
    ids = ours.encode("the king the dog")
    said = [ours.decode(ids[:i]) + "".join(stream_text(ours, ids[i:])) for i in range(1, len(ids))]
    assert set(said) == {"the king the dog"}


def test_sentencepieces_kind_has_the_face_of_our_own(sentencepiece):
    _, ours, library = sentencepiece
    assert (ours.vocab_size, ours.eot_id, ours.start_ids, ours.stop_ids) == (library.get_vocab_size(), 2, [1], [2])
    assert 2 not in ours.encode("a</s>b") and ours.decode(ours.encode("a</s>b")) == "a</s>b"
    with pytest.raises(ValueError, match="token id 9999 is unknown"):
        ours.decode([9999])
    with pytest.raises(ValueError, match="surrogate"):
        ours.encode("a\ud800")


def test_a_file_that_cuts_texts_short_or_fills_them_up_does_not_do_so_here(tmp_path):
    folder = train_sentencepiece(tmp_path)
    library = Tokenizer.from_file(str(folder / "tokenizer.json"))
    whole = library_ids(library, TEXT)
    library.enable_truncation(5)
    library.enable_padding(length=900)
    library.save(str(folder / "tokenizer.json"))
    assert open_tokenizer(folder).encode(TEXT, allow_special=True) == whole


# Opening


@pytest.mark.parametrize(
    ("files", "ids"),
    [
        ({}, [2]),
        ({"config.json": {"eos_token_id": 7}}, [7]),
        ({"config.json": {"eos_token_id": 7}, "generation_config.json": {"eos_token_id": [8, 9]}}, [8, 9]),
        ({"config.json": {"eos_token_id": 7}, "generation_config.json": {"eos_token_id": None}}, [7]),
        ({"config.json": {"eos_token_id": "7"}}, [2]),
        ({"config.json": []}, [2]),
    ],
)
def test_a_model_ends_where_its_folder_says(tmp_path, files, ids):
    folder = train_sentencepiece(tmp_path)
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    assert open_tokenizer(folder).stop_ids == ids


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"null", b"\xff", b"[" * 100_000, b'{"model": {}}', b'{"model": 3}',
     b'{"model": {"byte_fallback": true}}', b'{"model": {"type": "WordPiece"}}'],
)
def test_a_file_of_no_kind_is_refused_in_one_line_with_its_name(tmp_path, content):
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"tokenizer\.json") as error:
        open_tokenizer(tmp_path)
    assert "\n" not in str(error.value)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        open_tokenizer(tmp_path / "nowhere")


@pytest.mark.parametrize(
    "change",
    [
        {"normalizer": {"type": "NFKC"}},
        {"normalizer": {"type": "Sequence", "normalizers": [{"type": "Lowercase"}]}},
        {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Digits", "individual_digits": False}, {"type": "ByteLevel", "add_prefix_space": False}]}},
        {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": GPT2_PATTERN}, "behavior": "Removed", "invert": False},
            {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}]}},
        {"added_tokens": [{"id": 420, "content": "<mask>", "lstrip": True, "special": True}]},
        {"added_tokens": [{"id": 420, "content": "<mask>", "single_word": True, "special": True}]},
        {"normalizer": {"type": "NFC"}, "added_tokens": [{"id": 420, "content": "<K>", "normalized": True}]},
        {"post_processor": {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "x"}}]}},
        {"post_processor": {"type": "TemplateProcessing"}},
        {"post_processor": [1]},
    ],
)
def test_a_file_whose_ids_would_differ_here_is_refused_in_one_line(tmp_path, change):
    folder = train_family("gpt2", tmp_path)
    content = json.loads((folder / "tokenizer.json").read_text("utf-8")) | change
    (folder / "tokenizer.json").write_text(json.dumps(content), "utf-8")
    with pytest.raises(ValueError, match=r"tokenizer\.json") as error:
        open_tokenizer(folder)
    assert "\n" not in str(error.value)


# All together


@pytest.mark.parametrize("kind", ["llama3", "sentencepiece"])
@torch.no_grad()
def test_generate_says_what_transformers_says_and_ends_where_the_folder_says(kind, tmp_path, capsys):
    folder = train_sentencepiece(tmp_path) if kind == "sentencepiece" else train_family(kind, tmp_path)
    library, ours = Tokenizer.from_file(str(folder / "tokenizer.json")), open_tokenizer(folder)
    sizes = {"hidden_size": 24, "intermediate_size": 35, "num_hidden_layers": 2, "num_attention_heads": 6,
             "num_key_value_heads": 2, "max_position_embeddings": 90, "bos_token_id": None, "eos_token_id": None}
    torch.manual_seed(6)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=ours.vocab_size + 5, **sizes))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.4)

    # Only tokens that are text by themselves are ever the likeliest: halves of letters have no agreed picture.
    spoken = [number for number, token in ours.vocab.items() if token.isascii() and token.decode().isprintable()]
    spoken = torch.tensor(sorted(set(spoken) - set(ours.special_tokens.values())))
    head = torch.zeros_like(model.lm_head.weight).index_copy(0, spoken, model.lm_head.weight[spoken])
    model.lm_head.weight.copy_(head)
    model.save_pretrained(folder)

    prompt = torch.tensor([library.encode("the king").ids])
    told = model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=30, do_sample=False,
                          pad_token_id=0)[0].tolist()
    command = ["generate", "--model", str(folder), "--prompt", "the king", "--temperature", "0"]
    assert main.main([*command, "--max-new-tokens", "30"]) == 0
    assert capsys.readouterr().out == library.decode(told[1:], skip_special_tokens=False) + "\n"

    # Call one of the tokens that it said the end.
    end = told[prompt.shape[1] + 7]
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [end]}))
    assert main.main([*command, "--max-new-tokens", "30"]) == 0
    until = told[1 : told.index(end, prompt.shape[1])]
    assert capsys.readouterr().out == library.decode(until, skip_special_tokens=False) + "\n"
