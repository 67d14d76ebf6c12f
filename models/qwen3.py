"""The Qwen3 decoder: RMSNorm, q/k norm, rope or M-RoPE, grouped queries, dense or sparse MLP."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pydstp import ops
from pydstp.models.config import TextConfig
from pydstp.models.gemm import linear
from pydstp.models.layers import GatedMLP, Linear, RMSNorm
from pydstp.models.moe import SparseMLP
from pydstp.models.mrope import rotary_table
from pydstp.models.plans import Context, KVArenas, Plan, PrefillPlan


@dataclass(frozen=True)
class DeepStack:
    """Visual features added to the hidden state behind the first decoder layers.

    features: one [num_visual, hidden_size] per layer, counted from layer 0.
    positions: [num_visual] int64, rows of x that hold the visual tokens; on the host or beside x.
    """

    features: list[Tensor]
    positions: Tensor

    def add(self, x: Tensor, layer_idx: int) -> Tensor:
        """x: [num_tokens, hidden_size] after layer `layer_idx` -> same shape."""
        if layer_idx >= len(self.features):
            return x
        return x.index_add(0, self.positions.to(x.device), self.features[layer_idx])


class Attention(nn.Module):
    """Causal attention with grouped queries. qkv_proj rows: q heads, then k heads, then v heads."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        num_heads, num_kv_heads, eps = config.num_heads, config.num_kv_heads, config.rms_norm_eps
        self.head_dim = config.head_dim
        self.num_heads_of_parts = (num_heads, num_kv_heads, num_kv_heads)
        self.qk_norm_options = {"num_heads": num_heads, "num_kv_heads": num_kv_heads, "eps": eps}
        self.qkv_proj = Linear(config.hidden_size, sum(self.num_heads_of_parts) * self.head_dim)
        self.o_proj = Linear(num_heads * self.head_dim, config.hidden_size)
        self.q_norm = RMSNorm(self.head_dim, eps)
        self.k_norm = RMSNorm(self.head_dim, eps)

    def forward(
        self, x: Tensor, layer_idx: int, cos_sin: Tensor, cache: KVArenas, plan: Plan, ctx: Context
    ) -> Tensor:
        """x: [num_tokens, hidden_size] -> same shape; stores the K/V of its rows in the cache."""
        q, k, v = self.project(x, layer_idx, cos_sin, cache, plan, ctx)
        out = plan.attend(q, k, v, cache, layer_idx, ctx)
        return self.o_proj(out.reshape(len(x), -1), plan, ctx)

    def project(
        self, x: Tensor, layer_idx: int, cos_sin: Tensor, cache: KVArenas, plan: Plan, ctx: Context
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of x, [num_tokens, heads, head_dim]; stores the last two."""
        if isinstance(plan, PrefillPlan) and layer_idx in plan.projected:
            return plan.projected[layer_idx]
        qkv = self.qkv_proj(x, plan, ctx)
        norms = self.q_norm.weight, self.k_norm.weight
        ops.qk_norm_rope(qkv, *norms, cos_sin, **self.qk_norm_options, pool=ctx.pool)
        q, k, v = qkv.view(len(x), -1, self.head_dim).split(self.num_heads_of_parts, dim=1)
        arenas = cache.visual[layer_idx], cache.text[layer_idx]
        ops.store_kv(k, v, *arenas, plan.seq_idx_rows, plan.slot_idx, pool=ctx.pool)
        return q, k, v


class DecoderLayer(nn.Module):
    """Attention and MLP, each behind a norm and added to what came in."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        hidden_size, eps, moe = config.hidden_size, config.rms_norm_eps, config.moe
        self.input_layernorm = RMSNorm(hidden_size, eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(hidden_size, eps)
        self.mlp = (
            SparseMLP(hidden_size, moe) if moe else GatedMLP(hidden_size, config.intermediate_size)
        )

    def forward(
        self,
        x: Tensor,
        behind: Tensor | None,
        layer_idx: int,
        cos_sin: Tensor,
        cache: KVArenas,
        plan: Plan,
        ctx: Context,
    ) -> Tensor:
        """Adds what the layer before left behind to x, in place; returns what this one leaves.

        x, behind, result: [num_tokens, hidden_size].
        """
        ctx.check()
        if behind is None:
            normed = self.input_layernorm(x, ctx)
        else:
            normed = self.input_layernorm(behind, ctx, residual=x)
        attended = self.self_attn(normed, layer_idx, cos_sin, cache, plan, ctx)
        normed = self.post_attention_layernorm(attended, ctx, residual=x)  # adds attended to x
        return self.mlp(normed, plan, ctx)


class Decoder(nn.Module):
    """Embedding, layers, final norm and head.

    tied: the head is the embedding table (the checkpoint holds no tensor for it).
    """

    def __init__(self, config: TextConfig, tied: bool) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.num_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.lm_head = None if tied else Linear(config.hidden_size, config.vocab_size)

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        return self.norm.weight.device

    def embed(self, input_ids: Tensor) -> Tensor:
        """input_ids: [num_tokens] integers below vocab_size, on the host or beside the weights.

        -> [num_tokens, hidden_size].
        """
        table, input_ids = self.embed_tokens.weight, input_ids.to(self.device)
        if isinstance(table, ops.QuantisedMatrix):
            return table.rows(input_ids).to(self.norm.weight.dtype)
        return self.embed_tokens(input_ids)

    def rotary(self, positions: Tensor) -> Tensor:
        """positions: [num_tokens], or of M-RoPE [3, num_tokens] (time, height, width), on the host
        or beside the weights.

        -> [num_tokens, head_dim] fp32, cosines then sines of head_dim / 2 angles.
        """
        return rotary_table(positions.to(self.device), self.config)

    def forward_layers(
        self,
        x: Tensor,
        *,
        layers: range,
        cos_sin: Tensor,
        cache: KVArenas,
        plan: Plan,
        ctx: Context,
        deepstack: DeepStack | None = None,
    ) -> Tensor:
        """Run the layers named; x: [num_tokens, hidden_size] -> same shape, x itself untouched.

        cos_sin: from `rotary`, one row per token. deepstack: at prefill only.
        Raises whatever ctx.check raises; K/V of the layers finished by then are in the cache.
        """
        x, behind = ops.compute(Tensor.clone, x), None
        for layer_idx in layers:
            with ops.scratch():
                behind = self.layers[layer_idx](x, behind, layer_idx, cos_sin, cache, plan, ctx)
            if deepstack:
                x, behind = deepstack.add(x.add_(behind), layer_idx), None
        if behind is not None:
            ops.perform(x.add_, behind)
        return x

    def projected(
        self,
        x: Tensor,
        layer_idx: int,
        *,
        cos_sin: Tensor,
        cache: KVArenas,
        plan: Plan,
        ctx: Context,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of rows about to enter a layer, [num_tokens, heads, head_dim].

        K/V of that layer are in the cache then; the layer itself does not run.
        """
        layer = self.layers[layer_idx]
        normed = layer.input_layernorm(x, ctx)
        return layer.self_attn.project(normed, layer_idx, cos_sin, cache, plan, ctx)

    def logits(self, x: Tensor, ctx: Context) -> Tensor:
        """x: [num_rows, hidden_size], the rows asked for -> [num_rows, vocab_size] fp32.

        Final norm and head; a row's bits do not depend on the other rows.
        """
        head = self.embed_tokens if self.lm_head is None else self.lm_head
        return linear(self.norm(x, ctx), head.weight, ctx.pool).float()
