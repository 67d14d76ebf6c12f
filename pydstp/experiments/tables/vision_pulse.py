"""The tables of VisionPulse (arXiv 2605.31457): against pruning at prefill, and its ablation.

Pictures of 72 to 80 visual tokens, so that one percent of them is less than a token and ten are
seven or eight. The embedded checkpoint has four layers: the paper's anchor, in the middle, is the
third of them here and leaves one layer that reads a selection. Rows with lower anchors leave more
of them; FastV and a random subset prune at the same place.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from pydstp.experiments.settings import Setting
from pydstp.experiments.tables.bench import FULL, Bench, Column
from pydstp.experiments.tables.layout import (
    Cell,
    Table,
    accuracy,
    name,
    number,
    published,
    reasons,
    relative_mean,
)
from pydstp.experiments.tables.published import PULSE_ABLATION, PULSE_BENCHMARKS, PULSE_MAIN
from pydstp.shift import DyCoke, VisionPulse

GRID = (("rows", 9), ("cols", 8))
COLUMNS = (*(Column(task, task, GRID) for task in ("trail", "read", "locate")),
           Column("haystack", "haystack", (("rows", 4), ("cols", 5), ("num_images", 4))))
SOURCE = "arXiv 2605.31457, "
TEN = VisionPulse()
FIVE = VisionPulse(temperature=0.1, min_share=0.01, max_share=0.05)
LIMITS = {0.10: TEN, 0.05: FIVE}
ABLATION_ANCHORS = (None, 1)  # the paper's place, and one layer less


def main(bench: Bench) -> Table:
    """Selection at every decode step against pruning at prefill, at the same share."""
    full = bench.row(FULL, COLUMNS)
    header = ["method", "at most", "anchor", *(column.title for column in COLUMNS),
              "% of all tokens", "visible", "tokens (trail)", "tokens (read)",
              "paper: accuracy", "paper: tokens"]
    rows = [_row("none", "1", "-", full, full, PULSE_MAIN["none", 1.0])]
    for limit in LIMITS:
        for method, anchor, setting in _settings(bench, limit):
            known = PULSE_MAIN.get((method, limit))
            is_theirs = anchor in ("-", str(_anchor(bench)))
            rows.append(_row(method, f"{limit:g}", anchor, bench.row(setting, COLUMNS), full,
                             known if is_theirs else None))
    return Table(
        "Selection at every step against pruning at prefill",
        SOURCE + "main table (Qwen3-VL-4B-Thinking, mean of seven benchmarks)", header, rows,
        ["*anchor*: layers above it read the selection. For `random` and FastV it is the last "
         "layer that sees all tokens; the paper prunes FastV at its anchor too. *visible*: mean "
         "share that the layers above the anchor (from the pruning point on) read in a step, on "
         "trail. *tokens*: written per answer.", *reasons(rows)])


def _anchor(bench: Bench) -> int:
    return TEN.settled_anchor(bench.config.text.num_layers, 0)


def _settings(bench: Bench, limit: float) -> list[tuple[str, str, Setting | None]]:
    """(method, anchor, setting) of the rows at one limit."""
    anchor = _anchor(bench)
    rows = [("visionzip", "-", bench.setting("visionzip", limit)),
            ("look_m", "-", bench.setting("look_m", limit))]
    for place in reversed(range(anchor + 1)):
        shift = replace(LIMITS[limit], anchor_layer=place)
        rows += [("random", str(place), bench.setting("random", limit, layer=place + 1)),
                 ("fastv", str(place), bench.setting("fastv", limit, layer=place + 1)),
                 ("visionpulse", str(place), bench.setting("none", 1.0, "visionpulse", shift))]
    return rows


def _row(method: str, limit: str, anchor: str, runs: list[dict[str, Any]],
         full: list[dict[str, Any]], known: tuple[float, float] | None) -> list[Cell]:
    return [name(method), name(limit), name(anchor), *map(accuracy, runs),
            relative_mean(runs, full), number(runs[0], "mean_visible", "{:.3f}"),
            *(number(run, "new_tokens") for run in runs[:2]),
            *map(published, known or (None, None))]


def ablation(bench: Bench) -> Table:
    """Dynamic, fixed and random budgets, at the paper's anchor and one layer below."""
    full = bench.row(FULL, COLUMNS)
    header = ["budget", "anchor", *(column.title for column in COLUMNS), "% of all tokens",
              "visible", *(f"paper: {title}" for title in PULSE_BENCHMARKS)]
    rows = [_ablation_row("all tokens", "-", full, full, is_theirs=True)]
    for anchor in ABLATION_ANCHORS:
        for label, options in BUDGETS.items():
            shift = VisionPulse(**options, anchor_layer=anchor)
            runs = bench.row(bench.setting("none", 1.0, "visionpulse", shift), COLUMNS)
            place = _anchor(bench) if anchor is None else anchor
            rows.append(_ablation_row(label, str(place), runs, full, is_theirs=anchor is None))
        shift = DyCoke(share=0.10, anchor_layer=anchor)
        runs = bench.row(bench.setting("none", 1.0, "dycoke", shift), COLUMNS)
        place = shift.settled_anchor(bench.config.text.num_layers, 0)
        rows.append(_ablation_row("DyCoke, fixed 10 %", str(place), runs, full, is_theirs=False))
    return Table(
        "Budgets", SOURCE + "ablation (Qwen3-VL-4B-Thinking; its dynamic budget averaged 1.9 %, "
        "its random one 3.0 %)", header, rows,
        ["*visible*: mean share that the layers above the anchor read, on trail: what a budget "
         "really was. A share of 1 % is one token here. `DyCoke` keeps its selection until "
         "attention changes.", *reasons(rows)])


BUDGETS = {
    "dynamic 5-10 %": {},
    "dynamic 5-10 %, tempered ranking": {"importance": "tempered"},
    "fixed 10 %": {"budget": "fixed", "fixed_share": 0.10},
    "random 5-10 %": {"budget": "random"},
    "dynamic 1-5 %": {"temperature": 0.1, "min_share": 0.01, "max_share": 0.05},
    "fixed 5 %": {"budget": "fixed", "fixed_share": 0.05},
    "random 1-5 %": {"budget": "random", "min_share": 0.01, "max_share": 0.05},
    "fixed 1 %": {"budget": "fixed", "fixed_share": 0.01},
}


def _ablation_row(label: str, anchor: str, runs: list[dict[str, Any]],
                  full: list[dict[str, Any]], *, is_theirs: bool) -> list[Cell]:
    known = PULSE_ABLATION.get(label) if is_theirs else None
    return [name(label), name(anchor), *map(accuracy, runs), relative_mean(runs, full),
            number(runs[0], "mean_visible", "{:.3f}"), *map(published, known or (None,) * 3)]
