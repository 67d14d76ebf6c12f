"""A prompt pruned before a decoder layer, in transformers' own layers, without a cache.

    request = Request(path, prompt_inputs(...), layer=2)       # either family
    facts = request.facts(spans, quotas)                       # what a method may look at
    request.greedy(plain(name, facts), 12)                     # the tokens that follow

Every token runs everything again: rows of the prompt and of the answer see all visual tokens below
`layer`, and what the method left from there on.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tests.pruning.plain_layer_methods import Answer, Facts, pooled


@dataclass(frozen=True)
class Rows:
    """x [n, hidden]; positions [n] or [3, n]; maps: DeepStack, [n, hidden] each, 0 for text."""

    x: Tensor
    positions: Tensor
    maps: list[Tensor]


class Request:
    """One prompt of a tiny Qwen3-VL or InternVL, and the layer before which it is pruned."""

    def __init__(self, model: PreTrainedModel, inputs: dict[str, Any], layer: int) -> None:
        self.model, self.layer = model, layer
        self.text = model.model.language_model
        ids = inputs["input_ids"]
        self.visual = (ids[0] == model.config.image_token_id).nonzero().squeeze(1)
        x = model.get_input_embeddings()(ids)[0].clone()
        maps = []
        if "image_grid_thw" in inputs:
            patches = inputs["image_grid_thw"]
            vision = model.model.visual(inputs["pixel_values"], grid_thw=patches)
            features = vision.pooler_output
            maps = [torch.zeros_like(x).index_copy(0, self.visual, rows)
                    for rows in vision.deepstack_features]
            self.grids = [(high // 2, wide // 2) for _, high, wide in patches.tolist()]
            positions, _ = model.model.get_rope_index(
                ids, image_grid_thw=patches, mm_token_type_ids=inputs["mm_token_type_ids"])
            positions = positions[:, 0]
        else:
            features = model.get_image_features(inputs["pixel_values"]).pooler_output
            features = torch.cat(list(features)).reshape(-1, x.shape[-1])
            side = int((len(self.visual) // len(inputs["pixel_values"])) ** 0.5)
            self.grids = [(side, side)] * len(inputs["pixel_values"])
            positions = torch.arange(len(x))
        x[self.visual] = features
        self.prompt = Rows(x, positions, maps)

    def run(self, rows: Rows, layers: range) -> tuple[Tensor, Tensor, Tensor]:
        """What leaves the last of some layers; its attention [heads, n, n], its keys
        [kv_heads, n, head_dim]."""
        module, seen = sys.modules[type(self.text).__module__], {}
        attend = module.eager_attention_forward

        def record(layer: Any, query: Tensor, key: Tensor, *args: Any, **kwargs: Any) -> Any:
            out, weights = attend(layer, query, key, *args, **kwargs)
            seen.update(weights=weights[0], keys=key[0])
            return out, weights

        n, x = len(rows.x), rows.x[None]
        mask = torch.full((n, n), -torch.inf).triu(1)[None, None]
        tables = self.text.rotary_emb(x, rows.positions.unsqueeze(-2))
        with mock.patch.object(module, "eager_attention_forward", record):
            for i in layers:
                x = self.text.layers[i](x, attention_mask=mask, position_embeddings=tables)
                x = x + rows.maps[i] if i < len(rows.maps) else x
        return x[0], seen["weights"], seen["keys"]

    def facts(self, spans: list[tuple[int, int]], quotas: list[int]) -> Facts:
        """Of the layer before `layer`, row by row."""
        x, weights, keys = self.run(self.prompt, range(self.layer))
        mean, n = weights.double().mean(dim=0), len(x)
        norms = keys.double().abs().sum(dim=(0, 2)).tolist()
        tokens, end = self.visual.tolist(), int(self.visual[-1]) + 1
        last = {}  # the last row of the picture of each token: no text stands within a picture
        for row in reversed(tokens):
            last[row] = last.get(row + 1, row)
        return Facts(
            self.grids, spans, quotas, x[tokens].double().tolist(), mean[-1, tokens].tolist(),
            [float(sum(mean[i, row] for i in range(n) if i != row)) / (n - 1) for row in tokens],
            [float(mean[last[row], row]) for row in tokens], [norms[row] for row in tokens],
            norms[end:], x[end:].double().tolist())

    def greedy(self, answer: Answer, num_tokens: int, pool: str = "mean") -> list[int]:
        """Tokens that follow when `answer` is what stays of the visual tokens."""
        rows, ids = self.prompt, []
        position = int(rows.positions.max()) + 1
        while True:
            x, _, _ = self.run(rows, range(self.layer))
            left = self._prune(Rows(x, rows.positions, rows.maps), answer, pool)
            x, _, _ = self.run(left, range(self.layer, len(self.text.layers)))
            ids.append(int(self.model.lm_head(self.text.norm(x[-1:])).argmax()))
            if len(ids) == num_tokens:
                return ids
            token = self.model.get_input_embeddings()(torch.tensor([ids[-1]]))
            place = torch.full_like(rows.positions[..., :1], position + len(ids) - 1)
            rows = Rows(torch.cat([rows.x, token]), torch.cat([rows.positions, place], dim=-1),
                        [torch.cat([values, torch.zeros_like(token)]) for values in rows.maps])

    def _prune(self, rows: Rows, answer: Answer, pool: str) -> Rows:
        """Rows in prompt order: text, what was kept, and what was merged in its target's place."""
        tokens = self.visual.tolist()
        groups = {tokens[target]: [tokens[i] for i in part] for target, part in answer.merged}
        kept = {tokens[i] for i in answer.kept}
        stay = [row for row in range(len(rows.x))
                if row not in tokens or row in kept or row in groups]

        def reduced(values: Tensor) -> Tensor:
            facts = Facts([], [], [], values.double().tolist(), [], [], [], [], [], [])
            out = values.clone()
            for target, part in groups.items():
                out[target] = torch.tensor(pooled(facts, part, pool))
            return out[stay]
        return Rows(reduced(rows.x), rows.positions[..., stay], [reduced(m) for m in rows.maps])
