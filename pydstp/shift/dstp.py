"""DSTP (arXiv 2604.12358): watch attention over the kept tokens, swap pruned ones in when it turns.

RISD compares the attention of the current token over the kept tokens with that of the prompt's
last token; CPTS, on a trigger, adds the best of the pruned tokens for a window of steps. The paper
leaves open which layers feed both, when a swap takes effect and what happens inside a window; every
such choice is an option here, with the paper's setting, where it has one, as the default.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from pydstp import ops
from pydstp.config import names_unknown_options, require_choice, require_float, require_int
from pydstp.errors import OptionError, show

MONITOR_LAYERS = ("mid", "all", "post_prune", "last")
CHOICES: dict[str, tuple[str, ...]] = {
    "norm": ("per_head_subset", "global_then_mean"),
    "anchor": ("last", "instruction_end"),
    "applies": ("next", "redo", "early"),
    "retrigger": ("off", "extend", "reselect"),
    "swap": ("cpts", "hard", "merge", "full", "add"),
    "trigger": ("never", "risd", "random", "avg", "every"),
    "scores": ("separate", "joint"),
}
_STREAM = 0xD1B54A32D192ED03  # odd: requests of one seed draw from streams of their own


@names_unknown_options
@dataclass(frozen=True)
class DSTP:
    """Options of the policy; `DSTP()` is the paper's, `DSTP.recommended()` what measured best.

    Attributes:
        threshold: a step triggers when its similarity falls below this (tau; cosine, 0 to 1).
        expand_steps: decode steps that a swap lasts (L); then the base set is visible again.
        monitor_layers: layers whose attention is watched, averaged: "mid" (the one in the middle),
            "all", "post_prune" (from the pruning point on), "last", or a list of layer numbers.
        heads: query heads whose attention is averaged: "all", or a list of head numbers.
        norm: attention over the base set is softmax over the base set alone, per head
            ("per_head_subset"), or its part of the softmax over everything visible
            ("global_then_mean").
        anchor: the prompt row that steps are compared with: its "last" token, or the last token of
            the user's words ("instruction_end").
        trigger: "risd" (similarity below the threshold), "avg" (below the mean so far), "random"
            (with probability `trigger_rate`), "every" step, or "never".
        swap: what is shown: "cpts" (base set and the k best of all tokens), "hard" (the k best
            alone), "merge" (the k best, and the mean of the rest of the base set as one token),
            "full" (everything), "add" (base set and the `max_returned` best pruned tokens).
        scores: how "cpts", "hard" and "merge" compare kept with pruned tokens: softmax over each
            side alone ("separate", the paper's), or one softmax over both ("joint").
        max_returned: tokens that swap="add" brings back.
        applies: a swap holds from the "next" step on, or the step that triggered it is run again
            with it ("redo"), or its layers above the watched ones already use it ("early").
        retrigger: what a trigger does while a swap is shown: nothing ("off"), start the window anew
            ("extend"), or choose tokens anew as well ("reselect").
        trigger_rate, seed: for trigger="random"; draws are keyed by seed, request (its place in a
            batch that shares one policy, its turn in a chat) and step.

    Raises:
        OptionError: a value outside its range, or an unknown option.
    """

    threshold: float = 0.75
    expand_steps: int = 20
    monitor_layers: str | Sequence[int] = "mid"
    heads: str | Sequence[int] = "all"
    norm: str = "per_head_subset"
    anchor: str = "last"
    trigger: str = "risd"
    swap: str = "cpts"
    scores: str = "separate"
    max_returned: int | None = None
    applies: str = "next"
    retrigger: str = "off"
    trigger_rate: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        require_float("threshold", self.threshold, -math.inf)
        require_int("expand_steps", self.expand_steps, 1, 1 << 20)
        require_float("trigger_rate", self.trigger_rate, 0.0, 1.0)
        require_int("seed", self.seed, 0)
        for name, known in CHOICES.items():
            require_choice(name, getattr(self, name), known)
        if (self.swap == "add") != (self.max_returned is not None):
            raise OptionError("max_returned: expected a number with swap='add' and None otherwise, "
                              f"got {show(self.max_returned)} with swap={self.swap!r}")
        if self.max_returned is not None:
            require_int("max_returned", self.max_returned, 1, 1 << 20)
        for name, words in (("monitor_layers", MONITOR_LAYERS), ("heads", ("all",))):
            object.__setattr__(self, name, _numbers(name, getattr(self, name), words))

    @classmethod
    def recommended(cls) -> DSTP:
        """What measured best on the embedded checkpoint (docs/dstp.md)."""
        return cls(threshold=0.99, expand_steps=1, monitor_layers="post_prune", applies="redo",
                   swap="add", max_returned=4)

    @classmethod
    def from_file(cls, path: str | PathLike[str]) -> DSTP:
        """Read what `save` or `pydstp calibrate` wrote.

        Raises:
            OptionError: the file cannot be read, or holds unknown options or wrong values.
        """
        try:
            options = json.loads(Path(path).read_text("utf-8"))
            options = options.get("options", options)
        except (OSError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise OptionError(f"{path}: expected a JSON file of DSTP options, {error}") from None
        if not isinstance(options, dict):
            raise OptionError(f"{path}: expected an object of DSTP options, got {show(options)}")
        return cls(**options)

    def save(self, path: str | PathLike[str], **notes: Any) -> None:
        """Write the options, and notes beside them, as JSON.

        Raises:
            OptionError: the file cannot be written.
        """
        text = json.dumps({"options": self.to_dict(), **notes}, indent=1)
        try:
            Path(path).write_text(text + "\n", "utf-8")
        except (OSError, TypeError, ValueError) as error:
            raise OptionError(f"path: expected a file that can be written, got {show(path)} "
                              f"({error})") from None

    def to_dict(self) -> dict[str, Any]:
        """The options as plain values that `json.dumps` takes."""
        return asdict(self)

    def watched_layers(self, num_layers: int, first_layer: int) -> tuple[int, ...]:
        """The layers that are monitored in a model of `num_layers`, pruned before `first_layer`.

        Raises:
            OptionError: a layer that the model does not have, or none at all.
        """
        named = {"mid": (max(0, num_layers // 2 - 1),), "all": tuple(range(num_layers)),
                 "post_prune": tuple(range(first_layer, num_layers)), "last": (num_layers - 1,)}
        layers = named[self.monitor_layers] if isinstance(self.monitor_layers, str) else (
            self.monitor_layers)
        if not layers or layers[-1] >= num_layers:
            raise OptionError(f"monitor_layers: expected layers below num_layers = {num_layers} "
                              f"(pruned before layer {first_layer}), got {show(layers)}")
        return layers

    def head_weights(self, num_heads: int) -> list[float]:
        """[num_heads] the weight of every query head.

        Raises:
            OptionError: a head that the model does not have.
        """
        heads = tuple(range(num_heads)) if self.heads == "all" else self.heads
        if heads[-1] >= num_heads:
            raise OptionError(f"heads: expected heads below num_heads = {num_heads}, "
                              f"got {show(heads)}")
        return [1 / len(heads) if head in heads else 0.0 for head in range(num_heads)]

    def policy(self, budget: int, merge_slot: int,
               request_idx: int = 0) -> tuple[list[int], list[float]]:
        """The rows of `ShiftState.policy` and `policy_float` of a sequence that keeps `budget`."""
        seed = self.seed + request_idx * _STREAM
        return ([ops.Trigger[self.trigger.upper()], ops.Swap[self.swap.upper()],
                 ops.Retrigger[self.retrigger.upper()], ops.Applies[self.applies.upper()],
                 self.expand_steps, self.max_returned or 0, budget, merge_slot,
                 int(self.scores == "joint"), _signed(seed), _signed(seed >> 32), 0],
                [self.threshold, self.trigger_rate])


def _signed(value: int) -> int:
    """The lowest 32 bits as a signed number."""
    value &= 0xFFFFFFFF
    return value - (1 << 32) if value >> 31 else value


def _numbers(name: str, value: Any, words: tuple[str, ...]) -> str | tuple[int, ...]:
    """One of `words`, or distinct numbers in ascending order."""
    if isinstance(value, str) and value in words:
        return value
    if isinstance(value, str) or not isinstance(value, Sequence) or not value:
        raise OptionError(f"{name}: expected one of {words} or a list of numbers, "
                          f"got {show(value)}")
    for number in value:
        require_int(f"{name}: each", number, 0, 1 << 20)
    return tuple(sorted(set(value)))
