"""What bench_shift stands on: a cache that is filled without a prompt, and rates.

The hooks reach into the engine on purpose. Decode speed does not depend on what the keys and values
say, so random ones serve, and 16k visual tokens need no hour of prefill.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np
import torch

from benchmarks import common
from pydstp import Engine, SelectionParams, cost, ops
from pydstp.bench import filled_cache
from pydstp.cost import Cost
from pydstp.cost_model import CostModel
from pydstp.generation import Timings
from pydstp.image import ProcessedImage
from pydstp.models.gemm import gemm
from pydstp.models.qwen3_vl_vision import VisionOutput
from pydstp.sequence import Sequence

GEMM_ROWS = 512  # of the product that the GEMM rate is taken from
T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Step:
    """One decode step. kind: "quiet", "expanded" (a swap is shown) or "swap" (it triggered).

    logits: kept of the first step of a run.
    """

    kind: str
    ms: float
    bytes_read: int
    visible: int
    logits: np.ndarray | None


class FilledCache(filled_cache.FilledCache):
    """The same, its steps measured one by one."""

    def step(self, seq: Sequence) -> Step:
        """One decode step and the next token; what the scheduler does for one request."""
        state, progress = self._cache.shift.state[seq.seq_idx], seq.progress
        triggers, bytes_read = progress.triggers, progress.bytes_read
        is_expanded = int(state[ops.StateWord.MODE]) == ops.Mode.EXPANDED
        group = int(self._cache.layer_to_group[seq.seq_idx, -1])
        visible = len(self._cache.visible_slots(seq.seq_idx, group))
        started = time.perf_counter()
        logits = self.decode([seq])
        ms = 1e3 * (time.perf_counter() - started)
        quiet = "expanded" if is_expanded and progress.is_watched else "quiet"
        return Step("swap" if progress.triggers > triggers else quiet, ms,
                    progress.bytes_read - bytes_read, visible, logits)

    def run(self, num_visual: int, selection: SelectionParams, count: int) -> list[Step]:
        """The steps of one sequence; the first is there to warm up."""
        seq = self.start(num_visual, selection)
        try:
            first = self.step(seq)
            return [first, *(replace(self.step(seq), logits=None) for _ in range(count))]
        finally:
            self.release(seq)


def random_picture(num_tokens: int) -> ProcessedImage:
    """A picture of so many visual tokens, for an engine that sees `RandomRows`."""
    rows = next(rows for rows in range(math.isqrt(num_tokens), 0, -1) if num_tokens % rows == 0)
    grid = 2 * rows, 2 * num_tokens // rows
    size = 16 * grid[1], 16 * grid[0]
    return ProcessedImage(torch.empty(0), grid, num_tokens, size, size, False)


class RandomRows:
    """In place of the vision tower: random rows at once, the same each time."""

    def __init__(self, engine: Engine) -> None:
        self._config, self._dtype = engine.model_config.vision, engine.dtype

    def __call__(self, patches: torch.Tensor, grids: list[tuple[int, int]], *_: Any,
                 **__: Any) -> VisionOutput:
        num_visual = sum(height * width for height, width in grids) // self._config.merge_unit
        maps = 1 + len(self._config.deepstack_visual_indexes)
        rows = torch.empty(maps, num_visual, self._config.out_hidden_size, dtype=self._dtype)
        rows.normal_(generator=torch.Generator().manual_seed(0))
        return VisionOutput(rows[0], list(rows[1:]))


class TowerOncePerTurn:
    """The vision tower does the same for every setting: once per turn is enough.

    Attributes:
        repeat: the turn.
        ms: the time that the tower took in this turn.
    """

    def __init__(self, engine: Engine) -> None:
        self._encode_images = engine._runner.model.encode_images
        self._output: VisionOutput | None = None
        self.repeat, self.ms = -1, 0.0

    def enter(self, repeat: int) -> None:
        """A new turn forgets what the last one saw."""
        self._output = self._output if repeat == self.repeat else None
        self.repeat = repeat

    def __call__(self, *arguments: Any, **options: Any) -> VisionOutput:
        if self._output is None:
            started = time.perf_counter()
            self._output = self._encode_images(*arguments, **options)
            self.ms = 1e3 * (time.perf_counter() - started)
        return self._output

    def count_in(self, timings: Timings) -> None:
        """The tower's time in this turn becomes part of an answer that did without it."""
        timings.time_to_first_token_ms += self.ms - timings.vision_ms
        timings.vision_ms = self.ms


@contextmanager
def vision_hook(engine: Engine, encode_images: Callable[..., VisionOutput]) -> Iterator[None]:
    """Within it the engine looks at pictures this way."""
    model = engine._runner.model
    model.encode_images = encode_images
    try:
        yield
    finally:
        del model.encode_images


def interleave(settings: dict[str, Callable[[int], T]], repeats: int, rates: Rates,
               *, warm_up: bool) -> dict[str, list[T]]:
    """Every setting once per repeat, in an order that rotates; each gets the number of the repeat.

    The rates are measured before every repeat.
    """
    names, found = list(settings), {name: [] for name in settings}
    for repeat in range(-1 if warm_up else 0, repeats):
        rates.sample()
        first = repeat % len(names)
        for name in names[first:] + names[:first]:
            result = settings[name](repeat)
            if repeat >= 0:
                found[name].append(result)
    return found


def ratios(values: list[float], others: list[float]) -> dict[str, float]:
    """values / others, repeat by repeat."""
    return common.spread([a / b for a, b in zip(values, others, strict=True)])


@dataclass
class Rates:
    """What the machine reaches: plain reads, and products of many rows; one entry per sample."""

    engine: Engine
    num_threads: int
    probe_bytes: int
    read_gb_s: list[float] = field(default_factory=list)
    gemm_gflop_s: list[float] = field(default_factory=list)

    def sample(self) -> None:
        """Measure both once more."""
        self.read_gb_s.append(common.read_bandwidth_gb_s(self.num_threads, self.probe_bytes, 3))
        text = self.engine.model_config.text
        weight = torch.randn(2 * text.intermediate_size, text.hidden_size).to(self.engine.dtype)
        x = torch.randn(GEMM_ROWS, text.hidden_size).to(self.engine.dtype)
        times = []
        for _ in range(3):
            started = time.perf_counter()
            gemm(x, weight)
            times.append(time.perf_counter() - started)
        self.gemm_gflop_s.append(2e-9 * GEMM_ROWS * weight.numel() / min(times))

    def predict_ms(self, work: Cost) -> float:
        """Bytes over the read bandwidth and operations over the GEMM rate."""
        rates = cost.Rates(statistics.median(self.read_gb_s), statistics.median(self.gemm_gflop_s))
        return rates.ms(work)

    def to_dict(self) -> dict[str, Any]:
        """For the record."""
        return {"read_gb_s": common.spread(self.read_gb_s),
                "gemm_gflop_s": common.spread(self.gemm_gflop_s)}


def cost_model(engine: Engine) -> CostModel:
    """What the engine's model must read and compute."""
    return CostModel(engine.model_config, engine.dtype.itemsize, engine._runner._weight_bytes)
