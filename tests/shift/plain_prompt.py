"""A prompt with pictures as rows: embeddings, DeepStack rows, positions, vision statistics."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers import PreTrainedModel


@dataclass(frozen=True)
class Prompt:
    """What enters the decoder; slot i is the i-th visual token.

    Attributes:
        ids: one per row. visual_rows: the row of each slot.
        x: [n, hidden]; deepstack: [N, hidden] each; positions: [3, n].
        grids: (rows, columns) of each picture, in tokens.
        next_position: of the first generated token.
        content_end: the row before the last <|im_end|>.
    """

    ids: list[int]
    visual_rows: list[int]
    x: Tensor
    deepstack: list[Tensor]
    positions: Tensor
    grids: list[tuple[int, int]]
    next_position: int
    content_end: int

    @property
    def features(self) -> Tensor:
        """[N, hidden] embeddings of the visual tokens."""
        return self.x[self.visual_rows]


def without_last_row(prompt: Prompt) -> Prompt:
    """The prompt but for its last token, which is text."""
    return replace(prompt, ids=prompt.ids[:-1], x=prompt.x[:-1],
                   positions=prompt.positions[:, :-1], next_position=prompt.next_position - 1)


def encode_prompt(model: PreTrainedModel, inputs: dict[str, Tensor]) -> Prompt:
    """`inputs` as transformers' model takes them (tests.engine.oracle.prompt_inputs)."""
    ids = inputs["input_ids"][0].tolist()
    visual_rows = [i for i, token in enumerate(ids) if token == model.config.image_token_id]
    x = model.model.language_model.embed_tokens.weight[inputs["input_ids"][0]].clone()
    deepstack, grids = [], []
    if visual_rows:
        patches = inputs["image_grid_thw"]
        vision = model.model.visual(inputs["pixel_values"], grid_thw=patches)
        x[visual_rows] = vision.pooler_output
        deepstack = list(vision.deepstack_features)
        grids = [(height // 2, width // 2) for _, height, width in patches.tolist()]
    positions, next_position = rope_positions(ids, model.config.image_token_id, grids)
    return Prompt(ids, visual_rows, x, deepstack, positions, grids, next_position,
                  last_content_row(ids, model.config.text_config.eos_token_id))


def encode_internvl_prompt(model: PreTrainedModel, inputs: dict[str, Tensor]) -> Prompt:
    """For InternVL (tests.engine.internvl_oracle.prompt_inputs); positions count tokens."""
    ids = inputs["input_ids"][0].tolist()
    visual_rows = [i for i, token in enumerate(ids) if token == model.config.image_token_id]
    x = model.get_input_embeddings().weight[inputs["input_ids"][0]].clone()
    features = model.get_image_features(inputs["pixel_values"]).pooler_output
    tiles = [tile.reshape(-1, x.shape[1]) for tile in features]
    x[visual_rows] = torch.cat(tiles)
    side = math.isqrt(len(tiles[0]))
    return Prompt(ids, visual_rows, x, [], torch.arange(len(ids)).expand(3, -1),
                  [(side, side)] * len(tiles), len(ids),
                  last_content_row(ids, model.config.text_config.eos_token_id))


def last_content_row(ids: list[int], im_end: int) -> int:
    """The row before the last <|im_end|>; the last row where there is none."""
    ends = [i for i, token in enumerate(ids) if token == im_end]
    return ends[-1] - 1 if ends else len(ids) - 1


def rope_positions(ids: list[int], image_token: int,
                   grids: list[tuple[int, int]]) -> tuple[Tensor, int]:
    """Triples [3, n] and the position after them: a picture's tokens are (p, p + row, p + column),
    and behind it p has grown by the longer side."""
    triples, position, pictures, i = [], 0, iter(grids), 0
    while i < len(ids):
        if ids[i] != image_token:
            triples.append((position, position, position))
            position, i = position + 1, i + 1
            continue
        rows, columns = next(pictures)
        for row in range(rows):
            triples += [(position, position + row, position + column) for column in range(columns)]
        position, i = position + max(rows, columns), i + rows * columns
    return torch.tensor(triples).T, position


@dataclass(frozen=True)
class VisionStatistics:
    """Of one block of the vision tower, per visual token.

    Attributes:
        attention: [N] attention received: mean over the queries of the picture, over heads, and
            over the four patches of the token.
        keys: [N, head_dim] keys after the rotation, mean over the four patches and over heads.
    """

    attention: Tensor
    keys: Tensor


def vision_statistics(model: PreTrainedModel, inputs: dict[str, Tensor],
                      block: int = -2) -> VisionStatistics:
    """From what enters the attention of the block."""
    tower, seen = model.model.visual, {}

    def look(module, args, kwargs) -> None:
        seen["x"] = args[0] if args else kwargs["hidden_states"]
        seen["tables"] = kwargs["position_embeddings"]

    module = tower.blocks[block].attn
    hook = module.register_forward_pre_hook(look, with_kwargs=True)
    try:
        tower(inputs["pixel_values"], grid_thw=inputs["image_grid_thw"])
    finally:
        hook.remove()
    q, k, _ = module.qkv(seen["x"]).unflatten(-1, (3, module.num_heads, -1)).unbind(1)
    cos, sin = (table.unsqueeze(1) for table in seen["tables"])
    q, k = (x * cos + _half_turned(x) * sin for x in (q, k))  # [P, heads, head_dim]
    received, start = [], 0
    for _, height, width in inputs["image_grid_thw"].tolist():
        patches = slice(start, start + height * width)
        logits = torch.einsum("ihd,jhd->hij", q[patches], k[patches]) / q.shape[-1] ** 0.5
        received.append(logits.softmax(-1).mean(dim=(0, 1)))  # over heads and queries
        start += height * width
    tokens_of_four = torch.cat(received).unflatten(0, (-1, 4))
    return VisionStatistics(tokens_of_four.mean(1), k.unflatten(0, (-1, 4)).mean(dim=(1, 2)))


def _half_turned(x: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat([-second, first], dim=-1)
