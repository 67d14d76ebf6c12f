"""Smaller pictures: grids by exhaustive search, pixels those of Pillow, tiles within the budget."""

from __future__ import annotations

import math
import random
from functools import partial

import numpy as np
import pytest
import torch

from pydstp import OptionError, PruningConfig
from pydstp.errors import CapacityError
from pydstp.image import ImageProcessor, smaller_grid
from pydstp.image_patches import Levels
from pydstp.image_tiles import IMAGENET, TileProcessor
from tests.engine.oracle import picture

HALF = Levels(mean=(0.5,) * 3, std=(0.5,) * 3)


def whole(**changes: int) -> ImageProcessor:
    values = dict(patch_size=16, temporal_patch_size=2, merge_size=2, min_pixels=16 * 1024,
                  max_pixels=1 << 20)
    return ImageProcessor(**values | changes, levels=HALF)


def tiled(**changes: int) -> TileProcessor:
    values = dict(tile_size=28, patch_size=14, merge_size=2, min_tiles=1, max_tiles=12,
                  has_thumbnail=True)
    return TileProcessor(**values | changes, levels=IMAGENET)


def budget(ratio: float):
    return PruningConfig("resize", ratio).budget


def test_the_grid_is_the_largest_of_nearly_the_same_shape() -> None:
    """Every grid is looked at; of those less than a cell off the exact sides, the largest."""
    rng = random.Random(0)
    for _ in range(3000):
        rows, cols = rng.randint(1, 40), rng.randint(1, 40)
        limit = rng.randint(1, rows * cols)
        found = smaller_grid(rows, cols, limit)
        scale = math.sqrt(limit / (rows * cols))
        if min(rows, cols) * scale < 1:
            longest = min(max(rows, cols), limit)
            assert found == ((1, longest) if rows < cols else (longest, 1))
            continue
        fitting = [(h, w) for h in range(1, rows + 1) for w in range(1, cols + 1)
                   if h * w <= limit and abs(h - rows * scale) < 1 and abs(w - cols * scale) < 1]
        assert found in fitting
        assert found[0] * found[1] == max(h * w for h, w in fitting)


def test_known_grids() -> None:
    assert smaller_grid(5, 7, 12) == (3, 4) and smaller_grid(5, 7, 18) == (3, 6)
    assert smaller_grid(5, 7, 35) == (5, 7)
    assert smaller_grid(8, 8, 21) == (4, 5) or smaller_grid(8, 8, 21) == (5, 4)
    assert smaller_grid(24, 24, 192) == (13, 14) or smaller_grid(24, 24, 192) == (14, 13)
    assert smaller_grid(5, 7, 1) == (1, 1)
    assert smaller_grid(1, 50, 17) == (1, 17) and smaller_grid(50, 1, 17) == (17, 1)
    assert smaller_grid(3, 100, 10) == (1, 10)


@pytest.mark.parametrize("ratio", [0.05, 0.2, 1 / 3, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("size", [(224, 160), (30, 900), (640, 480), (33, 33), (2000, 1100)],
                         ids=str)
def test_a_whole_picture(size, ratio) -> None:
    image, processor = picture(*size), whole()
    own, found = processor.preprocess(image), processor.preprocess(image, None, budget(ratio))
    k = min(max(math.floor(ratio * own.num_tokens + 0.5), 1), own.num_tokens)
    assert found.num_tokens <= k and found.num_tokens + found.num_spared == own.num_tokens
    assert found.num_tokens > 0.65 * k - 1
    assert found.original_size == size and own.num_spared == 0
    assert found.shrunk == (own.shrunk or found.num_tokens < own.num_tokens)
    width, height = found.resized
    pixels = np.asarray(image.resize((width, height), 3))  # at once, not by way of the large one
    assert torch.equal(found.patches, HALF.patch_rows(pixels, 16, 2, 2))
    assert found.grid == (height // 16, width // 16) and width * height // 1024 == found.num_tokens
    if ratio == 1.0:
        assert torch.equal(found.patches, own.patches)


def test_the_lower_limit_does_not_hold_and_room_is_counted_afterwards() -> None:
    processor = whole(min_pixels=64 * 1024)
    found = processor.preprocess(picture(64, 64), 9, budget(0.14))
    assert found.num_tokens == 9 == 64 - found.num_spared
    with pytest.raises(CapacityError, match="the picture needs 9, but max_visual_tokens = 8"):
        processor.preprocess(picture(64, 64), 8, budget(0.14))


@pytest.mark.parametrize("has_thumbnail", [True, False])
@pytest.mark.parametrize("ratio", [0.2, 1 / 3, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("size", [(84, 28), (112, 84), (56, 140), (300, 290), (28, 28)], ids=str)
def test_tiles(size, ratio, has_thumbnail) -> None:
    image, processor = picture(*size), tiled(has_thumbnail=has_thumbnail)
    preprocess = partial(processor.preprocess, image)
    own = preprocess()
    k = min(max(math.floor(ratio * own.num_tokens + 0.5), 1), own.num_tokens)
    counts = [n + (has_thumbnail and n > 1) for n in range(1, 13)]  # of 1 token each
    fitting = [n for n, count in enumerate(counts, 1) if count <= k]
    found = preprocess(None, budget(ratio))
    again = tiled(has_thumbnail=has_thumbnail, max_tiles=fitting[-1]).preprocess(image)
    assert torch.equal(found.patches, again.patches) and found.grids == again.grids
    assert found.num_tokens <= k and found.num_tokens + found.num_spared == own.num_tokens
    assert found.shrunk == (again.shrunk or found.num_tiles < own.num_tiles)
    if ratio == 1.0:
        assert torch.equal(found.patches, own.patches) and found.shrunk == own.shrunk


def test_less_than_one_tile_is_refused() -> None:
    processor = tiled(tile_size=84)  # 9 tokens each
    assert processor.preprocess(picture(84, 84), None, budget(1.0)).num_tokens == 9
    assert processor.preprocess(picture(252, 84), None, budget(0.25)).num_tokens == 9
    for size, ratio, room in (((84, 84), 0.9, 8), ((252, 84), 0.2, 7)):
        with pytest.raises(OptionError, match=rf"retention_ratio: expected room for one tile of 9 "
                                              rf"visual tokens with 'resize', got {room} \("):
            processor.preprocess(picture(*size), None, budget(ratio))
