"""Matrix products of few rows, by our own kernels, and of many, by the library."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pydstp import ops

WEIGHT_BLOCK = 1 << 21  # weights widened at a time: 8 MiB of fp32
PACKED_ROWS = 2048  # from here on it pays to pack a matrix for one product


def linear(x: Tensor, weight: Tensor | ops.QuantisedMatrix, pool: ops.ThreadPool) -> Tensor:
    """x @ weight.T for the few rows of a decode step; a row does not depend on the others.

    x: [num_rows, in_features] -> [num_rows, out_features].
    """
    if isinstance(weight, ops.QuantisedMatrix):
        return ops.quantised_linear(x, weight, pool=pool)
    return ops.linear(x, weight, pool=pool)


def gemm(x: Tensor, weight: Tensor, bias: Tensor | None = None, gelu: str | None = None) -> Tensor:
    """x @ weight.T + bias with fp32 sums, by the library; then GELU, if asked for.

    On an x86 CPU without bf16 arithmetic the library takes six times as long for bf16 as for fp32;
    there a block of the weights at a time is widened to fp32, which is exact. With bf16 arithmetic,
    many rows are worth a copy of the weights in the library's own layout while the product runs,
    and GELU is applied to the fp32 sums.

    x: [num_rows, in_features], weight: [out_features, in_features], bias: [out_features] or None,
    all of one dtype; gelu: "none" (the exact form) or "tanh" -> [num_rows, out_features].
    """
    if has_packed_form(x, weight):
        if len(x) >= PACKED_ROWS:
            weight = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), len(x))
        elif gelu is None:
            return F.linear(x, weight, bias)
        activation = "none" if gelu is None else "gelu"
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, activation, [], gelu or "")
    out = widened_gemm(x, weight, bias) if is_slow(x) else F.linear(x, weight, bias)
    return out if gelu is None else F.gelu(out, approximate=gelu)


def widened_gemm(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """As `gemm`, with a block of the weights at a time widened to fp32."""
    out, wide = x.new_empty(len(x), len(weight)), x.float()
    step = max(1, WEIGHT_BLOCK // weight.shape[1])
    for start in range(0, len(weight), step):
        block = slice(start, start + step)
        block_bias = None if bias is None else bias[block].float()
        out[:, block] = F.linear(wide, weight[block].float(), block_bias)
    return out


def quantised_gemm(x: Tensor, weight: ops.QuantisedMatrix, pool: ops.ThreadPool) -> Tensor:
    """x @ weight.T for the many rows of a prompt: on a CPU, row for row what a decode step gets.

    x: [num_rows, in_features] -> [num_rows, out_features].
    """
    if x.is_cuda:
        return dequantised_gemm(x, weight, pool)
    return ops.quantised_linear(x, weight, pool=pool)


def dequantised_gemm(x: Tensor, weight: ops.QuantisedMatrix, pool: ops.ThreadPool) -> Tensor:
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


def has_packed_form(x: Tensor, weight: Tensor) -> bool:
    """Whether the library has a layout of its own for these weights, and arithmetic for x."""
    is_inference = not (torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad))
    return (
        x.is_cpu
        and x.dtype == torch.bfloat16
        and x.is_contiguous()
        and x.numel() > 0
        and is_inference
        and not is_slow(x)
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


class Dense(nn.Linear):
    """A linear layer that always sees many rows."""

    def forward(self, x: Tensor, gelu: str | None = None) -> Tensor:
        """x: [num_rows, in_features] -> [num_rows, out_features]; gelu: see `gemm`."""
        return gemm(x, self.weight, self.bias, gelu)
