"""The third measurement of bench_shift: what the triggers of a trace mean in milliseconds."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import common
from benchmarks.shift_harness import FilledCache, Rates, Step, interleave, ratios
from benchmarks.shift_parts import BASE, FULL, pruned, run_steps
from pydstp import DSTP, SelectionParams
from pydstp.cost import Cost

APPLIES = ("next", "redo")
LONGEST_WINDOW = 2  # steps of a replayed swap; in a longer one every step costs the same
MIN_SWAPS = 10  # that all runs together should see


@dataclass(frozen=True)
class Trace:
    """How often a policy acted, per decode step; what is replayed.

    Attributes:
        triggers: per decode step. forwards: passes per decode step.
        policy: its options; when it acts is not taken from them.
        retention: share of the visual tokens that were kept.
        source: where the numbers are from.
    """

    triggers: float
    forwards: float
    retention: float
    policy: DSTP = field(default_factory=DSTP.recommended)
    source: str = "the command line"

    @classmethod
    def from_record(cls, path: Path, row_idx: int | None) -> Trace:
        """A row of what `pydstp eval --json` wrote; None: the first one that triggered."""
        rows = json.loads(path.read_text())["rows"]
        usable = [i for i, row in enumerate(rows) if row["options"]["shift"] and row["triggers"]]
        if not usable or row_idx not in (None, *usable):
            raise SystemExit(f"{path}: expected a row whose policy triggered, among {usable}, "
                             f"got {row_idx}")
        row = rows[usable[0] if row_idx is None else row_idx]
        policy = DSTP(**row["options"]["shift"])
        if not isinstance(policy.monitor_layers, str):  # numbers of the other model's layers
            policy = replace(policy, monitor_layers="post_prune")
        triggers = row["triggers"] / max(1.0, row["new_tokens"] - 1)
        return cls(triggers, row["forwards_per_token"], row["retention_ratio"], policy,
                   f"{path.name}: {row['task']}, {row['method']} {row['retention_ratio']:.3g}, "
                   f"{row['shift']}")

    def shares(self, applies: str) -> dict[str, float]:
        """The share of decode steps of each kind when the swaps apply so."""
        is_redone = applies == "redo"
        blind = self.policy.expand_steps - is_redone
        swaps = self.forwards - 1 if is_redone and self.forwards > 1 else self.triggers
        if self.policy.retrigger == "off":
            swaps = min(swaps, 1 / (1 + blind))  # there is no time for more
        expanded = min(1.0 - swaps, blind * swaps)
        return {"swap": swaps, "expanded": expanded, "quiet": 1.0 - swaps - expanded}

    def settings(self, applies: str, seed: int, rate: float) -> DSTP:
        """The policy with random triggers, its window cut short so that a run sees several."""
        return replace(self.policy, trigger="random", applies=applies, seed=seed, trigger_rate=rate,
                       expand_steps=min(self.policy.expand_steps, LONGEST_WINDOW))

    def rate(self, applies: str, num_steps: int) -> float:
        """The chance of a trigger where one can be.

        Higher than in the trace where so many steps would see too few swaps, up to one half.
        """
        shares = self.shares(applies)
        free = 1.0 if self.policy.retrigger != "off" else shares["quiet"] + shares["swap"]
        wanted = shares["swap"] / max(free, 1e-9)
        return min(1.0, max(wanted, min(0.5, MIN_SWAPS / num_steps)))

    def to_dict(self) -> dict[str, Any]:
        """For the record."""
        return {**asdict(self), "policy": self.policy.to_dict()}


def replay_rows(cache: FilledCache, rates: Rates, num_visual: int, trace: Trace, repeats: int,
                steps: int) -> list[dict[str, Any]]:
    """Milliseconds per token at the rate of a trace: swaps next and at once, base, all tokens."""
    settings: dict[str, Callable[[int], list[Step]]] = {
        FULL: partial(run_steps, cache, num_visual, SelectionParams(), steps),
        BASE: partial(run_steps, cache, num_visual, pruned(trace.retention), steps)}

    def swap(applies: str, repeat: int) -> list[Step]:
        policy = trace.settings(applies, max(0, repeat), trace.rate(applies, repeats * steps))
        return cache.run(num_visual, pruned(trace.retention, policy), steps)

    for applies in APPLIES:
        settings[applies] = partial(swap, applies)
    found = interleave(settings, repeats, rates, warm_up=True)
    times = {name: weighed_times(runs, _shares(trace, name)) for name, runs in found.items()}
    return [{"num_visual": num_visual, "setting": name, **_summary(runs, _shares(trace, name)),
             "ms": common.spread(times[name]),
             "against_pruned": ratios(times[name], times[BASE]),
             "against_full": ratios(times[name], times[FULL])} for name, runs in found.items()]


def _shares(trace: Trace, setting: str) -> dict[str, float]:
    return trace.shares(setting) if setting in APPLIES else {"quiet": 1.0}


def weighed_times(runs: list[list[Step]], shares: dict[str, float]) -> list[float]:
    """Milliseconds per step of each run, kinds of steps weighed as often as the trace has them.

    How often a short run swaps is chance. What a kind costs beyond a quiet step is taken from all
    runs together, quiet steps from each.
    """
    by_kind = steps_by_kind(runs)
    quiet = _median_ms(by_kind["quiet"])
    extra = sum(share * (_median_ms(by_kind[kind]) - quiet) for kind, share in shares.items()
                if share)
    return [_median_ms(steps_by_kind([run])["quiet"]) + extra for run in runs]


def steps_by_kind(runs: list[list[Step]]) -> dict[str, list[Step]]:
    """The steps of all runs but their first ones; where none is quiet, the others stand for it."""
    steps = [step for run in runs for step in run[1:]]
    found = {kind: [step for step in steps if step.kind == kind]
             for kind in ("quiet", "expanded", "swap")}
    return {**found, "quiet": found["quiet"] or steps}


def _summary(runs: list[list[Step]], shares: dict[str, float]) -> dict[str, Any]:
    """What the runs were, and the bytes of a mean step at the rates of the trace."""
    steps = [step for run in runs for step in run[1:]]
    by_kind = steps_by_kind(runs)
    mean_bytes = sum(share * statistics.mean(step.bytes_read for step in by_kind[kind])
                     for kind, share in shares.items() if share)
    return {"cost": Cost(mean_bytes), "shares": shares,
            "ms_as_run": common.spread([statistics.mean(s.ms for s in run[1:]) for run in runs]),
            "swaps_as_run": sum(step.kind == "swap" for step in steps) / len(steps)}


def _median_ms(steps: list[Step]) -> float:
    return statistics.median(step.ms for step in steps)
