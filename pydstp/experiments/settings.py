"""What is compared: pruning methods, ratios and shift policies, as rows of a table."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

from pydstp.errors import OptionError, show
from pydstp.pruning import PruningConfig, available_pruners
from pydstp.pruning.before_layer import LayerPruner
from pydstp.pruning.registry import pruner_class
from pydstp.shift import DSTP, DyCoke, Shift, SketchReturn, VisionPulse

ABLATION_METHODS = ("fastv", "divprune")
ABLATION_RATIO = 0.333
POLICIES = ("none", "dstp", "recommended", "sketch", "visionpulse", "dycoke")

# The rows of the paper's ablation (arXiv 2604.12358, table of swaps and triggers), by their changes
# to a timing. "random" comes behind the row whose frequency of triggers it copies.
ABLATION = {
    "risd + cpts": {},
    "random + cpts": {"trigger": "random"},
    "avg + cpts": {"trigger": "avg"},
    "risd + full": {"swap": "full"},
    "risd + hard": {"swap": "hard"},
    "risd + merge": {"swap": "merge"},
}

# What `--sketch-sweep` changes of SketchReturn, by the name of the row.
SKETCHES = {
    **{f"m {count}": {"max_returned": count} for count in (1, 2, 4, 8)},
    **{f"{bits} bits": {"bits": bits} for bits in (2, 8, 16)},
    "per head": {"per_head": True},
    **{f"mass {mass:g}": {"max_returned": 8, "mass": mass} for mass in (0.01, 0.05, 0.2)},
    **{f"gate {threshold:g}": {"threshold": threshold, "monitor_layers": "post_prune"}
       for threshold in (0.75, 0.9, 0.99)},
    "from layer 2": {"first_layer": 2},
}

THRESHOLDS = (0.75, 0.9, 0.95, 1.1)
SWAPS = ({"swap": "cpts"}, *({"swap": "add", "max_returned": count} for count in (1, 2, 4)))
# When a swap takes effect, how long it lasts, and what is watched. A swap that applies early needs
# layers above the watched ones.
TIMINGS = (
    *({"applies": "next", "expand_steps": steps, "monitor_layers": layers}
      for steps, layers in itertools.product((1, 4, 20), ("mid", "post_prune"))),
    *({"applies": "redo", "expand_steps": steps, "monitor_layers": layers}
      for steps, layers in itertools.product((1, 4), ("mid", "post_prune"))),
    *({"applies": "early", "expand_steps": steps, "monitor_layers": "mid"} for steps in (1, 4)),
)


@dataclass(frozen=True)
class Setting:
    """One row: how visual tokens are pruned and brought back.

    Attributes:
        method, ratio: the pruning method and the share it keeps; "none" keeps all.
        policy: the name of the shift policy in the table.
        pruning, shift: what `Engine.generate` takes.
        table: "grid", "ablation", "sketch" or "pareto".
        same_rate_as: the policy whose measured frequency of triggers becomes `trigger_rate`.
    """

    method: str
    ratio: float
    policy: str
    pruning: PruningConfig | None = None
    shift: Shift | None = None
    table: str = "grid"
    same_rate_as: DSTP | None = None


def parse_names(flag: str, text: str, known: Sequence[str]) -> list[str]:
    """Names separated by commas.

    Raises:
        OptionError: a name that is not known, or none at all.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in known:
            raise OptionError(f"{flag}: expected names among {', '.join(known)}, got {show(name)}")
    if not names:
        raise OptionError(f"{flag}: expected at least one of {', '.join(known)}")
    return list(dict.fromkeys(names))


def parse_methods(text: str) -> list[str]:
    """The pruning methods of `--methods`, "none" first; every registered one is known."""
    names = parse_names("--methods", text, list(dict.fromkeys(["none", *available_pruners()])))
    return sorted(names, key=lambda name: name != "none")


def parse_ratios(text: str) -> list[float]:
    """The ratios of `--ratios`: decimals or fractions, separated by commas.

    Raises:
        OptionError: not a number, or outside (0, 1].
    """
    ratios = []
    for part in filter(None, map(str.strip, text.split(","))):
        try:
            ratio = float(Fraction(part))
        except (ValueError, ZeroDivisionError, OverflowError):
            ratio = 0.0
        if not 0 < ratio <= 1:
            raise OptionError(f"--ratios: expected numbers in (0, 1], got {show(part)}")
        ratios.append(ratio)
    if not ratios:
        raise OptionError("--ratios: expected at least one number in (0, 1]")
    return list(dict.fromkeys(ratios))


def parse_policies(text: str) -> dict[str, Shift | None]:
    """The policies of `--shift`, by name: one of POLICIES, or files of `DSTP.save`, whose names
    stand in the table without folder and suffix.

    Raises:
        OptionError: a name that is none of these and no such file.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise OptionError(f"--shift: expected names among {', '.join(POLICIES)}, or files")
    made = {"none": lambda: None, "dstp": DSTP, "recommended": DSTP.recommended,
            "sketch": SketchReturn, "visionpulse": VisionPulse, "dycoke": DyCoke}
    return {name if name in made else Path(name).stem:
            made[name]() if name in made else DSTP.from_file(name) for name in names}


def default_fastv_layer(num_layers: int) -> int:
    """FastV and its kin prune before layer 2; before layer 1 in models under ten layers."""
    return 1 if num_layers < 10 else 2


def prune(method: str, ratio: float, fastv_layer: int) -> PruningConfig:
    """A method; those that act inside the decoder do so before `fastv_layer`."""
    is_inside = issubclass(pruner_class(method), LayerPruner)
    options: dict[str, Any] = {"layer": fastv_layer} if is_inside else {}
    return PruningConfig(method, ratio, **options)


def grid(methods: Sequence[str], ratios: Sequence[float], policies: dict[str, Shift | None],
         fastv_layer: int) -> list[Setting]:
    """Every method at every ratio under every policy; "none" once, and once under each policy that
    needs no pruning.

    A method that makes the picture or the cache smaller leaves nothing that could return: it comes
    without policy.
    """
    settings = [Setting("none", 1.0, "none")] if "none" in methods else []
    settings += [Setting("none", 1.0, name, shift=shift) for name, shift in policies.items()
                 if settings and isinstance(shift, VisionPulse | DyCoke)]
    for method, ratio in itertools.product([name for name in methods if name != "none"], ratios):
        pruning = prune(method, ratio, fastv_layer)
        possible = {"none": None} if not pruning.pruner.leaves_reserve else policies
        settings += [Setting(method, ratio, name, pruning, shift)
                     for name, shift in possible.items()]
    return settings


def ablation(methods: Sequence[str], ratios: Sequence[float], fastv_layer: int) -> list[Setting]:
    """The paper's ablation at one third of the tokens, for its timing and for the recommended one.

    The ratio is spelled as in `ratios`, if one of them means a third, so that no row comes twice.

    Raises:
        OptionError: none of the methods it is made for is among `methods`.
    """
    chosen = [name for name in ABLATION_METHODS if name in methods]
    if not chosen:
        raise OptionError(f"--methods: expected {' or '.join(ABLATION_METHODS)} among them for "
                          f"--ablation, got {', '.join(methods)}")
    ratio = next((ratio for ratio in ratios if abs(ratio - 1 / 3) < 0.004), ABLATION_RATIO)
    settings = [Setting("none", 1.0, "none", table="ablation")]
    for method in chosen:
        pruning = prune(method, ratio, fastv_layer)
        settings.append(Setting(method, ratio, "none", pruning, table="ablation"))
        for timing, policy in (("paper", DSTP()), ("recommended", DSTP.recommended())):
            settings += [replace(row, method=method, ratio=ratio, pruning=pruning)
                         for row in _ablation_rows(timing, policy)]
    return settings


def _ablation_rows(timing: str, policy: DSTP) -> list[Setting]:
    """The policies of one timing; where its own swap is none of the rows, that one comes last."""
    plain = replace(policy, trigger="risd", swap="cpts", max_returned=None)
    rows = [Setting("", 1.0, f"{timing}: {name}", None, replace(plain, **changes), "ablation",
                    plain if changes.get("trigger") == "random" else None)
            for name, changes in ABLATION.items()]
    if policy not in [row.shift for row in rows]:
        rows.append(Setting("", 1.0, f"{timing}: {policy.trigger} + {describe_swap(policy)}", None,
                            policy, "ablation"))
    return rows


def sketch_sweep(methods: Sequence[str], ratios: Sequence[float],
                 fastv_layer: int) -> list[Setting]:
    """The base method and SketchReturn with one option changed at a time, for all methods and
    ratios."""
    policies = {f"sketch: {name}": SketchReturn(**changes) for name, changes in SKETCHES.items()}
    rows = grid(methods, ratios, {"none": None, **policies}, fastv_layer)
    return [replace(row, table="sketch") for row in rows]


def pareto(methods: Sequence[str], ratios: Sequence[float], fastv_layer: int) -> list[Setting]:
    """All tokens, the base method, and a sweep of DSTP over threshold, timing and swap.

    Raises:
        OptionError: other than one ratio, and one method beside "none".
    """
    methods = [name for name in methods if name != "none"]
    if len(methods) != 1 or len(ratios) != 1:
        raise OptionError(f"--pareto: expected one method in --methods and one ratio in --ratios, "
                          f"got {len(methods)} and {len(ratios)}")
    row = Setting(methods[0], ratios[0], "none", prune(methods[0], ratios[0], fastv_layer),
                  table="pareto")
    shifts = [DSTP(threshold=threshold, **timing, **swap)
              for timing, swap, threshold in itertools.product(TIMINGS, SWAPS, THRESHOLDS)]
    return [Setting("none", 1.0, "none", table="pareto"), row,
            *(replace(row, policy=describe(shift), shift=shift) for shift in shifts)]


def describe(shift: DSTP) -> str:
    """`redo, L 1, tau 0.9, post_prune, add 2`: the options that a sweep changes."""
    layers = shift.monitor_layers
    layers = layers if isinstance(layers, str) else "layers " + "+".join(map(str, layers))
    return (f"{shift.applies}, L {shift.expand_steps}, tau {shift.threshold:g}, {layers}, "
            f"{describe_swap(shift)}")


def describe_swap(shift: DSTP) -> str:
    """`cpts`, or `add 2`."""
    return f"add {shift.max_returned}" if shift.swap == "add" else shift.swap


def unique(settings: Sequence[Setting]) -> list[Setting]:
    """The settings without those that would measure the same again; the first name stays."""
    kept: dict[tuple[Any, ...], Setting] = {}
    for setting in settings:
        kept.setdefault((setting.pruning, setting.shift, setting.same_rate_as), setting)
    return list(kept.values())
