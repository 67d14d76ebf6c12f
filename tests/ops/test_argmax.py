"""argmax: the best token of each row, as the sampler finds it."""

from __future__ import annotations

import pytest
import torch

from pydstp import ops
from tests import reference
from tests.compare import assert_bitwise
from tests.generators import SIZES, Guarded, integers, normal

NAN, INF = float("nan"), float("inf")
PART = 4096  # what one block looks at


@pytest.mark.parametrize("size", [*SIZES, PART - 1, PART, PART + 1, 3 * PART + 97])
def test_it_is_where_the_sampler_finds_it(isa, dtype, size, pool):
    x, out = normal(5, size, dtype=dtype, seed=size), Guarded(5, dtype=torch.int32)
    assert ops.argmax(x, pool=pool, out=out.tensor) is out.tensor
    out.check()
    assert_bitwise(out.tensor, reference.argmax(x))


@pytest.mark.parametrize("levels", [1, 2, 5])
def test_equals_go_to_the_lowest_place(isa, dtype, levels, pool):
    x = integers(0, levels, 3, 2 * PART + 19, seed=levels).to(dtype)
    x[1] = -x[1]  # zeros of both signs are equal
    assert_bitwise(ops.argmax(x, pool=pool), reference.argmax(x))


@pytest.mark.parametrize("place", [0, 31, 257, PART - 1, PART, 2 * PART + 18])
@pytest.mark.parametrize("value", [NAN, INF, -INF, 1e30])
def test_what_is_no_number_is_told_wherever_it_is(isa, dtype, place, value, pool):
    x = normal(2, 2 * PART + 19, dtype=dtype)
    x[1, place] = value
    found = ops.argmax(x, pool=pool)
    assert_bitwise(found, reference.argmax(x))
    assert found[1] == {INF: -1, 1e30: place}.get(value, -1 if value != value else found[1])


def test_rows_without_a_finite_number(isa, dtype, pool):
    x = torch.tensor([[-INF, -INF, -INF], [NAN, NAN, NAN], [-INF, -3.0, -INF]]).to(dtype)
    assert ops.argmax(x, pool=pool).tolist() == [-1, -1, 1]
    assert ops.argmax(x[:0], pool=pool).shape == (0,)
