"""prefill_attention: against softmax in fp32, row by row, over exactly the keys a row sees."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest
import torch
from torch import Tensor

from pydstp import ops
from tests import reference
from tests.compare import assert_bitwise, assert_matches
from tests.generators import GQA_RATIOS, Guarded, in_wider_rows, integers, normal


@dataclass(frozen=True)
class Case:
    """What `prefill_attention` takes; rows lie apart, with NaN between them."""

    q: Tensor
    k: Tensor
    v: Tensor
    options: dict[str, object] = field(default_factory=dict)

    def run(self, op: object, **options: object) -> Tensor:
        return op(self.q, self.k, self.v, **self.options, **options)

    def to(self, dtype: torch.dtype) -> Case:
        return replace(self, q=self.q.to(dtype), k=self.k.to(dtype), v=self.v.to(dtype))

    def rows(self, index: slice, num_keys: int | None = None) -> Case:
        """Some query rows, and the first keys."""
        options = {**self.options}
        if "visible_len" in options:
            options["visible_len"] = options["visible_len"][index]
        return Case(self.q[index], self.k[:num_keys], self.v[:num_keys], options)


def make_case(dtype: torch.dtype, num_queries: int, num_keys: int, *, ratio: int = 1,
              num_kv_heads: int = 2, head_dim: int = 16, **options: object) -> Case:
    keys = num_keys, num_kv_heads, head_dim
    q = normal(num_queries, ratio * num_kv_heads, head_dim, dtype=dtype, seed=1)
    k, v = normal(*keys, dtype=dtype, seed=2), normal(*keys, dtype=dtype, seed=3)
    return Case(in_wider_rows(q, 6), in_wider_rows(k, 10), in_wider_rows(v, 2),
                {"scale": 1.3 * head_dim**-0.5, **options})


def causal(num_queries: int, num_past: int = 0) -> Tensor:
    return torch.arange(num_past + 1, num_past + num_queries + 1, dtype=torch.int32)


def check(case: Case, pool: ops.ThreadPool) -> None:
    out = Guarded(*case.q.shape, dtype=case.q.dtype)
    assert case.run(ops.prefill_attention, pool=pool, out=out.tensor) is out.tensor
    out.check()
    truth = case.to(torch.float32).run(reference.prefill_attention)
    assert_matches(out.tensor, truth, case.run(reference.prefill_attention))


@pytest.mark.parametrize("size", [(1, 1), (1, 769), (97, 1), (3, 97), (19, 512), (111, 513),
                                  (257, 111), (7, 1025)], ids=str)
def test_sizes(isa, dtype, size, pool):
    check(make_case(dtype, *size), pool)


@pytest.mark.parametrize("ratio", [*GQA_RATIOS, 13])
@pytest.mark.parametrize("head_dim", [2, 20, 64, 72, 80, 128, 130])
def test_heads(isa, dtype, ratio, head_dim, pool):
    visible_len = causal(5, num_past=14)
    check(make_case(dtype, 5, 19, ratio=ratio, head_dim=head_dim, visible_len=visible_len), pool)


def test_a_group_of_more_heads_than_a_tile_has_rows(isa, dtype, pool):
    check(make_case(dtype, 2, 19, ratio=300, num_kv_heads=1), pool)


@pytest.mark.parametrize("segments", [[1], [97], [0, 3, 97, 0, 1, 111], [19] * 5, [256, 257],
                                      [513]], ids=str)
def test_segments_do_not_see_each_other(isa, dtype, segments, pools):
    case = make_case(dtype, sum(segments), sum(segments), segments=segments)
    check(case, pools[1])
    out = case.run(ops.prefill_attention, pool=pools[2])
    parts = zip(*(t.split(segments) for t in (case.q, case.k, case.v)), strict=True)
    alone = [ops.prefill_attention(*part, scale=case.options["scale"], pool=pools[0])
             for part in parts]
    assert_bitwise(out, torch.cat(alone))


@pytest.mark.parametrize("num_queries, num_past", [(1, 0), (97, 0), (300, 0), (19, 769), (64, 511)])
def test_causal_rows_behind_a_prefix(isa, dtype, num_queries, num_past, pool):
    visible_len = causal(num_queries, num_past)
    check(make_case(dtype, num_queries, num_past + num_queries, ratio=2, visible_len=visible_len),
          pool)


def test_rows_may_see_any_number_of_keys_and_none(isa, dtype, pool):
    case = make_case(dtype, 97, 600, visible_len=integers(0, 601, 97))
    case.options["visible_len"][[0, 50, 96]] = torch.tensor([0, 600, 0], dtype=torch.int32)
    check(case, pool)
    out = case.run(ops.prefill_attention, pool=pool)
    assert_bitwise(out[[0, 96]], torch.zeros_like(out[:2]))
    segmented = make_case(dtype, 30, 30, segments=[10, 20], visible_len=integers(0, 11, 30))
    check(segmented, pool)


def test_a_row_is_the_same_alone_in_any_company_and_on_any_threads(isa, dtype, pools):
    case = make_case(dtype, 301, 797, ratio=3, num_kv_heads=1, head_dim=24,
                     visible_len=causal(301, num_past=496))
    expected = case.run(ops.prefill_attention, pool=pools[0])
    for pool in pools:
        assert_bitwise(case.run(ops.prefill_attention, pool=pool), expected)
    for size in (1, 2, 7, 150):
        for start in (0, 101, 295):
            rows = slice(start, start + size)
            part = case.rows(rows, num_keys=min(496 + start + size, 797))
            assert_bitwise(part.run(ops.prefill_attention, pool=pools[1]), expected[rows])


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_a_row_does_not_see_changes_no_bit(isa, dtype, bad, pools):
    case = make_case(dtype, 41, 600, visible_len=causal(41, num_past=559))
    clean = case.run(ops.prefill_attention, pool=pools[0])
    for tensor in (case.k, case.v):
        kept = tensor[580].clone()
        tensor[580] = bad  # seen by rows 21 and later
        out = case.run(ops.prefill_attention, pool=pools[1])
        assert_bitwise(out[:21], clean[:21])
        assert not torch.equal(out[21:], clean[21:])
        if bad != bad:
            assert out[21:].isnan().all()
        tensor[580] = kept


def test_nan_in_a_query_stays_in_its_row_and_head(isa, dtype, pool):
    case = make_case(dtype, 19, 97)
    clean = case.run(ops.prefill_attention, pool=pool)
    case.q[7, 1, 3] = float("nan")
    out = case.run(ops.prefill_attention, pool=pool)
    assert out[7, 1].isnan().all()
    out[7, 1] = clean[7, 1]
    assert_bitwise(out, clean)


@pytest.mark.parametrize("factor", [100.0, 1e4, -1e4, 0.0])
def test_extreme_scores(isa, dtype, factor, pool):
    case = make_case(dtype, 19, 600)
    case.options["scale"] *= factor
    check(case, pool)


def test_scores_that_are_infinite(isa, dtype, pool):
    """-inf weighs nothing, alone it leaves NaN; so does +inf."""
    case = make_case(dtype, 4, 600, num_kv_heads=1)
    case.k[:513] = -float("inf")
    case.k[599] = float("inf")
    case.q.fill_(1.0)
    case.options["visible_len"] = torch.tensor([100, 513, 599, 600], dtype=torch.int32)
    check(case, pool)


def test_one_key_gives_its_value_back(isa, dtype, pool):
    case = make_case(dtype, 97, 1, head_dim=72)
    assert_bitwise(case.run(ops.prefill_attention, pool=pool), case.v.expand(97, 2, 72))


def test_nothing_to_do_and_nothing_to_see(isa, dtype, pool):
    assert make_case(dtype, 0, 5).run(ops.prefill_attention, pool=pool).shape == (0, 2, 16)
    blind = make_case(dtype, 5, 0).run(ops.prefill_attention, pool=pool)
    assert_bitwise(blind, torch.zeros_like(blind))
    empty = make_case(dtype, 0, 0, segments=[]).run(ops.prefill_attention, pool=pool)
    assert empty.shape == (0, 2, 16)
