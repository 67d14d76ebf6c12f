"""Tiles and thumbnails against transformers' processor: grids, values, limits, settings."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import (
    GotOcr2ImageProcessorPil,
    get_optimal_tiled_canvas,
)

from pydstp.errors import CapacityError, CheckpointError, OptionError, UnsupportedModelError
from pydstp.image import ImageProcessor
from pydstp.image_processors import open_image_processor
from pydstp.image_tiles import IMAGENET, TileProcessor, choose_tiles
from tests.checkpoints import tiny_qwen3_vl
from tests.internvl_checkpoints import tiny_internvl
from tests.models.internvl_inputs import patch_rows

# (width, height) -> (cols, rows, tiles, tokens), of the releases: tiles of 448, at most 12
PUBLISHED = {
    (448, 448): (1, 1, 1, 256), (633, 633): (1, 1, 1, 256), (634, 634): (2, 2, 5, 1280),
    (896, 896): (2, 2, 5, 1280), (500, 300): (3, 2, 7, 1792), (640, 480): (4, 3, 13, 3328),
    (1344, 448): (3, 1, 4, 1024), (1920, 1080): (4, 2, 9, 2304),
}  # fmt: skip


def release(**changes: int) -> TileProcessor:
    values = dict(tile_size=448, patch_size=14, merge_size=2, min_tiles=1, max_tiles=12)
    return TileProcessor(**values | changes, has_thumbnail=True, levels=IMAGENET)


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.mark.parametrize(("size", "expected"), PUBLISHED.items(), ids=str)
def test_published_sizes(size: tuple, expected: tuple) -> None:
    cols, rows, num_tiles, num_tokens = expected
    found = release().preprocess(Image.new("RGB", size))
    assert (found.num_tiles, found.num_tokens) == (num_tiles, num_tokens)
    assert found.resized == (448 * cols, 448 * rows) and found.original_size == size
    assert found.grids == [(32, 32)] * num_tiles
    assert tuple(found.patches.shape) == (1024 * num_tiles, 588)


def sizes(count: int) -> list[tuple[int, int]]:
    """Random ones of all ratios, those around ties, and the smallest."""
    random.seed(0)
    near = [(base * cols + dx, base * rows + dy) for base in (84, 448) for dx in (-1, 0, 1)
            for cols, rows in ((1, 1), (2, 3), (4, 1), (3, 4)) for dy in (0, 1)]
    return [(1, 1), (1, 900), (900, 1), *near, *(
        (random.randint(1, 2000), random.randint(1, 2000)) for _ in range(count))]


@pytest.mark.parametrize(("low", "high"), [(1, 12), (1, 1), (1, 6), (2, 9), (5, 40)])
@pytest.mark.parametrize("tile", [84, 448])
def test_grids_equal_the_reference(tile: int, low: int, high: int) -> None:
    for width, height in sizes(2000):
        ours = choose_tiles(width, height, tile_size=tile, min_tiles=low, max_tiles=high)
        theirs = get_optimal_tiled_canvas((height, width), (tile, tile), low, high)
        assert ours == theirs, (width, height)


def reference_rows(processor: GotOcr2ImageProcessorPil, picture: Image.Image) -> torch.Tensor:
    found = processor(picture, crop_to_patches=True, return_tensors="pt")
    assert found["num_patches"].tolist() == [len(found["pixel_values"])]
    return patch_rows(found["pixel_values"])


def test_values_equal_the_reference_at_hundreds_of_sizes() -> None:
    folder = tiny_internvl()
    ours, theirs = TileProcessor.from_checkpoint(folder), GotOcr2ImageProcessorPil.from_pretrained(
        folder)
    for index, (width, height) in enumerate(sizes(300)):
        picture = noise(width % 400 + 1, height % 400 + 1, seed=index)
        assert torch.equal(ours.preprocess(picture).patches, reference_rows(theirs, picture))


def test_values_equal_the_reference_at_full_size() -> None:
    theirs = GotOcr2ImageProcessorPil(size={"height": 448, "width": 448}, image_mean=[
        0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225])
    for size in ((640, 480), (500, 300)):
        rows = theirs(noise(*size), crop_to_patches=True, return_tensors="pt")["pixel_values"]
        cut = rows.unfold(2, 14, 14).unfold(3, 14, 14).permute(0, 2, 3, 1, 4, 5)
        blocks = cut.reshape(len(rows), 16, 2, 16, 2, -1).transpose(2, 3).reshape(-1, 588)
        assert torch.equal(release().preprocess(noise(*size)).patches, blocks)


def test_both_formats_cut_alike() -> None:
    original = TileProcessor.from_checkpoint(tiny_internvl(names="original"))
    assert original == TileProcessor.from_checkpoint(tiny_internvl())


def test_max_tiles() -> None:
    few = TileProcessor.from_checkpoint(tiny_internvl(), max_tiles=4)
    assert few.tiles_of(640, 480) == choose_tiles(640, 480, tile_size=84, min_tiles=1, max_tiles=4)
    whole = TileProcessor.from_checkpoint(tiny_internvl(), max_tiles=1).preprocess(noise(300, 100))
    assert (whole.num_tiles, whole.num_tokens, whole.shrunk) == (1, 9, True)
    for value in (0, 257, True, 2.0, "all"):
        with pytest.raises(OptionError, match="max_tiles"):
            TileProcessor.from_checkpoint(tiny_internvl(), max_tiles=value)


def test_a_picture_without_room_is_not_resized() -> None:
    with pytest.raises(CapacityError, match="the picture needs 3328, but max_visual_tokens = 3327"):
        release().preprocess(Image.new("RGB", (640, 480)), max_tokens=3327)


def test_options_of_the_other_kind_are_refused() -> None:
    for name in ("min_pixels", "max_pixels"):
        with pytest.raises(OptionError, match=f"{name}: .*max_tiles"):
            open_image_processor(tiny_internvl(), **{name: 5000})
    with pytest.raises(OptionError, match="max_tiles: .*max_pixels"):
        open_image_processor(tiny_qwen3_vl(), max_tiles=3)
    assert isinstance(open_image_processor(tiny_qwen3_vl()), ImageProcessor)


def change(folder: Path, file: str, **changes: object) -> None:
    content = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps(content | changes))


@pytest.mark.parametrize(("changes", "error", "message"), [
    ({"image_processor_type": "CLIPImageProcessor"}, UnsupportedModelError, "CLIP"),
    ({"resample": 2}, UnsupportedModelError, "resample = 2"),
    ({"do_normalize": False}, UnsupportedModelError, "do_normalize"),
    ({"size": {"height": 84, "width": 98}}, CheckpointError, "width: expected 84"),
    ({"size": {"shortest_edge": 84}}, CheckpointError, "height is missing"),
    ({"max_patches": 300}, CheckpointError, "max_patches"),
    ({"min_patches": 13}, CheckpointError, "max_patches"),
    ({"image_std": [1, 1, 0]}, CheckpointError, "image_std"),
], ids=str)
def test_settings_of_transformers(
    changes: dict, error: type, message: str, tmp_path: Path
) -> None:
    folder = tiny_internvl(tmp_path)
    change(folder, "preprocessor_config.json", **changes)
    with pytest.raises(error, match=message):
        TileProcessor.from_checkpoint(folder)


def test_settings_of_original_files(tmp_path: Path) -> None:
    folder = tiny_internvl(tmp_path, names="original")
    change(folder, "config.json", max_dynamic_patch=6, use_thumbnail=False)
    found = TileProcessor.from_checkpoint(folder)
    assert (found.max_tiles, found.has_thumbnail) == (6, False)
    assert found.preprocess(noise(300, 100)).num_tiles == 3
    change(folder, "config.json", dynamic_image_size=False)
    assert TileProcessor.from_checkpoint(folder).max_tiles == 1
    change(folder, "config.json", dynamic_image_size=True, min_dynamic_patch=7)
    with pytest.raises(CheckpointError, match="max_dynamic_patch"):
        TileProcessor.from_checkpoint(folder)
