"""The product of many rows: the library's own, or widened by blocks where bf16 is slow."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from pydstp import ops
from pydstp.models import gemm as module
from pydstp.models.gemm import gemm, quantised_gemm
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


def test_fp32_is_the_library() -> None:
    x, weight, bias = torch.randn(20, 30), torch.randn(40, 30), torch.randn(40)
    assert torch.equal(gemm(x, weight, bias), F.linear(x, weight, bias))


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
    assert (quantised_gemm(x, matrix, pool).double() - exact).abs().max() <= 1e-5 * max(
        1.0, exact.abs().max())
    half = x.bfloat16()
    exact = reference.weight_only_linear(half, weight)
    held = reference.numbers(*reference.quantise_matrix(weight)).bfloat16()
    ours, library = quantised_gemm(half, matrix, pool), F.linear(half, held)
    assert ours.dtype == torch.bfloat16
    allowed = max(2 * (library.double() - exact).abs().max(), 2**-9 * exact.abs().max())
    assert (ours.double() - exact).abs().max() <= allowed
