"""What a benchmark run is asked to do, each value checked once, before anything is measured."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydstp.config import EngineConfig, names_unknown_options, require_int
from pydstp.errors import OptionError, show
from pydstp.models.config import VLMConfig
from pydstp.models.internvl_config import InternVisionConfig
from pydstp.pruning import PruningConfig

AGAINST = ("transformers", "openvino")
BF16, FP32, INT8 = "bf16", "fp32", "int8"
DTYPES = {BF16: "bfloat16", FP32: "float32"}  # every other kind of weights: beside bfloat16
MAX_TILES = 13  # of InternVL, a thumbnail among them
SMALLEST_PICTURE_TOKENS = 256  # a smaller picture may be enlarged
PROMPT_TOKENS = 256  # room for the text of the prompt, which has about 60 tokens in the shapes
PERCENTAGES = "percentages in [1, 100] separated by commas, such as 100,33,10"


@names_unknown_options
@dataclass(frozen=True)
class BenchSettings:
    """One run.

    Attributes:
        threads: of every engine, 1 to 1024.
        weights: "bf16", "fp32", or a kind that `EngineConfig.weights` takes, such as "int8".
        image_size: (width, height) of the picture in pixels.
        new_tokens: greedy tokens of each answer, at least 2.
        repeats: turns that count, after one to warm up.
        retention: percentages of the visual tokens that are kept, each a row.
        batch: sequences that decode together; more than the single 1 asks for a table of its own.
        method: the pruning method of rows below 100 percent.
        against: peers, among `AGAINST`.

    Raises:
        OptionError: a value outside its range.
    """

    threads: int
    weights: str = BF16
    image_size: tuple[int, int] = (1024, 1024)
    new_tokens: int = 32
    repeats: int = 5
    retention: tuple[int, ...] = (100,)
    batch: tuple[int, ...] = (1,)
    method: str = "divprune"
    against: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        require_int("threads", self.threads, 1, 1024)
        require_int("new_tokens", self.new_tokens, 2, 1 << 16)
        require_int("repeats", self.repeats, 1, 1000)
        for side in self.image_size:
            require_int("image_size", side, 32, 1 << 14)
        _require_some("retention", self.retention, PERCENTAGES)
        for percent in self.retention:
            require_int("retention", percent, 1, 100)
        _require_some("batch", self.batch, "numbers of sequences separated by commas, as in 1,4,8")
        for count in self.batch:
            require_int("batch", count, 1, 1024)
        for peer in self.against:
            if peer not in AGAINST:
                raise OptionError(f"against: expected {' or '.join(AGAINST)}, got {show(peer)}")
        if self.against and self.weights == FP32:
            raise OptionError("against: expected weights bf16 or int8 with it, got 'fp32'")
        self.engine_options(SMALLEST_PICTURE_TOKENS)
        for percent in self.retention:
            self.pruning(percent)

    @property
    def sweeps(self) -> bool:
        """Whether decode steps get a table of their own, by batch and retention."""
        return self.batch != (1,)

    @property
    def dtype(self) -> str:
        """The engine's dtype, as it takes it."""
        return DTYPES.get(self.weights, "bfloat16")

    def engine_options(self, max_visual_tokens: int) -> dict[str, Any]:
        """What `EngineConfig` takes, for a prompt with so many visual tokens."""
        kind = "float" if self.weights in DTYPES else self.weights
        options = dict(max_batch=max(self.batch), max_visual_tokens=max_visual_tokens,
                       max_text_tokens=PROMPT_TOKENS + self.new_tokens,
                       num_threads=self.threads, weights=kind)
        EngineConfig(**options)
        return options

    def pruning(self, percent: int) -> PruningConfig | None:
        """The method that keeps so many percent."""
        return None if percent == 100 else PruningConfig(self.method, percent / 100)


def _require_some(name: str, values: Sequence[int], what: str) -> None:
    if not values:
        raise OptionError(f"{name}: expected {what}, got none")
    if len(set(values)) < len(values):
        raise OptionError(f"{name}: expected each number once, got {show(values)}")


def numbers(name: str, text: str) -> tuple[int, ...]:
    """`100,33,10` -> (100, 33, 10).

    Raises:
        OptionError: something else than whole numbers and commas.
    """
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise OptionError(f"{name}: expected numbers separated by commas, "
                          f"got {show(text)}") from None


def parse_size(text: str) -> tuple[int, int]:
    """`640x480` -> (640, 480).

    Raises:
        OptionError: something else than two whole numbers with an x between them.
    """
    width, _, height = text.partition("x")
    if not (width.isdecimal() and height.isdecimal()):
        raise OptionError(f"image_size: expected WIDTHxHEIGHT in pixels, got {show(text)}")
    return int(width), int(height)


def size_for(num_tokens: int, config: VLMConfig) -> tuple[int, int]:
    """(width, height) of a picture of about so many visual tokens, nearly square; exact where the
    number has divisors for it.

    Raises:
        OptionError: fewer than 64 or more than 16,384, or the model cuts pictures into tiles.
    """
    require_int("visual_tokens", num_tokens, 64, 1 << 14)
    if isinstance(config.vision, InternVisionConfig):
        raise OptionError(f"visual_tokens: expected --image-size WIDTHxHEIGHT with a model that "
                          f"cuts pictures into tiles, got {num_tokens}")
    root = math.isqrt(num_tokens)
    rows = next((n for n in range(root, root // 2, -1) if num_tokens % n == 0), root)
    side = config.vision.patch_size * config.vision.spatial_merge_size
    return side * round(num_tokens / rows), side * rows


def most_visual_tokens(size: tuple[int, int], config: VLMConfig) -> int:
    """Visual tokens that a picture of this size becomes at most."""
    vision = config.vision
    if isinstance(vision, InternVisionConfig):
        return MAX_TILES * vision.tile_side**2 // vision.merge_unit
    side = vision.patch_size * vision.spatial_merge_size
    return max(SMALLEST_PICTURE_TOKENS, math.prod(max(1, round(pixels / side)) for pixels in size))
