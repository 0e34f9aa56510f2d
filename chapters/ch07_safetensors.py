"""Writing tensors to disk, in the one format that everybody reads and that holds no code.

    8 bytes     how long the description is
    JSON text   for each tensor its name, number format, shape and place; notes, if any
    numbers     one tensor after the other, nothing between them

The `safetensors` library reads such files here. It could write them too, but while it works its file has a
random name, and a process that is killed then leaves that file behind: each time another one, as large as the
model. This writer uses one name, so the next try takes the remains away. A test holds both writers equal.

The format has no checksum. A file cut short is found out by its size, a damaged description by its not fitting
together; but of a damaged number nobody can tell that it was another one. So the models written here carry a
checksum among their notes, which readers that do not know it pass over.
"""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

import torch

from chapters.ch02_writing import replacing

# How a safetensors file calls PyTorch's number formats, in the order in which their tensors stand there.
FORMATS = {
    torch.int64: "I64", torch.float64: "F64", torch.float32: "F32", torch.int32: "I32",
    torch.bfloat16: "BF16", torch.float16: "F16", torch.uint8: "U8", torch.bool: "BOOL",
}


def bytes_of(tensor: torch.Tensor) -> memoryview:
    """Return the bytes of a tensor's numbers, row after row, without a copy where they lie so in memory."""
    return memoryview(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())


def checksum(tensors: Iterable[tuple[str, torch.Tensor]]) -> str:
    """Return the SHA-256 of named tensors, in the order given: of their names, formats, shapes and numbers.

    They may come one at a time, so that a large model need not be in memory.
    """
    total = hashlib.sha256()
    for name, tensor in tensors:
        total.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        total.update(bytes_of(tensor))
    return total.hexdigest()


def save_tensors(tensors: dict[str, torch.Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file so that a crash leaves the old one or the new one, never half of one.

    `metadata`, texts by name, goes into the description. Raises OSError when the disk is full or the folder
    is closed.
    Source: the file's format is that of the `safetensors` library.
    """
    # 1. Order the tensors by format, the widest first: so each begins at a multiple of its numbers' size.
    order = list(FORMATS)
    names = sorted(tensors, key=lambda name: (order.index(tensors[name].dtype), name))
    header, place = {"__metadata__": metadata} if metadata else {}, 0
    for name in names:
        end = place + tensors[name].numel() * tensors[name].element_size()
        # 2. Note what it is and where it lies, counted from the end of the description.
        kind, shape = FORMATS[tensors[name].dtype], list(tensors[name].shape)
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [place, end]}
        place = end

    # 3. Fill the description up with spaces, so that the numbers begin at a multiple of eight.
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    text += b" " * (-len(text) % 8)
    with replacing(path) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        # 4. Hand over one tensor at a time: a copy of all of them might not fit into memory.
        for name in names:
            file.write(bytes_of(tensors[name]))
