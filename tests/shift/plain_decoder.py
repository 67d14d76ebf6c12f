"""The Qwen3 decoder of Qwen3-VL and InternVL by hand from transformers' weights, with a visibility
matrix per layer.

No cache and no causal rule: every row is computed in every call, and row i sees exactly the columns
that `visible[i]` says. Columns are the rows themselves and, after them, averages of rows: keys and
values of such a column are means, layer by layer, of the (rotated) keys and of the values of the
rows it is made of.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel


@dataclass(frozen=True)
class LayerTrace:
    """What one layer's attention did.

    Attributes:
        logits: [num_heads, n, columns] scaled products of every row with every column, unmasked.
        probs: [num_heads, n, columns] the attention: softmax over what each row sees.
        output: [n, hidden] what left the layer, DeepStack included.
    """

    logits: Tensor
    probs: Tensor
    output: Tensor


def rotary_tables(config, positions: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin, [n, head_dim], of positions [3, n] (time, height, width).

    Frequency pairs 1, 4, 7, ... turn by the height, 2, 5, 8, ... by the width, as far as their
    sections reach; all others turn by the time. Without sections, as in InternVL, all of them do.
    """
    rope, pairs = config.rope_parameters, config.head_dim // 2
    _, height, width = rope.get("mrope_section", (pairs, 0, 0))
    angles = torch.empty(positions.shape[1], pairs)
    for pair in range(pairs):
        axis = 0
        if pair % 3 == 1 and pair < 3 * height:
            axis = 1
        if pair % 3 == 2 and pair < 3 * width:
            axis = 2
        exponent = torch.tensor(2.0 * pair) / config.head_dim
        angles[:, pair] = positions[axis].float() * (1.0 / rope["rope_theta"] ** exponent)
    angles = torch.cat([angles, angles], dim=1)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [n, heads, head_dim]"""
    first, second = x.chunk(2, dim=-1)
    return x * cos.unsqueeze(1) + torch.cat([-second, first], dim=-1) * sin.unsqueeze(1)


def rms_norm(x: Tensor, norm) -> Tensor:
    """Over the last dimension; `norm` is transformers' module."""
    return norm.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + norm.variance_epsilon))


class PlainDecoder:
    """The language model of a transformers model (dense or mixture of experts), fp32."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.text = model.model.language_model
        self.config = model.config.text_config
        self.lm_head = model.lm_head
        self.num_layers = self.config.num_hidden_layers

    def embed(self, ids: Sequence[int]) -> Tensor:
        return self.text.embed_tokens.weight[torch.tensor(list(ids), dtype=torch.long)]

    def logits(self, x: Tensor) -> Tensor:
        """[n, vocab_size]"""
        return F.linear(rms_norm(x, self.text.norm), self.lm_head.weight)

    def run(self, x: Tensor, positions: Tensor, visible: Callable[[int], Tensor], *,
            deepstack: Sequence[Tensor] = (), averages: Sequence[Sequence[int]] = (),
            enter: Callable[[int, Tensor], Tensor] = lambda layer, x: x,
            num_layers: int | None = None) -> list[LayerTrace]:
        """The first `num_layers` layers (None: all).

        Args:
            x: [n, hidden] embeddings. positions: [3, n].
            visible: layer -> bool [n, n + len(averages)].
            deepstack: map j is [n, hidden] and added to what leaves layer j.
            averages: the rows of each further column.
            enter: (layer, x) -> what really enters the layer.
        """
        tables, traces = rotary_tables(self.config, positions), []
        for layer in range(self.num_layers if num_layers is None else num_layers):
            x = enter(layer, x)
            attended, logits, probs = self._attend(layer, x, tables, visible(layer), averages)
            x = self._feed_forward(layer, x + attended)
            if layer < len(deepstack):
                x = x + deepstack[layer]
            traces.append(LayerTrace(logits, probs, x))
        return traces

    def _attend(self, layer: int, x: Tensor, tables: tuple[Tensor, Tensor], visible: Tensor,
                averages: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor, Tensor]:
        block, head_dim = self.text.layers[layer], self.config.head_dim
        attention = block.self_attn
        x = rms_norm(x, block.input_layernorm)

        def heads(projection) -> Tensor:
            return F.linear(x, projection.weight).unflatten(-1, (-1, head_dim))

        q = rotate(rms_norm(heads(attention.q_proj), attention.q_norm), *tables)
        k = rotate(rms_norm(heads(attention.k_proj), attention.k_norm), *tables)
        v = heads(attention.v_proj)
        k, v = (torch.cat([part, *(part[list(rows)].mean(0, keepdim=True) for rows in averages)])
                for part in (k, v))
        group = q.shape[1] // k.shape[1]
        k, v = (part.repeat_interleave(group, dim=1) for part in (k, v))
        logits = torch.einsum("ihd,jhd->hij", q, k) / head_dim**0.5
        probs = logits.masked_fill(~visible, -torch.inf).softmax(-1)
        attended = torch.einsum("hij,jhd->ihd", probs, v).flatten(1)
        return F.linear(attended, attention.o_proj.weight), logits, probs

    def _feed_forward(self, layer: int, x: Tensor) -> Tensor:
        block = self.text.layers[layer]
        normed = rms_norm(x, block.post_attention_layernorm)
        return x + block.mlp(normed.unsqueeze(0)).squeeze(0)
