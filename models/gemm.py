"""Matrix products of many rows: prompts and pictures."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pydstp import ops

WEIGHT_BLOCK = 1 << 21  # weights widened at a time: 8 MiB of fp32


def gemm(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x @ weight.T + bias with fp32 sums, by the library.

    On an x86 CPU without bf16 arithmetic the library takes six times as long for bf16 as for fp32;
    there a block of the weights at a time is widened to fp32, which is exact.

    x: [num_rows, in_features], weight: [out_features, in_features], bias: [out_features] or None,
    all of one dtype -> [num_rows, out_features].
    """
    if x.dtype != torch.bfloat16 or x.is_cuda or ops.cpu_features().get("avx512bf16", True):
        return F.linear(x, weight, bias)
    out, wide = x.new_empty(len(x), len(weight)), x.float()
    step = max(1, WEIGHT_BLOCK // weight.shape[1])
    for start in range(0, len(weight), step):
        block = slice(start, start + step)
        block_bias = None if bias is None else bias[block].float()
        out[:, block] = F.linear(wide, weight[block].float(), block_bias)
    return out


class Dense(nn.Linear):
    """A linear layer that always sees many rows."""

    def forward(self, x: Tensor) -> Tensor:
        """x: [num_rows, in_features] -> [num_rows, out_features]."""
        return gemm(x, self.weight, self.bias)
