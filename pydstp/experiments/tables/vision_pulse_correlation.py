"""The correlation study of VisionPulse: visual mass against the number of activated tokens.

What counts as activated is not in our notes on the paper. Two counts stand here: visual tokens
with more than an even share of the step's attention (1 over all tokens in view), and the fewest
visual tokens that hold 90 % of what the picture gets. The runs select nothing: every layer reads
every token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from pydstp.experiments.statistics import correlation
from pydstp.experiments.tables.bench import Bench, Column, Drawn
from pydstp.experiments.tables.layout import Cell, Table, name
from pydstp.experiments.tables.vision_pulse import COLUMNS
from pydstp.generation import Generation
from pydstp.shift import VisionPulse

HELD = 0.9
RESAMPLES = 1000
MAX_POINTS = 150  # of a task, for the figure
PAIRS = {"mass, activated": (0, 2), "mass, holding 90 %": (0, 3), "peak mass, activated": (1, 2)}


def table(bench: Bench) -> Table:
    """Pearson's coefficient per anchor layer and task."""
    layers = range(bench.config.text.num_layers - 1)
    found = {(layer, column): _measure(bench, layer, column)
             for layer in layers for column in COLUMNS}
    rows = [[name(str(layer)), name(column.title), name(str(value["steps"])),
             _mean(value, "mass"), _mean(value, "activated"),
             *(_coefficient(value["pearson"][pair], bench) for pair in PAIRS)]
            for (layer, column), value in found.items()]
    points = {f"layer {layer}": {column.title: found[layer, column]["points"]
                                 for column in COLUMNS} for layer in layers}
    return Table(
        "Visual mass and activated tokens",
        "arXiv 2605.31457, correlation study (Pearson 0.82 to 0.95)",
        ["layer", "task", "steps", "mass", "activated", *(f"r ({pair})" for pair in PAIRS)], rows,
        ["*mass*: attention on visual tokens, mean over heads; *peak mass*: of the neediest head, "
         "at temperature 0.4, which sets the budget. *activated*: visual tokens with more "
         "attention than 1 over the tokens in view; *holding 90 %*: the fewest tokens with that "
         "much of the mass. What the paper counts as activated is not in our notes. Intervals: "
         f"95 %, {RESAMPLES} resamples of whole answers, seed 0. `-`: one of the two is constant. "
         "Mass and activated "
         "are not independent: more tokens over a bound need more mass."], {"points": points})


def _measure(bench: Bench, layer: int, column: Column) -> dict[str, Any]:
    asked = {"correlation": layer, "task": column.task, "options": dict(column.options),
             "n": bench.n, "seed": bench.seed, "checkpoint": bench.checkpoint_sha256}
    return bench.once(asked, lambda: _ask(bench, layer, column),
                      lambda found: f"layer {layer}, {column.title}: {found['steps']} steps")


def _ask(bench: Bench, layer: int, column: Column) -> dict[str, Any]:
    questions = Drawn(column.task, bench.n, bench.seed, options=column.options)
    shift = VisionPulse(anchor_layer=layer, min_share=1.0, max_share=1.0)
    answers = [steps_of(answer) for _, answer in
               bench.asker.ask(questions, shift=shift, log_steps="attention")]
    answers = [steps for steps in answers if len(steps)]
    steps = np.concatenate(answers)
    chosen = steps[np.linspace(0, len(steps) - 1, min(len(steps), MAX_POINTS)).astype(int)]
    return {"steps": len(steps), "mass": float(steps[:, 0].mean()),
            "activated": float(steps[:, 2].mean()), "points": chosen.round(4).tolist(),
            "pearson": {pair: resampled([one[:, places] for one in answers])
                        for pair, places in PAIRS.items()}}


def steps_of(answer: Generation) -> np.ndarray:
    """[steps, 4] of an answer whose attention was logged: mass, peak mass, activated, holding.

    In a step, the tokens in view are the prompt's and those written before it.
    """
    rows = []
    for number, step in enumerate(answer.shift.steps, 1):
        attention = np.asarray(step.attention)
        mass = attention.sum()
        held = np.cumsum(np.sort(attention)[::-1])
        rows.append((mass, step.mass, (attention > 1 / (answer.prompt_tokens + number)).sum(),
                     np.searchsorted(held, HELD * mass) + 1))
    return np.array(rows, dtype=np.float64).reshape(-1, 4)


def resampled(answers: Sequence[np.ndarray]) -> dict[str, Any]:
    """Pearson's coefficient over all steps, and its interval by resampling answers.

    Args:
        answers: [steps, 2] each.

    Returns:
        {"value", "ci95"}; None where a series is constant.
    """
    value = correlation(*np.concatenate(answers).T)
    if value is None:
        return {"value": None, "ci95": None}
    moments = np.array([_moments(one) for one in answers])
    draws = np.random.default_rng(0).integers(0, len(answers), (RESAMPLES, len(answers)))
    count, x, y, xx, yy, xy = moments[draws].sum(axis=1).T
    spread = (count * xx - x * x) * (count * yy - y * y)
    is_varied = spread > 0
    values = (count * xy - x * y)[is_varied] / np.sqrt(spread[is_varied])
    return {"value": value, "ci95": np.quantile(values, (0.025, 0.975)).tolist()}


def _moments(pairs: np.ndarray) -> tuple[float, ...]:
    x, y = pairs.T
    return (len(x), x.sum(), y.sum(), (x * x).sum(), (y * y).sum(), (x * y).sum())


def _mean(found: dict[str, Any], key: str) -> Cell:
    return Cell(f"{found[key]:.3g}", {"kind": "number", "value": found[key], "n": found["steps"]})


def _coefficient(found: dict[str, Any], bench: Bench) -> Cell:
    if found["value"] is None:
        return Cell("-", {"kind": "unknown"})
    low, high = found["ci95"]
    return Cell(f"{found['value']:.2f} ({low:.2f} to {high:.2f})",
                {"kind": "correlation", **found, "n": bench.n, "seed": bench.seed})
