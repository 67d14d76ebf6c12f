"""From a picture to square tiles and a thumbnail, as InternVL's processor makes them.

Source: transformers 5.23, models/got_ocr2/image_processing_pil_got_ocr2.py (the processor of the
"-HF" releases), equal to it value by value where both resize with the same Pillow.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from pydstp.config import require_int
from pydstp.errors import OptionError
from pydstp.image_patches import (
    Levels,
    ProcessedImage,
    processor_section,
    refuse_other_steps,
    require_rgb,
    require_room,
)
from pydstp.json_file import read_json
from pydstp.models.config import INTERNVL_CHAT, VLMConfig
from pydstp.models.config_reader import Section

# Original repositories hold the settings of another processor, which is not used there either.
IMAGENET = Levels(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
LARGEST_MAX_TILES = 256
_PROCESSOR_TYPES = tuple(f"GotOcr2ImageProcessor{backend}" for backend in ("", "Fast", "Pil"))


def choose_tiles(width: int, height: int, *, tile_size: int, min_tiles: int,
                 max_tiles: int) -> tuple[int, int]:
    """How many tiles a picture is cut into: (cols, rows), nearest to its own ratio of sides.

    Of equally near ones the largest counts whose area is less than twice that of the picture.
    """
    every = ((cols, rows) for cols in range(1, max_tiles + 1)
             for rows in range(1, max_tiles // cols + 1))
    candidates = sorted((tiles for tiles in every if tiles[0] * tiles[1] >= min_tiles),
                        key=lambda tiles: tiles[0] * tiles[1])
    best, smallest = (1, 1), float("inf")
    for cols, rows in candidates:
        gap = abs(width / height - cols / rows)
        is_filled = width * height > 0.5 * tile_size**2 * cols * rows
        if gap < smallest or (gap == smallest and is_filled):
            best, smallest = (cols, rows), gap
    return best


@dataclass(frozen=True)
class TileProcessor:
    """How one checkpoint wants its pictures cut.

    Attributes:
        tile_size, patch_size, merge_size: pixels of a tile's and of a patch's side, patches of a
            merged token's side.
        min_tiles, max_tiles: of one picture, the thumbnail not counted.
        has_thumbnail: a picture of several tiles is followed by the whole of it as one tile.
        levels: what becomes of the 8-bit values.
    """

    tile_size: int
    patch_size: int
    merge_size: int
    min_tiles: int
    max_tiles: int
    has_thumbnail: bool
    levels: Levels

    @classmethod
    def from_checkpoint(cls, path: str | Path, *, max_tiles: int | None = None) -> TileProcessor:
        """Read config.json and, unless the files are original ones, preprocessor_config.json.

        Args:
            path: the checkpoint folder.
            max_tiles: None takes the file's number.

        Raises:
            CheckpointError: a file is missing, damaged, or contradicts config.json.
            UnsupportedModelError: another kind of processor, or a step that is switched off.
            OptionError: max_tiles is no number of tiles.
        """
        file = Path(path) / "config.json"
        top = Section(read_json(file), str(file))
        vision = VLMConfig.from_dict(top.values, str(file)).vision
        is_original = top.values["model_type"] == INTERNVL_CHAT
        settings = _original(top) if is_original else _of_transformers(
            processor_section(Path(path)), vision.image_size)
        low, high, has_thumbnail, levels = settings
        if max_tiles is not None:
            require_int("max_tiles", max_tiles, 1, LARGEST_MAX_TILES)
            low, high = min(low, max_tiles), max_tiles
        return cls(vision.image_size, vision.patch_size, vision.spatial_merge_size, low, high,
                   has_thumbnail, levels)

    def preprocess(self, image: Image.Image, max_tokens: int | None = None,
                   budget: Callable[[int], int] | None = None) -> ProcessedImage:
        """Resize the whole picture, its ratio of sides not kept, and cut it row by row.

        Args:
            image: an RGB image, as `load_image` returns it.
            max_tokens: visual tokens that there is room for, None for any number.
            budget: how many it may become, from those of its own size; None leaves them all.

        Raises:
            CapacityError: it would become more than `max_tokens`; it was not resized.
            ImageError: not an RGB image.
            OptionError: the budget is below one tile.
        """
        require_rgb(image)
        size, (cols, rows) = self.tile_size, self.tiles_of(*image.size)
        side = size // self.patch_size
        tokens_per_tile = (side // self.merge_size) ** 2
        own = num_tiles = self.with_thumbnail(cols * rows)
        if budget is not None:
            fewer = self.at_most(budget(own * tokens_per_tile), tokens_per_tile)
            cols, rows = fewer.tiles_of(*image.size)
            num_tiles = self.with_thumbnail(cols * rows)
        num_tokens = num_tiles * tokens_per_tile
        require_room(num_tokens, max_tokens)
        resized = np.asarray(image.resize((size * cols, size * rows), Image.Resampling.BICUBIC))
        tiles = [resized[row * size:(row + 1) * size, col * size:(col + 1) * size]
                 for row in range(rows) for col in range(cols)]
        if num_tiles > len(tiles):
            tiles.append(np.asarray(image.resize((size, size), Image.Resampling.BICUBIC)))
        patches = [self.levels.patch_rows(tile, self.patch_size, self.merge_size) for tile in tiles]
        return ProcessedImage(
            patches=torch.cat(patches), grid=(side, side), num_tokens=num_tokens,
            original_size=image.size, resized=(size * cols, size * rows), num_tiles=num_tiles,
            shrunk=num_tiles < own or size**2 * cols * rows < image.width * image.height,
            num_spared=own * tokens_per_tile - num_tokens)

    def with_thumbnail(self, num_tiles: int) -> int:
        """How many tiles a picture cut into `num_tiles` becomes in all."""
        return num_tiles + (self.has_thumbnail and num_tiles > 1)

    def at_most(self, num_tokens: int, tokens_per_tile: int) -> TileProcessor:
        """The same for pictures of at most `num_tokens` visual tokens, thumbnails among them.

        Raises:
            OptionError: that is less than one tile.
        """
        fitting = [count for count in range(1, self.max_tiles + 1)
                   if self.with_thumbnail(count) * tokens_per_tile <= num_tokens]
        if not fitting:
            raise OptionError(f"retention_ratio: expected room for one tile of {tokens_per_tile} "
                              f"visual tokens with 'resize', got {num_tokens} (pictures for this "
                              "model are cut into tiles of one size)")
        return replace(self, max_tiles=fitting[-1], min_tiles=min(self.min_tiles, fitting[-1]))

    def tiles_of(self, width: int, height: int) -> tuple[int, int]:
        """(cols, rows) that a picture of this size is cut into."""
        return choose_tiles(width, height, tile_size=self.tile_size, min_tiles=self.min_tiles,
                            max_tiles=self.max_tiles)


Settings = tuple[int, int, bool, Levels]


def _original(top: Section) -> Settings:
    """min_tiles, max_tiles, has_thumbnail and levels that config.json states."""
    if top.values.get("dynamic_image_size") is False:
        return 1, 1, False, IMAGENET
    low, high = top.integer("min_dynamic_patch"), top.integer("max_dynamic_patch")
    _check_range(top, "max_dynamic_patch", low, high)
    return low, high, top.values.get("use_thumbnail") is True, IMAGENET


def _of_transformers(section: Section, tile_size: int) -> Settings:
    """The same of preprocessor_config.json. Pictures are cut whatever `crop_to_patches` says: the
    reference overrides it."""
    refuse_other_steps(section, _PROCESSOR_TYPES)
    size = section.section("size")
    for side in ("height", "width"):
        if size.integer(side) != tile_size:
            raise size.wrong(side, f"{tile_size}, the image_size of config.json")
    low = section.integer("min_patches") if section.has("min_patches") else 1
    high = section.integer("max_patches") if section.has("max_patches") else 12
    _check_range(section, "max_patches", low, high)
    return low, high, True, Levels.from_section(section)


def _check_range(section: Section, key: str, low: int, high: int) -> None:
    if not low <= high <= LARGEST_MAX_TILES:
        raise section.wrong(key, f"an integer in [{low}, {LARGEST_MAX_TILES}]")
