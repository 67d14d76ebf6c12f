"""Re-selection when attention changes from one decode step to the next, after DyCoke.

DyCoke (arXiv 2411.15024) keeps the keys and values of all visual tokens of a video, lets most
layers read a part of them, and chooses that part anew when the cosine of one layer's attention in
consecutive decode steps falls below 0.9. What it leaves open, and how this differs, is said in
docs/dynamic_budget.md.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from pydstp import ops
from pydstp.config import names_unknown_options, require_float, require_int
from pydstp.shift.in_step import checked_anchor

FOREVER = 1 << 20  # steps that a selection lasts if no step replaces it


@names_unknown_options
@dataclass(frozen=True)
class DyCoke:
    """Options of the policy.

    Attributes:
        threshold: a step selects anew when the cosine of its attention over the base set, in the
            anchor layer, with that of the step before falls below this.
        share: of the base set that is selected.
        anchor_layer: the last layer that reads every token; None is 3, or what is nearest to it in
            a model that has no layer 4, or is pruned later.

    Raises:
        OptionError: a value outside its range, or an unknown option.
    """

    threshold: float = 0.9
    share: float = 0.3
    anchor_layer: int | None = None

    is_tempered = False
    sees_change = True
    apply_to_last_prefill_row = False

    def __post_init__(self) -> None:
        require_float("threshold", self.threshold, -math.inf)
        require_float("share", self.share, 0.0, 1.0, open_low=True)
        if self.anchor_layer is not None:
            require_int("anchor_layer", self.anchor_layer, 0, 1 << 20)

    def to_dict(self) -> dict[str, Any]:
        """The options as plain values that `json.dumps` takes."""
        return asdict(self)

    def settled_anchor(self, num_layers: int, first_layer: int) -> int:
        """The anchor layer in a model of `num_layers`, pruned before `first_layer`.

        Raises:
            OptionError: no layer would read a selection, or the anchor would read what is pruned.
        """
        return checked_anchor(self.anchor_layer, 3, num_layers, first_layer)

    def policy(self, num_base: int, step: int,
               request_idx: int = 0) -> tuple[list[int], list[float]]:
        """The rows of `ShiftState.policy` and `policy_float` in decode step `step`.

        The first step has none before it, and always selects. Nothing is drawn, so `request_idx`
        changes nothing.
        """
        words = [0] * len(ops.PolicyWord)
        trigger = ops.Trigger.EVERY if step == 1 else ops.Trigger.RISD
        count = max(1, math.floor(self.share * num_base + 0.5))
        for name, value in (("TRIGGER", trigger), ("SWAP", ops.Swap.TOP),
                            ("RETRIGGER", ops.Retrigger.RESELECT), ("EXPAND_STEPS", FOREVER),
                            ("APPLIES", ops.Applies.EARLY), ("MIN_BUDGET", count),
                            ("BUDGET", count)):
            words[ops.PolicyWord[name]] = value
        return words, [self.threshold, 0.0]
