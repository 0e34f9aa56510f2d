"""Writing files that survive: after a crash there is the old file or the new one, never half of one.

    write a new file beside the old one  →  wait until the disk has it  →  give it the old one's name

The system changes a name in one step, so whoever opens the file, at whatever moment, meets a whole one. Every
later chapter writes through this one: tokenizers, models, checkpoints, cards. A log grows at its end instead,
and is cut back where a line could not be finished.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


@contextlib.contextmanager
def explained(path: Path) -> Iterator[None]:
    """Say in one line which file could not be written, and why, when the system refuses inside the block.

    Raises OSError with that line in place of the system's own, which often does not name the file.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise OSError(f"{path} cannot be written ({reason}): make room, or allow writing there") from error


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Give a new file to write bytes to, and put it in the place of `path` once it is complete.

    Whatever goes wrong, `path` stays what it was, and the unfinished file is removed. Only a process that is
    killed outright leaves it; the next one that writes `path` uses the same name for it, and takes it away.
    Raises OSError naming the file, when the disk is full or the folder is closed.
    """
    # 1. Let the caller write beside the old file.
    partial = path.with_name(path.name + ".partial")
    with explained(path):
        try:
            with open(partial, "wb") as file:
                yield file
                # 2. Wait until the disk has it all before the name changes. The other way round, a power cut
                # could leave the new name on an empty file.
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
        # 3. Clear up. After a success there is nothing left to remove.
        finally:
            partial.unlink(missing_ok=True)


def write_atomically(path: Path, text: str) -> None:
    """Write a text file in UTF-8 so that a crash leaves the old one or the new one, never half of one."""
    with replacing(path) as file:
        file.write(text.encode("utf-8"))


def append_durably(path: Path, text: str) -> None:
    """Add text to the end of a file, made if missing, all of it or nothing.

    Cheaper than writing a long log anew for each line. A process that is killed at the wrong moment does
    leave half a line: who goes on with the file must know how long it was when all was well.
    Raises OSError naming the file, when the disk is full or the file is closed to us.
    """
    # 1. Remember how long the file was.
    size = path.stat().st_size if path.exists() else 0
    with explained(path):
        try:
            # 2. Wait until the disk has the text: a checkpoint written later counts on it.
            with open(path, "ab") as file:
                file.write(text.encode("utf-8"))
                file.flush()
                os.fsync(file.fileno())
        # 3. Take back what was written of it. Where the file could not be made, there is nothing to take back.
        except OSError:
            with contextlib.suppress(OSError):
                os.truncate(path, size)
            raise


def cut(path: Path, size: int) -> None:
    """Shorten a file to this many bytes; one that is shorter already, or missing, stays as it is."""
    with explained(path):
        if path.exists() and path.stat().st_size > size:
            os.truncate(path, size)
