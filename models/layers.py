"""Layers that both families share. Weights only: how rows are processed is the plan's business."""

import torch
from torch import Tensor, nn

from pydstp import ops
from pydstp.models.plans import Context, Plan


class Linear(nn.Module):
    """x @ weight.T, no bias. weight: [out_features, in_features], a `QuantisedMatrix` in 8 bits."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_features, in_features))

    def forward(self, x: Tensor, plan: Plan, ctx: Context) -> Tensor:
        """x: [num_tokens, in_features] -> [num_tokens, out_features]."""
        return plan.linear(x, self.weight, ctx)


class RMSNorm(nn.Module):
    """Root mean square norm with fp32 statistics. weight: [hidden_size]."""

    def __init__(self, hidden_size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(hidden_size))
        self.eps = eps

    def forward(self, x: Tensor, ctx: Context, residual: Tensor | None = None) -> Tensor:
        """x: [num_tokens, hidden_size] -> same shape and dtype.

        With `residual`, like x, x is first added to it in place, and the sum is normalised.
        """
        return ops.rms_norm(x, self.weight, self.eps, residual=residual, pool=ctx.pool)


class GatedMLP(nn.Module):
    """down(silu(gate(x)) * up(x)), gate and up fused into one matrix (gate rows first)."""

    def __init__(self, hidden_size: int, intermediate_size: int) -> None:
        super().__init__()
        self.gate_up_proj = Linear(hidden_size, 2 * intermediate_size)
        self.down_proj = Linear(intermediate_size, hidden_size)

    def forward(self, x: Tensor, plan: Plan, ctx: Context) -> Tensor:
        """x: [num_tokens, hidden_size] -> same shape."""
        gate_up = self.gate_up_proj(x, plan, ctx)
        return self.down_proj(ops.silu_and_mul(gate_up, pool=ctx.pool), plan, ctx)
