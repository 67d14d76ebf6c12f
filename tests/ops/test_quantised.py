"""Matrices in 8 bits: bit for bit the definition, on every instruction set, batch and thread."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pydstp import ops
from tests import quantised_reference as reference
from tests.compare import assert_bitwise
from tests.generators import Guarded, normal, poison

SHAPES = [(1, 1), (3, 127), (15, 128), (16, 129), (17, 255), (97, 769), (111, 1025)]


def quantised(weight: Tensor, pool: ops.ThreadPool) -> ops.QuantisedMatrix:
    """All rows of a matrix."""
    matrix = ops.QuantisedMatrix.allocate(*weight.shape)
    ops.quantise_rows(weight, matrix, pool=pool)
    return matrix


def all_rows(matrix: ops.QuantisedMatrix) -> Tensor:
    return matrix.rows(torch.arange(matrix.out_features))


def spiky(*shape: int, dtype: torch.dtype, seed: int) -> Tensor:
    """Normal numbers of very different size from row to row, with some large ones."""
    x = normal(*shape, seed=seed)
    x *= 10.0 ** normal(*shape[:-1], 1, seed=seed + 1)
    x[..., ::37] *= 20
    return x.to(dtype)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_codes_are_those_of_the_definition(isa, dtype, shape, pools):
    weight = spiky(*shape, dtype=dtype, seed=1)
    expected = reference.numbers(*reference.quantise_matrix(weight))
    for pool in pools:
        assert_bitwise(all_rows(quantised(weight, pool)) + 0.0, expected + 0.0)  # -0 equals 0


def test_rows_are_set_one_range_at_a_time(isa, dtype, pool):
    weight = spiky(57, 300, dtype=dtype, seed=1)
    whole, matrix = quantised(weight, pool), ops.QuantisedMatrix.allocate(57, 300)
    for start, stop in ((40, 57), (0, 1), (1, 24), (24, 24), (24, 40)):
        ops.quantise_rows(weight[start:stop], matrix, start, pool=pool)
    assert_bitwise(all_rows(matrix), all_rows(whole))


def test_ties_go_to_even_and_columns_past_the_end_are_zero(isa, dtype, pool):
    weight = torch.tensor([[127.0, 0.5, 1.5, -0.5, -2.5, 126.5, -126.5, 2.0]]).to(dtype)
    matrix = quantised(weight, pool)
    assert matrix.scales[0, 0, 0] == 1
    codes = matrix.codes[0, 0, :, 0].flatten().tolist()
    ties = [127, 0, 2, 0, -2, 126, -126, 2]
    assert codes == [128 + tie for tie in ties] + [128] * 120


@pytest.mark.parametrize("value", [0.0, -0.0, 1e-31, 1e-40])
def test_groups_of_nothing_are_zero(isa, dtype, value, pool):
    weight = torch.cat([torch.full((3, 128), value), torch.ones(3, 5)], dim=1).to(dtype)
    matrix = quantised(weight, pool)
    assert (matrix.scales[0, 0, :3] == 0).all()
    assert (all_rows(matrix)[:, :128] == 0).all()
    x = torch.cat([normal(2, 128), torch.zeros(2, 5)], dim=1).to(dtype)
    assert (ops.quantised_linear(x, matrix, pool=pool) == 0).all()
    tiny = torch.cat([torch.full((1, 128), value), torch.ones(1, 5)], dim=1).to(dtype)
    ones = quantised(torch.ones(1, 133, dtype=dtype), pool)
    out = ops.quantised_linear(tiny, ones, pool=pool)
    assert_bitwise(out, reference.quantised_linear(tiny, torch.ones(1, 133)))


def test_the_largest_numbers_stay_finite(isa, pool):
    weight = torch.tensor([[3e38, -3e38, 1e38]])
    rows = all_rows(quantised(weight, pool))
    assert torch.isfinite(rows).all()
    assert ((rows - weight).abs() <= 3e38 / 127).all()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_rows_come_back_from_any_range(isa, dtype, shape, pools):
    matrix = quantised(spiky(*shape, dtype=torch.float32, seed=1), pools[0])
    expected, n = all_rows(matrix).to(dtype), shape[0]
    for pool in pools:
        for start, stop in ((0, n), (n // 2, n), (n // 3, n // 2)):
            out = Guarded(stop - start, shape[1], dtype=dtype)
            assert ops.dequantise_rows(matrix, start, out.tensor, pool=pool) is out.tensor
            out.check()
            assert_bitwise(out.tensor, expected[start:stop])


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("tokens", [1, 2, 5, 8, 9])
def test_products_are_those_of_the_definition(isa, dtype, shape, tokens, pool):
    weight = spiky(*shape, dtype=dtype, seed=1) / shape[1] ** 0.5
    x = spiky(tokens, shape[1], dtype=dtype, seed=7)
    out = Guarded(tokens, shape[0], dtype=dtype)
    matrix = quantised(weight, pool)
    assert ops.quantised_linear(x, matrix, pool=pool, out=out.tensor) is out.tensor
    out.check()
    assert_bitwise(out.tensor, reference.quantised_linear(x, weight))


def test_the_largest_sums_are_exact(isa, pool):
    """Every code is +-127: pairs of products do not fit 16 bits."""
    for sign in (1.0, -1.0):
        for tokens in (3, 11):
            weight, x = torch.full((17, 384), sign), torch.ones(tokens, 384)
            out = ops.quantised_linear(x, quantised(weight, pool), pool=pool)
            assert_bitwise(out, reference.quantised_linear(x, weight))
            assert ((out - sign * 384).abs() <= 384 * 2**-8).all()  # the scales are bfloat16


@pytest.mark.parametrize("in_features", [127, 300, 1025])
def test_the_error_is_at_most_half_a_step(isa, in_features, pool):
    """W8A8 against weights alone in 8 bits (W8A16), and that against exact weights."""
    weight, x = normal(97, in_features, seed=1), spiky(4, in_features, dtype=torch.float32, seed=7)
    out = ops.quantised_linear(x, quantised(weight, pool), pool=pool).double()
    by_weights = reference.weight_only_linear(x, weight)
    rounding = 1e-5 * by_weights.abs().max()
    assert ((out - by_weights).abs() <= reference.token_error(x, weight) + rounding).all()
    exact = x.double() @ weight.double().T
    assert ((by_weights - exact).abs() <= reference.weight_error(x, weight) + rounding).all()


@pytest.mark.parametrize("shape", [(5, 130), (64, 128), (90, 300)], ids=str)
@pytest.mark.parametrize("tokens", [9, 10, 47, 48, 49, 101])
def test_many_tokens_are_those_of_the_definition(isa, dtype, shape, tokens, pools):
    """Panels of 48 tokens and blocks of 64 outputs, whole ones and rests of every size."""
    weight = spiky(*shape, dtype=dtype, seed=1) / shape[1] ** 0.5
    x = spiky(tokens, shape[1], dtype=dtype, seed=7)
    expected = reference.quantised_linear(x, weight)
    for pool in pools:
        out, matrix = Guarded(tokens, shape[0], dtype=dtype), quantised(weight, pool)
        ops.quantised_linear(x, matrix, pool=pool, out=out.tensor)
        out.check()
        assert_bitwise(out.tensor, expected)


@pytest.mark.parametrize("in_features", [97, 516])
def test_a_token_is_the_same_alone_and_in_any_batch_on_any_threads(isa, dtype, in_features, pools):
    x = spiky(103, in_features, dtype=dtype, seed=1)
    matrix = quantised(normal(769, in_features, seed=2), pools[0])
    alone = torch.cat([ops.quantised_linear(row, matrix, pool=pools[0]) for row in x.split(1)])
    for pool in pools:
        for size in (2, 3, 7, 8, 9, 19, 50, 103):
            blocks = [ops.quantised_linear(b, matrix, pool=pool) for b in x.split(size)]
            assert_bitwise(torch.cat(blocks), alone)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("place", [0, 128, 299])
@pytest.mark.parametrize("tokens", [8, 13])
def test_a_token_that_is_not_finite_is_nan_and_its_neighbours_are_not(
        isa, dtype, bad, place, tokens, pool):
    matrix = quantised(normal(97, 300, seed=2), pool)
    x = normal(tokens, 300, dtype=dtype, seed=1)
    expected = ops.quantised_linear(x, matrix, pool=pool)
    x[3, place] = bad
    out = ops.quantised_linear(x, matrix, pool=pool)
    assert torch.isnan(out[3]).all()
    others = [i for i in range(tokens) if i != 3]
    assert_bitwise(out[others], expected[others])


def test_one_of_several_matrices(isa, dtype, pool):
    experts = ops.QuantisedMatrix.allocate(3, 19, 130)
    weights = normal(3, 19, 130, dtype=dtype, seed=1)
    for i in (2, 0, 1):
        ops.quantise_rows(weights[i], experts[i], pool=pool)
    x = normal(2, 130, dtype=dtype, seed=2)
    for i in range(3):
        out = ops.quantised_linear(x, experts[i], pool=pool)
        assert_bitwise(out, reference.quantised_linear(x, weights[i]))
    assert experts.nbytes == ops.QuantisedMatrix.bytes_of(3, 19, 130) == 3 * 2 * 2 * 16 * 130


def test_no_tokens_no_rows_and_no_columns(isa, dtype, pool):
    matrix = quantised(normal(19, 97), pool)
    assert ops.quantised_linear(normal(0, 97, dtype=dtype), matrix, pool=pool).shape == (0, 19)
    assert ops.dequantise_rows(matrix, 19, poison(0, 97, dtype=dtype), pool=pool).shape == (0, 97)
    empty = quantised(normal(3, 0), pool)
    assert_bitwise(ops.quantised_linear(normal(2, 0, dtype=dtype), empty, pool=pool),
                   torch.zeros(2, 3, dtype=dtype))
