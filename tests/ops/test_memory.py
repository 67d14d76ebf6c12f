"""Memory for weights: its place, and whether the system was asked for huge pages."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pydstp import ops

HUGE_PAGE_BYTES = 2 << 20


@pytest.mark.parametrize("shape", [(1 << 20,), (3, 1025, 769), (1 << 10, 1 << 10)], ids=str)
def test_large_tensors_start_at_a_huge_page(shape):
    tensor = ops.empty_in_huge_pages(*shape, dtype=torch.bfloat16)
    assert tensor.shape == shape and tensor.dtype == torch.bfloat16 and tensor.is_contiguous()
    assert tensor.data_ptr() % HUGE_PAGE_BYTES == 0
    tensor.fill_(1.5)
    assert tensor.sum(dtype=torch.float64) == 1.5 * tensor.numel()


@pytest.mark.parametrize("shape", [(), (0,), (3, 5), (0, 1 << 30)], ids=str)
def test_small_and_empty_tensors_have_their_shape(shape):
    tensor = ops.empty_in_huge_pages(*shape, dtype=torch.float32).zero_()
    assert tensor.shape == shape and tensor.dtype == torch.float32


def test_the_system_is_asked_for_huge_pages():
    if not Path("/sys/kernel/mm/transparent_hugepage").exists():
        pytest.skip("this system has no transparent huge pages")
    tensor = ops.empty_in_huge_pages(3 * HUGE_PAGE_BYTES + 5, dtype=torch.uint8)
    assert "hg" in flags_at(tensor.data_ptr())
    assert "hg" in flags_at(tensor.data_ptr() + 3 * HUGE_PAGE_BYTES - 1)


def flags_at(address: int) -> list[str]:
    """The flags of the mapping of this process that holds an address."""
    is_wanted = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        key, *values = line.split()
        if "-" in key and not key.endswith(":"):
            first, last = (int(end, 16) for end in key.split("-"))
            is_wanted = first <= address < last
        elif key == "VmFlags:" and is_wanted:
            return values
    return []
