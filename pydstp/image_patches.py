"""What all picture processors share: 8-bit values to model inputs, patch rows, their settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from pydstp.errors import CapacityError, CheckpointError, ImageError
from pydstp.json_file import read_json
from pydstp.models.config_reader import Section

FILES = ("preprocessor_config.json", "processor_config.json")
_BICUBIC = 3


@dataclass(frozen=True)
class ProcessedImage:
    """One picture, ready for the vision tower: one tile, or several of the same size.

    Attributes:
        patches: [num_tiles * grid_h * grid_w, channels * frames * patch_size ** 2] float32. Rows
            tile by tile, in merge-block order (block row, block column, row in block, column in
            block), columns in (channel, frame, row, column) order; the frames of a still picture
            are equal.
        grid: (grid_h, grid_w) of each tile, counted in patches.
        num_tokens: visual tokens, num_tiles * grid_h * grid_w / merge_size ** 2.
        original_size: (width, height) of the picture as it came, turned upright.
        resized: (width, height) that the patches cover, a thumbnail behind the tiles not counted.
        shrunk: True if a limit (`max_pixels`, `max_tiles`, "resize") made the picture smaller.
        num_tiles: tiles, the thumbnail among them.
        num_spared: visual tokens that it has less than its own size asks for (pruning method
            "resize").
    """

    patches: torch.Tensor
    grid: tuple[int, int]
    num_tokens: int
    original_size: tuple[int, int]
    resized: tuple[int, int]
    shrunk: bool
    num_tiles: int = 1
    num_spared: int = 0

    @property
    def grids(self) -> list[tuple[int, int]]:
        """The grid of every tile."""
        return [self.grid] * self.num_tiles


@dataclass(frozen=True)
class Levels:
    """What 8-bit values become: (value * rescale_factor - mean) / std, per channel (R, G, B)."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    rescale_factor: float = 1 / 255

    @classmethod
    def from_section(cls, section: Section) -> Levels:
        """Read image_mean, image_std and rescale_factor of a processor's settings."""
        rescale = {"rescale_factor": section.positive("rescale_factor")} if section.has(
            "rescale_factor") else {}
        return cls(_per_channel(section, "image_mean"), _per_channel(section, "image_std"),
                   **rescale)

    @cached_property
    def _values(self) -> np.ndarray:
        """[3, 256] float32: what each 8-bit level becomes; rounded as the reference rounds."""
        rescaled = (np.arange(256) * self.rescale_factor).astype(np.float32)
        mean, std = (np.asarray(v, np.float32)[:, None] for v in (self.mean, self.std))
        return (rescaled - mean) / std

    def patch_rows(self, pixels: np.ndarray, patch: int, merge: int,
                   num_frames: int = 1) -> torch.Tensor:
        """One tile as rows of `ProcessedImage.patches`.

        pixels: [height, width, 3] uint8, sides multiples of patch * merge.
        -> [grid_h * grid_w, 3 * num_frames * patch ** 2] float32.
        """
        height, width = pixels.shape[0] // patch, pixels.shape[1] // patch
        blocks = pixels.reshape(height // merge, merge, patch, width // merge, merge, patch, 3)
        levels = np.ascontiguousarray(blocks.transpose(0, 3, 1, 4, 6, 2, 5))
        levels = levels.reshape(height * width, 3, patch * patch)
        rows = np.empty((height * width, 3, num_frames, patch * patch), np.float32)
        for channel, values in enumerate(self._values):
            # mode="clip": a level always has an entry, and the check would cost half the time.
            rows[:, channel] = np.take(values, levels[:, channel], mode="clip")[:, None]
        return torch.from_numpy(rows.reshape(height * width, -1))


def processor_section(folder: Path) -> Section:
    """preprocessor_config.json, or the `image_processor` part of processor_config.json.

    Raises:
        CheckpointError: there is neither, or it is damaged.
    """
    for name in FILES:
        if (folder / name).is_file():
            section = Section(read_json(folder / name), str(folder / name))
            return section if name == FILES[0] else section.section("image_processor")
    raise CheckpointError(f"no image processor in {folder}: looked for {' and '.join(FILES)}")


def refuse_other_steps(section: Section, types: Sequence[str]) -> None:
    """Raise `UnsupportedModelError` for another kind of processor, or a step switched off."""
    if section.has("image_processor_type"):
        section.choice("image_processor_type", types)
    for step in ("do_resize", "do_rescale", "do_normalize", "do_convert_rgb"):
        section.refuse(step, unless=(True,), reason="this step always runs")
    section.refuse("resample", unless=(_BICUBIC,), reason=f"supported: {_BICUBIC}, bicubic")


def _per_channel(section: Section, key: str) -> tuple[float, ...]:
    values = section.values.get(key)
    numbers = isinstance(values, list) and all(
        isinstance(v, int | float) and not isinstance(v, bool) and abs(v) < 1e30 for v in values)
    if not numbers or len(values) != 3 or (key == "image_std" and min(values) <= 0):
        raise section.wrong(key, "a list of three numbers" + " > 0" * (key == "image_std"))
    return tuple(map(float, values))


def require_rgb(image: Any) -> None:
    """Raise `ImageError` for anything but an RGB image."""
    if not isinstance(image, Image.Image) or image.mode != "RGB":
        found = getattr(image, "mode", type(image).__name__)
        raise ImageError(f"image: expected a PIL image in mode RGB, got {found}")


def require_room(num_tokens: int, max_tokens: int | None) -> None:
    """Raise `CapacityError` for a picture that becomes too many visual tokens."""
    if max_tokens is not None and num_tokens > max_tokens:
        raise CapacityError(f"visual tokens: the picture needs {num_tokens}, but "
                            f"max_visual_tokens = {max_tokens}")
