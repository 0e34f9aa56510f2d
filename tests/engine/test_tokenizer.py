"""Tokenizers: the ids of every published kind of file are those that its own library gives."""

import json
import os
import struct
import unicodedata
from pathlib import Path

import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from chapters.ch02_published import open_tokenizer
from engine.tokenizer import YOUNG, ScoredTokenizer, load_tokenizer, merge_pairs
from tests.chapters.test_ch02_published import (
    FAMILIES,
    HARD_TEXTS,
    TEXT,
    glued_by_the_library,
    train_family,
    train_sentencepiece,
)

DATA = Path(os.environ.get("BOOK_TEST_DATA", "nowhere"), "stories260K")
real = pytest.mark.skipif(not DATA.is_dir(), reason="BOOK_TEST_DATA names no folder with stories260K in it")
GPT2 = DATA.parent / "gpt2"
STORYTELLER = Path(__file__).parents[2] / "models/storyteller"
FLAGS = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False) | {"special": True}
unhurried = settings(deadline=None, derandomize=True, database=None, max_examples=100)


def library_ids(library: Tokenizer, text: str) -> list[int]:
    return library.encode(text, add_special_tokens=False).ids


def rewrite(folder: Path, change) -> Path:
    """Change the parsed tokenizer.json of a folder."""
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text("utf-8"))
    change(content)
    path.write_text(json.dumps(content), "utf-8")
    return folder


@pytest.fixture(scope="module", params=[*FAMILIES, "storyteller"])
def family(request, tmp_path_factory):
    """One family's folder, its tokenizer as opened here, and the library's own."""
    folder = STORYTELLER
    if request.param != "storyteller":
        folder = train_family(request.param, tmp_path_factory.mktemp(request.param))
    return folder, load_tokenizer(folder), Tokenizer.from_file(str(folder / "tokenizer.json"))


@pytest.mark.parametrize("text", HARD_TEXTS, ids=lambda text: ascii(text[:9]))
def test_a_familys_file_gives_the_ids_and_the_text_that_its_library_gives(family, text):
    _, ours, library = family
    ids = ours.encode(text, allow_special=True)
    assert ids == library_ids(library, text)
    assert ours.decode(ids) == library.decode(ids, skip_special_tokens=False)
    assert ours.decode(ids) == (unicodedata.normalize("NFC", text) if library.normalizer else text)
    assert ours.decode_bytes(ids).decode() == ours.decode(ids)


@given(text=st.text(max_size=60) | st.text("aAé国 '1٣²\n!sſST\u0301\u0323e\0", max_size=60))
@unhurried
def test_a_familys_ids_agree_with_its_library_on_any_text(family, text):
    assert family[1].encode(text, allow_special=True) == library_ids(family[2], text)


@given(ids=st.lists(st.integers(0, 419), max_size=30))
@unhurried
def test_any_ids_give_the_text_that_the_library_gives(family, ids):
    ids = [number for number in ids if number in family[1].vocab]
    assert family[1].decode(ids) == family[2].decode(ids, skip_special_tokens=False)


def test_a_text_begins_and_ends_as_in_the_chapters(family):
    folder, ours, library = family
    theirs = open_tokenizer(folder)
    assert (ours.start_ids, ours.special_tokens) == (theirs.start_ids, theirs.special_tokens)
    assert ours.bos_id == (theirs.start_ids or [None])[0]
    assert ours.encode(TEXT) == theirs.encode(TEXT) and ours.vocab == theirs.vocab
    assert ours.vocab_size == theirs.vocab_size
    assert ours.eos_id in (library.token_to_id("<|endoftext|>"), library.token_to_id("<|end_of_text|>"))


def test_special_tokens_are_whole_where_allowed_and_text_where_not(family):
    _, ours, library = family
    for name, number in ours.special_tokens.items():
        assert library.token_to_id(name) == number
        assert ours.encode(f"a{name}b", allow_special=True).count(number) == 1
        assert number not in ours.encode(f"a{name}b") and ours.decode(ours.encode(f"a{name}b")) == f"a{name}b"


def test_of_two_special_tokens_that_begin_alike_the_longer_is_found_as_it_stands(tmp_path):
    single = [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "</s>", "type_id": 0}}]
    end = {"type": "TemplateProcessing", "single": single, "pair": single}
    end["special_tokens"] = {"</s>": {"id": "</s>", "ids": [423], "tokens": ["</s>"]}}
    added = [{"id": 420 + at, "content": name, **FLAGS} for at, name in enumerate(["<|im", "<|im|>", "a.c", "</s>"])]
    changes = {"added_tokens": added, "post_processor": end}
    folder = rewrite(train_family("gpt2", tmp_path), lambda content: content.update(changes))
    ours, library = load_tokenizer(folder), Tokenizer.from_file(str(folder / "tokenizer.json"))
    for text in ("x<|im|>y", "<|im<|im|>", "abc a.c", "</s>"):
        assert ours.encode(text, allow_special=True) == library_ids(library, text)
    assert (ours.eos_id, ours.start_ids, ours.vocab_size) == (423, [], 424)


def test_a_special_token_of_letters_that_are_no_bytes_may_stand_among_the_others_too(tmp_path):
    def change(content: dict) -> None:
        content["model"]["vocab"]["<｜a▁b｜>"] = number = max(entry["id"] for entry in content["added_tokens"]) + 1
        content["added_tokens"].append({"id": number, "content": "<｜a▁b｜>", **FLAGS})

    folder = rewrite(train_family("gpt2", tmp_path), change)
    ours, library = load_tokenizer(folder), Tokenizer.from_file(str(folder / "tokenizer.json"))
    ids = ours.encode("x<｜a▁b｜>", allow_special=True)
    assert ids == library_ids(library, "x<｜a▁b｜>") and ours.decode(ids) == "x<｜a▁b｜>"


@pytest.mark.parametrize("marks", [None, True])
def test_what_a_file_leaves_out_means_what_it_means_to_the_library(marks, tmp_path):
    def change(content: dict) -> None:
        del content["post_processor"], content["pre_tokenizer"]["use_regex"]
        added = content.pop("added_tokens")
        content |= {"added_tokens": [entry | {"normalized": True} for entry in added]} if marks else {}

    folder = rewrite(train_family("gpt2", tmp_path), change)
    ours, library = load_tokenizer(folder), Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert all(ours.encode(text, allow_special=True) == library_ids(library, text) for text in HARD_TEXTS)


def test_a_file_without_marks_begins_and_ends_no_text(tmp_path):
    ours = load_tokenizer(rewrite(train_family("gpt2", tmp_path), lambda content: content.update(added_tokens=[])))
    assert (ours.eos_id, ours.bos_id, ours.start_ids, ours.special_tokens) == (None, None, [], {})
    assert ours.decode(ours.encode("a <|endoftext|>", allow_special=True)) == "a <|endoftext|>"


def test_words_are_forgotten_before_they_fill_the_memory(family, monkeypatch):
    folder, ours, _ = family
    monkeypatch.setattr("engine.tokenizer.REMEMBERED_WORDS", 3)
    forgetful = load_tokenizer(folder)
    assert forgetful.encode(TEXT) == ours.encode(TEXT) and len(forgetful._known_words) <= 3


def test_letters_that_are_too_young_for_the_library_are_marks():
    letters = "".join(map(chr, [*range(0xD800), *range(0xE000, 0x40000), *range(0xE0000, 0xE1000)]))
    letters = "".join(regex.findall(r"[\p{L}\p{M}\p{N}\s]", letters))
    split = pre_tokenizers.Split(Regex(r"[\p{L}\p{M}\p{N}\s]"), "removed")
    young = {letter for piece, _ in split.pre_tokenize_str(letters) for letter in piece}
    ours = regex.compile("[" + regex.sub("[0-9A-F]+", lambda end: chr(int(end[0], 16)), YOUNG).replace(" ", "") + "]")
    assert {letter for letter in letters if ours.match(letter)} == young


@pytest.mark.parametrize("digits", [True, False])
def test_steps_cut_one_after_the_other_as_in_the_library(digits, tmp_path):
    folder = train_family("gpt2", tmp_path)
    steps = [{"type": "Split", "pattern": {"String": "e."}, "behavior": "Isolated", "invert": False},
             {"type": "Digits", "individual_digits": digits},
             {"type": "Split", "pattern": {"Regex": r"\s?[a-m]+|\n"}, "behavior": "Isolated", "invert": False},
             {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}]
    rewrite(folder, lambda content: content.update(pre_tokenizer={"type": "Sequence", "pretokenizers": steps}))
    ours, library = load_tokenizer(folder), Tokenizer.from_file(str(folder / "tokenizer.json"))
    for text in HARD_TEXTS:
        assert ours.encode(text, allow_special=True) == library_ids(library, text)


def test_merges_are_read_in_both_spellings(tmp_path):
    folder = train_family("gpt2", tmp_path)
    as_lists = load_tokenizer(folder).encode(TEXT)

    def as_text(content: dict) -> None:
        assert isinstance(content["model"]["merges"][0], list)
        content["model"]["merges"] = [" ".join(pair) for pair in content["model"]["merges"]]

    assert load_tokenizer(rewrite(folder, as_text)).encode(TEXT) == as_lists


@pytest.mark.skipif(not GPT2.is_dir(), reason="BOOK_TEST_DATA names no folder with gpt2 in it")
def test_the_published_vocabulary_of_gpt2_cuts_as_its_library_does(tmp_path):
    vocab = json.loads((GPT2 / "encoder.json").read_text("utf-8"))
    merges = [tuple(line.split()) for line in (GPT2 / "vocab.bpe").read_text("utf-8").splitlines()[1:] if line]
    library = Tokenizer(models.BPE(vocab, merges))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.add_special_tokens(["<|endoftext|>"])
    library.save(str(tmp_path / "tokenizer.json"))
    ours = load_tokenizer(tmp_path)
    for text in HARD_TEXTS:
        assert ours.encode(text, allow_special=True) == library_ids(library, text)
    assert [ours.decode([number]) for number in ours.encode("unbelievably")] == ["un", "bel", "iev", "ably"]
    assert (ours.vocab_size, len(ours.encode(" unbelievably")), ours.eos_id) == (50257, 1, 50256)


@pytest.mark.parametrize(("whole", "ids"), [(False, ["a", 500]), (True, [502])])
def test_a_words_own_token_counts_before_merges_only_if_the_file_says_so(whole, ids, tmp_path):
    folder = train_family("gpt2", tmp_path)

    # "abc" can be made in two ways, and the first merge takes the b away from the only one that is listed.
    def change(content: dict) -> None:
        letters = {token: number for token, number in content["model"]["vocab"].items() if len(token) == 1}
        content["model"] |= {"merges": [["b", "c"], ["a", "b"], ["ab", "c"]], "ignore_merges": whole,
                             "vocab": letters | {"bc": 500, "ab": 501, "abc": 502}}

    ours = load_tokenizer(rewrite(folder, change))
    ids = [ours.encode("a")[0] if number == "a" else number for number in ids]
    assert ours.encode("abc") == library_ids(Tokenizer.from_file(str(folder / "tokenizer.json")), "abc") == ids


@given(example=glued_by_the_library())
@settings(unhurried, max_examples=300)
def test_merges_in_any_order_are_glued_as_the_library_glues_them(example):
    vocab, merges, text, ids = example
    ranks = {(vocab[a], vocab[b]): (rank, vocab[a + b]) for rank, (a, b) in enumerate(merges)}
    assert merge_pairs([vocab[letter] for letter in text], ranks.get) == ids


@given(pairs=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), unique=True, max_size=8),
       ids=st.lists(st.integers(0, 3), max_size=30))
@unhurried
def test_the_heap_glues_what_the_obvious_loop_glues(pairs, ids):
    table = {pair: (rank, 4 + rank) for rank, pair in enumerate(pairs)}
    table |= {(4, 1): (-1.5, 40), (4, 4): (2.5, 44)}
    slow = list(ids)
    while ready := [(table[pair][0], at) for at, pair in enumerate(zip(slow, slow[1:], strict=False)) if pair in table]:
        _, at = min(ready)
        slow[at : at + 2] = [table[slow[at], slow[at + 1]][1]]
    assert merge_pairs(ids, table.get) == slow


def test_a_word_of_a_hundred_thousand_letters_is_no_trap(family):
    _, ours, library = family
    word = "abracadabra" * 9000
    assert ours.encode(word) == library_ids(library, word)


def test_an_unknown_id_and_half_a_character_are_named(family):
    with pytest.raises(ValueError, match="token id 99999 is unknown: ids go from 0 to"):
        family[1].decode([99999])
    with pytest.raises(ValueError, match="half a character"):
        family[1].encode("a\ud800")


# Files that are refused


@pytest.mark.parametrize("newer", [True, False])
def test_sentencepieces_kind_is_refused_with_what_to_do(newer, tmp_path):
    with pytest.raises(ValueError, match=r"SentencePiece's kind.*--engine torch") as caught:
        load_tokenizer(train_sentencepiece(tmp_path, newer))
    assert "\n" not in str(caught.value) and "tokenizer.json" in str(caught.value)


BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}


def split(**changes) -> dict:
    step = {"type": "Split", "pattern": {"Regex": r"\w+"}, "behavior": "Isolated", "invert": False} | changes
    return {"type": "Sequence", "pretokenizers": [step, BYTE_LEVEL]}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"normalizer": {"type": "NFKC"}}, "only NFC"),
        ({"normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Lowercase"}]}}, "Lowercase"),
        ({"normalizer": [1]}, "tokenizer.json"),
        ({"pre_tokenizer": None}, "tokenizer.json"),
        ({"pre_tokenizer": {"type": "Whitespace", "add_prefix_space": False}}, "ByteLevel"),
        ({"pre_tokenizer": {"type": "ByteLevel"}}, "add_prefix_space"),
        ({"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True}}, "add_prefix_space"),
        ({"pre_tokenizer": {"type": "Sequence", "pretokenizers": []}}, "tokenizer.json"),
        ({"pre_tokenizer": split(behavior="Removed")}, "not known"),
        ({"pre_tokenizer": split(invert=True)}, "not known"),
        ({"pre_tokenizer": split(type="Punctuation", pattern=None)}, "cuts text by rules"),
        ({"pre_tokenizer": split(pattern={"Regex": "("})}, "no regular expression"),
        ({"pre_tokenizer": split(pattern={})}, "String"),
        ({"pre_tokenizer": split(pattern={"Regex": "(" * 5000 + ")" * 5000})}, "RecursionError"),
        ({"pre_tokenizer": split(pattern={"Regex": "a{4294967294}"})}, "more than 10000 times"),
        ({"pre_tokenizer": split(pattern={"Regex": "(?:(?:ab){0,999}c){999}"})}, "more than 10000 times"),
        ({"pre_tokenizer": split(pattern={"Regex": "(?:a){99999999999i<=4}"})}, "more than 10000"),
        ({"added_tokens": [{"id": 420, "content": "<mask>", "lstrip": True}]}, "lstrip"),
        ({"added_tokens": [{"id": 420, "content": "<mask>", "single_word": True}]}, "single_word"),
        ({"added_tokens": [{"id": 420, "content": "<mask>", "rstrip": True}]}, "rstrip"),
        ({"added_tokens": [{"id": 420, "content": 3}]}, "no text"),
        ({"added_tokens": [{"id": True, "content": "<mask>"}]}, "True is no token id"),
        ({"normalizer": {"type": "NFC"}, "added_tokens": [{"id": 9, "content": "K", "normalized": True}]}, "normali"),
        ({"added_tokens": [{"id": 420, "content": ""}]}, "no text"), ({"added_tokens": [{"content": "<s>"}]}, "id"),
        ({"added_tokens": [{"id": -1, "content": "<s>"}]}, "-1 is no token id"),
        ({"added_tokens": 3}, "tokenizer.json"),
        ({"post_processor": {"type": "TemplateProcessing"}}, "single"), ({"post_processor": [1]}, "tokenizer.json"),
        ({"model": {"type": "WordPiece", "vocab": {}}}, "WordPiece"), ({"model": {"type": "Unigram"}}, "SentencePiece"),
        ({"pre_tokenizer": {"type": "Metaspace"}}, "SentencePiece's kind .Metaspace"),
        ({"post_processor": {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": 3}}],
                             "special_tokens": []}}, "IndexError"),
        ({"model": 3}, "tokenizer.json"), ({"model": {}}, "tokenizer.json"),
    ],
)
def test_a_file_whose_ids_would_differ_here_is_refused_in_one_line(change, words, tmp_path):
    folder = rewrite(train_family("gpt2", tmp_path), lambda content: content.update(change))
    with pytest.raises(ValueError, match=words) as caught:
        load_tokenizer(folder)
    assert "\n" not in str(caught.value) and "tokenizer.json" in str(caught.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda model: model["vocab"].pop("A"), "no token for byte 65"),
        (lambda model: model["vocab"].update({"A": 4}), "same id"),
        (lambda model: model["vocab"].update({"A": True}), "True is no token id"),
        (lambda model: model["vocab"].update({"A": 1 << 40}), "is no token id"),
        (lambda model: model["vocab"].update({"▁the": 900}), "use byte-level BPE"),
        (lambda model: model["merges"].append(["A", "nothing"]), "'nothing', which is none"),
        (lambda model: model["merges"].append(["A", "A"]), "'AA', which is none"),
        (lambda model: model["merges"].append("A"), "not enough values"),
        (lambda model: model["merges"].append(3), "tokenizer.json"),
        (lambda model: model.update(dropout=0.1), "dropout"),
        (lambda model: model.update(end_of_word_suffix="</w>"), "end_of_word_suffix"),
        (lambda model: model.update(continuing_subword_prefix="##"), "continuing_subword_prefix"),
        (lambda model: model.update(byte_fallback=True), "SentencePiece's kind .byte_fallback"),
    ],
)
def test_tokens_and_merges_that_do_not_fit_together_are_refused_in_one_line(change, words, tmp_path):
    folder = rewrite(train_family("gpt2", tmp_path), lambda content: change(content["model"]))
    with pytest.raises(ValueError, match=words) as caught:
        load_tokenizer(folder)
    assert "\n" not in str(caught.value) and "tokenizer.json" in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    for path in (tmp_path, tmp_path / "tokenizer.json"):
        with pytest.raises(FileNotFoundError, match=r"tokenizer\.json does not exist"):
            load_tokenizer(path)


# llama2.c's kind


def write_scored(path: Path, words: list[str], scores: list[float] | None = None) -> Path:
    """Write a tokenizer file of llama2.c: three marks, 256 bytes, then these pieces, the first most urgent."""
    pieces = ["<unk>", "\n<s>\n", "\n</s>\n", *(f"<0x{byte:02X}>" for byte in range(256)), *words]
    scores = [0.0] * 259 + (scores or [-float(at) for at in range(len(words))])
    content = struct.pack("<i", max(len(piece.encode()) for piece in pieces))
    for score, piece in zip(scores, pieces, strict=True):
        content += struct.pack("<fi", score, len(piece.encode())) + piece.encode()
    path.write_bytes(content)
    return path


WORDS = ["ab", " a", "abc", "bc", "aa", "cc", " ab", "éa", " the", "th", "he", " t", *" abcdefghijklmnopqrtuvwé国"]


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """A small tokenizer of this kind, or the published one, and the library's twin: each way to make each piece."""
    path = DATA / "tok512.bin"
    if not path.is_file():
        path = write_scored(tmp_path_factory.mktemp("scored") / "tok.bin", WORDS)
    ours = load_tokenizer(path)
    pieces = {number: piece.decode().replace(" ", "▁") for number, piece in ours.vocab.items() if number > 258}
    vocab = {piece: number for number, piece in pieces.items()}
    order = sorted(vocab, key=lambda piece: -ours._scores[vocab[piece]])
    merges = [(p[:i], p[i:]) for p in order for i in range(1, len(p)) if p[:i] in vocab and p[i:] in vocab]
    vocab |= {f"<0x{byte:02X}>": 3 + byte for byte in range(256)} | {"<unk>": 0, "<s>": 1, "</s>": 2}
    library = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    steps = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    library.normalizer = normalizers.Sequence(steps)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    library.decoder = decoders.Sequence(steps)
    library.add_special_tokens([AddedToken(name, normalized=False) for name in ("<unk>", "<s>", "</s>")])
    library.encode_special_tokens = True
    return ours, library


@pytest.mark.parametrize("text", [text for text in HARD_TEXTS if "▁" not in text], ids=lambda text: ascii(text[:9]))
def test_scored_pieces_give_the_ids_and_the_text_of_the_library(scored, text):
    ours, library = scored
    assert ours.encode(text) == library_ids(library, text)
    assert ours.decode(ours.encode(text)) == library.decode(library_ids(library, text)) == text


@given(text=st.text("abc the\né国\0🙂", max_size=40) | st.text(max_size=20).filter(lambda text: "▁" not in text))
@unhurried
def test_scored_pieces_give_the_ids_of_the_library_on_any_text(scored, text):
    assert scored[0].encode(text) == library_ids(scored[1], text)


def test_the_space_that_encoding_puts_first_goes_where_a_text_begins_and_stays_elsewhere(scored):
    ours, _ = scored
    ids = ours.encode("the cab")
    assert ours.decode(ids) == "the cab" and ours.decode_bytes(ids) == b" the cab"
    assert ours.decode_bytes([1, *ids]) == b"the cab" and ours.decode_bytes([*ids, 2]) == b" the cab</s>"
    assert ours.encode("") == [] and ours.decode([]) == ""
    for number in (-1, ours.vocab_size):
        with pytest.raises(ValueError, match=f"token id {number} is unknown"):
            ours.decode([number])
    with pytest.raises(ValueError, match="half a character"):
        ours.encode("a\ud800")


@real
def test_the_published_tokenizer_is_found_beside_its_model():
    beside, itself = load_tokenizer(DATA / "stories260K.bin"), load_tokenizer(DATA / "tok512.bin")
    assert isinstance(beside, ScoredTokenizer) and beside.vocab == itself.vocab
    assert (beside.vocab_size, beside.bos_id, beside.eos_id, beside.start_ids) == (512, 1, 2, [1])
    assert beside.encode("Once upon a time") == [403, 407, 261, 378]


def test_the_tokenizer_beside_a_model_must_have_its_size(tmp_path):
    model = tmp_path / "model.bin"
    model.write_bytes(struct.pack("<7i", 8, 8, 1, 1, 1, -261, 8))
    with pytest.raises(FileNotFoundError, match=r"tok261\.bin does not exist, nor tokenizer\.bin"):
        load_tokenizer(model)
    write_scored(tmp_path / "tokenizer.bin", ["a", "b", "ab"])
    with pytest.raises(ValueError, match="has 262 tokens, and .*model.bin knows 261"):
        load_tokenizer(model)
    write_scored(tmp_path / "tok261.bin", ["a", "b"])
    assert load_tokenizer(model).vocab_size == 261


def test_of_two_equal_pieces_the_first_counts_and_the_names_of_bytes_are_no_pieces(tmp_path):
    ours = load_tokenizer(write_scored(tmp_path / "tok.bin", ["a", "b", "ab", "ab", "a", "<", "0"]))
    assert ours.encode("ab")[1:] == [261] and ours.encode("a")[1:] == [259]
    assert ours.decode(ours.encode("<0x41>")) == "<0x41>" and 3 + 0x41 not in ours.encode("<0x41>")


def test_a_file_of_pieces_has_at_least_the_marks_and_the_bytes(tmp_path):
    assert load_tokenizer(write_scored(tmp_path / "tok.bin", [])).decode([3 + 0xC3, 3 + 0xA9]) == "é"
    path = tmp_path / "tok.bin"
    path.write_bytes(path.read_bytes()[: -8 - len("<0xFF>")])
    with pytest.raises(ValueError, match="it has 258 pieces: 3 marks and 256 bytes are the least"):
        load_tokenizer(path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda content: b"", "0 pieces"), (lambda content: content[:3], "0 pieces"),
        (lambda content: content[:400], "piece"), (lambda content: content[:-1], "no piece begins"),
        (lambda content: content + b"\0", "no piece begins"), (lambda content: content[:8] + b"\xff" * 4, "no piece"),
        (lambda content: content[:8] + b"\xff\xff\xff\x7f" + content[12:], "no piece begins"),
        (lambda content: content[:4] + struct.pack("<f", float("nan")) + content[8:], "no piece begins"),
    ],
)
def test_a_broken_file_of_pieces_is_refused_in_one_line(change, words, tmp_path):
    path = write_scored(tmp_path / "tok.bin", WORDS)
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ValueError, match=words) as caught:
        load_tokenizer(path)
    assert "tok.bin is no whole llama2.c tokenizer" in str(caught.value) and "\n" not in str(caught.value)
