"""expert_linear: every row with its own matrix, bit for bit what the products alone give."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pydstp import ops
from tests.compare import assert_bitwise
from tests.generators import Guarded, hostile_indices, integers, normal

SHAPES = [(1, 1, 1), (3, 7, 97), (19, 16, 129), (5, 97, 512), (2, 33, 4104)]


def quantised(weight: Tensor, pool: ops.ThreadPool) -> ops.QuantisedMatrix:
    """[num_experts, out_features, in_features], all in 8 bits."""
    experts = ops.QuantisedMatrix.allocate(*weight.shape).to(weight.device)
    for i, rows in enumerate(weight):
        ops.quantise_rows(rows, experts[i], pool=pool)
    return experts


def one_by_one(x: Tensor, weight: Tensor | ops.QuantisedMatrix, chosen: Tensor,
               pool: ops.ThreadPool) -> Tensor:
    multiply = ops.linear if isinstance(weight, Tensor) else ops.quantised_linear
    rows = [multiply(row, weight[int(expert)], pool=pool)
            for row, expert in zip(x.split(1), chosen, strict=True)]
    return torch.cat(rows)


@pytest.mark.parametrize("in_8_bits", [False, True])
@pytest.mark.parametrize("num_experts, out_features, in_features", SHAPES)
@pytest.mark.parametrize("num_rows", [1, 8, 23])
def test_rows_are_those_of_the_product_with_their_expert(
        isa, dtype, num_rows, num_experts, out_features, in_features, in_8_bits, pools):
    weight = normal(num_experts, out_features, in_features, dtype=dtype, seed=1)
    x = normal(num_rows, in_features, dtype=dtype, seed=2)
    chosen = integers(0, num_experts, num_rows, seed=3)
    weight = quantised(weight, pools[0]) if in_8_bits else weight
    expected = one_by_one(x, weight, chosen, pools[0])
    order = chosen.argsort()  # rows of an expert lie together
    for pool in pools:
        out = Guarded(num_rows, out_features, dtype=dtype)
        found = ops.expert_linear(x, weight, chosen, pool=pool, out=out.tensor)
        assert found is out.tensor
        out.check()
        assert_bitwise(found, expected)
        found = ops.expert_linear(x[order], weight, chosen[order], pool=pool)
        assert_bitwise(found, expected[order])


def test_where_weights_lie_changes_no_bit(isa, dtype, pool):
    """Rows at multiples of 16 bytes may be read in larger pieces than others."""
    weight, x = normal(3, 11, 520, dtype=dtype, seed=1), normal(4, 520, dtype=dtype, seed=2)
    chosen = torch.tensor([2, 0, 0, 1], dtype=torch.int32)
    expected = one_by_one(x, weight, chosen, pool)
    for shift in (1, 2, 4):
        moved = [torch.cat([t.new_empty(shift), t.flatten()])[shift:].view(t.shape)
                 for t in (x, weight)]
        assert_bitwise(ops.expert_linear(*moved, chosen, pool=pool), expected)


@pytest.mark.parametrize("in_8_bits", [False, True])
def test_no_expert_gives_zeros_and_no_rows_nothing(isa, dtype, in_8_bits, pool):
    weight = normal(3, 21, 140, dtype=dtype, seed=1)
    weight = quantised(weight, pool) if in_8_bits else weight
    x = normal(3, 140, dtype=dtype, seed=2)
    for index in hostile_indices(3):
        chosen = torch.tensor([1, index, 2], dtype=torch.int32)
        found = ops.expert_linear(x, weight, chosen, pool=pool)
        assert (found[1] == 0).all()
        assert_bitwise(found[::2], one_by_one(x[::2], weight, chosen[::2], pool))
    assert ops.expert_linear(x[:0], weight, chosen[:0], pool=pool).shape == (0, 21)
