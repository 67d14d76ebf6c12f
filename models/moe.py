"""Sparse MLP of Qwen3-VL-MoE: a router and many small gated MLPs (transformers: qwen3_vl_moe)."""

import torch
from torch import Tensor, nn

from pydstp import ops
from pydstp.models.config import MoEConfig
from pydstp.models.layers import Linear
from pydstp.models.plans import Context, DecodePlan, Plan


class Experts(nn.Module):
    """All experts of a layer; in 8 bits, each parameter is a `QuantisedMatrix` for every expert.

    gate_up_proj: [num_experts, 2 * moe_intermediate_size, hidden_size], gate rows first.
    down_proj: [num_experts, hidden_size, moe_intermediate_size].
    """

    def __init__(self, hidden_size: int, config: MoEConfig) -> None:
        super().__init__()
        num_experts, width = config.num_experts, config.moe_intermediate_size
        self.gate_up_proj = nn.Parameter(torch.empty(num_experts, 2 * width, hidden_size))
        self.down_proj = nn.Parameter(torch.empty(num_experts, hidden_size, width))

    def forward(self, x: Tensor, expert_idx: int, plan: Plan, ctx: Context) -> Tensor:
        """One expert on its rows. x: [num_tokens, hidden_size] -> same shape."""
        gate_up = plan.linear(x, self.gate_up_proj[expert_idx], ctx)
        activated = ops.silu_and_mul(gate_up, pool=ctx.pool)
        return plan.linear(activated, self.down_proj[expert_idx], ctx)

    def each(self, x: Tensor, expert_indices: Tensor, ctx: Context) -> Tensor:
        """Every row by an expert of its own. x: [num_rows, hidden_size], expert_indices: [num_rows]
        -> like x.
        """
        chosen = expert_indices.int()
        gate_up = ops.expert_linear(x, self.gate_up_proj, chosen, pool=ctx.pool)
        activated = ops.silu_and_mul(gate_up, pool=ctx.pool)
        return ops.expert_linear(activated, self.down_proj, chosen, pool=ctx.pool)


class SparseMLP(nn.Module):
    """Weighted sum of the experts that the router chose for each token."""

    def __init__(self, hidden_size: int, config: MoEConfig) -> None:
        super().__init__()
        self.gate = Linear(hidden_size, config.num_experts)
        self.experts = Experts(hidden_size, config)
        self.num_experts_per_tok = config.num_experts_per_tok

    def route(self, x: Tensor, plan: Plan, ctx: Context) -> tuple[Tensor, Tensor]:
        """Softmax over all experts in fp32, the best few, renormalised to sum 1.

        x: [num_tokens, hidden_size] -> weights in x.dtype and expert indices,
        both [num_tokens, num_experts_per_tok].
        """
        scores = self.gate(x, plan, ctx).softmax(dim=-1, dtype=torch.float32)
        weights, expert_indices = scores.topk(self.num_experts_per_tok, dim=-1)
        return (weights / weights.sum(dim=-1, keepdim=True)).to(x.dtype), expert_indices

    def forward(self, x: Tensor, plan: Plan, ctx: Context) -> Tensor:
        """x: [num_tokens, hidden_size] -> same shape.

        A row adds up its experts in ascending order, whatever the other rows chose.
        """
        return ops.compute(self._mix, x, plan, ctx)

    def _mix(self, x: Tensor, plan: Plan, ctx: Context) -> Tensor:
        weights, expert_indices = self.route(x, plan, ctx)
        if isinstance(plan, DecodePlan):
            return self._mix_few(x, weights, expert_indices, ctx)
        out = torch.zeros_like(x)
        for expert_idx in expert_indices.unique().tolist():
            token_indices, rank = (expert_indices == expert_idx).nonzero(as_tuple=True)
            y = self.experts(x[token_indices], expert_idx, plan, ctx)
            out.index_add_(0, token_indices, y * weights[token_indices, rank, None])
        return out

    def _mix_few(self, x: Tensor, weights: Tensor, expert_indices: Tensor, ctx: Context) -> Tensor:
        """The same for the few rows of a decode step; on a GPU the host is told nothing.

        weights and expert_indices as from `route`.
        """
        expert_indices, order = expert_indices.sort(dim=-1)
        weights = weights.gather(-1, order).unsqueeze(-1)
        chosen, place = expert_indices.flatten().sort(stable=True)  # rows of an expert together
        y = self.experts.each(x[place // self.num_experts_per_tok], chosen, ctx)
        y = y[place.argsort()].unflatten(0, expert_indices.shape)
        out = torch.zeros_like(x)
        for rank in range(self.num_experts_per_tok):
            out += y[:, rank] * weights[:, rank]
        return out
