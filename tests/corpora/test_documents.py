"""What reading text promises: whole documents are held out, and what is held out is never trained on."""

import itertools
import json
import random
import re
import tracemalloc

import pytest

from corpora import documents as module
from corpora import stories
from corpora.documents import DUPLICATE, TRAIN, VALIDATION, Seen, load_corpus, load_stories, lot, short_name, survey
from corpora.readers import END_OF_TEXT


def documents(count: int) -> list[str]:
    """Different documents of different sizes, with blank lines inside."""
    return [f"Document {i} begins.\n\nIt has {'many ' * (i % 7)}words.\n\nIt is \u00fcber." for i in range(count)]


def written(folder, texts: list[str]):
    """The path of a file of documents, each closed by the mark."""
    path = folder / "few words.txt"
    path.write_text("".join(f"{text}\n{END_OF_TEXT}\n" for text in texts), encoding="utf-8")
    return str(path)


def test_a_file_is_split_between_documents_and_none_is_lost(tmp_path):
    many = documents(400)
    corpus = load_corpus(written(tmp_path, many))
    assert sorted(corpus.train + corpus.validation) == sorted(many)
    assert 400 // 40 <= len(corpus.validation) <= 400 // 10
    assert (corpus.name, corpus.floor) == ("few-words", None)
    assert [document.text for document in corpus.documents()] == many


def test_a_held_out_document_is_never_trained_on_even_if_it_occurs_twice(tmp_path):
    many = documents(300)
    corpus = load_corpus(written(tmp_path, many + many[::-1]))
    assert not set(corpus.train) & set(corpus.validation)
    assert all((corpus.train + corpus.validation).count(text) == 2 for text in many)


def test_a_document_stays_on_its_side_when_others_come_and_go(tmp_path):
    (tmp_path / "some").mkdir()
    some = load_corpus(written(tmp_path / "some", documents(200)[::2]))
    every = load_corpus(written(tmp_path, documents(200)))
    assert set(some.train) < set(every.train) and set(some.validation) <= set(every.validation)


def test_a_single_document_is_cut_at_a_paragraph_with_its_end_held_out(tmp_path):
    path = tmp_path / "novel.txt"
    text = "\n\n".join(f"Paragraph {i} tells\nmore and more." for i in range(50))
    path.write_text(text, encoding="utf-8")
    corpus = load_corpus(str(path))
    (start,), (end,) = corpus.train, corpus.validation
    assert start + "\n\n" + end == text and end.startswith("Paragraph ")
    assert len(text) * 9 // 10 <= len(start) < len(text) * 19 // 20


def test_a_single_document_of_one_paragraph_is_cut_at_nine_tenths(tmp_path):
    path = tmp_path / "line.txt"
    path.write_text("0123456789" * 10, encoding="utf-8")
    corpus = load_corpus(str(path))
    assert ("".join(corpus.train), "".join(corpus.validation)) == ("0123456789" * 9, "0123456789")


@pytest.mark.parametrize(("content", "message"), [
    (None, "no such file, folder or match"),
    (b"", "holds no text"),
    (b" \n \n", "holds no text"),
    (b"x", "1 letters are too few"),
    (b"\x89PNG\r\n\x1a\n" + bytes(range(256)), "byte 8 is NUL, so this is no text file"),
    ("Es war sch\u00f6n.".encode("latin-1"), "byte 10 is not UTF-8 text"),
])  # fmt: skip
def test_what_cannot_be_learned_from_is_refused_in_one_line_that_names_it(content, message, tmp_path):
    path = tmp_path / "some.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(f"--data {path}: ") + f".*{message}.*; ") as caught:
        load_corpus(str(path))
    assert "\n" not in str(caught.value)


def test_stories_are_told_anew_for_each_seed_and_come_with_the_floor_of_the_held_out_ones():
    corpus = load_stories(seed=3, num_train=120, num_validation=30)
    assert (corpus.name, len(corpus.train), len(corpus.validation)) == ("stories", 120, 30)
    again = load_stories(seed=3, num_train=120, num_validation=30)
    assert (list(again.documents()), again.identity) == (list(corpus.documents()), corpus.identity)
    assert corpus.floor == stories.floor_bits_per_byte(corpus.validation)
    other = load_stories(seed=4, num_train=120, num_validation=30)
    told = [corpus.train, corpus.validation, other.train, other.validation]
    assert len(set().union(*told)) == sum(map(len, told)) and other.identity != corpus.identity


def test_a_held_out_story_that_is_also_trained_on_is_left_out(monkeypatch):
    one, two, three = stories.generate(3, seed=8)
    monkeypatch.setattr(stories, "generate", lambda count, seed: [one, two] if seed % 2 == 0 else [two, three])
    corpus = load_corpus("stories", seed=5)
    assert (corpus.train, corpus.validation) == ([one, two], [three])
    assert corpus.floor == stories.floor_bits_per_byte([three])


def test_a_few_documents_still_leave_one_to_examine_with(tmp_path):
    for count in range(2, 9):
        path = tmp_path / f"few{count}.txt"
        path.write_text("<|endoftext|>".join(f"Document {n} of {count}. " * 20 for n in range(count)), encoding="utf-8")
        corpus = load_corpus(str(path))
        assert corpus.validation and corpus.train and len(corpus.train) + len(corpus.validation) == count


def test_the_mark_of_a_single_document_is_never_text(tmp_path):
    path = tmp_path / "one.txt"
    path.write_text("<|endoftext|>" + "A long line of words. " * 40 + "<|endoftext|>\n\n", encoding="utf-8")
    corpus = load_corpus(str(path))
    assert not any("<|endoftext|>" in text for text in corpus.train + corpus.validation)
    path.write_text("<|endoftext|> \n <|endoftext|>", encoding="utf-8")
    with pytest.raises(ValueError, match="holds no text"):
        load_corpus(str(path))


def lucky(count: int, held_out: bool) -> list[str]:
    """Texts whose lots are all held out, or all not."""
    candidates = (f"Text number {i}." for i in itertools.count())
    return list(itertools.islice((t for t in candidates if (lot(t) < module.HELD_OUT_LOTS) == held_out), count))


@pytest.mark.parametrize("texts", [lucky(3, True), lucky(30, False), lucky(2, True) * 3, lucky(2, False) * 5])
def test_where_the_lots_put_all_on_one_side_the_smallest_is_held_out(texts, tmp_path):
    corpus = load_corpus(written(tmp_path, texts))
    assert set(corpus.validation) == {min(texts, key=lot)}
    assert set(corpus.train) == set(texts) - set(corpus.validation)


def test_only_as_much_is_read_before_the_start_as_is_needed_to_share_out():
    read = []

    def endless():
        for i in itertools.count():
            read.append(i)
            yield f"Text number {i}."

    assert survey(endless, "x") == (module.HELD_OUT_LOTS - 1, None)
    assert 1 < len(read) < 200


def test_one_document_and_its_copies_are_cut_in_two(tmp_path):
    text = "\n\n".join(f"Paragraph {i}." for i in range(40))
    for copies in (1, 3):
        corpus = load_corpus(written(tmp_path, [text] * copies))
        assert corpus.train[0] + "\n\n" + corpus.validation[0] == text
        assert len(corpus.train) == len(corpus.validation) == 1


def test_cleaning_drops_each_copy_once_and_counts_it(tmp_path):
    many = documents(300)
    path = written(tmp_path, many + many[::3] + many[::5])
    sides = [document.side for document in load_corpus(path, clean=True).documents()]
    assert sides.count(DUPLICATE) == 100 + 60 and len(sides) == 460
    clean, raw = load_corpus(path, clean=True), load_corpus(path)
    assert sorted(clean.train + clean.validation) == sorted(many)
    assert set(clean.validation) == set(raw.validation) and clean.identity != raw.identity
    assert {document.side for document in raw.documents()} == {TRAIN, VALIDATION}


def test_seen_agrees_with_a_set_in_a_fraction_of_its_memory():
    dice = random.Random(3)
    numbers = [dice.choice((0, 1, 2**64 - 1, dice.getrandbits(64), dice.randrange(9999) << 50)) for _ in range(30000)]
    seen, known = Seen(), set()
    for number in numbers:
        assert seen.add(number) == (number not in known) or number in (0, 1)
        known.add(number)
    tracemalloc.start()
    seen = Seen()
    for _ in range(100_000):
        seen.add(dice.getrandbits(64))
    assert tracemalloc.get_traced_memory()[0] / 100_000 < 24.5
    tracemalloc.stop()


def test_the_beginning_of_a_corpus_is_read_without_its_end(tmp_path):
    path = tmp_path / "a.jsonl"
    many = documents(200)
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in many) + "no json", encoding="utf-8")
    corpus = load_corpus(str(path))
    start = corpus.beginning(1000)
    assert start == [text for text in many if lot(text) >= module.HELD_OUT_LOTS][: len(start)]
    assert len("".join(start)) >= 1000 > len("".join(start[:-1]))
    with pytest.raises(ValueError, match="line 201 is no JSON"):
        list(corpus.documents())


@pytest.mark.parametrize(("data", "name"), [
    ("/data/few words.txt", "few-words"), ("/data/*.txt", "data"), ("texts/**/*.jsonl", "texts"), ("/", "text"),
    ("hf:some/name", "name"), ("hf:some/name:train[:1%]", "name-train-1"), ("..", "text"), ("python", "python"),
])  # fmt: skip
def test_every_run_gets_a_name_that_a_folder_can_have(data, name):
    assert short_name(data) == name
