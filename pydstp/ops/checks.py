"""Checks of the tensors that ops take: expected, got, which argument.

The checks run before every native call, hundreds of times per token, so the good case is a few
attribute reads and only the bad case builds a message.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pydstp.errors import OptionError
from pydstp.ops.recording import keep

DTYPE_CODES = {torch.float32: 0, torch.bfloat16: 1}


def dtype_code(tensor: Tensor, name: str) -> int:
    """The native code of a float32 or bfloat16 tensor."""
    if isinstance(tensor, Tensor):
        code = DTYPE_CODES.get(tensor.dtype)
        if code is not None:
            return code
        raise OptionError(f"{name}: expected float32 or bfloat16, got {tensor.dtype}")
    raise OptionError(f"{name}: expected a torch.Tensor, got {type(tensor).__name__}")


def address(tensor: Tensor, name: str, dtype: torch.dtype, shape: tuple[int, ...]) -> int:
    """The address of a contiguous CPU tensor of exactly this dtype and shape."""
    if (
        isinstance(tensor, Tensor)
        and tensor.dtype is dtype
        and tensor.shape == shape
        and tensor.is_contiguous()
        and tensor.is_cpu
    ):
        keep(tensor)
        return tensor.data_ptr()
    raise OptionError(_explain(tensor, name, dtype, shape) or _not_contiguous(tensor, name))


def row_address(tensor: Tensor, name: str, dtype: torch.dtype, shape: tuple[int, ...]) -> int:
    """As `address` for three dimensions, but rows (dimension 0) may lie anywhere."""
    if (
        isinstance(tensor, Tensor)
        and tensor.dtype is dtype
        and tensor.shape == shape
        and tensor.is_cpu
        and (tensor.stride()[1:] == (shape[2], 1) or tensor[:1].is_contiguous())
    ):
        keep(tensor)
        return tensor.data_ptr()
    raise OptionError(_explain(tensor, name, dtype, shape) or _not_contiguous(tensor, name))


def optional_address(
    tensor: Tensor | None, name: str, dtype: torch.dtype, shape: tuple[int, ...]
) -> int:
    """As `address`; 0 for None."""
    return 0 if tensor is None else address(tensor, name, dtype, shape)


def check_rank(tensor: Tensor, name: str, dims: Sequence[str]) -> None:
    """A tensor with one dimension for each name in `dims`."""
    if not isinstance(tensor, Tensor):
        raise OptionError(f"{name}: expected a torch.Tensor, got {type(tensor).__name__}")
    if tensor.dim() != len(dims):
        expected = f"[{', '.join(dims)}]"
        raise OptionError(f"{name}: expected shape {expected}, got {list(tensor.shape)}")


def check_batch(seq_idx: Tensor, max_batch: int) -> int:
    """The length of seq_idx, at most max_batch."""
    check_rank(seq_idx, "seq_idx", ("batch",))
    batch = seq_idx.shape[0]
    if batch > max_batch:
        raise OptionError(f"seq_idx: expected at most max_batch = {max_batch} rows, got {batch}")
    return batch


def check_index_range(indices: Tensor, name: str, low: int, high: int) -> None:
    """Every element in [low, high)."""
    bad = (indices < low) | (indices >= high)
    if bad.any():
        place = int(bad.flatten().nonzero()[0])
        value = int(indices.flatten()[place])
        raise OptionError(
            f"{name}: expected indices in [{low}, {high}), got {value} at element {place}"
        )


def _explain(
    tensor: Tensor, name: str, dtype: torch.dtype, shape: tuple[int, ...]
) -> str | None:
    if not isinstance(tensor, Tensor):
        return f"{name}: expected a torch.Tensor, got {type(tensor).__name__}"
    if tensor.dtype is not dtype:
        return f"{name}: expected {dtype}, got {tensor.dtype}"
    if tensor.shape != shape:
        return f"{name}: expected shape {list(shape)}, got {list(tensor.shape)}"
    if not tensor.is_cpu:
        return f"{name}: expected a tensor on cpu, got {tensor.device}"
    return None


def _not_contiguous(tensor: Tensor, name: str) -> str:
    shape, strides = list(tensor.shape), list(tensor.stride())
    return f"{name}: expected contiguous memory, got strides {strides} for shape {shape}"
