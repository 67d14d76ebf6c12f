"""Checks of the tensors that ops take: expected, got, which argument.

The checks run before every native call, hundreds of times per token, so the good case is a few
attribute reads and only the bad case builds a message.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import wraps
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

from pydstp.errors import OptionError
from pydstp.ops.recording import keep

DTYPE_CODES = {torch.float32: 0, torch.bfloat16: 1}
DEVICES = ("cpu", "cuda")

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


class _Place(threading.local):
    """Where the tensors of the op that is being called lie, and the name of the first of them."""

    device: torch.device | None = None
    name = ""


_place = _Place()


def op(function: Callable[_Arguments, _Result]) -> Callable[_Arguments, _Result]:
    """An op: its tensors lie on one device, that of the first whose address is taken."""

    @wraps(function)
    def on_one_device(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Result:
        _place.device = None
        return function(*args, **kwargs)

    return on_one_device


def op_device() -> torch.device | None:
    """Where the op that is being called runs; None before the first address."""
    return _place.device


def _is_in_place(tensor: Tensor, name: str) -> bool:
    device = tensor.device
    if device == _place.device:
        return True
    if _place.device is not None or device.type not in DEVICES:
        return False
    _place.device, _place.name = device, name
    return True


def dtype_code(tensor: Tensor, name: str) -> int:
    """The native code of a float32 or bfloat16 tensor."""
    if isinstance(tensor, Tensor):
        code = DTYPE_CODES.get(tensor.dtype)
        if code is not None:
            return code
        raise OptionError(f"{name}: expected float32 or bfloat16, got {tensor.dtype}")
    raise OptionError(f"{name}: expected a torch.Tensor, got {type(tensor).__name__}")


def address(tensor: Tensor, name: str, dtype: torch.dtype, shape: tuple[int, ...]) -> int:
    """The address of a contiguous tensor of exactly this dtype and shape, on the op's device."""
    if (
        isinstance(tensor, Tensor)
        and tensor.dtype is dtype
        and tensor.shape == shape
        and tensor.is_contiguous()
        and _is_in_place(tensor, name)
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
        and _is_in_place(tensor, name)
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
    device, found = _place.device, tensor.device
    if device is None and found.type not in DEVICES:
        return f"{name}: expected a tensor on cpu or cuda, got {found}"
    if device is not None and found != device:
        return f"{name}: expected a tensor on {device}, like {_place.name}, got {found}"
    return None


def _not_contiguous(tensor: Tensor, name: str) -> str:
    shape, strides = list(tensor.shape), list(tensor.stride())
    return f"{name}: expected contiguous memory, got strides {strides} for shape {shape}"
