"""Promises of chapter 2: any text comes back unchanged, and every library gives the same ids."""

import hashlib
import os
import tracemalloc
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import regex
import requests
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from chapters import ch02_splitting
from chapters.ch02_files import bytes_to_letters
from chapters.ch02_merges import apply_merges, learn_merges, learn_merges_slow
from chapters.ch02_splitting import GPT2_PATTERN, WordSplitter, newer_letters
from chapters.ch02_tokenization import END_OF_TEXT, BPETokenizer

# Examples drawn by rule, the same in every run, without a limit that a busy machine could break.
unhurried = settings(deadline=None, derandomize=True, database=None, max_examples=100)

# The split rules of other families: numbers in threes and line ends kept with marks; capitals told apart.
THREES = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CAPITALS = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lo}\p{M}]*[\p{Ll}\p{Lo}\p{M}]+(?i:'s|'t|'ll)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lo}\p{M}]+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
PATTERNS = {"gpt2": GPT2_PATTERN, "threes": THREES, "capitals": CAPITALS}

# A Han letter of Unicode 17, one of the youngest, which not every library knows as a letter.
YOUNG = "\U000323b0"
TEXT = (
    "The king's dog met the queen's cat. They've said: \"We'll go!\" and they'd gone, 1234 times.\n\n"
    "Ein Bär läßt größere Brötchen übrig; 国王和女王在花园里，国王笑了。 👩‍👩‍👧‍👦👩‍👧 e\u0301te\u0301 "
    f"\tdef f(x):\n        return x  # 国{YOUNG}王国{YOUNG}王 !{YOUNG}! !{YOUNG}!\r\n\r\n    \n   \n"
)
HARD_TEXTS = [
    "", " ", "a", "\n", "\0", "\0\0\0 \0", "  \n \n\n  x", "x   ", "   x", "\r\n\r\n",
    "\u3000\u00a0 \u2028x\x85", "aaaaaaa", "x" * 300, "ab" * 400, " " * 700 + "x",
    "it's IT'S 'tis ''s 'lll 've", "İıſK ß", "1234567890 ½ ² ٣ 十二",
    "国王和女王在花园里", "👩‍👩‍👧‍👦🏳️‍🌈 é e\u0301", "\ufffd\ufffe\uffff\U0010ffff",
    f"国{YOUNG}王 {YOUNG}! a{YOUNG}b1{YOUNG}", "<|endoftext|>", "<|endof", TEXT,
]


@pytest.fixture(scope="module", params=PATTERNS)
def trained(request) -> BPETokenizer:
    """A tokenizer of 380 tokens for each split rule, two of them special."""
    return BPETokenizer.train([TEXT, TEXT], 380, (END_OF_TEXT, "<|pad|>"), PATTERNS[request.param])


@pytest.fixture(scope="module")
def plain() -> BPETokenizer:
    """A tokenizer of 400 tokens with the default rule."""
    return BPETokenizer.train(TEXT, 400)


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory) -> BPETokenizer:
    """GPT-2's published vocabulary, put where tiktoken keeps what it has downloaded."""
    data = Path(os.environ.get("BOOK_TEST_DATA", "")) / "gpt2"
    if not os.environ.get("BOOK_TEST_DATA") or not data.is_dir():
        pytest.skip("needs gpt2/encoder.json and gpt2/vocab.bpe in the folder that BOOK_TEST_DATA names")
    cache = tmp_path_factory.mktemp("cache")
    for name in ("vocab.bpe", "encoder.json"):
        address = f"https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/{name}"
        (cache / hashlib.sha1(address.encode()).hexdigest()).write_bytes((data / name).read_bytes())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(requests, "get", None)
        patch.setenv("TIKTOKEN_CACHE_DIR", str(cache))
        return BPETokenizer.from_tiktoken("gpt2")


def tokenizers_of(tokenizer: BPETokenizer, folder: Path) -> dict:
    """The same tokenizer in other libraries, as functions from text to ids in which special tokens count."""
    path = tokenizer.save(folder)
    theirs, auto = Tokenizer.from_file(str(path)), AutoTokenizer.from_pretrained(folder)
    fast, loaded = tokenizer.to_tiktoken(), BPETokenizer.load(folder)
    return {
        "tiktoken": lambda text: fast.encode(text, allowed_special="all"),
        "tokenizers": lambda text: theirs.encode(text).ids,
        "transformers": lambda text: auto(text)["input_ids"],
        "loaded": lambda text: loaded.encode(text, allow_special=True),
    }


def merges_by_brute_force(text: str, num_merges: int) -> list:
    """Merges learned in the most literal way, from all words of the text as they come."""
    words = [[bytes([byte]) for byte in word.encode()] for word in regex.findall(GPT2_PATTERN, text)]
    merges = []
    for _ in range(num_merges):
        counts = Counter(pair for word in words for pair in pairwise(word))
        if not counts:
            break
        top = max(counts.values())
        pair = max(pair for pair in counts if counts[pair] == top)
        merges.append(pair)
        for word in words:
            i = 0
            while i + 1 < len(word):
                if (word[i], word[i + 1]) == pair:
                    word[i : i + 2] = [word[i] + word[i + 1]]
                i += 1
    return merges


# Learning


WORDS = st.text("abc", min_size=1, max_size=12).map(str.encode)


@given(st.dictionaries(WORDS, st.integers(1, 5), max_size=12))
@unhurried
def test_fast_and_slow_training_learn_the_same_merges(word_counts):
    assert learn_merges(word_counts, 30) == learn_merges_slow(word_counts, 30)


@given(st.text("ab cé国", max_size=200))
@unhurried
def test_training_learns_what_counting_the_whole_text_finds(text):
    assert BPETokenizer.train(text, 257 + 25).merges == merges_by_brute_force(text, 25)


def test_training_on_real_text_learns_what_counting_finds():
    text = TEXT.replace(YOUNG, "X")
    assert BPETokenizer.train(text, 257 + 100).merges == merges_by_brute_force(text, 100)


def test_a_tie_goes_to_the_greater_pair_of_byte_strings():
    assert learn_merges({b"ab": 2, b"xy": 2, b"mn": 2}, 3) == [(b"x", b"y"), (b"m", b"n"), (b"a", b"b")]
    first = {b"ab": 9, b"abc": 1, b"abx": 1}
    assert learn_merges(first, 3) == [(b"a", b"b"), (b"ab", b"x"), (b"ab", b"c")]
    # "ab" is the beginning of "abc", and the longer one is the greater.
    longer = {b"abd": 6, b"abcd": 5, b"abc": 9, b"ab": 9, b"cd": 1}
    assert learn_merges(longer, 6) == learn_merges_slow(longer, 6)


def test_no_token_is_learned_twice():
    tokenizer = BPETokenizer.train("aaa aaaa aaaaa abab ababab " * 3, 290)
    assert len(set(tokenizer.vocab.values())) == len(tokenizer.vocab)


def test_no_merge_crosses_a_word_or_a_special_token():
    tokenizer = BPETokenizer.train("dog.dog!dog?" * 9 + "zq<|endoftext|>jv" * 99, 300)
    assert all(not (b"g" in token and token[-1:] in b".!?") for token in tokenizer.vocab.values() if token)
    assert not any(b"qj" in token or b"|" in token for number, token in tokenizer.vocab.items()
                   if len(token) > 1 and number != tokenizer.eot_id)


def test_documents_and_one_text_with_boundaries_teach_the_same():
    documents = [TEXT, "the end", "", TEXT[:50]]
    joined = END_OF_TEXT.join(documents)
    assert BPETokenizer.train(documents, 400).merges == BPETokenizer.train(joined, 400).merges


def test_a_long_document_teaches_the_same_when_it_is_read_in_small_blocks(monkeypatch):
    text = f"the dog{END_OF_TEXT}the cat sat. " * 20
    whole = BPETokenizer.train(text, 300).merges
    monkeypatch.setattr(ch02_splitting, "BLOCK_CHARACTERS", 13)
    assert BPETokenizer.train(text, 300).merges == whole


def test_ids_are_bytes_then_merges_then_special_tokens(trained):
    assert [trained.vocab[number] for number in range(256)] == [bytes([byte]) for byte in range(256)]
    products = [left + right for left, right in trained.merges]
    assert [trained.vocab[number] for number in range(256, 378)] == products
    assert trained.special_tokens == {END_OF_TEXT: 378, "<|pad|>": 379}
    assert (trained.eot_id, trained.vocab_size) == (378, 380)


def test_a_short_text_gives_a_smaller_vocabulary_and_a_tiny_size_is_refused():
    assert BPETokenizer.train("abc", 1000).vocab_size == 256 + 2 + 1
    assert BPETokenizer.train([], 1000, ()).vocab_size == 256
    with pytest.raises(ValueError, match="vocab_size 256 is too small: .* 257"):
        BPETokenizer.train(TEXT, 256)


# Encoding


@pytest.fixture(scope="module")
def libraries(trained, tmp_path_factory) -> dict:
    """The trained tokenizer in the other libraries, built once for many texts."""
    return tokenizers_of(trained, tmp_path_factory.mktemp("folder"))


@pytest.mark.parametrize("text", HARD_TEXTS, ids=lambda text: ascii(text[:9]))
def test_every_library_gives_the_same_ids_and_the_text_comes_back(trained, libraries, text):
    ids = trained.encode(text, allow_special=True)
    assert trained.decode(ids) == text
    for name, encode in libraries.items():
        assert encode(text) == ids, name


@given(text=st.text(max_size=60) | st.text("aé国 '1\n!sST" + YOUNG, max_size=60))
@unhurried
def test_ids_agree_with_every_library_on_any_text(trained, libraries, text):
    ids = trained.encode(text)
    assert trained.decode(ids) == text
    assert all(encode(text) == ids for encode in libraries.values())


def test_letters_of_every_age_are_cut_as_tiktoken_and_tokenizers_cut_them(libraries, trained):
    text = "".join(f"é{letter}国 {letter}! " for letter in sorted(newer_letters())[::7])
    assert trained.encode(text) == libraries["tiktoken"](text) == libraries["tokenizers"](text)


def test_every_word_rule_keeps_the_whole_text(trained):
    splitter = WordSplitter(trained.pattern, [])
    assert all("".join(splitter.words(text)) == text for text in HARD_TEXTS)


@given(st.text(st.one_of(st.characters(max_codepoint=127), st.sampled_from(" \n's\x1c\x85"))))
def test_ascii_text_is_split_by_pythons_own_re_as_by_the_rule(text):
    assert WordSplitter(GPT2_PATTERN, []).words(text) == regex.findall(GPT2_PATTERN, text)


@given(st.text("ab", max_size=40))
@unhurried
def test_replaying_all_merges_is_the_same_as_gluing_by_rank(text):
    tokenizer = BPETokenizer.train("abab abba aab bba baab aaaa bbbb babab", 275)
    data = text.encode()
    expected = [tokenizer._ids[token] for token in apply_merges(data, tokenizer._ranks)]
    assert tokenizer._encode_long_word(data) == expected


def test_gpt2_cuts_words_as_published(gpt2):
    assert [gpt2.decode([number]) for number in gpt2.encode("unbelievably")] == ["un", "bel", "iev", "ably"]
    assert len(gpt2.encode(" unbelievably")) == 1
    assert (gpt2.vocab_size, gpt2.eot_id) == (50257, 50256)


def test_gpt2s_merges_are_recovered_from_its_ranks(gpt2):
    lines = (Path(os.environ["BOOK_TEST_DATA"]) / "gpt2" / "vocab.bpe").read_text("utf-8").splitlines()[1:]
    assert [f"{bytes_to_letters(left)} {bytes_to_letters(right)}" for left, right in gpt2.merges] == lines


def test_gpt2s_ids_agree_with_tiktoken_and_tokenizers(gpt2, tmp_path):
    libraries = tokenizers_of(gpt2, tmp_path)
    for text in HARD_TEXTS:
        ids = gpt2.encode(text, allow_special=True)
        assert ids == libraries["tiktoken"](text) == libraries["tokenizers"](text)
        assert gpt2.decode(ids) == text


def test_ten_megabytes_come_back(plain):
    for text in (TEXT * (10_000_000 // len(TEXT)), "ab" * 5_000_000, " " * 10_000_000 + "x"):
        assert plain.decode(plain.encode(text)) == text


# Special tokens


def test_ordinary_text_never_gives_a_special_id(trained):
    ids = trained.encode("a<|endoftext|>b<|pad|>")
    assert not set(ids) & set(trained.special_tokens.values())
    assert trained.decode(ids) == "a<|endoftext|>b<|pad|>"


def test_special_tokens_are_never_split(trained):
    ids = trained.encode(f"a{END_OF_TEXT}{END_OF_TEXT} b", allow_special=True)
    assert ids == [97, trained.eot_id, trained.eot_id, *trained.encode(" b")]


def test_the_longest_special_token_wins():
    tokenizer = BPETokenizer.train(TEXT, 300, ("<|a|>", "<|a|><|b|>"))
    assert tokenizer.encode("<|a|><|b|><|a|>", allow_special=True) == [299, 298]


# Streams and bulk


@given(st.data())
@unhurried
def test_a_stream_gives_the_ids_of_the_whole_wherever_it_is_cut(trained, data):
    text = data.draw(st.text("ab1 '.\né国\u0301s" + YOUNG, max_size=80) | st.just(TEXT + END_OF_TEXT + TEXT))
    text += data.draw(st.sampled_from(["", END_OF_TEXT, "<|endoftext", f"a{END_OF_TEXT}b c {END_OF_TEXT}"]))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    chunks = [text[a:b] for a, b in pairwise([0, *cuts, len(text)])]
    special = data.draw(st.booleans())
    whole = trained.encode(text, special)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ch02_splitting, "BLOCK_CHARACTERS", data.draw(st.integers(1, 40)))
        assert list(trained.encode_iterable(chunks, special)) == whole


def test_a_stream_needs_no_more_memory_when_it_is_longer(plain):
    line = TEXT + "the end."

    def peak(copies: int) -> int:
        tracemalloc.start()
        count = sum(1 for _ in plain.encode_iterable(line for _ in range(copies)))
        assert count == len(plain.encode(line)) * copies
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return size

    peak(1)
    assert peak(1600) < 1.5 * peak(400)


def test_bulk_gives_the_ids_of_each_document_with_the_end_token_behind_it(trained):
    documents = [*HARD_TEXTS, TEXT * 300, f"{END_OF_TEXT}x{END_OF_TEXT}", "", "the end"]
    ids, ends = trained.encode_documents(iter(documents))
    assert ids.dtype == np.uint16 and len(ends) == len(documents)
    for document, start, end in zip(documents, [0, *ends], ends, strict=False):
        assert ids[start:end].tolist() == [*trained.encode(document), trained.eot_id]


def test_bulk_takes_a_million_spaces_which_crash_tiktoken(plain):
    spaces = " " * 1_500_000 + "x"
    ids, ends = plain.encode_documents(["the end", spaces])
    assert len(ends) == 2 and plain.decode(ids[ends[0] : -1]) == spaces


def test_bulk_never_ends_a_document_that_spells_the_mark_across_a_block(plain, monkeypatch):
    monkeypatch.setattr(ch02_splitting, "BLOCK_CHARACTERS", 11)
    documents = [f"ab{END_OF_TEXT}cd"] * 40
    ids, ends = plain.encode_documents(documents)
    assert len(ends) == 40 and np.count_nonzero(ids == plain.eot_id) == 40


def test_bulk_of_nothing_is_nothing_and_a_vocabulary_without_the_mark_is_refused(plain):
    ids, ends = plain.encode_documents([])
    assert (ids.shape, ends.shape) == ((0,), (0,))
    with pytest.raises(ValueError, match="endoftext"):
        BPETokenizer.train(TEXT, 300, ()).encode_documents(["a"])


def test_a_large_vocabulary_gets_wide_ids():
    tokenizer = BPETokenizer({byte: bytes([byte]) for byte in range(256)}, [], {END_OF_TEXT: 70_000})
    ids, _ = tokenizer.encode_documents(["ab"])
    assert ids.dtype == np.uint32 and ids.tolist() == [97, 98, 70_000]


# Decoding and bad input


def test_half_an_emoji_decodes_to_the_replacement_mark(plain):
    assert plain.decode("👩".encode()[:2]) == "\ufffd"
    assert plain.decode(np.array([104, 105, plain.eot_id], np.uint16)) == "hi<|endoftext|>"


@pytest.mark.parametrize("number", [-1, 400, 10**9])
def test_an_unknown_id_is_named(plain, number):
    with pytest.raises(ValueError, match=f"token id {number} is unknown: ids go from 0 to 399"):
        plain.decode([1, number])


def test_a_lone_surrogate_is_refused_by_every_way_in(plain):
    bulk, train = (lambda text: plain.encode_documents([text])), (lambda text: BPETokenizer.train(text, 300))
    for work in (plain.encode, bulk, train):
        with pytest.raises(ValueError, match=r"lone surrogate U\+D83D"):
            work("ab\ud83dcd")


def test_parts_that_do_not_fit_are_refused():
    bytes_alone = {byte: bytes([byte]) for byte in range(256)}
    for vocab, merges, special, message in [
        ({0: b"a"}, [], {}, "lacks 255 of the 256"),
        (bytes_alone | {256: b"a"}, [], {}, "two ids the same bytes"),
        (bytes_alone | {256: b"ab"}, [], {}, "made by no merge"),
        (bytes_alone | {256: b"abc"}, [(b"ab", b"c")], {}, "unknown part"),
        (bytes_alone, [(b"a", b"b")], {}, "unknown part"),
        (bytes_alone, [], {"<a>": 300, "<b>": 300}, "same id"),
        (bytes_alone, [], {"": 300}, "special token is empty"),
    ]:
        with pytest.raises(ValueError, match=message):
            BPETokenizer(vocab, merges, special)
    with pytest.raises(ValueError, match="has a group"):
        BPETokenizer(bytes_alone, [], {}, "(a)|b")
    with pytest.raises(ValueError, match="no regular expression"):
        BPETokenizer(bytes_alone, [], {}, "(")
    for pattern in ("a{4294967294}", "(?:a{500}){500}", "a{1,99999999999999999999}"):
        with pytest.raises(ValueError, match="repeats something more than 10000 times"):
            BPETokenizer(bytes_alone, [], {}, pattern)


def test_ids_out_of_order_are_not_given_to_tiktoken():
    vocab = {byte: bytes([byte]) for byte in range(256)} | {256: b"ab", 257: b"cd"}
    tokenizer = BPETokenizer(vocab, [(b"c", b"d"), (b"a", b"b")])
    with pytest.raises(ValueError, match="order of the merges"):
        tokenizer.to_tiktoken()
