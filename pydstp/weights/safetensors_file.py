"""Reading safetensors files: every rule of the format is checked before a byte of data is used.

Format: 8 bytes header length (little endian), a JSON header, then the data of all tensors without
gaps (github.com/huggingface/safetensors, README "Format"). A file that breaks a rule is refused
with an error that names the file, the tensor and the rule.
"""

from __future__ import annotations

import json
import mmap
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import torch
from torch import Tensor

from pydstp.errors import CheckpointError

MAX_HEADER_BYTES = 100_000_000
MAX_SIZE = 2**63  # of any number in a header, and of any product of them

DTYPE_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "I16": 16, "U16": 16, "I32": 32, "U32": 32, "I64": 64, "U64": 64,
    "F16": 16, "BF16": 16, "F32": 32, "F64": 64, "C64": 64, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
    "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
}  # fmt: skip
WEIGHT_DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies. `offset` and `num_bytes` are bytes in `file`."""

    name: str
    file: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int
    num_bytes: int

    @property
    def numel(self) -> int:
        return self.num_bytes * 8 // DTYPE_BITS[self.dtype]


def read_header(path: Path) -> dict[str, TensorInfo]:
    """The tensors of a file, ordered by their place in it.

    Raises:
        CheckpointError: the file is missing, is no regular file, or breaks a rule of the format.
    """
    with open_regular(path) as file:
        file_bytes = os.fstat(file.fileno()).st_size
        header_bytes = int.from_bytes(file.read(8), "little")
        if file_bytes < 8:
            raise CheckpointError(f"{path}: {file_bytes} bytes are no safetensors file")
        if header_bytes > MAX_HEADER_BYTES:
            raise CheckpointError(f"{path}: a header of {header_bytes} bytes is longer than "
                                  f"{MAX_HEADER_BYTES}")
        if 8 + header_bytes > file_bytes:
            raise CheckpointError(f"{path}: the header ends at byte {8 + header_bytes}, the file "
                                  f"at {file_bytes}; it may be truncated")
        header = _parse(path, file.read(header_bytes))
    return _tensors(path, header, 8 + header_bytes, file_bytes)


def open_regular(path: Path) -> BinaryIO:
    """Open a file for reading; a directory, pipe or device is refused, not waited for."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise CheckpointError(f"{path}: expected a regular file")
        return path.open("rb")
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from None


def _parse(path: Path, header: bytes) -> dict[str, Any]:
    if not header.startswith(b"{"):
        raise CheckpointError(f"{path}: the header does not start with an opening brace")
    try:
        parsed = json.loads(header.decode("utf-8"), object_pairs_hook=_unique, parse_int=_natural)
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path}: the header is not UTF-8 ({error.reason})") from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: the header is not valid JSON ({error})") from None
    metadata = parsed.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(map(_is_text, metadata.values())):
        raise CheckpointError(f"{path}: __metadata__ must map strings to strings")
    return parsed


def _natural(digits: str) -> int | float:
    """Signed numbers, "-0" too, become floats, which no size accepts."""
    return int(digits) if digits.isdigit() else float(digits)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    unique: dict[str, Any] = {}
    for key, value in pairs:
        if key in unique:
            raise ValueError(f"duplicate key {_show(key)}")
        if not _is_text(key):
            raise ValueError(f"unpaired surrogate in {_show(key)!a}")
        unique[key] = value
    return unique


def _tensors(path: Path, header: dict[str, Any], data_start: int,
             file_bytes: int) -> dict[str, TensorInfo]:
    infos = [_tensor_info(path, name, entry, data_start) for name, entry in header.items()]
    infos.sort(key=lambda info: (info.offset, info.num_bytes))
    end, previous = data_start, "the header"
    for info in infos:
        if info.offset != end:
            kind = "overlaps" if info.offset < end else "leaves a hole after"
            raise CheckpointError(f"{path}: tensor {_show(info.name)} {kind} {_show(previous)}: "
                                  f"expected data_offsets from {end - data_start}, "
                                  f"got {info.offset - data_start}")
        end, previous = info.offset + info.num_bytes, info.name
    if end != file_bytes:
        state = "it may be truncated" if end > file_bytes else "bytes are left over"
        raise CheckpointError(f"{path}: the tensors end at byte {end}, the file at {file_bytes}; "
                              f"{state}")
    return {info.name: info for info in infos}


def _tensor_info(path: Path, name: str, entry: Any, data_start: int) -> TensorInfo:
    def refuse(rule: str, got: Any) -> NoReturn:
        raise CheckpointError(f"{path}: tensor {_show(name)}: {rule}, got {_show(got)}")

    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        refuse("expected exactly dtype, shape and data_offsets", entry)
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        refuse("expected a known dtype", dtype)
    if not isinstance(shape, list) or not all(_is_size(size) for size in shape):
        refuse("expected a shape of integers >= 0", shape)
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_is_size, offsets)):
        refuse("expected two data_offsets >= 0", offsets)
    bits = DTYPE_BITS[dtype]
    for size in shape:
        bits *= size
        if bits >= MAX_SIZE:
            refuse("the size of the shape overflows", shape)
    if bits != 8 * (offsets[1] - offsets[0]):
        refuse(f"{dtype} {shape} needs {-(-bits // 8)} bytes, expected data_offsets that far apart",
               offsets)
    return TensorInfo(name, path, dtype, tuple(shape), data_start + offsets[0], bits // 8)


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value < MAX_SIZE


def _is_text(value: Any) -> bool:
    """A string that is Unicode: JSON escapes can spell half of a surrogate pair."""
    return isinstance(value, str) and not any("\ud800" <= char <= "\udfff" for char in value)


def _show(value: Any) -> str:
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= 200 else text[:200] + "..."


class MappedFile:
    """A safetensors file in memory, read block by block; pages that were used are given back.

    The file must keep its length while it is mapped.
    """

    def __init__(self, path: Path) -> None:
        with open_regular(path) as file:
            # Private and writable, so that torch takes it without a warning; nothing writes to it.
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        if hasattr(mmap, "MADV_SEQUENTIAL"):
            self._map.madvise(mmap.MADV_SEQUENTIAL)  # read ahead generously

    def rows(self, info: TensorInfo, start: int, stop: int) -> Tensor:
        """Rows [start, stop) of a tensor's first dimension, a view of the file where aligned.

        Returns:
            [stop - start, ...] bfloat16, float16 or float32, valid until `release`.
        """
        dtype, shape = WEIGHT_DTYPES[info.dtype], (stop - start, *info.shape[1:])
        first, last = self._span(info, start, stop)
        if last > len(self._map):
            raise CheckpointError(f"{info.file}: the file changed while it was read")
        if first == last:
            return torch.empty(shape, dtype=dtype)
        if first % dtype.itemsize:
            return torch.frombuffer(bytearray(self._map[first:last]), dtype=dtype).view(shape)
        count = (last - first) // dtype.itemsize
        return torch.frombuffer(self._map, dtype=dtype, count=count, offset=first).view(shape)

    def release(self, info: TensorInfo, start: int, stop: int) -> None:
        """Give back the pages that only these rows lie in."""
        if not hasattr(mmap, "MADV_DONTNEED"):
            return
        first, last = self._span(info, start, stop)
        first -= first % mmap.PAGESIZE  # pages before `first` hold rows that were read already
        last -= last % mmap.PAGESIZE
        if first < last:
            self._map.madvise(mmap.MADV_DONTNEED, first, last - first)

    @staticmethod
    def _span(info: TensorInfo, start: int, stop: int) -> tuple[int, int]:
        row_bytes = info.num_bytes // info.shape[0] if info.shape[0] else 0
        return info.offset + start * row_bytes, info.offset + stop * row_bytes
