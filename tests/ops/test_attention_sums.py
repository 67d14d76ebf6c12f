"""attention_sums: against softmax in fp64, row by row and head by head."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest
import torch
from torch import Tensor

from pydstp import ops
from pydstp.ops.attention_sums import _compose
from tests import reference
from tests.compare import assert_bitwise, assert_matches
from tests.generators import GQA_RATIOS, Guarded, in_wider_rows, integers, normal

FLAGS = [{}, {"per_row": True}, {"without_last": True}, {"per_row": True, "without_last": True}]


@dataclass(frozen=True)
class Case:
    """What `attention_sums` takes; rows lie apart, with NaN between them."""

    q: Tensor
    k: Tensor
    options: dict[str, object] = field(default_factory=dict)

    def run(self, op: object, **options: object) -> Tensor:
        return op(self.q, self.k, **self.options, **options)

    def having(self, **options: object) -> Case:
        return replace(self, options={**self.options, **options})


def make_case(dtype: torch.dtype, num_queries: int, num_keys: int, *, ratio: int = 1,
              num_kv_heads: int = 2, head_dim: int = 16, **options: object) -> Case:
    q = normal(num_queries, ratio * num_kv_heads, head_dim, dtype=dtype, seed=1)
    k = normal(num_keys, num_kv_heads, head_dim, dtype=dtype, seed=2)
    return Case(in_wider_rows(q, 6), in_wider_rows(k, 10),
                {"scale": 1.3 * head_dim**-0.5, **options})


def causal(num_queries: int, num_past: int = 0) -> Tensor:
    return torch.arange(num_past + 1, num_past + num_queries + 1, dtype=torch.int32)


def check(case: Case, pool: ops.ThreadPool) -> None:
    """Products of bfloat16 are exact in fp32, so both dtypes have to be as near."""
    expected = case.run(reference.attention_sums)
    out = Guarded(*expected.shape, dtype=torch.float32)
    assert case.run(ops.attention_sums, pool=pool, out=out.tensor) is out.tensor
    out.check()
    assert_matches(out.tensor, expected)


@pytest.mark.parametrize("flags", FLAGS, ids=str)
@pytest.mark.parametrize("size", [(1, 1), (1, 769), (97, 1), (3, 97), (19, 256), (111, 257),
                                  (257, 111), (7, 1025)], ids=str)
def test_sizes(isa, dtype, size, flags, pool):
    check(make_case(dtype, *size, **flags), pool)


@pytest.mark.parametrize("ratio", [*GQA_RATIOS, 13])
@pytest.mark.parametrize("head_dim", [2, 20, 64, 72, 80, 128, 130])
def test_heads(isa, dtype, ratio, head_dim, pool):
    visible_len = causal(5, num_past=14)
    check(make_case(dtype, 5, 19, ratio=ratio, head_dim=head_dim, visible_len=visible_len), pool)


@pytest.mark.parametrize("flags", FLAGS, ids=str)
@pytest.mark.parametrize("num_queries, num_past", [(1, 0), (97, 0), (300, 0), (19, 769), (64, 255)])
def test_causal_rows_behind_a_prefix(isa, dtype, num_queries, num_past, flags, pool):
    visible_len = causal(num_queries, num_past)
    check(make_case(dtype, num_queries, num_past + num_queries, ratio=2, visible_len=visible_len,
                    **flags), pool)


@pytest.mark.parametrize("flags", FLAGS, ids=str)
def test_rows_may_see_any_number_of_keys_and_none(isa, dtype, flags, pool):
    case = make_case(dtype, 97, 600, visible_len=integers(0, 601, 97), **flags)
    case.options["visible_len"][[0, 50, 95, 96]] = torch.tensor([0, 600, 1, 0], dtype=torch.int32)
    check(case, pool)
    blind = case.having(visible_len=torch.zeros(97, dtype=torch.int32))
    assert not blind.run(ops.attention_sums, pool=pool).any()


def test_rows_that_are_alike_look_alike_at_keys_that_are_alike(isa, dtype, pool):
    case = make_case(dtype, 6, 300)
    case.q[:], case.k[:] = case.q[:1].clone(), case.k[:1].clone()
    sums = case.run(ops.attention_sums, pool=pool)
    assert_bitwise(sums, sums[:1, :1].expand(2, 300))
    assert torch.allclose(sums, torch.full_like(sums, 6 / 300), rtol=1e-5)


def test_threads_change_no_bit(isa, dtype, pools):
    case = make_case(dtype, 301, 797, ratio=3, head_dim=24, visible_len=causal(301, num_past=496))
    for flags in FLAGS:
        same = [case.run(ops.attention_sums, pool=pool, **flags) for pool in pools]
        for other in same[1:]:
            assert_bitwise(other, same[0])


def test_attention_of_a_row_is_the_same_alone(isa, dtype, pools):
    case = make_case(dtype, 41, 600, ratio=2, visible_len=causal(41, num_past=559), per_row=True)
    together = case.run(ops.attention_sums, pool=pools[1])
    for row in (0, 7, 40):
        alone = Case(case.q[row:row + 1], case.k, case.options)
        alone = alone.having(visible_len=causal(1, 559 + row))
        assert_bitwise(alone.run(ops.attention_sums, pool=pools[0])[:, 0], together[:, row])


def test_a_row_gives_one_in_all(isa, dtype, pool):
    case = make_case(dtype, 97, 600, ratio=3, visible_len=causal(97, num_past=503))
    total = case.run(ops.attention_sums, pool=pool).sum(dim=1)
    assert torch.allclose(total, torch.full_like(total, 97.0), rtol=1e-5)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_a_row_does_not_see_changes_no_bit(isa, dtype, bad, pools):
    case = make_case(dtype, 41, 600, visible_len=causal(41, num_past=559), per_row=True)
    clean = case.run(ops.attention_sums, pool=pools[0])
    case.k[580] = bad  # seen by rows 21 and later
    out = case.run(ops.attention_sums, pool=pools[1])
    assert_bitwise(out[:, :21], clean[:, :21])
    assert not torch.equal(out[:, 21:], clean[:, 21:])


@pytest.mark.parametrize("factor", [100.0, 1e4, -1e4, 0.0])
def test_extreme_scores(isa, dtype, factor, pool):
    case = make_case(dtype, 19, 600)
    check(case.having(scale=factor * case.options["scale"]), pool)


def test_nothing_to_do_and_nothing_to_see(isa, dtype, pool):
    assert not make_case(dtype, 0, 5).run(ops.attention_sums, pool=pool).any()
    assert make_case(dtype, 5, 0).run(ops.attention_sums, pool=pool).shape == (2, 0)
    case = make_case(dtype, 0, 5, per_row=True)
    assert case.run(ops.attention_sums, pool=pool).shape == (2, 0, 5)


@pytest.mark.parametrize("flags", FLAGS, ids=str)
@pytest.mark.parametrize("ratio", [1, 3])
def test_composed_of_the_librarys_operations(dtype, ratio, flags):
    """What runs on a GPU, on whatever device the tests have."""
    case = make_case(dtype, 97, 150, ratio=ratio, visible_len=causal(97, num_past=53), **flags)
    expected = case.run(reference.attention_sums)
    per_row, without_last = (flags.get(name, False) for name in ("per_row", "without_last"))
    found = _compose(case.q, case.k, case.options["scale"], case.options["visible_len"], per_row,
                     without_last, torch.zeros_like(expected))
    assert_matches(found, expected)
