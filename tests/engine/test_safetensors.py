"""safetensors by hand: every number is the one that the format's own library reads, and every lie is refused."""

import json
import os
import tracemalloc

import numpy as np
import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from engine.safetensors import BYTES, MAX_HEADER_BYTES, open_folder, open_safetensors

GENERATOR = torch.Generator().manual_seed(5)
TENSORS = {
    "a": torch.randn(3, 5, generator=GENERATOR),
    "scalar": torch.tensor(7.5),
    "half": torch.randn(7, 2, generator=GENERATOR).half(),
    "brain": torch.randn(2, 3, 4, generator=GENERATOR).bfloat16(),
    "empty": torch.zeros(0, 3),
    "odd": torch.tensor([float("nan"), float("-inf"), 1e-40, -0.0, 65504.0]),
}


def pack(header: dict | bytes, data: bytes = b"") -> bytes:
    """The bytes of a file with such a header, whether or not it is true."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def entry(begin: int, end: int, shape: list, dtype: str = "F32") -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def refused(path, words: str) -> None:
    """Assert that a file is refused in one line with its name and these words."""
    with pytest.raises(ValueError, match=words) as caught:
        open_safetensors(path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


def test_every_number_is_the_one_that_the_formats_library_reads(tmp_path):
    save_file(TENSORS, tmp_path / "model.safetensors", metadata={"format": "pt"})
    ours, theirs = open_safetensors(tmp_path / "model.safetensors"), load_file(tmp_path / "model.safetensors")
    assert ours.keys() == theirs.keys() == TENSORS.keys()
    for name, tensor in theirs.items():
        numbers = ours[name].numbers()
        assert numbers.dtype == np.float32 and numbers.shape == ours[name].shape == tuple(tensor.shape)
        assert numbers.tobytes() == tensor.float().numpy().tobytes()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_each_of_the_65536_numbers_of_16_bits_is_widened_right(dtype, tmp_path):
    every = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int16).view(dtype)
    save_file({"x": every}, tmp_path / "x.safetensors")
    ours = open_safetensors(tmp_path / "x.safetensors")["x"].numbers()
    np.testing.assert_array_equal(ours, every.float().numpy())


def test_float32_is_a_view_of_the_file_that_nobody_can_write_to(tmp_path):
    save_file(TENSORS, tmp_path / "model.safetensors")
    tensors = open_safetensors(tmp_path / "model.safetensors")
    numbers = tensors["a"].numbers()
    assert np.shares_memory(numbers, tensors["a"].data) and not numbers.flags.writeable
    with pytest.raises(ValueError, match="read-only"):
        numbers[0] = 1


def test_numbers_at_an_odd_address_are_the_same_numbers(tmp_path):
    numbers = np.random.default_rng(1).standard_normal((3, 5)).astype(np.float32)
    header = json.dumps({"x": entry(0, 60, [3, 5])}).encode()
    for spaces in range(4):
        (tmp_path / "x.safetensors").write_bytes(pack(header + b" " * spaces, numbers.tobytes()))
        ours = open_safetensors(tmp_path / "x.safetensors")["x"].numbers()
        assert ours.flags.aligned and np.array_equal(ours, numbers)


def test_a_file_larger_than_the_memory_is_opened_in_no_memory(tmp_path):
    path, size = tmp_path / "large.safetensors", 1 << 38
    # Writers fill the header up, so that the numbers begin at a multiple of 8. Those at an odd address are copied.
    header = json.dumps({"x": entry(0, size, [size // 4])}).encode()
    path.write_bytes(pack(header + b" " * (-len(header) % 8)))
    os.truncate(path, path.stat().st_size + size)
    tracemalloc.start()
    numbers = open_safetensors(path)["x"].numbers()
    assert numbers[-1] == 0 and tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


def test_a_header_longer_than_any_is_refused_before_it_is_read(tmp_path):
    path, size = tmp_path / "x.safetensors", MAX_HEADER_BYTES + 1
    path.write_bytes(size.to_bytes(8, "little") + b"{")
    os.truncate(path, 8 + size)
    tracemalloc.start()
    refused(path, f"claims a header of {size}")
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


def test_a_header_may_name_its_tensors_in_any_order(tmp_path):
    header = {"c": entry(8, 12, [1]), "b": entry(0, 8, [2]), "a": entry(0, 0, [0])}
    (tmp_path / "x.safetensors").write_bytes(pack(header, np.arange(3, dtype=np.float32).tobytes()))
    ours, theirs = open_safetensors(tmp_path / "x.safetensors"), load_file(tmp_path / "x.safetensors")
    assert [*ours] == ["a", "b", "c"]
    assert all(ours[name].numbers().tolist() == theirs[name].tolist() for name in header)


def test_a_tensor_that_is_no_fraction_is_refused_when_it_is_asked_for(tmp_path):
    save_file({"mask": torch.ones(3, dtype=torch.bool), "x": torch.ones(2), "d": torch.ones(1, dtype=torch.float64)},
              tmp_path / "m.safetensors")
    tensors = open_safetensors(tmp_path / "m.safetensors")
    assert tensors["x"].numbers().tolist() == [1, 1]
    for name, dtype in (("mask", "BOOL"), ("d", "F64")):
        with pytest.raises(ValueError, match=f"{name}.*{dtype}.*F32, F16, BF16"):
            tensors[name].numbers()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64, torch.float64, torch.bool,
                                   torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e8m0fnu, torch.uint16,
                                   torch.uint32, torch.uint64, torch.complex64])
def test_the_size_of_each_other_format_is_known(dtype, tmp_path):
    save_file({"x": torch.zeros(3, dtype=dtype)}, tmp_path / "x.safetensors")
    assert open_safetensors(tmp_path / "x.safetensors")["x"].dtype in BYTES


# Lies


EIGHT = bytes(8)
LIES = {
    "an empty file": (b"", "0 bytes"),
    "a length alone, cut short": (b"\x02\0\0", "3 bytes"),
    "a header of exabytes": (b"\xff" * 8 + b"{}", "claims a header of 18446744073709551615"),
    "a header longer than the file": ((3).to_bytes(8, "little") + b"{}", "header of 3"),
    "a list": (pack(b"[]"), "opening brace"),
    "a space first": (pack(b" {}"), "opening brace"),
    "no header at all": (pack(b""), "opening brace"),
    "half a header": (pack(b'{"x":'), "Expecting value"),
    "nested without end": (pack(b'{"x":' * 100_000), "recursion|Expecting|too complex"),
    "no text": (pack(b'{"\xff": 1}'), "utf-8"),
    "a number of a million digits": (pack(b'{"x": ' + b"9" * 10**6 + b"}"), "digits"),
    "notes that are no texts": (pack({"__metadata__": {"a": 1}}), "__metadata__"),
    "notes that are a number": (pack({"__metadata__": 3}), "__metadata__"),
    "a name twice": (pack(b'{"x":1,"x":2}'), "'x' occurs twice"),
    "a field twice": (pack(b'{"x":{"dtype":"F32","dtype":"F16","shape":[2],"data_offsets":[0,8]}}', EIGHT), "dtype"),
    "a field missing": (pack({"x": {"dtype": "F32", "shape": [2]}}, EIGHT), "must have dtype, shape"),
    "a field too many": (pack({"x": entry(0, 8, [2]) | {"y": 1}}, EIGHT), "nothing else"),
    "no entry": (pack({"x": 3}), "must have dtype"),
    "an unknown format": (pack({"x": entry(0, 8, [2], "F31")}, EIGHT), "F31"),
    "a list as format": (pack({"x": entry(0, 8, [2], ["F32"])}, EIGHT), "dtype"),
    "a shape below zero": (pack({"x": entry(0, 8, [-1, -2])}, EIGHT), r"\[-1, -2\]"),
    "a shape of fractions": (pack({"x": entry(0, 8, [2.0])}, EIGHT), "shape"),
    "a shape of truth": (pack({"x": entry(0, 4, [True])}, bytes(4)), "shape"),
    "a shape of exabytes": (pack({"x": entry(0, 8, [1 << 40, 1 << 40])}, EIGHT), "cannot fill"),
    "a product that would wrap to 8 in 64 bits": (pack({"x": entry(0, 32, [2**61 + 1, 8])}, bytes(32)), "cannot fill"),
    "nothing, by more than 64 bits hold": (pack({"x": entry(0, 0, [0, 1 << 64])}), "shape"),
    "a text as shape": (pack({"x": entry(0, 4, "")}, bytes(4)), "shape"),
    "a hundred dimensions": (pack({"x": entry(0, 8, [2] + [1] * 99)}, EIGHT), "shape"),
    "offsets below zero": (pack({"x": entry(-8, 0, [2])}, EIGHT), "data_offsets"),
    "offsets backwards": (pack({"x": entry(8, 0, [2])}, EIGHT), "cannot fill"),
    "three offsets": (pack({"x": entry(0, 8, [2]) | {"data_offsets": [0, 8, 8]}}, EIGHT), "data_offsets"),
    "offsets as text": (pack({"x": entry(0, 8, [2]) | {"data_offsets": ["0", "8"]}}, EIGHT), "data_offsets"),
    "a shape that does not fit": (pack({"x": entry(0, 8, [3])}, EIGHT), "cannot fill"),
    "a shape that leaves bytes over": (pack({"x": entry(0, 8, [1])}, EIGHT), "cannot fill"),
    "data cut short": (pack({"x": entry(0, 12, [3])}, EIGHT), "0 to 12"),
    "data left over": (pack({"x": entry(0, 4, [1])}, EIGHT), "end at byte 4 of 8"),
    "data and no tensor": (pack({}, EIGHT), "end at byte 0 of 8"),
    "an overlap": (pack({"x": entry(0, 8, [2]), "y": entry(4, 8, [1])}, EIGHT), "byte 8 of 8 is next"),
    "the same bytes twice": (pack({"x": entry(0, 8, [2]), "y": entry(0, 8, [2])}, EIGHT), "is next"),
    "a hole": (pack({"x": entry(0, 4, [1]), "y": entry(8, 12, [1])}, bytes(12)), "byte 4 of 12"),
    "a hole in front": (pack({"x": entry(4, 8, [1])}, EIGHT), "byte 0 of 8"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_file_that_lies_is_refused_in_one_line_as_by_the_formats_library(lie, tmp_path):
    content, words = LIES[lie]
    (tmp_path / "model.safetensors").write_bytes(content)
    tracemalloc.start()
    refused(tmp_path / "model.safetensors", words)
    assert tracemalloc.get_traced_memory()[1] < 1 << 24
    tracemalloc.stop()

    # The library is milder in three places, all of them harmless.
    if lie not in ("a field too many", "a hundred dimensions", "a space first"):
        with pytest.raises((SafetensorError, ValueError)), safe_open(tmp_path / "model.safetensors", "np"):
            pass


def test_cutting_a_file_anywhere_is_noticed(tmp_path):
    save_file(TENSORS, tmp_path / "model.safetensors")
    content = (tmp_path / "model.safetensors").read_bytes()
    for size in [*range(0, 32), *range(32, len(content), 7), len(content) - 1]:
        (tmp_path / "model.safetensors").write_bytes(content[:size])
        refused(tmp_path / "model.safetensors", "bytes?")


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        open_safetensors(tmp_path / "nowhere.safetensors")
    with pytest.raises(FileNotFoundError, match="no model.safetensors"):
        open_folder(tmp_path)


# Several files


@pytest.fixture
def shards(tmp_path):
    """A folder whose tensors lie in two files, and the index that says which has which."""
    names = sorted(TENSORS)
    parts = {"one.safetensors": names[:2], "two.safetensors": names[2:]}
    for file, inside in parts.items():
        save_file({name: TENSORS[name] for name in inside}, tmp_path / file)
    listed = {name: file for file, inside in parts.items() for name in inside}
    write_index(tmp_path, {"metadata": {}, "weight_map": listed})
    return tmp_path, listed


def write_index(folder, content) -> None:
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    (folder / "model.safetensors.index.json").write_bytes(text)


def test_a_model_in_several_files_is_read_as_if_it_were_one(shards):
    folder, _ = shards
    ours = open_folder(folder)
    assert ours.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert ours[name].numbers().tobytes() == tensor.float().numpy().tobytes()


def test_one_whole_file_counts_before_an_index_that_was_left_behind(shards):
    folder, _ = shards
    save_file({"x": torch.ones(2)}, folder / "model.safetensors")
    assert open_folder(folder).keys() == {"x"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda listed: {"a": "../one.safetensors"}, "beside it"),
        (lambda listed: {"a": "/etc/passwd"}, "beside it"),
        (lambda listed: {"a": ""}, "beside it"),
        (lambda listed: {"a": "."}, "beside it"),
        (lambda listed: {"a": "three.safetensors"}, "three.safetensors"),
        (lambda listed: {"a": "a\0b"}, "no text"),
        (lambda listed: {"a": 3}, "no text"),
        (lambda listed: [1], "no index"),
        (lambda listed: listed | {"b": "one.safetensors"}, "tensor 'b'"),
        (lambda listed: {name: file for name, file in listed.items() if name != "a"}, "tensor 'a'"),
        (lambda listed: listed | {"a": "two.safetensors"}, "tensor 'a'"),
    ],
)
def test_an_index_that_lies_is_refused_in_one_line(change, words, shards):
    folder, listed = shards
    write_index(folder, {"weight_map": change(listed)})
    with pytest.raises(ValueError, match=words) as caught:
        open_folder(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"null", b"{}", b"\xff", b"[" * 100_000, b'{"weight_map": {"a": "x", "a": "y"}}']
)
def test_an_index_that_is_none_is_refused_in_one_line(content, shards):
    write_index(shards[0], content)
    with pytest.raises(ValueError, match="no index of weights") as caught:
        open_folder(shards[0])
    assert "\n" not in str(caught.value)


def test_a_tensor_in_two_files_is_refused(shards):
    folder, listed = shards
    save_file({name: TENSORS[name] for name in ("a", *sorted(TENSORS)[2:])}, folder / "two.safetensors")
    with pytest.raises(ValueError, match="do not agree about tensor 'a'"):
        open_folder(folder)
