"""Chapter 8, tokens on disk: the very rows that memory would hold, written once, and never read when damaged."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest
import torch

from chapters import ch08_store
from chapters.ch02_tokenization import BPETokenizer
from chapters.ch08_data import TokenRows, get_batch
from chapters.ch08_store import file_names, open_store
from corpora.documents import DUPLICATE, TRAIN, VALIDATION, Corpus, Document, load_corpus
from tools.source import ROOT


@pytest.fixture
def texts() -> list[str]:
    """Documents of very different lengths, one of them with the mark in its text."""
    many = [f"Document {i} is {'very ' * (i * i % 97)}gr\u00fcn." for i in range(120)]
    return [*many, "it says <|endoftext|> and goes on", "x"]


@pytest.fixture
def corpus(texts) -> Corpus:
    """The documents, every seventh held out, every eleventh a copy of none."""
    sides = [VALIDATION if i % 7 == 3 else DUPLICATE if i % 11 == 10 else TRAIN for i in range(len(texts))]
    documents = list(map(Document, texts, sides))
    return Corpus("few", lambda: iter(documents), "first edition")


@pytest.fixture
def store(tmp_path, corpus, tokenizer):
    """The documents on disk."""
    return open_store(tmp_path / "cache", corpus, tokenizer)


def contents(folder) -> dict:
    """All files of a folder, with what is in them."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("piece", [1, 300, 1 << 23])
@pytest.mark.parametrize("context", [5, 16, 1000])
def test_rows_from_disk_are_those_from_memory(piece, context, corpus, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(ch08_store, "PIECE_CHARACTERS", piece)
    store = open_store(tmp_path, corpus, tokenizer)
    for side, texts in ((TRAIN, corpus.train), (VALIDATION, corpus.validation)):
        memory, disk = TokenRows(texts, tokenizer, context), store.rows(side, context)
        assert len(memory) == len(disk) and memory.num_bytes == disk.num_bytes
        assert np.array_equal(memory.starts, disk.starts) and np.array_equal(memory.counts, disk.counts)
        for index in (0, 5, 31):
            assert all(map(torch.equal, get_batch(memory, index, 4, 9), get_batch(disk, index, 4, 9)))
        assert isinstance(disk.tokens, np.memmap) and not disk.tokens.flags.writeable


def test_the_two_sides_never_meet_in_a_row(store, tokenizer, corpus):
    seen = set(store.rows(TRAIN, 16).tokens.tolist())
    assert max(seen) < tokenizer.vocab_size
    train = tokenizer.decode(store.rows(TRAIN, 16).tokens)
    assert all(text not in train for text in corpus.validation if len(text) > 1)
    assert store.about["duplicates"] == sum(document.side == DUPLICATE for document in corpus.documents())
    sizes = [store.about[side]["documents"] for side in (TRAIN, VALIDATION)]
    assert sizes == [len(corpus.train), len(corpus.validation)]


def test_a_large_vocabulary_gets_four_bytes_a_token(corpus, tmp_path):
    specials = {"<|endoftext|>": 70_000}
    large = BPETokenizer({i: bytes([i]) for i in range(256)}, [], specials)
    store = open_store(tmp_path, corpus, large)
    memory, disk = TokenRows(corpus.train, large, 16), store.rows(TRAIN, 16)
    assert disk.tokens.dtype.itemsize == 4 and np.array_equal(memory.tokens, disk.tokens) and 70_000 in disk.tokens


def test_a_second_run_reads_nothing_and_writes_nothing(store, corpus, tokenizer):
    before = {path: path.stat().st_mtime_ns for path in store.folder.parent.rglob("*")}

    def unread():
        raise AssertionError("was read again")

    again = open_store(store.folder.parent, dataclasses.replace(corpus, documents=unread), tokenizer)
    assert again == store and again.digest == store.digest
    assert before == {path: path.stat().st_mtime_ns for path in store.folder.parent.rglob("*")}


def test_other_data_and_another_tokenizer_get_files_of_their_own(store, corpus, tokenizer, texts):
    other = dataclasses.replace(corpus, identity="second edition")
    larger = BPETokenizer.train(texts, 310)
    folders = [open_store(store.folder.parent, *pair).folder for pair in ((other, tokenizer), (corpus, larger))]
    assert len({store.folder, *folders}) == 3
    assert open_store(store.folder.parent, other, tokenizer).digest == store.digest


@pytest.mark.parametrize("name", [*file_names(), "about.json"])
@pytest.mark.parametrize("damage", ["short", "other", "gone", "empty", "longer"])
def test_a_file_that_is_damaged_or_foreign_is_made_again(name, damage, store, corpus, tokenizer):
    whole, path = contents(store.folder), store.folder / name
    data = path.read_bytes()
    kinds = {"short": data[:-2], "other": data[:5] + bytes([data[5] ^ 1]) + data[6:], "empty": b"", "longer": data * 2}
    path.unlink() if damage == "gone" else path.write_bytes(kinds[damage])
    again = open_store(store.folder.parent, corpus, tokenizer)
    assert contents(again.folder) == whole and again.about == store.about
    assert [path.name for path in store.folder.parent.iterdir()] == [store.folder.name]


def test_an_about_file_that_says_something_else_is_not_believed(store, corpus, tokenizer):
    foreign = json.dumps(store.about | {"key": "other"})
    for about in ("[]", "null", '"text"', "{}", '{"key": 1, "checksums": null}', foreign):
        (store.folder / "about.json").write_text(about)
        assert open_store(store.folder.parent, corpus, tokenizer).about == store.about


def test_text_that_breaks_off_leaves_nothing_behind(tmp_path, corpus, tokenizer):
    def broken():
        yield from corpus.documents()
        raise ValueError("line 7 is bad")

    with pytest.raises(ValueError, match="^line 7 is bad$"):
        open_store(tmp_path / "cache", dataclasses.replace(corpus, documents=broken), tokenizer)
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_full_disk_is_one_line_and_leaves_nothing_behind(tmp_path, corpus, tokenizer, monkeypatch):
    def full(file):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ch08_store, "flush", full)
    with pytest.raises(ValueError, match=r"cannot write the tokens \(No space left on device\); make room"):
        open_store(tmp_path / "cache", corpus, tokenizer)
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path, corpus, tokenizer):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ValueError, match="cannot write the tokens"):
        open_store(tmp_path / "file" / "cache", corpus, tokenizer)


def test_a_killed_run_leaves_no_folder_that_is_taken_for_whole_and_its_rest_is_cleared(tmp_path, tokenizer, corpus):
    tokenizer.save(tmp_path)
    script = textwrap.dedent(f"""
        import pathlib, signal, os
        from chapters.ch02_tokenization import BPETokenizer
        from chapters import ch08_store
        from corpora.documents import Corpus, Document
        def texts():
            yield from (Document(f"text {{i}}", side) for i in range(99) for side in ("train", "validation"))
            os.kill(os.getpid(), signal.SIGKILL)
        ch08_store.PIECE_CHARACTERS, folder = 50, pathlib.Path({str(tmp_path)!r})
        ch08_store.open_store(folder / "cache", Corpus("x", texts, "first edition"), BPETokenizer.load(folder))
    """)
    subprocess.run([sys.executable, "-c", script], cwd=ROOT)
    (left,) = (tmp_path / "cache").iterdir()
    open_store(tmp_path / "cache", corpus, tokenizer)
    assert left.exists()
    long_ago = time.time() - 2 * ch08_store.ABANDONED_SECONDS
    for path in [*left.rglob("*"), left]:
        os.utime(path, (long_ago, long_ago))
    other = dataclasses.replace(corpus, identity="other")
    folders = {open_store(tmp_path / "cache", c, tokenizer).folder for c in (corpus, other)}
    assert set((tmp_path / "cache").iterdir()) == folders


def test_two_runs_that_make_the_same_tokens_at_once_both_get_them(tmp_path, corpus, tokenizer):
    def slow():
        first = list(corpus.documents())
        yield first[0]
        open_store(tmp_path, corpus, tokenizer)
        yield from first[1:]

    store = open_store(tmp_path, dataclasses.replace(corpus, documents=slow), tokenizer)
    assert store == open_store(tmp_path, corpus, tokenizer)
    assert list(tmp_path.iterdir()) == [store.folder]


def test_a_corpus_of_files_is_tokenized_anew_when_a_file_changes(tmp_path, texts, tokenizer):
    path = tmp_path / "a.txt"
    path.write_text("<|endoftext|>".join(texts[:-2]), encoding="utf-8")
    first = open_store(tmp_path / "cache", load_corpus(str(path)), tokenizer)
    os.utime(path, (1, 1))
    touched = open_store(tmp_path / "cache", load_corpus(str(path)), tokenizer)
    assert touched.folder != first.folder and touched.digest == first.digest
    path.write_text("<|endoftext|>".join(texts[1:-2]), encoding="utf-8")
    assert open_store(tmp_path / "cache", load_corpus(str(path)), tokenizer).digest != first.digest
    shutil.rmtree(tmp_path / "cache")


def test_a_sample_is_an_even_part_of_the_rows_with_their_own_bytes(store, tokenizer):
    rows = store.rows(TRAIN, 16)
    assert rows.sample(int(rows.counts.sum()), tokenizer) is rows
    some = rows.sample(int(rows.counts.sum()) // 3, tokenizer)
    assert np.array_equal(some.starts, rows.starts[::4]) or np.array_equal(some.starts, rows.starts[::3])
    x, y = some.rows(np.arange(len(some)))
    ids = [token for row, n in zip(y.tolist(), some.counts, strict=True) for token in row[:n]]
    text = tokenizer.decode_bytes(token for token in ids if token != tokenizer.eot_id)
    assert some.num_bytes == len(text) < rows.num_bytes and len(rows) == len(store.rows(TRAIN, 16))
