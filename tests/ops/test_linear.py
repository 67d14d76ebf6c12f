"""linear: against F.linear in fp32, and the same bits whatever the batch and the threads."""

from __future__ import annotations

import pytest
import torch

from pydstp import ops
from tests import reference
from tests.compare import assert_bitwise, assert_matches
from tests.generators import SIZES, Guarded, normal

SHAPES = [(tokens, size, SIZES[-1 - i]) for i, size in enumerate(SIZES) for tokens in (1, 3, 8)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_linear_matches_the_reference(isa, dtype, shape, pool):
    tokens, in_features, out_features = shape
    x = normal(tokens, in_features, dtype=dtype, seed=1)
    weight = normal(out_features, in_features, dtype=dtype, seed=2) / in_features**0.5
    bias = normal(out_features, dtype=dtype, seed=3) if tokens == 3 else None
    out = Guarded(tokens, out_features, dtype=dtype)
    assert ops.linear(x, weight, bias, pool=pool, out=out.tensor) is out.tensor
    out.check()
    truth = reference.linear(x.float(), weight.float(), None if bias is None else bias.float())
    assert_matches(out.tensor, truth, reference.linear(x, weight, bias))


def test_long_rows_are_multiplied_in_chunks(isa, dtype, pool):
    """A chunk of one token is 8,192 columns in bfloat16 and 4,096 in float32, at the most."""
    x, weight = normal(7, 8611, dtype=dtype, seed=1), normal(3, 8611, dtype=dtype, seed=2)
    out = ops.linear(x, weight, pool=pool)
    assert_matches(out, reference.linear(x.float(), weight.float()), reference.linear(x, weight))
    assert_bitwise(torch.cat([ops.linear(row, weight, pool=pool) for row in x.split(1)]), out)


@pytest.mark.parametrize("in_features", [97, 516])
def test_a_token_is_the_same_alone_and_in_any_batch_on_any_threads(isa, dtype, in_features, pools):
    x = normal(19, in_features, dtype=dtype, seed=1)
    weight = normal(769, in_features, dtype=dtype, seed=2)
    alone = torch.cat([ops.linear(row, weight, pool=pools[0]) for row in x.split(1)])
    for pool in pools:
        for size in (2, 3, 7, 8, 19):
            blocks = [ops.linear(b, weight, pool=pool) for b in x.split(size)]
            assert_bitwise(torch.cat(blocks), alone)


@pytest.mark.parametrize("out_features", [1, 3, 8, 97])
def test_where_tensors_lie_changes_no_bit(isa, dtype, out_features, pool):
    """Rows that start at multiples of 16 bytes may be read in larger pieces than others."""
    in_features = 776
    x, weight = normal(7, in_features, dtype=dtype), normal(out_features, in_features, dtype=dtype)
    expected = ops.linear(x, weight, pool=pool)
    for shift in (1, 2, 4):
        moved = [torch.cat([t.new_empty(shift), t.flatten()])[shift:].view(t.shape)
                 for t in (x, weight)]
        assert_bitwise(ops.linear(*moved, pool=pool), expected)


def test_a_token_does_not_see_its_neighbours(isa, dtype, pool):
    weight = normal(97, 769, dtype=dtype, seed=2)
    x = normal(8, 769, dtype=dtype, seed=1)
    expected = ops.linear(x, weight, pool=pool)[3]
    others = x.clone()
    others[:3], others[4:] = float("nan"), float("inf")
    assert_bitwise(ops.linear(others, weight, pool=pool)[3], expected)


def test_no_tokens_and_no_columns(isa, dtype, pool):
    weight = normal(97, 19, dtype=dtype)
    assert ops.linear(normal(0, 19, dtype=dtype), weight, pool=pool).shape == (0, 97)
    bias = normal(3, dtype=dtype)
    empty = ops.linear(normal(2, 0, dtype=dtype), normal(3, 0, dtype=dtype), bias, pool=pool)
    assert_bitwise(empty, bias.expand(2, 3))
