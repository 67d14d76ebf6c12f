"""The measurement itself: every engine answers the same picture in every turn.

An answer is a dictionary: preprocess_ms, vision_ms, prefill_ms, first_token_ms (from the call to
the first token, everything included), decode_ms (mean of the steps after it), prompt_tokens and
token_ids (None where the engine does not say); those of pydstp also say how many visual tokens the
picture became, how many of them were kept, and how many went through each decoder layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pydstp.bench.rates import Probe
from pydstp.bench.server import Server
from pydstp.bench.settings import BenchSettings
from pydstp.bench.spreads import ratios, spread
from pydstp.cost_model import CostModel

PROMPT = "Describe this picture in detail: what is shown, where it is, and which colours it has."
PHASES = ("preprocess_ms", "vision_ms", "prefill_ms", "first_token_ms", "decode_ms")
OWN = "pydstp"
WARM_UP_TOKENS = 4
Tick = Callable[[], object]


@dataclass(frozen=True)
class Case:
    """A row: an engine and the percentage of the visual tokens that it keeps."""

    engine: str
    retention: int = 100

    @property
    def name(self) -> str:
        """`pydstp`, or `pydstp, 33 %`."""
        return self.engine if self.retention == 100 else f"{self.engine}, {self.retention} %"


def draw_picture(path: Path, size: tuple[int, int], seed: int = 0) -> None:
    """A picture with structure at every scale; equal seeds give equal pictures."""
    width, height = size
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / 7.0 + seed) + np.cos(y / 11.0), np.sin((x + y) / 41.0),
             np.cos(x * y / 9000.0)]
    noise = np.random.default_rng(seed).normal(0.0, 0.2, (height, width, 3))
    pixels = np.stack(waves, axis=-1) * 60 + noise * 60 + 128
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)


@contextmanager
def open_servers(commands: dict[str, list[str]]) -> Iterator[dict[str, Server]]:
    """The engines, by name; all end with the block."""
    with ExitStack() as stack:
        yield {name: stack.enter_context(Server(name, command))
               for name, command in commands.items()}


def cases_of(settings: BenchSettings, engines: list[str]) -> list[Case]:
    """The rows: transformers prunes nothing."""
    return [Case(engine, percent) for engine in engines for percent in settings.retention
            if percent == 100 or not engine.startswith("transformers")]


def answers(settings: BenchSettings, servers: dict[str, Server], cases: list[Case], probe: Probe,
            folder: Path, tick: Tick) -> dict[Case, list[dict[str, Any]]]:
    """What every case answered, turn by turn, in an order that rotates.

    A turn has its own picture, so that no engine finds an earlier one in a cache, and its own
    sample of the machine's rates. The first turn, a short one, warms up.
    """
    found: dict[Case, list[dict[str, Any]]] = {case: [] for case in cases}
    for turn in range(-1, settings.repeats):
        picture = folder / f"turn-{turn + 1}.png"
        draw_picture(picture, settings.image_size, turn + 1)
        if turn >= 0:
            probe.sample()
        first = turn % len(cases)
        for case in cases[first:] + cases[:first]:
            tokens = settings.new_tokens if turn >= 0 else min(WARM_UP_TOKENS, settings.new_tokens)
            answer = servers[case.engine].call("answer", image=str(picture), prompt=PROMPT,
                                               new_tokens=tokens, retention=case.retention)
            if turn >= 0:
                found[case].append(answer)
            tick()
    return found


def row(case: Case, found: dict[Case, list[dict[str, Any]]], memory: dict[str, int],
        first: dict[str, Any] | None) -> dict[str, Any]:
    """One case in numbers, against the first answer of pydstp without pruning, if there is one."""
    own = found[case]
    result = {"engine": case.engine, "retention": case.retention,
              "prompt_tokens": own[0]["prompt_tokens"], **memory,
              **{key: spread([answer[key] for answer in own]) for key in PHASES}}
    for key in ("visual_tokens", "kept", "selection_ms", "visible_share", "visual_rows",
                "num_tiles"):
        if key in own[0]:
            result[key] = own[0][key]
    if first is not None and own[0]["token_ids"] and case.retention == 100:
        result["same_tokens"] = _common_start(first["token_ids"], own[0]["token_ids"])
    return result


def _common_start(left: list[int], right: list[int]) -> int:
    same = [a == b for a, b in zip(left, right, strict=False)]
    return same.index(False) if False in same else len(same)


def peer_ratios(found: dict[Case, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Each peer's times over those of pydstp at the same retention, turn by turn."""
    rows = []
    for case, theirs in found.items():
        ours = found.get(Case(OWN, case.retention))
        if case.engine == OWN or ours is None:
            continue
        times = {key: ([answer[key] for answer in theirs], [answer[key] for answer in ours])
                 for key in PHASES}
        times["picture_ms"] = tuple([answer["preprocess_ms"] + answer["vision_ms"]
                                     for answer in side] for side in (theirs, ours))
        rows.append({"engine": case.engine, "retention": case.retention,
                     **{key: ratios(*pair) for key, pair in times.items() if min(pair[1]) > 0}})
    return rows


def predict(row: dict[str, Any], settings: BenchSettings, model: CostModel,
            probe: Probe) -> dict[str, float]:
    """Milliseconds by the cost model, for a row of pydstp, which says what each layer saw."""
    rates, text = probe.rates(), row["prompt_tokens"] - row["visual_tokens"]
    prefill = sum(rates.ms(model.prefill(text + count, num_layers=1))
                  for count in row["visual_rows"])
    tokens = text + row["visible_share"] * row["visual_tokens"] + settings.new_tokens / 2
    return {"vision_ms": rates.ms(model.vision(row["visual_tokens"], row["num_tiles"])),
            "prefill_ms": prefill, "decode_ms": rates.ms(model.decode_step(tokens))}


def sweep(settings: BenchSettings, server: Server, model: CostModel, num_visual: int,
          probe: Probe, tick: Tick) -> list[dict[str, Any]]:
    """Decode steps by batch and retention, in turns; measured beside predicted."""
    grid = [(batch, percent) for batch in settings.batch for percent in settings.retention]
    times: dict[tuple[int, int], list[float]] = {cell: [] for cell in grid}
    tokens: dict[tuple[int, int], float] = {}
    probe = replace(probe, read_gb_s=[], gemm_gflop_s=[])
    for turn in range(-1, settings.repeats):
        probe.sample()
        first = turn % len(grid)
        for batch, percent in grid[first:] + grid[:first]:
            steps = settings.new_tokens - 1 if turn >= 0 else 1
            found = server.call("decode", batch=batch, retention=percent, num_visual=num_visual,
                                steps=steps)
            if turn >= 0:
                times[batch, percent].append(sum(found["ms"]) / len(found["ms"]))
                tokens[batch, percent] = found["tokens"]
            tick()
    rates = probe.rates()
    predicted = {cell: rates.ms(model.decode_step(tokens[cell], cell[0])) for cell in grid}
    return [{"batch": batch, "retention": percent, "tokens": tokens[batch, percent],
             "step_ms": spread(times[batch, percent]), "predicted_ms": predicted[batch, percent],
             **_gain(batch, percent, times, predicted)} for batch, percent in grid]


def _gain(batch: int, percent: int, times: dict[tuple[int, int], list[float]],
          predicted: dict[tuple[int, int], float]) -> dict[str, Any]:
    """What pruning gains against all tokens at the same batch, where both were measured."""
    full = (batch, 100)
    if percent == 100 or full not in times:
        return {}
    return {"gain": ratios(times[full], times[batch, percent]),
            "predicted_gain": predicted[full] / predicted[batch, percent]}


def setup(settings: BenchSettings, checkpoint: Path) -> dict[str, Any]:
    """What was asked, for the record."""
    return {"checkpoint": checkpoint.name, "prompt": PROMPT, **asdict(settings)}
