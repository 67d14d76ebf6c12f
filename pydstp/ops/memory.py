"""Memory for weights."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pydstp import _C
from pydstp.ops.checks import address, op

HUGE_PAGE_BYTES = 2 << 20


@op
def empty_in_huge_pages(*shape: int, dtype: torch.dtype,
                        device: torch.device | str = "cpu") -> Tensor:
    """An uninitialised tensor that starts at a huge page and asks the system for huge pages.

    A product that reads its weights once pays for a walk of the page tables every 4 KiB otherwise.
    Tensors smaller than a huge page are ordinary ones, and where the system has no huge pages to
    give, all are. Memory is taken up as it is written to, a page at a time. A GPU has no such
    pages to ask for: a tensor on one is an ordinary one.

    Returns:
        [*shape] of dtype, contiguous, on the device.
    """
    num_bytes = math.prod(shape) * dtype.itemsize
    if num_bytes < HUGE_PAGE_BYTES or torch.device(device).type != "cpu":
        return torch.empty(shape, dtype=dtype, device=device)
    room = torch.empty(num_bytes + HUGE_PAGE_BYTES, dtype=torch.uint8, device="cpu")
    first = address(room, "room", torch.uint8, tuple(room.shape))
    start = -first % HUGE_PAGE_BYTES
    _C.advise_huge_pages(first + start, num_bytes // HUGE_PAGE_BYTES * HUGE_PAGE_BYTES)
    return room[start : start + num_bytes].view(dtype).view(shape)
