"""Inputs of attention_with_return: a base case whose free slots became the reserve."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from pydstp import ops
from tests import return_reference
from tests.compare import assert_matches
from tests.generators import INT_MAX, Guarded, normal
from tests.ops.attention_cases import MAX_BATCH, Case, make_case
from tests.return_reference import Returned

POOL = ops.ThreadPool(2)  # writes the sketches of cases


@dataclass
class ReturnCase(Case):
    """`lists` and `reserve` together are what `attention_with_return` takes."""

    reserve: dict[str, object] = field(default_factory=dict)
    capacity: int = 0

    def run_return(self, pool: ops.ThreadPool, **options: object) -> tuple[Tensor, Tensor, Tensor]:
        """out, returned_indices and returned_len, all in guarded memory."""
        out = Guarded(*self.q.shape, dtype=self.q.dtype)
        shape = (len(self.q), self.visual.shape[3])
        indices = Guarded(*shape, self.capacity, dtype=torch.int32)
        length = Guarded(*shape, dtype=torch.int32)
        given = {**self.reserve, "out": out.tensor, "returned_indices": indices.tensor,
                 "returned_len": length.tensor, **options}
        assert self.run(ops.attention_with_return, pool=pool, **given) is out.tensor
        for memory in (out, indices, length):
            memory.check()
        return out.tensor, indices.tensor, length.tensor

    def expected(self) -> list[Returned]:
        return self.run(return_reference.attention_with_return, **self.reserve)

    def rows(self, index: slice | list[int]) -> ReturnCase:
        """The same cache with other rows of the batch."""
        lists = {**self.lists, "seq_idx": self.lists["seq_idx"][index]}
        return replace(self, q=self.q[index], lists=lists)

    def with_all_returned(self) -> Case:
        """The case whose list is base and reserve."""
        indices, length = self.lists["visible_indices"], self.lists["visible_len"].clone()
        reserve, reserve_len = self.reserve["reserve_indices"], self.reserve["reserve_len"]
        longer = torch.cat([indices, torch.zeros_like(reserve).unsqueeze(1).expand(-1, 2, -1)], 2)
        for seq in range(MAX_BATCH):
            begin, count = int(length[seq, 1]), int(reserve_len[seq])
            longer[seq, 1, begin : begin + count] = reserve[seq, :count]
            longer[seq, 1, : begin + count] = longer[seq, 1, : begin + count].sort().values
            length[seq, 1] += count
        lists = {**self.lists, "visible_indices": longer.contiguous(), "visible_len": length}
        return Case(self.q, self.visual, self.text, lists)

    def wide(self) -> ReturnCase:
        """In fp32, with the same sketch."""
        return self.to(torch.float32)


def sketch_all(case: Case, reserve: list[Tensor], bits: int,
               statistic: str | None) -> ops.KeySketch:
    """A sketch of the reserve of every sequence; everything else in it is poison."""
    visual = case.visual
    max_batch, capacity, _, num_kv_heads, head_dim = visual.shape
    sketch = ops.KeySketch.allocate(max_batch, capacity, num_kv_heads, head_dim, bits)
    sketch.scales.fill_(float("nan"))
    sketch.codes.fill_(255)
    for seq, slots in enumerate(reserve):
        if statistic is not None:
            ops.sketch_scale(visual, sketch, seq, slots, pool=POOL, statistic=statistic)
        ops.sketch_keys(visual, sketch, seq, slots, pool=POOL)
    return sketch


def make_return_case(
    dtype: torch.dtype, *, reserve_len: int = 97, max_returned: int = 3, bits: int = 4,
    per_head: bool = False, mass: float | None = None, statistic: str | None = "max",
    duplicates: bool = False, outlier: float = 1.0, **shape: int,
) -> ReturnCase:
    """Sequences with reserves of the given length, half of it, one entry and none, shuffled."""
    base = make_case(dtype, **{"list_len": 97, **shape})
    old_capacity = base.visual.shape[1]
    row, generator = base.visual.shape[2:], torch.Generator().manual_seed(5)
    base.visual = torch.cat([base.visual, torch.full((MAX_BATCH, reserve_len, *row), float("nan"),
                                                     dtype=dtype)], dim=1).contiguous()
    indices = torch.full((MAX_BATCH, reserve_len + 3), INT_MAX, dtype=torch.int32)
    lengths = torch.tensor([reserve_len, reserve_len // 2, min(1, reserve_len), 0]).int()
    reserves = []
    for seq, length in enumerate(lengths.tolist()):
        slots = old_capacity + torch.randperm(reserve_len, generator=generator)[:length].int()
        keys = normal(length, *row, dtype=dtype, seed=50 + seq)
        keys[:, 0, :, 0] *= outlier
        if duplicates:
            keys = keys[torch.arange(length) % 5]
        base.visual[seq, slots.long()] = keys
        indices[seq, :length] = slots
        reserves.append(slots)
    sketch = sketch_all(base, reserves, bits, statistic)
    reserve = {"sketch": sketch, "reserve_indices": indices, "reserve_len": lengths,
               "max_returned": torch.full((MAX_BATCH,), max_returned, dtype=torch.int32)}
    if per_head:
        reserve["per_head"] = torch.ones(MAX_BATCH, dtype=torch.int32)
    if mass is not None:
        reserve["mass"] = torch.full((MAX_BATCH,), mass)
    return ReturnCase(base.q, base.visual, base.text, base.lists, reserve, max(1, max_returned))


def check(case: ReturnCase, pool: ops.ThreadPool, **options: object) -> list[list[list[int]]]:
    """Against the reference; where shares differ by less than rounding, either slot may return.
    Returns the lists by row and KV head."""
    out, indices, length = case.run_return(pool, **options)
    truth, plain = case.wide().expected(), case.expected()
    got = [[indices[i, kv, : int(length[i, kv])].tolist() for kv in range(indices.shape[1])]
           for i in range(len(out))]
    for i, (lists, wanted) in enumerate(zip(got, truth, strict=True)):
        for kv, listed in enumerate(lists):
            assert listed == sorted(set(listed))
            shares = wanted.shares[kv]
            assert len(listed) == len(wanted.slots[kv]), f"row {i}, KV head {kv}"
            for mine, other in zip(sorted(shares[t] for t in listed),
                                   sorted(shares[t] for t in wanted.slots[kv]), strict=True):
                assert abs(mine - other) <= 1e-5 * max(abs(mine), abs(other)), f"row {i}, {kv}"
        if [sorted(slots) for slots in wanted.slots] == lists:
            assert_matches(out[i], wanted.out, plain[i].out)
    return got

