"""Matrices in 8 bits and their products, from the definition: groups one by one, in fp32."""

from __future__ import annotations

import torch
from torch import Tensor

GROUP = 128
SMALLEST = 1e-30


def groups(size: int) -> list[slice]:
    """The columns of each group."""
    return [slice(start, min(start + GROUP, size)) for start in range(0, size, GROUP)]


def quantise_matrix(weight: Tensor) -> tuple[Tensor, Tensor]:
    """[out_features, in_features] -> integers of its shape (int64), scales [out_features, groups].

    The scale is the largest magnitude of the group / 127, rounded to bfloat16.
    """
    weight = weight.float()
    parts = groups(weight.shape[1])
    integers = torch.zeros(weight.shape, dtype=torch.int64)
    scales = torch.zeros(len(weight), len(parts))
    for row in range(len(weight)):
        for g, columns in enumerate(parts):
            largest = weight[row, columns].abs().max()
            if largest >= SMALLEST:
                scales[row, g] = (largest / 127).bfloat16().float()
                integers[row, columns] = (weight[row, columns] / scales[row, g]).round().long()
    return integers, scales


def numbers(integers: Tensor, scales: Tensor) -> Tensor:
    """[out_features, in_features] float32: what a matrix in 8 bits stands for."""
    size = integers.shape[1]
    return integers.float() * scales.repeat_interleave(GROUP, dim=1)[:, :size]


def quantise_token(x: Tensor) -> tuple[Tensor, Tensor]:
    """[in_features], finite -> integers (int64) and one fp32 scale per group."""
    x = x.float()
    integers, scales = torch.zeros(len(x), dtype=torch.int64), torch.zeros(len(groups(len(x))))
    for g, columns in enumerate(groups(len(x))):
        largest = x[columns].abs().max()
        if largest >= SMALLEST:
            scales[g] = largest / 127
            integers[columns] = (x[columns] * (torch.tensor(127.0) / largest)).round().long()
    return integers, scales


def quantised_linear(x: Tensor, weight: Tensor) -> Tensor:
    """x @ weight.T with both in 8 bits (W8A8), bit for bit: group after group, in fp32."""
    integers, scales = quantise_matrix(weight)
    out = torch.full((len(x), len(weight)), float("nan"), dtype=x.dtype)
    for token, row in enumerate(x):
        if torch.isfinite(row).all():
            codes, token_scales = quantise_token(row)
            sums = torch.zeros(len(weight))
            for g, columns in enumerate(groups(x.shape[1])):
                products = (integers[:, columns] * codes[columns]).sum(1).float()
                sums = sums + products * (scales[:, g] * token_scales[g])
            out[token] = sums.to(x.dtype)
    return out


def weight_only_linear(x: Tensor, weight: Tensor) -> Tensor:
    """x @ weight.T with the weights alone in 8 bits (W8A16), in float64."""
    return x.double() @ numbers(*quantise_matrix(weight)).double().T


def token_error(x: Tensor, weight: Tensor) -> Tensor:
    """How far W8A8 may be from W8A16: half a step of x in every column, [tokens, out_features]."""
    wide = numbers(*quantise_matrix(weight)).double().abs()
    return _half_steps(x).double() @ wide.T


def weight_error(x: Tensor, weight: Tensor) -> Tensor:
    """How far W8A16 may be from exact weights: half a step of the weights in every column."""
    _, scales = quantise_matrix(weight)
    half = scales.repeat_interleave(GROUP, dim=1)[:, : weight.shape[1]].double() / 2
    return x.double().abs() @ half.T


def _half_steps(x: Tensor) -> Tensor:
    halves = torch.zeros(x.shape)
    for token, row in enumerate(x):
        _, scales = quantise_token(row)
        halves[token] = scales.repeat_interleave(GROUP)[: x.shape[1]] / 2
    return halves
