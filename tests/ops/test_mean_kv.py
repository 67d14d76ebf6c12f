"""mean_kv: one row becomes the mean of others, nothing else moves."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pydstp import ops
from pydstp.errors import OptionError
from tests import reference
from tests.compare import assert_bitwise, assert_matches
from tests.generators import INT_MAX, INT_MIN, hostile_indices, normal

BATCH = 3


def some_rows() -> Tensor:
    """A batch: the last sequence, none, and the first."""
    return torch.tensor([2, -1, 0], dtype=torch.int32)


def make_case(dtype: torch.dtype, capacity: int, num_heads: int = 3,
              head_dim: int = 19) -> tuple[Tensor, dict[str, Tensor]]:
    """Sequence s averages what remains of a random list after s entries; NaN in rows not listed."""
    visual = normal(BATCH, capacity, 2, num_heads, head_dim, dtype=dtype, seed=capacity)
    indices = torch.full((BATCH, capacity + 3), INT_MAX, dtype=torch.int32)
    index_len = torch.tensor([max(0, capacity - 1 - seq) for seq in range(BATCH)]).int()
    generator = torch.Generator().manual_seed(capacity)
    for seq in range(BATCH):
        order = torch.randperm(capacity - 1, generator=generator)
        length = int(index_len[seq])
        indices[seq, :length] = order[:length]
        visual[seq, order[length:]] = float("nan")
    dst_slot = torch.full((BATCH,), capacity - 1, dtype=torch.int32)
    return visual, {"seq_idx": some_rows(), "indices": indices, "index_len": index_len,
                    "dst_slot": dst_slot}


def check(visual: Tensor, lists: dict[str, Tensor], pool: ops.ThreadPool,
          **options: object) -> None:
    """Both the row that is written and everything around it."""
    truth, plain, before = visual.float(), visual.clone(), visual.clone()
    reference.mean_kv(truth, **lists)
    reference.mean_kv(plain, **lists)
    ops.mean_kv(visual, **lists, pool=pool, **options)
    assert_matches(visual, truth, plain)
    slots = torch.arange(visual.shape[1])
    is_written = (slots == lists["dst_slot"].unsqueeze(1)) & (lists["index_len"] > 0).unsqueeze(1)
    is_written[[s for s in range(BATCH) if s not in lists["seq_idx"]]] = False
    assert_bitwise(visual[~is_written], before[~is_written])


@pytest.mark.parametrize("capacity", [1, 2, 3, 97, 769])
def test_sizes(isa, dtype, capacity, pool):
    check(*make_case(dtype, capacity), pool, check_indices=True)


@pytest.mark.parametrize("shape", [(1, 1), (8, 128), (3, 97)], ids=str)
def test_heads(isa, dtype, shape, pool):
    check(*make_case(dtype, 33, *shape), pool)


def test_a_row_that_is_written_may_be_in_its_list(isa, dtype, pool):
    visual, lists = make_case(dtype, 97)
    lists["dst_slot"][:] = lists["indices"][:, 5]
    check(visual, lists, pool)


@pytest.mark.parametrize("name", ["seq_idx", "index_len", "dst_slot"])
def test_nothing_to_do_does_nothing(isa, dtype, name, pool):
    visual, lists = make_case(dtype, 33)
    lists[name] = torch.full_like(lists[name], 0 if name == "index_len" else -1)
    before, status = visual.clone(), torch.zeros(1, dtype=torch.int32)
    ops.mean_kv(visual, **lists, pool=pool, status=status, check_indices=True)
    assert_bitwise(visual, before)
    assert status.item() == 0


@pytest.mark.parametrize("name, bit", [("seq_idx", 1), ("dst_slot", 2), ("index_len", 8)])
def test_hostile_numbers_are_survived_and_reported(isa, dtype, name, bit, pool):
    for value in (INT_MIN, -2, 1000, INT_MAX):
        visual, lists = make_case(dtype, 33)
        lists["indices"].clamp_(max=32)
        lists[name][2 if name != "seq_idx" else 0] = value
        expected, status = visual.clone(), torch.zeros(1, dtype=torch.int32)
        ops.mean_kv(expected, **{**lists, "seq_idx": some_rows()[2:]}, pool=pool)
        ops.mean_kv(visual, **lists, pool=pool, status=status)
        assert status.item() == bit
        assert_bitwise(visual[:2], expected[:2])
        with pytest.raises(OptionError, match=f"{name}: expected indices in"):
            ops.mean_kv(visual, **lists, pool=pool, check_indices=True)


def test_list_entries_that_name_no_row_are_skipped_and_reported(isa, dtype, pool):
    visual, lists = make_case(dtype, 33)
    bad = torch.tensor(hostile_indices(33), dtype=torch.int32)
    lists["indices"][:, 3 : 3 + len(bad)] = bad
    status = torch.zeros(1, dtype=torch.int32)
    check(visual, lists, pool, status=status)
    assert status.item() == 2
    with pytest.raises(OptionError, match="indices: expected indices in"):
        ops.mean_kv(visual, **lists, pool=pool, check_indices=True)
    lists["indices"].fill_(-1)  # nothing is left to average
    before = visual.clone()
    ops.mean_kv(visual, **lists, pool=pool)
    assert_bitwise(visual, before)


def test_threads_and_neighbours_change_nothing(isa, dtype, pools):
    lists = make_case(dtype, 97)[1]
    results = []
    for pool in pools:
        for batches in ([some_rows()], [some_rows()[:1], some_rows()[1:]]):
            visual = make_case(dtype, 97)[0]
            for rows in batches:
                ops.mean_kv(visual, **{**lists, "seq_idx": rows}, pool=pool)
            results.append(visual)
    for result in results:
        assert_bitwise(result, results[0])
