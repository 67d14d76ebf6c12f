"""Two measurements of bench_shift: decode steps and the first token."""

from __future__ import annotations

import statistics
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import common
from benchmarks.shift_harness import (
    FilledCache,
    RandomRows,
    Rates,
    Step,
    TowerOncePerTurn,
    cost_model,
    interleave,
    random_picture,
    ratios,
    vision_hook,
)
from pydstp import DSTP, Engine, Generation, PruningConfig, SamplingParams, SelectionParams
from pydstp.cost import Cost

PROMPT = "Describe this picture in detail: what is shown, where it is, and which colours it has."
FULL, BASE = "all tokens", "pruned"
LAYERS = {"mid": "mid", "all": "post_prune"}  # nothing is pruned after layer 0, so these are all


def pruned(retention: float, shift: DSTP | None = None) -> SelectionParams:
    """Pruned at random before the language model, with a policy or without."""
    return SelectionParams(PruningConfig("random", retention), shift, "side")


def decode_settings(retention: float) -> dict[str, SelectionParams]:
    """What decode steps are compared: no pruning, no policy, one that watches, one that swaps."""
    settings = {FULL: SelectionParams(), BASE: pruned(retention)}
    for name, layers in LAYERS.items():
        settings[f"watched: {name}"] = pruned(
            retention, DSTP(trigger="never", monitor_layers=layers))
    for name, layers in LAYERS.items():
        settings[f"swaps: {name}"] = pruned(
            retention, DSTP(trigger="every", expand_steps=1, monitor_layers=layers))
    return settings


def decode_rows(cache: FilledCache, rates: Rates, num_visual: int, retention: float,
                repeats: int, steps: int) -> list[dict[str, Any]]:
    """One row per setting and kind of step, against the base method."""
    steps += steps % 2  # of those that swap, every other step does
    found = interleave({name: partial(run_steps, cache, num_visual, params, steps)
                        for name, params in decode_settings(retention).items()},
                       repeats, rates, warm_up=True)
    check_same_logits(found)
    bases = [_of_kind(run, "quiet") for run in found[BASE]]
    rows = []
    for name, runs in found.items():
        kinds = ("swap", "expanded") if name.startswith("swaps") else ("quiet",)
        for kind in kinds:
            steps_of_kind = [_of_kind(run, kind) for run in runs]
            times = [step.ms for step in steps_of_kind]
            rows.append({
                "num_visual": num_visual, "setting": name, "kind": kind,
                "visible": steps_of_kind[0].visible, "cost": Cost(steps_of_kind[0].bytes_read),
                "ms": common.spread(times),
                "against_pruned": ratios(times, [step.ms for step in bases])})
    return rows


def run_steps(cache: FilledCache, num_visual: int, params: SelectionParams, steps: int,
              _: int) -> list[Step]:
    """As `FilledCache.run`, whatever the number of the repeat."""
    return cache.run(num_visual, params, steps)


def check_same_logits(found: dict[str, list[list[Step]]]) -> None:
    """Watching changes no bit, and a swap none before the next step: else the times mean nothing.

    Raises:
        RuntimeError: a setting that prunes gave other logits at its first step than the base, or
            one that does not prune gave the same.
    """
    expected = found[BASE][0][0].logits
    for name, runs in found.items():
        same = all(np.array_equal(run[0].logits, expected) for run in runs)
        if same == (name == FULL):
            raise RuntimeError(f"{name}: expected {'other' if same else 'the same'} logits")


def _of_kind(run: list[Step], kind: str) -> Step:
    """The median of the steps of one kind, the first step left out."""
    steps = [step for step in run[1:] if step.kind == kind]
    return replace(steps[0], ms=statistics.median(step.ms for step in steps),
                   bytes_read=statistics.mean(step.bytes_read for step in steps))


def first_token_rows(engine: Engine, rates: Rates, picture: Path | int, pruning: PruningConfig,
                     reserves: list[str], repeats: int) -> list[dict[str, Any]]:
    """One row per reserve mode; picture: a file, or a number of tokens that are random rows."""
    shift = DSTP(trigger="every")
    settings = {FULL: SelectionParams(),
                **{mode: SelectionParams(pruning, shift, mode) for mode in reserves}}
    tower = TowerOncePerTurn(engine) if isinstance(picture, Path) else None
    found = interleave({name: partial(_answer, engine, picture, tower, params)
                        for name, params in settings.items()}, repeats, rates, warm_up=False)
    if len({tuple(answer.token_ids) for mode in reserves for answer in found[mode]}) > 1:
        raise RuntimeError(f"{', '.join(reserves)}: expected the same tokens")
    times = {name: [answer.timings.time_to_first_token_ms for answer in answers]
             for name, answers in found.items()}
    rows = []
    for name, answers in found.items():
        cost, second_cost = first_token_costs(engine, name, answers[0], has_tower=tower is not None)
        rows.append({
            "num_visual": answers[0].visual_tokens, "source": "picture" if tower else "rows",
            "setting": name, "kept": answers[0].shift.kept, "cost": cost,
            "second_cost": second_cost, "ms": common.spread(times[name]), **_phases(answers),
            "side_passes": answers[0].shift.side_passes,
            "against_full": ratios(times[name], times[FULL])})
    return rows


def _answer(engine: Engine, picture: Path | int, tower: TowerOncePerTurn | None,
            params: SelectionParams, repeat: int) -> Generation:
    """Two tokens: the second one of a lazy reserve waits for its first trigger."""
    options = {"pruning": params.pruning, "shift": params.shift, "reserve": params.reserve}
    sampling = SamplingParams(temperature=0.0, max_new_tokens=2, ignore_eos=True)
    if tower is None:
        with vision_hook(engine, RandomRows(engine)):
            return engine.generate(random_picture(picture), PROMPT, sampling, **options)
    tower.enter(repeat)
    with vision_hook(engine, tower):
        answer = engine.generate(picture, PROMPT, sampling, **options)
    tower.count_in(answer.timings)
    return answer


def _phases(answers: list[Generation]) -> dict[str, dict[str, float]]:
    """The parts of the time to the first token, and the time to the second from there."""
    phases = {"preprocess_ms": [a.timings.preprocess_ms for a in answers],
              "vision_ms": [a.timings.vision_ms for a in answers],
              "prefill_ms": [a.timings.prefill_ms for a in answers],
              "selection_ms": [a.shift.selection_ms for a in answers],
              "reserve_ms": [a.shift.reserve_ms for a in answers],
              "second_ms": [a.timings.decode_ms for a in answers]}
    return {name: common.spread(times) for name, times in phases.items()}


def first_token_costs(engine: Engine, setting: str, answer: Generation, *,
                      has_tower: bool) -> tuple[Cost, Cost]:
    """Costs of the first token and of the second one.

    A row of the reserve sees half of the picture on average. divprune reads all tokens, as fp32,
    for every one that it picks. Preprocessing, norms and the like are left out.
    """
    total, kept = answer.visual_tokens, answer.shift.kept
    num_text = answer.prompt_tokens - total
    rows = kept + num_text
    model = cost_model(engine)
    first = model.prefill(rows)
    if has_tower:
        first += model.vision(total)
    if answer.shift.method == "divprune":
        first += Cost(4.0 * kept * total * engine.model_config.text.hidden_size)
    second = Cost(answer.shift.bytes_per_token)
    side = model.prefill(total - kept, (num_text + total) / 2)
    if setting == "side":
        first += side
    elif setting == "lazy":
        second += side
    return first, second
