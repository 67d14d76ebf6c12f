"""Every rule of the safetensors format, one file that breaks it, and what the error names."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pydstp.errors import CheckpointError
from pydstp.weights.safetensors_file import MappedFile, read_header
from tests.loader.raw_files import DATA, HEADER, changed, encode


def write(folder: Path, content: bytes) -> Path:
    path = folder / "model.safetensors"
    path.write_bytes(content)
    return path


def test_reads_a_valid_header(tmp_path: Path) -> None:
    tensors = read_header(write(tmp_path, encode(HEADER)))
    assert list(tensors) == ["a.weight", "b.bias", "c.empty", "d.scalar"]
    info = tensors["b.bias"]
    assert (info.dtype, info.shape, info.num_bytes, info.numel) == ("BF16", (5,), 10, 5)
    assert tensors["d.scalar"].offset == tmp_path.joinpath("model.safetensors").stat().st_size - 8


BROKEN = {
    "empty file": (b"", "0 bytes"),
    "seven bytes": (b"1234567", "7 bytes"),
    "no header": (encode("", b"", 0), "opening brace"),
    "long header": (encode(HEADER, length=100_000_001), "longer than 100000000"),
    "huge length": (encode(HEADER, length=2**64 - 1), "longer than 100000000"),
    "header beyond file": (encode(HEADER, b"", length=5000), "truncated"),
    "leading space": (encode(" {}", b""), "opening brace"),
    "array": (encode("[]", b""), "opening brace"),
    "cut JSON": (encode('{"a": {', b""), "not valid JSON"),
    "text behind": (encode("{} x", b""), "not valid JSON"),
    "not UTF-8": (encode(b'{"\xff": 1}', b""), "not UTF-8"),
    "surrogate": (encode('{"\\ud800": 1}', b""), "surrogate"),
    "deep": (encode('{"a":' + "[" * 200_000, b""), "not valid JSON"),
    "endless number": (encode('{"a": ' + "1" * 9999 + "}", b""), "not valid JSON"),
    "duplicate tensor": (encode('{"a": 1, "a": 1}', b""), "duplicate key a"),
    "duplicate field": (encode('{"a": {"dtype": "F32", "dtype": "F32"}}', b""), "key dtype"),
    "metadata list": (encode(HEADER | {"__metadata__": ["x"]}), "__metadata__"),
    "metadata number": (encode(HEADER | {"__metadata__": {"x": 1}}), "__metadata__"),
    "entry number": (encode({"a": 1}, b""), "tensor a"),
    "field missing": (encode({"a": {"dtype": "F32", "shape": []}}, b""), "tensor a"),
    "field unknown": (encode(changed("b.bias", strides=[1])), "tensor b.bias"),
    "dtype unknown": (encode(changed("b.bias", dtype="F17")), "known dtype, got F17"),
    "dtype number": (encode(changed("b.bias", dtype=7)), "known dtype, got 7"),
    "shape text": (encode(changed("b.bias", shape="5")), "shape"),
    "shape negative": (encode(changed("a.weight", shape=[-2, -3])), "integers >= 0"),
    "shape minus zero": (encode('{"a": {"shape": [-0], "dtype": "U8", "data_offsets": [0, 0]}}'),
                         "integers >= 0"),
    "shape fraction": (encode(changed("b.bias", shape=[5.0])), "integers >= 0"),
    "shape bool": (encode(changed("b.bias", shape=[True])), "integers >= 0"),
    "shape overflow": (encode(changed("a.weight", shape=[2**40, 2**40])), "overflows"),
    "shape wraps to right": (encode(changed("a.weight", shape=[2**62, 6, 0])), "overflows"),
    "too many rows": (encode(changed("a.weight", shape=[3, 3])), "needs 36 bytes"),
    "half a byte": (encode({"a": {"dtype": "F4", "shape": [3], "data_offsets": [0, 2]}}, b"12"),
                    "needs 2 bytes"),
    "offsets three": (encode(changed("a.weight", data_offsets=[0, 24, 24])), "data_offsets"),
    "offsets negative": (encode(changed("a.weight", data_offsets=[-24, 0])), "data_offsets"),
    "offsets reversed": (encode(changed("a.weight", data_offsets=[24, 0])), "data_offsets"),
    "overlap": (encode(changed("b.bias", data_offsets=[22, 32])), "b.bias overlaps a.weight"),
    "hole": (encode(changed("b.bias", data_offsets=[26, 36]), DATA + b"12"), "leaves a hole"),
    "hole at first": (encode({"a": {"dtype": "U8", "shape": [1], "data_offsets": [1, 2]}}, b"12"),
                      "a leaves a hole after the header"),
    "truncated data": (encode(HEADER, DATA[:-1]), "truncated"),
    "bytes behind": (encode(HEADER, DATA + b"1"), "left over"),
    "data without tensors": (encode({}, b"1"), "left over"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_refuses_a_broken_file_and_says_which_rule(tmp_path: Path, name: str) -> None:
    content, message = BROKEN[name]
    path = write(tmp_path, content)
    with pytest.raises(CheckpointError) as caught:
        read_header(path)
    assert str(path) in str(caught.value)
    assert message in str(caught.value)


def test_a_lying_name_does_not_flood_the_message(tmp_path: Path) -> None:
    path = write(tmp_path, encode({"a" * 100_000: {"shape": [1] * 100_000}}, b""))
    with pytest.raises(CheckpointError) as caught:
        read_header(path)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("kind", ["missing", "folder", "pipe"])
def test_refuses_what_is_no_readable_file(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x.safetensors"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)  # opening it would wait for a writer
    with pytest.raises(CheckpointError, match="x.safetensors"):
        read_header(path)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_rows_are_those_of_the_library(tmp_path: Path, dtype: torch.dtype) -> None:
    path = tmp_path / "model.safetensors"
    tensors = {"a": torch.randn(700, 31).to(dtype), "b": torch.randn(3, 5, 7).to(dtype),
               "c": torch.zeros(0, 4, dtype=dtype)}
    save_file(tensors, path)
    header, file = read_header(path), MappedFile(path)
    for name, expected in load_file(path).items():
        info = header[name]
        for start, stop in ((0, info.shape[0]), (1, 3), (info.shape[0], info.shape[0])):
            if stop <= info.shape[0]:
                assert torch.equal(file.rows(info, start, stop), expected[start:stop])
                file.release(info, start, stop)
        assert torch.equal(file.rows(info, 0, info.shape[0]), expected)  # read again from the file


def test_rows_at_odd_offsets_are_copied_to_even_ones(tmp_path: Path) -> None:
    values = torch.arange(6, dtype=torch.float32)
    header = {"odd": {"dtype": "U8", "shape": [3], "data_offsets": [0, 3]},
              "x": {"dtype": "F32", "shape": [3, 2], "data_offsets": [3, 27]}}
    path = write(tmp_path, encode(header, b"123" + values.numpy().tobytes()))
    rows = MappedFile(path).rows(read_header(path)["x"], 1, 3)
    assert rows.data_ptr() % 4 == 0
    assert torch.equal(rows, values.view(3, 2)[1:])


def test_a_file_that_shrank_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, encode(HEADER))
    info = read_header(path)["a.weight"]
    path.write_bytes(path.read_bytes()[:info.offset + 8])
    with pytest.raises(CheckpointError, match="changed while it was read"):
        MappedFile(path).rows(info, 0, 2)
