"""Matrix products of few rows, by our own kernels, and of many, by the library."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pydstp import ops

WEIGHT_BLOCK = 1 << 21  # weights widened at a time: 8 MiB of fp32


def linear(x: Tensor, weight: Tensor | ops.QuantisedMatrix, pool: ops.ThreadPool) -> Tensor:
    """x @ weight.T for the few rows of a decode step; a row does not depend on the others.

    x: [num_rows, in_features] -> [num_rows, out_features].
    """
    if isinstance(weight, ops.QuantisedMatrix):
        return ops.quantised_linear(x, weight, pool=pool)
    return ops.linear(x, weight, pool=pool)


def gemm(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x @ weight.T + bias with fp32 sums, by the library.

    On an x86 CPU without bf16 arithmetic the library takes six times as long for bf16 as for fp32;
    there a block of the weights at a time is widened to fp32, which is exact.

    x: [num_rows, in_features], weight: [out_features, in_features], bias: [out_features] or None,
    all of one dtype -> [num_rows, out_features].
    """
    if not is_slow(x):
        return F.linear(x, weight, bias)
    out, wide = x.new_empty(len(x), len(weight)), x.float()
    step = max(1, WEIGHT_BLOCK // weight.shape[1])
    for start in range(0, len(weight), step):
        block = slice(start, start + step)
        block_bias = None if bias is None else bias[block].float()
        out[:, block] = F.linear(wide, weight[block].float(), block_bias)
    return out


def quantised_gemm(x: Tensor, weight: ops.QuantisedMatrix, pool: ops.ThreadPool) -> Tensor:
    """x @ weight.T by the library, with a block of the weights at a time as numbers again.

    Only the weights are quantised here, x stays as it is; no second copy of them is kept.

    x: [num_rows, in_features] -> [num_rows, out_features].
    """
    out = x.new_empty(len(x), weight.out_features)
    rows = x.float() if is_slow(x) else x
    step = max(1, min(weight.out_features, WEIGHT_BLOCK // max(1, weight.in_features)))
    numbers = rows.new_empty(step, weight.in_features)
    for start in range(0, weight.out_features, step):
        block = numbers[: weight.out_features - start]
        ops.dequantise_rows(weight, start, block, pool=pool)
        out[:, start : start + step] = F.linear(rows, block)
    return out


def is_slow(x: Tensor) -> bool:
    """Whether the library has no arithmetic for the dtype of x on this machine."""
    is_native = x.is_cuda or ops.cpu_features().get("avx512bf16", True)
    return x.dtype == torch.bfloat16 and not is_native


class Dense(nn.Linear):
    """A linear layer that always sees many rows."""

    def forward(self, x: Tensor) -> Tensor:
        """x: [num_rows, in_features] -> [num_rows, out_features]."""
        return gemm(x, self.weight, self.bias)
