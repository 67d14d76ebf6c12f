"""Prompts with tiles for both models: ours takes patch rows, transformers takes whole tiles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from pydstp.models.internvl import InternVL
from pydstp.weights import load_model, open_checkpoint
from tests.internvl_checkpoints import (
    FIRST_ADDED,
    IMAGE_SIZE,
    IMAGE_TOKEN_ID,
    PATCH_SIZE,
    TILE_SIDE,
    TOKENS_PER_TILE,
)
from tests.models.helpers import Inputs, read_config


@cache
def loaded(path: Path, dtype: torch.dtype = torch.float32) -> InternVL:
    """Our model, through the loader; cached."""
    config = replace(read_config(path), image_token_id=IMAGE_TOKEN_ID)  # original files have none
    return load_model(open_checkpoint(path), config, dtype)


def in_blocks(patches: Tensor) -> Tensor:
    """[tiles, side * side, ...] row by row -> patches of a token next to each other."""
    shape = len(patches), TILE_SIDE // 2, 2, TILE_SIDE // 2, 2, *patches.shape[2:]
    return patches.reshape(shape).transpose(2, 3).reshape(patches.shape)


def patch_rows(tiles: Tensor) -> Tensor:
    """[tiles, 3, pixels, pixels] -> [patches, 3 * patch * patch] as our models take them."""
    cut = tiles.unfold(2, PATCH_SIZE, PATCH_SIZE).unfold(3, PATCH_SIZE, PATCH_SIZE)
    rows = cut.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)
    return in_blocks(rows).flatten(0, 1)


@dataclass(frozen=True)
class TiledPrompt:
    """Text and pictures of some tiles each."""

    input_ids: Tensor
    tiles: Tensor

    @property
    def ours(self) -> Inputs:
        grids = ((TILE_SIDE, TILE_SIDE),) * len(self.tiles)
        return Inputs(self.input_ids, patch_rows(self.tiles), grids)

    @property
    def theirs(self) -> dict[str, Tensor]:
        ids = self.input_ids.unsqueeze(0)
        kwargs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        return kwargs | ({"pixel_values": self.tiles} if len(self.tiles) else {})


def tiled_prompt(num_tiles: Sequence[int], seed: int = 0) -> TiledPrompt:
    """Random text, a picture, random text, a picture ..., random text, random pixels."""
    generator = torch.Generator().manual_seed(seed)

    def text(length: int) -> list[int]:
        return torch.randint(0, 256, (length,), generator=generator).tolist()

    ids = text(5)
    for count in num_tiles:
        context = [IMAGE_TOKEN_ID] * (TOKENS_PER_TILE * count)
        ids += [FIRST_ADDED, *context, FIRST_ADDED + 1, *text(3)]
    shape = sum(num_tiles), 3, IMAGE_SIZE, IMAGE_SIZE
    return TiledPrompt(torch.tensor(ids), torch.rand(shape, generator=generator) * 4 - 2)
