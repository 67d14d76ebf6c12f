"""From a picture to the rows of the patch embedding, as Qwen3-VL's processor makes them.

Source: transformers 5.23, models/qwen2_vl/image_processing_pil_qwen2_vl.py (Qwen3-VL shares the
processor of Qwen2-VL), equal to it value by value where both resize with the same Pillow.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image

from pydstp.config import CPU_MAX_PIXELS
from pydstp.errors import ImageError, OptionError
from pydstp.image_patches import (
    Levels,
    ProcessedImage,
    processor_section,
    refuse_other_steps,
    require_rgb,
    require_room,
)
from pydstp.image_source import load_image
from pydstp.json_file import read_json
from pydstp.models.config_reader import Section

__all__ = ["ImageProcessor", "ProcessedImage", "load_image", "smart_resize"]

MAX_ASPECT_RATIO = 200
_PROCESSOR_TYPES = tuple(
    f"{family}ImageProcessor{backend}"
    for family in ("Qwen2VL", "Qwen3VL") for backend in ("", "Fast", "Pil"))


def smart_resize(height: int, width: int, *, factor: int, min_pixels: int,
                 max_pixels: int) -> tuple[int, int]:
    """The size a picture is resized to: multiples of `factor`, area within the two limits.

    Both sides are rounded half to even. Outside the limits they are scaled together, from the
    original size, and rounded towards the inside; each side stays at least `factor`.

    Returns:
        (height, width) in pixels.

    Raises:
        ImageError: one side is more than 200 times the other.
    """
    if max(height, width) > MAX_ASPECT_RATIO * min(height, width):
        raise ImageError(f"image: expected sides within a ratio of {MAX_ASPECT_RATIO}, "
                         f"got {width} x {height} pixels")
    new_height = round(height / factor) * factor
    new_width = round(width / factor) * factor
    if new_height * new_width > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        new_height = max(factor, math.floor(height / shrink / factor) * factor)
        new_width = max(factor, math.floor(width / shrink / factor) * factor)
    elif new_height * new_width < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        new_height = math.ceil(height * grow / factor) * factor
        new_width = math.ceil(width * grow / factor) * factor
    return new_height, new_width


def smaller_grid(rows: int, cols: int, limit: int) -> tuple[int, int]:
    """The largest grid of at most `limit` cells among those of nearly the same shape.

    Its sides are `rows` and `cols` scaled alike to `limit` cells, each rounded down or up; a side
    that would fall below one cell is one, and the other what is left. Of equally large grids the
    one nearest in shape counts.
    """
    scale = math.sqrt(limit / (rows * cols))
    height, width = rows * scale, cols * scale
    if min(height, width) < 1:
        return (1, min(cols, limit)) if height < width else (min(rows, limit), 1)
    near = [(h, w) for h in (math.floor(height), math.ceil(height))
            for w in (math.floor(width), math.ceil(width)) if h * w <= limit]
    return max(near, key=lambda grid: (grid[0] * grid[1],
                                       -abs(math.log(grid[0] * cols / (grid[1] * rows)))))


@dataclass(frozen=True)
class ImageProcessor:
    """How one checkpoint wants its pictures.

    Attributes:
        patch_size, temporal_patch_size, merge_size: pixels of a patch's side, frames of a patch,
            patches of a merged token's side.
        min_pixels, max_pixels: limits of the area a picture is resized into.
        levels: what becomes of the 8-bit values.
    """

    patch_size: int
    temporal_patch_size: int
    merge_size: int
    min_pixels: int
    max_pixels: int
    levels: Levels

    @classmethod
    def from_checkpoint(
        cls, path: str | Path, *, min_pixels: int | None = None,
        max_pixels: int | Literal["checkpoint"] | None = None, device: str = "cpu",
    ) -> ImageProcessor:
        """Read preprocessor_config.json, or the `image_processor` part of processor_config.json.

        Args:
            path: the checkpoint folder.
            min_pixels: None takes the file's limit, or `max_pixels` where that is smaller.
            max_pixels: None takes the file's limit, on the CPU at most 1.3 megapixels;
                "checkpoint" takes the file's limit on every device.
            device: where the vision tower will run.

        Raises:
            CheckpointError: a file is missing, damaged, or contradicts config.json.
            UnsupportedModelError: another kind of processor, or a step that is switched off.
            OptionError: a limit that is no positive integer, or min_pixels > max_pixels.
        """
        section = processor_section(Path(path))
        refuse_other_steps(section, _PROCESSOR_TYPES)
        smallest, largest = _limits(section, min_pixels, max_pixels, device)
        processor = cls(
            patch_size=section.integer("patch_size"), merge_size=section.integer("merge_size"),
            temporal_patch_size=section.integer("temporal_patch_size"),
            min_pixels=smallest, max_pixels=largest,
            levels=Levels.from_section(section))
        _check_against_model(processor, section, Path(path))
        return processor

    def preprocess(self, image: Image.Image, max_tokens: int | None = None,
                   budget: Callable[[int], int] | None = None) -> ProcessedImage:
        """Resize, normalise and cut a picture into patch rows.

        Args:
            image: an RGB image, as `load_image` returns it.
            max_tokens: visual tokens that there is room for, None for any number.
            budget: how many it may become, from those of its own size; None leaves them all. See
                `smaller_grid`.

        Raises:
            CapacityError: it would become more than `max_tokens`; it was not resized.
            ImageError: not an RGB image, or one side is more than 200 times the other.
        """
        require_rgb(image)
        width, height = image.size
        factor = self.patch_size * self.merge_size
        rows, cols = (side // factor for side in smart_resize(
            height, width, factor=factor, min_pixels=self.min_pixels, max_pixels=self.max_pixels))
        own = rows * cols
        if budget is not None:
            rows, cols = smaller_grid(rows, cols, budget(own))
        require_room(rows * cols, max_tokens)
        resized = image.resize((cols * factor, rows * factor), Image.Resampling.BICUBIC)
        rounded_area = round(height / factor) * round(width / factor) * factor**2
        return ProcessedImage(
            patches=self.levels.patch_rows(np.asarray(resized), self.patch_size, self.merge_size,
                                           self.temporal_patch_size),
            grid=(rows * self.merge_size, cols * self.merge_size), num_tokens=rows * cols,
            original_size=(width, height), resized=resized.size, num_spared=own - rows * cols,
            shrunk=rounded_area > self.max_pixels or rows * cols < own)


def _file_limits(section: Section) -> tuple[int, int]:
    """Areas in pixels. Newer files call them shortest_edge and longest_edge, of `size`."""
    size = section.section("size") if section.has("size") else section
    limits = []
    for new_name, old_name in (("shortest_edge", "min_pixels"), ("longest_edge", "max_pixels")):
        if section.has(old_name):
            limits.append(section.integer(old_name))
        else:
            limits.append(size.integer(old_name if size.has(old_name) else new_name))
    return limits[0], limits[1]


def _limits(section: Section, min_pixels: Any, max_pixels: Any, device: str) -> tuple[int, int]:
    """What the caller asks for, and the defaults of `ImageProcessor.from_checkpoint`."""
    file_min, file_max = _file_limits(section)
    if max_pixels == "checkpoint":
        max_pixels = file_max
    elif max_pixels is None:
        on_cpu = torch.device(device).type == "cpu"
        max_pixels = min(file_max, max(CPU_MAX_PIXELS, file_min)) if on_cpu else file_max
    _require_positive("max_pixels", max_pixels)
    min_pixels = min(file_min, max_pixels) if min_pixels is None else min_pixels
    _require_positive("min_pixels", min_pixels)
    if min_pixels > max_pixels:
        raise OptionError(f"min_pixels: expected at most max_pixels = {max_pixels}, "
                          f"got {min_pixels}")
    return min_pixels, max_pixels


def _require_positive(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise OptionError(f"{name}: expected an integer >= 1, got {value!r}")


def _check_against_model(processor: ImageProcessor, section: Section, folder: Path) -> None:
    config = Section(read_json(folder / "config.json"), str(folder / "config.json"))
    vision = config.section("vision_config")
    for ours, theirs in (("patch_size", "patch_size"), ("merge_size", "spatial_merge_size"),
                         ("temporal_patch_size", "temporal_patch_size")):
        if getattr(processor, ours) != vision.integer(theirs):
            raise section.wrong(ours, f"{vision.values[theirs]}, as {vision.where(theirs)} says")
