"""The picture processor of a checkpoint, by its family."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydstp.errors import OptionError
from pydstp.image import ImageProcessor
from pydstp.image_tiles import TileProcessor
from pydstp.json_file import read_json
from pydstp.models.config import INTERNVL, INTERNVL_CHAT


def open_image_processor(
    path: str | Path, *, min_pixels: int | None = None,
    max_pixels: int | Literal["checkpoint"] | None = None, max_tiles: int | None = None,
) -> ImageProcessor | TileProcessor:
    """What cuts pictures for the model in `path`.

    Args:
        path: the checkpoint folder.
        min_pixels, max_pixels, max_tiles: as in `EngineConfig`.

    Raises:
        OptionError: an option that pictures of this model do not have.
        CheckpointError, UnsupportedModelError: see the `from_checkpoint` of both classes.
    """
    has_tiles = read_json(Path(path) / "config.json").get("model_type") in (INTERNVL, INTERNVL_CHAT)
    unused = {"min_pixels": min_pixels, "max_pixels": max_pixels} if has_tiles else {
        "max_tiles": max_tiles}
    for name, value in unused.items():
        if value is not None:
            kind = "is cut into tiles (max_tiles)" if has_tiles else "stays whole (max_pixels)"
            raise OptionError(f"{name}: expected None, a picture for this model {kind}, "
                              f"got {value!r}")
    if has_tiles:
        return TileProcessor.from_checkpoint(path, max_tiles=max_tiles)
    return ImageProcessor.from_checkpoint(path, min_pixels=min_pixels, max_pixels=max_pixels)
