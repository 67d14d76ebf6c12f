"""store_kv and gather_kv: rows land where they should, nothing else moves."""

from __future__ import annotations

import pytest
import torch

from pydstp import ops
from pydstp.errors import OptionError
from tests import reference
from tests.compare import assert_bitwise
from tests.generators import Guarded, hostile_indices, in_wider_rows, integers, normal

BATCH, VISUAL, TEXT = 3, 97, 19
SHAPES = [(1, 1), (3, 19), (8, 64)]  # (num_kv_heads, head_dim)


def arenas(dtype: torch.dtype, num_kv_heads: int, head_dim: int) -> tuple[torch.Tensor, ...]:
    row = (2, num_kv_heads, head_dim)
    return (normal(BATCH, VISUAL, *row, dtype=dtype, seed=8),
            normal(BATCH, TEXT, *row, dtype=dtype, seed=9))


def distinct_places(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """seq_idx and slot_idx of `count` different rows of the cache, in random order."""
    generator = torch.Generator().manual_seed(count)
    places = torch.randperm(BATCH * (VISUAL + TEXT), generator=generator)[:count].int()
    return places // (VISUAL + TEXT), places % (VISUAL + TEXT)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("tokens", [1, 19, 111])
def test_store_kv_writes_each_row_and_nothing_else(isa, dtype, shape, tokens, pool):
    visual, text = arenas(dtype, *shape)
    k, v = (in_wider_rows(normal(tokens, *shape, dtype=dtype, seed=s)) for s in (1, 2))
    seq_idx, slot_idx = distinct_places(tokens)
    expected = visual.clone(), text.clone()
    reference.store_kv(k, v, *expected, seq_idx, slot_idx)
    ops.store_kv(k, v, visual, text, seq_idx, slot_idx, pool=pool, check_indices=True)
    assert_bitwise(visual, expected[0])
    assert_bitwise(text, expected[1])


def test_store_kv_reads_k_and_v_out_of_a_fused_projection(isa, dtype, pool):
    num_heads, num_kv_heads, head_dim = 6, 2, 8
    visual, text = arenas(dtype, num_kv_heads, head_dim)
    qkv = normal(3, (num_heads + 2 * num_kv_heads) * head_dim, dtype=dtype)
    _, k, v = qkv.unflatten(1, (-1, head_dim)).split([num_heads, num_kv_heads, num_kv_heads], dim=1)
    slot_idx = torch.tensor([5, VISUAL, VISUAL + TEXT - 1], dtype=torch.int32)
    ops.store_kv(k, v, visual, text, torch.ones(3, dtype=torch.int32), slot_idx, pool=pool)
    assert_bitwise(visual[1, 5], torch.stack([k[0], v[0]]))
    assert_bitwise(text[1, 0], torch.stack([k[1], v[1]]))
    assert_bitwise(text[1, TEXT - 1], torch.stack([k[2], v[2]]))


@pytest.mark.parametrize("which", ["seq_idx", "slot_idx"])
def test_store_kv_skips_indices_that_name_no_row(isa, dtype, which, pool):
    visual, text = arenas(dtype, 3, 19)
    size = BATCH if which == "seq_idx" else VISUAL + TEXT
    bad = torch.tensor(hostile_indices(size), dtype=torch.int32)
    good = torch.ones_like(bad)
    places = (bad, good) if which == "seq_idx" else (good, bad)
    k = normal(len(bad), 3, 19, dtype=dtype)
    expected = visual.clone(), text.clone()
    status = torch.zeros(1, dtype=torch.int32)
    ops.store_kv(k, k, visual, text, *places, pool=pool, status=status)
    assert_bitwise(visual, expected[0])
    assert_bitwise(text, expected[1])
    assert status.item() == (1 if which == "seq_idx" else 2)
    ops.store_kv(k, k, visual, text, *places, pool=pool)  # the status word is optional
    with pytest.raises(OptionError, match=f"{which}: expected indices in .* at element 1"):
        ops.store_kv(k, k, visual, text, *places, pool=pool, check_indices=True)


def test_minus_one_is_skipped_silently(isa, dtype, pool):
    visual, text = arenas(dtype, 1, 1)
    status, minus_one = torch.zeros(1, dtype=torch.int32), integers(-1, 0, 3)
    k = normal(3, 1, 1, dtype=dtype)
    for places in ((minus_one, minus_one * 0), (minus_one * 0, minus_one)):
        ops.store_kv(k, k, visual, text, *places, pool=pool, status=status, check_indices=True)
    assert_bitwise(visual, arenas(dtype, 1, 1)[0])
    assert status.item() == 0


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("count", [0, 1, 111, 769])
def test_gather_kv_copies_rows_in_the_order_of_the_list(isa, dtype, shape, count, pool):
    visual, text = arenas(dtype, *shape)
    slots = integers(0, VISUAL + TEXT, count, seed=count)
    out = Guarded(count, 2, *shape, dtype=dtype)
    ops.gather_kv(visual, text, 2, slots, pool=pool, out=out.tensor, check_indices=True)
    out.check()
    if count:
        assert_bitwise(out.tensor, reference.gather_kv(visual, text, 2, slots))


def test_gather_kv_gives_zeros_for_slots_that_name_no_row(isa, dtype, pool):
    visual, text = arenas(dtype, 3, 19)
    slots = torch.tensor([4, *hostile_indices(VISUAL + TEXT), VISUAL], dtype=torch.int32)
    status = torch.zeros(1, dtype=torch.int32)
    rows = ops.gather_kv(visual, text, 0, slots, pool=pool, status=status)
    assert_bitwise(rows, reference.gather_kv(visual, text, 0, slots))
    assert status.item() == 2
    with pytest.raises(OptionError, match="slots: expected indices in"):
        ops.gather_kv(visual, text, 0, slots, pool=pool, check_indices=True)
