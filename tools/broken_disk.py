"""A disk that breaks on purpose, at the call that a test names.

    with BrokenDisk(folder) as disk: ...           count the calls that write below `folder`: disk.calls
    with BrokenDisk(folder, at=7): ...             refuse the seventh of them and all that follow: the disk is full
    with BrokenDisk(folder, at=7, kill=True): ...  kill the process at the seventh, in the middle of a write

A call is the opening of a file for writing, a write, flush, fsync, rename, cut or new folder. A write that
fails has written half of its bytes. Giving room back succeeds on a full disk too: a file can always be
removed, and cut as well, unless the cut is the very call that was named.
"""

import builtins
import errno
import io
import os
import signal
from pathlib import Path
from typing import Any, BinaryIO
from unittest import mock


class BrokenDisk:
    """Stands in for the operating system's writing calls as long as a `with` block lasts."""

    def __init__(self, folder: Path, at: int = 0, code: int = errno.ENOSPC, kill: bool = False):
        self.folder, self.at, self.code, self.kill = str(folder), at, code, kill
        self.calls: list[str] = []
        self.open, self._patches = open, []

    def __enter__(self) -> "BrokenDisk":
        """Begin to stand in for the calls."""
        # 1. List what is stood in for.
        places = [(builtins, "open", self._open), (io, "open", self._open)]
        places += [(os, name, self._checked(name)) for name in ("replace", "truncate", "mkdir")]
        places += [(os, "fsync", self._checked("fsync", everywhere=True))]
        # 2. Take their places.
        self._patches = [mock.patch.object(*place) for place in places]
        for patch in self._patches:
            patch.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Give the calls back."""
        for patch in self._patches:
            patch.stop()

    def due(self, what: str) -> bool:
        """Count a call, and return whether it is one that fails."""
        self.calls.append(what)
        return self.at == len(self.calls) or (0 < self.at < len(self.calls) and what != "truncate")

    def fail(self, what: str) -> None:
        """Kill the process, or refuse the call as the system would."""
        if self.kill:
            os.kill(os.getpid(), signal.SIGKILL)
        raise OSError(self.code, os.strerror(self.code), what)

    def _concerns(self, path: object) -> bool:
        """Return whether a path lies in the folder; a number is a file that is open already."""
        return not isinstance(path, int) and os.fspath(path).startswith(self.folder)

    def _checked(self, name: str, everywhere: bool = False) -> Any:
        """Return the call of `os` with this name, which fails in its turn."""
        # 1. Keep the real one.
        real = getattr(os, name)

        # 2. Ask before each call whether it is the one.
        def call(path: Any, *others: Any, **options: Any) -> Any:
            if (everywhere or self._concerns(path)) and self.due(name):
                self.fail(str(path))
            return real(path, *others, **options)

        return call

    def _open(self, path: Any, mode: str = "r", *others: Any, **options: Any) -> Any:
        """Open a file; one that is to be written comes back as one that fails in its turn."""
        if not self._concerns(path) or not set(mode) & set("wax+"):
            return self.open(path, mode, *others, **options)
        if self.due(f"open {Path(path).name}"):
            self.fail(str(path))
        return _File(self.open(path, mode, *others, **options), self)


class _File:
    """A file open for writing whose writes fail in their turn; in all else it is the real one."""

    def __init__(self, file: BinaryIO, disk: BrokenDisk):
        self._file, self._disk = file, disk

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> "_File":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, content: Any) -> int:
        """Write, or write half and fail."""
        if self._disk.due("write"):
            self._file.write(content[: len(content) // 2])
            self._file.flush()
            self._disk.fail(self._file.name)
        return self._file.write(content)

    def flush(self) -> None:
        """Hand over to the system, or fail."""
        if self._disk.due("flush"):
            self._disk.fail(self._file.name)
        self._file.flush()
