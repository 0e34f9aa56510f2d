"""safetensors by hand: the file in which nearly every published model keeps its numbers, read byte by byte.

    8 bytes      how long the header is: a whole number, its lowest byte first
    the header   JSON: {"name": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}, ...}
    the rest     the numbers of all tensors, end to end, without a gap

That is the whole format. Nothing in it can run, which the pickle files of earlier years could; but a file from
anywhere may lie. A header could claim petabytes, tensors that overlap, or a shape that does not fit its bytes. So
every claim is compared with the length of the file before it is believed, and no claim ever becomes an allocation:
the file is mapped into memory, and the operating system reads only what is looked at.

    F32    4 bytes   1 sign, 8 exponent, 23 fraction bits      what NumPy calls float32
    F16    2 bytes   1 sign, 5 exponent, 10 fraction bits      what NumPy calls float16
    BF16   2 bytes   1 sign, 8 exponent, 7 fraction bits       the upper half of a float32; NumPy has no name for it
"""

import json
import math
import mmap
from dataclasses import dataclass
from pathlib import Path

import numpy as np

# The longest header that is read; the format's own library stops there too.
MAX_HEADER_BYTES = 100_000_000

# Bytes per number of every format that a file may name. Only the first three are read; the others must be known, so
# that a file that also holds a mask or a counter can be measured, and refused only if somebody needs that tensor.
READABLE = {"F32": 4, "F16": 2, "BF16": 2}
BYTES = READABLE | {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "I16": 2, "U16": 2, "I32": 4, "U32": 4,
    "F64": 8, "I64": 8, "U64": 8, "C64": 8,
}

# What can be done about a file that cannot be read.
REMEDY = "get the file again from where it comes"


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a file, not read yet: its format, its shape, and the bytes that are its numbers."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    data: np.ndarray

    def numbers(self) -> np.ndarray:
        """Return the tensor as float32. F32 is a read-only view of the file; the other two are widened into memory.

        Raises ValueError for a format that is not read here.
        """
        # 1. Refuse what would need rounding, or is no fraction at all.
        if self.dtype not in READABLE:
            known = ", ".join(READABLE)
            raise ValueError(f"tensor {self.name!r} holds {self.dtype} numbers: only {known} are read here, convert it")

        # 2. Look at the bytes as numbers, the lowest byte first. Some old files begin them at an odd address, which
        # compiled loops cannot read: only these are copied.
        if self.dtype == "F32":
            return np.require(self.data.view("<f4"), requirements="A").reshape(self.shape)
        if self.dtype == "F16":
            return self.data.view("<f2").astype(np.float32).reshape(self.shape)

        # 3. Widen BF16: its 16 bits are the upper half of a float32, and the lower half is zeros.
        bits = self.data.view("<u2").astype(np.uint32) << 16
        return bits.view(np.float32).reshape(self.shape)


def map_file(path: str | Path) -> bytes | mmap.mmap:
    """Return a file's bytes, of which the system reads only what is looked at; raises OSError as `open` does.

    An empty file cannot be mapped: it gives no bytes, and fails later like any that is too short.
    """
    with open(path, "rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if file.seek(0, 2) else b""


def open_safetensors(path: str | Path) -> dict[str, StoredTensor]:
    """Return the tensors of one file by their names, in the order of their bytes; only the header is read.

    The file is mapped, so a model larger than the memory can be opened. It must not be cut short while it is in use.
    Raises OSError where it cannot be opened, and ValueError in one line where anything in it is not as it should be.
    """
    # 1. Read what the file says about itself, then hold every word of it against the bytes that are there.
    content = map_file(path)
    try:
        start, header = _read_header(content)
        return _place_tensors(header, np.frombuffer(content, np.uint8)[start:])
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no whole safetensors file: {error}; {REMEDY}") from None


def _read_header(content: bytes | mmap.mmap) -> tuple[int, dict]:
    """Return where the numbers begin, and the header that describes them."""
    # 1. Believe the length only if the file is that long, before anything of that size is read. A file of less than
    # 8 bytes has less than none left.
    length = int.from_bytes(content[:8], "little")
    if length > min(len(content) - 8, MAX_HEADER_BYTES):
        raise ValueError(f"it has {len(content)} bytes, and claims a header of {length} at byte 8")
    text = content[8 : 8 + length]
    if not text.startswith(b"{"):
        raise ValueError(f"its header begins with {text[:1]!r}, and must begin with an opening brace")

    # 2. Parse it. JSON lets a name occur twice, and the last one win: two readers could see two models in one file.
    header = json.loads(text.decode("utf-8"), object_pairs_hook=_without_twins)
    notes = header.pop("__metadata__", {})
    if not isinstance(notes, dict) or not all(isinstance(note, str) for note in notes.values()):
        raise ValueError("its __metadata__ must be texts by their names")
    return 8 + length, header


def _without_twins(pairs: list[tuple[str, object]]) -> dict:
    """Return a JSON object as a dictionary; raise ValueError where a name occurs twice in it."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the name {next(name for name in names if names.count(name) > 1)!r} occurs twice in it")
    return found


def _place_tensors(header: dict, data: np.ndarray) -> dict[str, StoredTensor]:
    """Return the tensors of a header, laid over the bytes behind it.

    Raises ValueError unless they cover these bytes exactly, each of them once.
    """
    # 1. Check each on its own, then put them in the order in which they lie in the file.
    places = [(*_checked_entry(name, entry), name) for name, entry in header.items()]
    places.sort(key=lambda place: (place[0], place[1]))

    # 2. Walk from one to the next. The end of one must be the beginning of its neighbour: a gap could hide
    # something, and in an overlap a change to one tensor would change another.
    tensors, reached = {}, 0
    for begin, end, name in places:
        if begin != reached or end > len(data):
            raise ValueError(f"tensor {name!r} is said to lie at bytes {begin} to {end}, but byte {reached} of "
                             f"{len(data)} is next")
        entry, reached = header[name], end
        tensors[name] = StoredTensor(name, entry["dtype"], tuple(entry["shape"]), data[begin:end])

    # 3. Leave nothing over.
    if reached != len(data):
        raise ValueError(f"its tensors end at byte {reached} of {len(data)}")
    return tensors


def _checked_entry(name: str, entry: object) -> tuple[int, int]:
    """Return where the bytes of a tensor begin and end, once its description is found to make sense in itself."""
    # 1. Know the three fields, and what kind of value each must be.
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"tensor {name!r} must have dtype, shape and data_offsets, and nothing else")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BYTES:
        raise ValueError(f"tensor {name!r} has dtype {ascii(dtype)[:40]}, which is not known here")

    # 2. Hold them against each other. The product is taken of Python's numbers, which have no end to run over.
    if not (_are_sizes(shape) and _are_sizes(offsets) and len(offsets) == 2):
        raise ValueError(f"tensor {name!r} has shape {ascii(shape)[:40]} and data_offsets {ascii(offsets)[:40]}")
    begin, end = offsets
    if end - begin != math.prod(shape) * BYTES[dtype]:
        raise ValueError(f"tensor {name!r} of {dtype} {shape} cannot fill the bytes {begin} to {end}")
    return begin, end


def _are_sizes(value: object) -> bool:
    """Return whether a value is a list of whole numbers from 0 on, and short. To Python, True is one too."""
    return isinstance(value, list) and len(value) <= 16 and all(type(n) is int and 0 <= n < 1 << 62 for n in value)


def open_folder(folder: str | Path) -> dict[str, StoredTensor]:
    """Return the tensors of a model folder by their names, whether they lie in one file or in several.

    A large model's `model.safetensors.index.json` says under "weight_map" which file has which tensor.
    Raises FileNotFoundError where there are no weights, and ValueError in one line where files or index are broken.
    """
    # 1. Take the one file if it is there: the index of a folder that was packed anew may be left from before.
    folder = Path(folder)
    if (folder / "model.safetensors").is_file():
        return open_safetensors(folder / "model.safetensors")
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        raise FileNotFoundError(f"{folder} holds no model.safetensors and no {index.name}: give a whole model folder")

    # 2. Open every file that the index names, and only beside it: a path could lead anywhere on this disk.
    stored: dict[str, StoredTensor] = {}
    listed = _read_index(index)
    for file in sorted(set(listed.values())):
        if Path(file).name != file or not (folder / file).is_file():
            raise ValueError(f"{index} names {ascii(file)[:80]}, and no such file lies beside it; {REMEDY}")
        tensors = open_safetensors(folder / file)

        # 3. Compare what is in the file with what the index promises. A tensor in two files would leave open
        # which one is meant.
        promised = {name for name, place in listed.items() if place == file}
        if odd := sorted(promised ^ tensors.keys()):
            raise ValueError(f"{index} and {file} do not agree about tensor {odd[0]!r}; {REMEDY}")
        stored |= tensors
    return stored


def _read_index(index: Path) -> dict[str, str]:
    """Return the file's name for each tensor's name, as an index says."""
    try:
        listed = json.loads(index.read_bytes(), object_pairs_hook=_without_twins)["weight_map"]
        if not all(isinstance(file, str) and "\0" not in file for file in listed.values()):
            raise ValueError("a file's name in it is no text")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{index} is no index of weights ({type(error).__name__}: {error}); {REMEDY}") from None
    return listed
