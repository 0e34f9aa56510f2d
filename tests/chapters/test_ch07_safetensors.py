"""Chapter 7, tensors on disk: what is written here is byte for byte what the safetensors library writes."""

import errno

import pytest
import torch
from safetensors.torch import load_file, save_file

from chapters.ch07_gpt_model import GPT, GPTConfig
from chapters.ch07_safetensors import FORMATS, save_tensors
from tools.broken_disk import BrokenDisk

# Odd sizes, an empty tensor, a single number, a transposed one, names that JSON must escape.
TENSORS = {
    "b": torch.arange(15.0).view(3, 5),
    "é": torch.arange(7).bfloat16(),
    'quoted "name"\n': torch.ones(2),
    "bytes": torch.arange(5, dtype=torch.uint8),
    "one number": torch.tensor(2.5),
    "nothing": torch.zeros(0, 3),
    "yes or no": torch.tensor([True, False, True]),
    "turned": torch.arange(6).view(3, 2).half().T,
} | {str(dtype): torch.arange(3).to(dtype) for dtype in FORMATS}


@pytest.mark.parametrize("notes", [None, {"format": "pt"}])
def test_the_file_is_the_one_that_the_library_writes(tmp_path, notes):
    save_tensors(TENSORS, tmp_path / "ours", notes)
    save_file({name: tensor.contiguous() for name, tensor in TENSORS.items()}, tmp_path / "theirs", notes)
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()


def test_the_library_reads_every_number_back(tmp_path):
    save_tensors(TENSORS, tmp_path / "ours", {"one": "1", "two": "zwölf"})
    read = load_file(tmp_path / "ours")
    assert read.keys() == TENSORS.keys()
    assert all(torch.equal(read[name], TENSORS[name]) and read[name].dtype == TENSORS[name].dtype for name in read)


def test_a_refused_write_leaves_a_model_folder_whole_or_without_weights(tmp_path):
    old, new = (GPT(GPTConfig(vocab_size=31, d_model=12, num_layers=layers, num_heads=3, d_ff=20, max_seq_len=9))
                for layers in (1, 2))
    old.save_pretrained(tmp_path / "old")
    with BrokenDisk(tmp_path / "new") as disk:
        new.save_pretrained(tmp_path / "new")
    for at in range(1, len(disk.calls) + 1):
        fresh, used = tmp_path / f"fresh{at}", tmp_path / f"used{at}"
        old.save_pretrained(used)
        for folder in (fresh, used):
            with BrokenDisk(folder, at, errno.EACCES), pytest.raises(OSError):
                new.save_pretrained(folder)
            for path in folder.glob("*"):
                assert path.read_bytes() in [(tmp_path / kind / path.name).read_bytes() for kind in ("old", "new")]
        assert not (fresh / "model.safetensors").exists() and (used / "model.safetensors").exists()
