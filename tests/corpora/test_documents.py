"""What reading text promises: whole documents are held out, and what is held out is never trained on."""

import re

import pytest

from corpora import stories
from corpora.documents import END_OF_TEXT, load_corpus, load_file, load_stories


def documents(count: int) -> list[str]:
    """Different documents of different sizes, with blank lines inside."""
    return [f"Document {i} begins.\n\nIt has {'many ' * (i % 7)}words.\n\nIt is \u00fcber." for i in range(count)]


def written(folder, texts: list[str]):
    """The path of a file of documents, each closed by the mark."""
    path = folder / "few words.txt"
    path.write_text("".join(f"{text}\n{END_OF_TEXT}\n" for text in texts), encoding="utf-8")
    return path


def test_a_file_is_split_between_documents_and_none_is_lost(tmp_path):
    many = documents(400)
    corpus = load_file(written(tmp_path, many))
    assert sorted(corpus.train + corpus.validation) == sorted(many)
    assert 400 // 40 <= len(corpus.validation) <= 400 // 10
    assert (corpus.name, corpus.floor) == ("few words", None)


def test_a_held_out_document_is_never_trained_on_even_if_it_occurs_twice(tmp_path):
    many = documents(300)
    corpus = load_file(written(tmp_path, many + many[::-1]))
    assert not set(corpus.train) & set(corpus.validation)
    assert all((corpus.train + corpus.validation).count(text) == 2 for text in many)


def test_a_document_stays_on_its_side_when_others_come_and_go(tmp_path):
    some = load_file(written(tmp_path, documents(200)[::2]))
    every = load_file(written(tmp_path, documents(200)))
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
    corpus = load_file(path)
    assert ("".join(corpus.train), "".join(corpus.validation)) == ("0123456789" * 9, "0123456789")


@pytest.mark.parametrize(("content", "message"), [
    (None, "No such file or directory"),
    (b"", "0 letters are too few"),
    (b"x", "1 letters are too few"),
    (b"\x89PNG\r\n\x1a\n" + bytes(range(256)), "byte 0 is not UTF-8 text"),
    ("Es war sch\u00f6n.".encode("latin-1"), "byte 10 is not UTF-8 text"),
])  # fmt: skip
def test_what_cannot_be_learned_from_is_refused_in_one_line_that_names_it(content, message, tmp_path):
    path = tmp_path / "some.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(f"--data {path}: ") + f".*{message}.*; ") as caught:
        load_corpus(str(path))
    assert "\n" not in str(caught.value)


def test_a_folder_is_refused_in_one_line_that_names_it(tmp_path):
    with pytest.raises(ValueError, match=re.escape(f"--data {tmp_path}: ") + "Is a directory; give") as caught:
        load_corpus(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_stories_are_told_anew_for_each_seed_and_come_with_the_floor_of_the_held_out_ones():
    corpus = load_stories(seed=3, num_train=120, num_validation=30)
    assert (corpus.name, len(corpus.train), len(corpus.validation)) == ("stories", 120, 30)
    assert corpus == load_stories(seed=3, num_train=120, num_validation=30)
    assert corpus.floor == stories.floor_bits_per_byte(corpus.validation)
    other = load_stories(seed=4, num_train=120, num_validation=30)
    told = [corpus.train, corpus.validation, other.train, other.validation]
    assert len(set().union(*told)) == sum(map(len, told))


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
    with pytest.raises(ValueError, match="too few"):
        load_corpus(str(path))
