"""The product of many rows: the library's own, or widened by blocks where bf16 is slow."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from pydstp import ops
from pydstp.models import gemm as module
from pydstp.models.gemm import dequantised_gemm, gemm, linear, quantised_gemm
from tests import quantised_reference as reference


@pytest.mark.parametrize("shape", [(1, 1, 1), (9, 33, 7), (40, 64, 96), (3, 97, 769)], ids=str)
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("block", [64, 1 << 21])
def test_bf16_is_no_worse_than_the_library(
    shape: tuple[int, int, int],
    has_bias: bool,
    block: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "WEIGHT_BLOCK", block)
    monkeypatch.setattr(ops, "cpu_features", lambda: {"avx512bf16": False})
    num_rows, in_features, out_features = shape
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(num_rows, in_features, generator=generator).bfloat16()
    weight = torch.randn(out_features, in_features, generator=generator).bfloat16()
    bias = torch.randn(out_features, generator=generator).bfloat16() if has_bias else None
    exact = F.linear(x.double(), weight.double(), bias.double() if has_bias else None)
    ours, library = gemm(x, weight, bias), F.linear(x, weight, bias)
    assert ours.dtype == torch.bfloat16
    library_error = (library.double() - exact).abs().max()
    assert (ours.double() - exact).abs().max() <= 2 * library_error + 1e-6


def test_bf16_is_the_library_where_it_is_native(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops, "cpu_features", lambda: {"avx512bf16": True})
    x, weight = torch.randn(20, 300).bfloat16(), torch.randn(40, 300).bfloat16()
    assert torch.equal(gemm(x, weight), F.linear(x, weight))


@pytest.mark.parametrize("num_rows", [1, 97, 2047, 2049])
@pytest.mark.parametrize("shape", [(33, 7), (64, 256), (97, 769)], ids=str)
@pytest.mark.parametrize("gelu", [None, "none", "tanh"])
@pytest.mark.parametrize("has_bias", [False, True])
def test_bf16_in_the_library_s_layout(
    num_rows: int, shape: tuple[int, int], gelu: str | None, has_bias: bool
) -> None:
    """Whether weights are packed or not, with GELU on the sums or behind them."""
    generator = torch.Generator().manual_seed(num_rows)
    x = torch.randn(num_rows, shape[0], generator=generator).bfloat16()
    weight = torch.randn(shape[1], shape[0], generator=generator).div(8).bfloat16()
    bias = torch.randn(shape[1], generator=generator).bfloat16() if has_bias else None
    exact = F.linear(x.double(), weight.double(), bias.double() if has_bias else None)
    library = F.linear(x, weight, bias)
    if gelu is not None:
        exact, library = (F.gelu(t, approximate=gelu) for t in (exact, library))
    before = weight.clone()
    ours = gemm(x, weight, bias, gelu)
    assert torch.equal(weight, before) and ours.dtype == torch.bfloat16
    allowed = max(2 * (library.double() - exact).abs().max(), 2**-9 * exact.abs().max())
    assert (ours.double() - exact).abs().max() <= allowed


def test_a_gradient_takes_the_library_s_way() -> None:
    x, weight = torch.randn(2048, 32).bfloat16(), torch.randn(64, 32).bfloat16().requires_grad_()
    gemm(x, weight).float().sum().backward()
    assert weight.grad is not None and weight.grad.isfinite().all()


def test_fp32_is_the_library() -> None:
    x, weight, bias = torch.randn(2050, 30), torch.randn(40, 30), torch.randn(40)
    assert torch.equal(gemm(x, weight, bias), F.linear(x, weight, bias))
    for gelu in ("none", "tanh"):
        expected = F.gelu(F.linear(x, weight, bias), approximate=gelu)
        assert torch.equal(gemm(x, weight, bias, gelu), expected)


@pytest.mark.parametrize("shape", [(1, 1, 1), (9, 33, 7), (40, 129, 96), (3, 97, 769)], ids=str)
@pytest.mark.parametrize("is_native", [False, True])
@pytest.mark.parametrize("block", [64, 1 << 21])
def test_weights_in_8_bits_are_numbers_again(
    shape: tuple[int, int, int],
    is_native: bool,
    block: int,
    monkeypatch: pytest.MonkeyPatch,
    pool: ops.ThreadPool,
) -> None:
    monkeypatch.setattr(module, "WEIGHT_BLOCK", block)
    monkeypatch.setattr(ops, "cpu_features", lambda: {"avx512bf16": is_native})
    num_rows, in_features, out_features = shape
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(num_rows, in_features, generator=generator)
    weight = torch.randn(out_features, in_features, generator=generator)
    matrix = ops.QuantisedMatrix.allocate(out_features, in_features)
    ops.quantise_rows(weight, matrix, pool=pool)
    exact = reference.weight_only_linear(x, weight)
    assert (dequantised_gemm(x, matrix, pool).double() - exact).abs().max() <= 1e-5 * max(
        1.0, exact.abs().max())
    half = x.bfloat16()
    exact = reference.weight_only_linear(half, weight)
    held = reference.numbers(*reference.quantise_matrix(weight)).bfloat16()
    ours, library = dequantised_gemm(half, matrix, pool), F.linear(half, held)
    assert ours.dtype == torch.bfloat16
    allowed = max(2 * (library.double() - exact).abs().max(), 2**-9 * exact.abs().max())
    assert (ours.double() - exact).abs().max() <= allowed


def test_rows_of_a_prompt_are_those_of_a_step(pool: ops.ThreadPool) -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(n, 300, generator=generator) for n in (53, 97))
    matrix = ops.QuantisedMatrix.allocate(*weight.shape)
    ops.quantise_rows(weight, matrix, pool=pool)
    steps = torch.cat([linear(row, matrix, pool) for row in x.split(1)])
    assert torch.equal(quantised_gemm(x, matrix, pool), steps)
