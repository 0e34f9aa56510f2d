"""What reading promises: every kind of source gives its documents in order, and a bad one says where and why."""

import importlib
import itertools
import json
import re
import sys
import threading
import tracemalloc
import types
from pathlib import Path

import pytest

from corpora import readers
from corpora.readers import END_OF_TEXT, decoded, open_source, read_text

TEXTS = ["One.\n\nStill one.", "Zwei war sch\u00f6n.", "three \U0001f600 " * 9]


def read(data: object, text_field: str = "text") -> list[str]:
    """All documents of a source."""
    return list(open_source(str(data), text_field).read())


def lines(path: Path, rows: list) -> Path:
    """A .jsonl file of these rows."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_marks_separate_documents_and_empty_ones_are_left_out(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text(f"\n{END_OF_TEXT}\n".join([*TEXTS, " \n", ""]), encoding="utf-8")
    assert read(path) == TEXTS


@pytest.mark.parametrize("block", [1, 2, 3, 7, 1 << 20])
def test_a_file_read_in_blocks_of_any_size_is_the_same_text(block, tmp_path, monkeypatch):
    path, text = tmp_path / "a.txt", "\r\n".join(TEXTS) + f"a\rb{END_OF_TEXT}c\r\n{END_OF_TEXT[:5]}"
    path.write_bytes(text.encode())
    monkeypatch.setattr(readers, "BLOCK_BYTES", block)
    assert "".join(decoded(path)) == path.read_text(encoding="utf-8")
    assert list(read_text(path)) == path.read_text(encoding="utf-8").split(END_OF_TEXT)[:1] + [f"c\n{END_OF_TEXT[:5]}"]


@pytest.mark.parametrize("block", [1, 5, 1 << 20])
def test_the_place_of_a_byte_that_is_no_text_is_told_wherever_it_stands(block, tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "BLOCK_BYTES", block)
    for content, message in [(b"sch\xc3\xb6n \xff", "byte 7 is not UTF-8"), (b"half \xc3", "byte 5 is not UTF-8"),
                             ("\u00f6\u00f6\u00f6\u00f6\u00f6\0".encode(), "byte 10 is NUL")]:
        path = tmp_path / "a.txt"
        path.write_bytes(content)
        with pytest.raises(ValueError, match=re.escape(f"--data {path}: {message}") + ".*; "):
            read(path)


def test_a_document_too_long_to_wait_for_comes_in_parts_that_end_with_a_paragraph(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "LONGEST_DOCUMENT", 1000)
    monkeypatch.setattr(readers, "PART_CHARACTERS", 300)
    monkeypatch.setattr(readers, "BLOCK_BYTES", 64)
    paragraphs = [f"Paragraph {i} has {'many ' * (i % 17)}words." for i in range(300)]
    path = tmp_path / "long.txt"
    long = "\n\n".join(paragraphs)
    path.write_text(END_OF_TEXT.join([long, long[:901], "short"]), encoding="utf-8")
    *parts, whole, last = read(path)
    assert "\n\n".join(parts) == long and (whole, last) == (long[:901], "short")
    assert all(100 < len(part) < 400 for part in parts)


def test_a_mark_behind_endless_text_is_still_a_mark(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "LONGEST_DOCUMENT", 100)
    monkeypatch.setattr(readers, "PART_CHARACTERS", 31)
    monkeypatch.setattr(readers, "BLOCK_BYTES", 7)
    for length in range(90, 120):
        path = tmp_path / "x.txt"
        path.write_text("x" * length + END_OF_TEXT + "y", encoding="utf-8")
        *parts, last = read(path)
        assert "".join(parts) == "x" * length and last == "y"


def test_a_long_text_is_read_in_little_memory(tmp_path):
    path = tmp_path / "long.txt"
    path.write_text(f"{'word ' * 2000}{END_OF_TEXT}" * 2000, encoding="utf-8")
    tracemalloc.start()
    assert sum(len(text) for text in open_source(str(path)).read()) == 2000 * 10000
    assert tracemalloc.get_traced_memory()[1] < path.stat().st_size / 3
    tracemalloc.stop()


def test_json_lines_give_the_chosen_field_and_pass_over_what_is_empty(tmp_path):
    rows = [{"text": text, "other": f"o {i}"} for i, text in enumerate(TEXTS)] + [{"text": None, "other": "o 3"}]
    path = lines(tmp_path / "a.jsonl", rows)
    path.write_text(path.read_text(encoding="utf-8") + "\n  \n", encoding="utf-8")
    assert read(path) == TEXTS
    assert read(path, "other") == ["o 0", "o 1", "o 2", "o 3"]


@pytest.mark.parametrize(("line", "message"), [
    ('{"body": "x", "id": 7}', "line 2 has no field 'text'; its fields: 'body', 'id'; choose with --text-field"),
    ("[1]", "line 2 has no field 'text'; its fields: none at all; choose"),
    ('{"text": 7}', "line 2: 'text' is int, not text; choose another --text-field"),
    ('{"text": "x"', "line 2 is no JSON (Expecting ',' delimiter); mend"),
    ("[" * 100_000, "line 2 is no JSON (RecursionError); mend"),
    ('{"text": "x\\ud800"}', "line 2: 'text' holds U+D800, half a character; mend"),
])  # fmt: skip
def test_a_bad_line_is_named_with_its_number(line, message, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "good"}\n' + line + "\n", encoding="utf-8")
    with pytest.raises(ValueError, match=re.escape(f"--data {path}: {message}")) as caught:
        read(path)
    assert "\n" not in str(caught.value)


def test_a_line_that_is_not_utf_8_is_named_with_its_number(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes('{"text": "sch\u00f6n"}\n'.encode("latin-1"))
    with pytest.raises(ValueError, match=r"line 1 is no JSON \(UnicodeDecodeError\)"):
        read(path)


def test_parquet_gives_the_chosen_column_of_all_its_row_groups(tmp_path):
    pyarrow = pytest.importorskip("pyarrow", reason="needs pyarrow: pip install pyarrow")
    parquet = importlib.import_module("pyarrow.parquet")
    many = [f"{text} {i}" for i in range(700) for text in TEXTS]
    table = pyarrow.table({"id": range(len(many) + 2), "body": [*many, None, " "]})
    parquet.write_table(table, tmp_path / "a.parquet", row_group_size=500)
    assert read(tmp_path / "a.parquet", "body") == many
    large = table.set_column(1, "body", table["body"].cast(pyarrow.large_string()).dictionary_encode())
    parquet.write_table(large, tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet", "body") == many
    with pytest.raises(ValueError, match="has no field 'text'; its fields: 'id', 'body'; choose with --text-field"):
        read(tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="'id' is int, not text"):
        read(tmp_path / "a.parquet", "id")


def test_a_damaged_parquet_file_is_refused_in_one_line(tmp_path):
    pyarrow = pytest.importorskip("pyarrow", reason="needs pyarrow: pip install pyarrow")
    path = tmp_path / "a.parquet"
    importlib.import_module("pyarrow.parquet").write_table(pyarrow.table({"text": TEXTS * 900}), path)
    whole = path.read_bytes()
    for content in (b"", b"no parquet at all", whole[: len(whole) // 2], whole[:50] + bytes(40) + whole[90:]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=f"--data {re.escape(str(path))}: .*; (get it again|give a f)") as caught:
            read(path)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("data", "module", "package"),
                         [("a.parquet", "pyarrow.parquet", "pyarrow"), ("hf:some/name", "datasets", "datasets")])
def test_a_missing_package_is_named_with_the_command_that_installs_it(data, module, package, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("a.parquet").touch()
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ValueError, match=f"--data {data}: needs the package {package}; type: pip install {package}$"):
        read(data)


def test_a_folder_gives_all_its_files_in_order_each_read_by_its_ending(tmp_path):
    (tmp_path / "b" / ".git").mkdir(parents=True)
    (tmp_path / "b" / "two.txt").write_text("two", encoding="utf-8")
    lines(tmp_path / "b" / "three.JSONL", [{"text": "three"}, {"text": "four"}])
    (tmp_path / "a.md").write_text("one", encoding="utf-8")
    (tmp_path / "b" / ".git" / "config").write_bytes(bytes(9))
    (tmp_path / ".hidden").write_bytes(bytes(9))
    assert read(tmp_path) == ["one", "three", "four", "two"]


def test_a_glob_gives_what_it_matches_and_a_file_with_a_star_in_its_name_is_that_file(tmp_path):
    for name in ("a1.txt", "a2.txt", "b.txt", "deep/a3.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name, encoding="utf-8")
    assert read(tmp_path / "a*.txt") == ["a1.txt", "a2.txt"]
    assert sorted(read(tmp_path / "**" / "a*.txt")) == ["a1.txt", "a2.txt", "deep/a3.txt"]
    (tmp_path / "a*.txt").write_text("star", encoding="utf-8")
    assert read(tmp_path / "a*.txt") == ["star"]


def test_what_is_not_there_is_said_at_once_in_one_line(tmp_path):
    (tmp_path / "empty").mkdir()
    for name in ("none.txt", "empty", "*.nothing"):
        with pytest.raises(ValueError, match=re.escape(f"{tmp_path / name}: no such file, folder or match; give")):
            open_source(str(tmp_path / name))


def test_a_source_is_another_one_when_a_file_or_the_field_changes(tmp_path):
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text("one", encoding="utf-8")
    before = open_source(str(tmp_path)).identity
    assert before == open_source(str(tmp_path)).identity != open_source(str(tmp_path), "body").identity
    (tmp_path / "b.txt").write_text("two!", encoding="utf-8")
    changed = open_source(str(tmp_path)).identity
    (tmp_path / "b.txt").rename(tmp_path / "c.txt")
    assert len({before, changed, open_source(str(tmp_path)).identity}) == 3


def test_the_python_library_is_its_help_and_its_source_without_tests_and_packages():
    texts = read("python")
    source = Path(json.__file__).read_text(encoding="utf-8").strip("\n")
    assert source in texts and any(text.startswith("The \"if\" statement") for text in texts)
    assert not any("test_" in text[:40] or "pip._vendor" in text for text in texts)
    assert len(set(texts)) > 500
    assert open_source("python").identity == open_source("python").identity


@pytest.fixture
def hub(monkeypatch):
    """A stand-in for the hub: tell it how to load a data set; it remembers who asked whether one is there."""
    asked = []
    api = types.SimpleNamespace(dataset_info=lambda name, timeout: asked.append((name, timeout)))
    monkeypatch.setitem(sys.modules, "huggingface_hub", types.SimpleNamespace(HfApi=lambda: api, api=api, asked=asked))

    def stand_in(load_dataset):
        monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
        return sys.modules["huggingface_hub"]

    return stand_in


def test_a_hub_data_set_is_streamed_by_name_and_split_and_asked_only_when_read(hub):
    asked, delivered = [], []

    def load_dataset(name, split, streaming):
        asked.append((name, split, streaming))
        for i in itertools.count():
            delivered.append(i)
            yield {"text": f"text {i}", "title": f"title {i}"}

    there = hub(load_dataset)
    source, titles = open_source("hf:some/name"), open_source("hf:some/name:test", "title")
    assert not asked and not there.asked and source.identity != titles.identity
    assert list(itertools.islice(source.read(), 3)) == ["text 0", "text 1", "text 2"]
    assert next(titles.read()) == "title 0" and len(delivered) == 4
    assert asked == [("some/name", "train", True), ("some/name", "test", True)]
    with pytest.raises(ValueError, match="hf:some/name: row 1 has no field 'body'; its fields: 'text', 'title'"):
        next(open_source("hf:some/name", "body").read())


def test_without_a_network_one_question_is_asked_and_answered_in_one_line(hub):
    def no_route(name, timeout):
        raise ConnectionError("no route\nto host")

    hub(lambda *_, **__: pytest.fail("asked on")).api.dataset_info = no_route
    with pytest.raises(ValueError, match="--data hf:x: ConnectionError: no route; check name, split and network"):
        read("hf:x")


def test_a_hub_that_never_answers_is_given_up_after_a_moment(hub, monkeypatch):
    never = threading.Event()
    monkeypatch.setattr(readers, "PATIENCE", 0.1)
    hub(lambda *_, **__: pytest.fail("asked on")).api.dataset_info = lambda name, timeout: never.wait(60)
    with pytest.raises(ValueError, match="--data hf:x: TimeoutError: no answer in 0.1 seconds; check name, split"):
        read("hf:x")
    assert not never.is_set()


def test_what_goes_wrong_at_the_hub_is_one_line(hub):
    def load_dataset(*_, **__):
        yield {"text": "first"}
        raise ConnectionError("no route\nto host")

    hub(load_dataset)
    assert next(open_source("hf:x").read()) == "first"
    with pytest.raises(ValueError, match="--data hf:x: ConnectionError: no route; check name, split and network"):
        read("hf:x")
    with pytest.raises(ValueError, match="hf: names no data set; write hf:NAME"):
        open_source("hf:")


def test_the_real_library_opens_a_local_data_set(tmp_path):
    pytest.importorskip("datasets", reason="needs datasets: pip install datasets")
    (tmp_path / "set").mkdir()
    lines(tmp_path / "set" / "train.jsonl", [{"text": text} for text in TEXTS])
    lines(tmp_path / "set" / "test.jsonl", [{"text": "exam"}])
    assert read(f"hf:{tmp_path / 'set'}") == TEXTS
    assert read(f"hf:{tmp_path / 'set'}:test") == ["exam"]
    with pytest.raises(ValueError, match="hf:.*:nothing: .*; check name, split and network"):
        read(f"hf:{tmp_path / 'set'}:nothing")
