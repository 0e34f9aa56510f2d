"""Chapter 2, files that survive: whatever goes wrong, the old file or the new one is there, whole."""

import errno
import os
from pathlib import Path

import pytest

from chapters.ch02_tokenization import BPETokenizer
from chapters.ch02_writing import append_durably, cut, replacing, write_atomically
from tools.broken_disk import BrokenDisk


def calls_of(folder, action) -> int:
    """Return how many calls an action makes that write below the folder."""
    with BrokenDisk(folder) as disk:
        action()
    return len(disk.calls)


def contents(folder) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES])
@pytest.mark.parametrize("write", [write_atomically, append_durably])
def test_a_refused_write_leaves_the_file_as_it_was_and_nothing_else(tmp_path, write, code):
    path = tmp_path / "note"
    total = calls_of(tmp_path, lambda: write(path, "old: é"))
    before = contents(tmp_path)
    for at in range(1, total + 1):
        with BrokenDisk(tmp_path, at, code), pytest.raises(OSError) as caught:
            write(path, "new, and longer")
        assert contents(tmp_path) == before
        message = str(caught.value)
        assert str(path) in message and os.strerror(code) in message and "make room" in message
        assert "\n" not in message
    assert total >= 4


def test_a_file_gets_its_name_after_the_disk_has_it(tmp_path):
    with BrokenDisk(tmp_path) as disk:
        write_atomically(tmp_path / "note", "text")
        append_durably(tmp_path / "log", "line")
    assert disk.calls[:5] == ["open note.partial", "write", "flush", "fsync", "replace"]
    assert disk.calls[5:] == ["open log", "write", "flush", "fsync"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
def test_a_disk_that_is_really_full_is_named_with_the_file():
    with pytest.raises(OSError, match=r"/dev/full cannot be written \(No space left on device\)"):
        append_durably(Path("/dev/full"), "more")


def test_what_fails_in_the_callers_hands_leaves_the_file_as_it_was(tmp_path):
    write_atomically(tmp_path / "note", "old")
    with pytest.raises(KeyError), replacing(tmp_path / "note") as file:
        file.write(b"half")
        raise KeyError
    assert contents(tmp_path) == {"note": b"old"}


def test_the_remains_of_a_killed_process_are_taken_away_by_the_next_write(tmp_path):
    (tmp_path / "note.partial").write_bytes(b"remains, longer than what is written next")
    write_atomically(tmp_path / "note", "new")
    assert contents(tmp_path) == {"note": b"new"}


def test_text_is_added_at_the_end_and_cut_off_again(tmp_path):
    path = tmp_path / "log"
    append_durably(path, "eins\n")
    size = path.stat().st_size
    append_durably(path, "zwölf\n")
    assert path.read_bytes() == "eins\nzwölf\n".encode()
    cut(path, size)
    cut(path, 999)
    cut(tmp_path / "missing", 3)
    assert contents(tmp_path) == {"log": b"eins\n"}


def test_a_tokenizer_is_saved_whole_or_not_at_all(tmp_path, documents):
    one, other = BPETokenizer.train(documents, 270), BPETokenizer.train(documents, 280)
    total = calls_of(tmp_path, lambda: one.save(tmp_path))
    old = contents(tmp_path)
    other.save(tmp_path / "new")
    new = contents(tmp_path / "new")
    for at in range(1, total + 1):
        one.save(tmp_path)
        with BrokenDisk(tmp_path, at), pytest.raises(OSError, match="cannot be written"):
            other.save(tmp_path)
        files = {name: content for name, content in contents(tmp_path).items() if not name.startswith("new")}
        assert files.keys() == old.keys() and all(files[name] in (old[name], new[name]) for name in files)
