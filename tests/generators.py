"""Inputs that find mistakes: odd sizes, strided views, hostile indices, poisoned surroundings."""

from __future__ import annotations

import torch
from torch import Tensor

SIZES = (1, 3, 19, 97, 111, 769, 1025)
GQA_RATIOS = (1, 3, 8)
DTYPES = (torch.float32, torch.bfloat16)

INT_MIN, INT_MAX = -(2**31), 2**31 - 1


def hostile_indices(size: int) -> list[int]:
    """Indices that name no element of `size`, and no neighbour of the memory either."""
    return [-1, INT_MIN, INT_MAX, size, -size - 1]


def normal(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    """Standard normal numbers; the same seed gives the same tensor."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator).to(dtype)


def near_one(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    """Uniform in [0.5, 1.5], as norm weights are."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(*shape, generator=generator) + 0.5).to(dtype)


def integers(low: int, high: int, *shape: int, seed: int = 0) -> Tensor:
    """int32 in [low, high)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(low, high, shape, generator=generator, dtype=torch.int32)


def poison(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """All NaN: any use of an element that should not be read shows."""
    return torch.full(shape, float("nan"), dtype=dtype)


def in_wider_rows(x: Tensor, extra: int = 5) -> Tensor:
    """x as a view whose rows (dimension 0) lie apart, with poison between them."""
    row = x.shape[1:].numel()
    wide = poison(len(x), row + 2 * extra, dtype=x.dtype)
    view = wide[:, extra : extra + row].unflatten(1, x.shape[1:])
    return view.copy_(x)


class Guarded:
    """A contiguous tensor of poison (integers: -1) with guard elements on both sides.

    Attributes:
        tensor: what an op writes to.
    """

    MARGIN = 64

    def __init__(self, *shape: int, dtype: torch.dtype) -> None:
        size = torch.Size(shape).numel()
        self._memory = torch.full((size + 2 * self.MARGIN,), 7.0, dtype=dtype)
        self.tensor = self._memory[self.MARGIN : self.MARGIN + size].view(shape)
        self.tensor.fill_(float("nan") if dtype.is_floating_point else -1)

    def check(self) -> None:
        """The memory around the tensor is as it was."""
        before, after = self._memory[: self.MARGIN], self._memory[-self.MARGIN :]
        assert (before == 7.0).all(), "written before the start of the tensor"
        assert (after == 7.0).all(), "written past the end of the tensor"
