"""VisionPulse (arXiv 2605.31457): every decode step chooses the visual tokens it reads.

At every decode step the layers up to an anchor layer read every token of the base set. The anchor
layer's attention then says which of them matter to this token, and how much of it goes to the
picture at all; the layers above read only so many of the best. The same step uses the selection,
and nothing leaves the cache: the next step chooses anew.
"""

from __future__ import annotations

import math
import random
from dataclasses import asdict, dataclass
from typing import Any

from pydstp import ops
from pydstp.config import names_unknown_options, require_choice, require_float, require_int
from pydstp.errors import OptionError, show
from pydstp.shift.in_step import checked_anchor

CHOICES: dict[str, tuple[str, ...]] = {
    "budget": ("dynamic", "fixed", "random"),
    "importance": ("plain", "tempered"),
}


@names_unknown_options
@dataclass(frozen=True)
class VisionPulse:
    """Options of the policy; `VisionPulse()` is the paper's setting for at most 10 %.

    Attributes:
        anchor_layer: the last layer that reads every token; None is 17 of 36 layers, or as many of
            another depth.
        temperature: logits of the anchor layer are divided by this before its visual mass is taken
            (tau); below 1 it leaves the tail of weak attention out.
        min_share, max_share: bounds of a step's tokens, as shares of the base set.
        budget: how many tokens a step reads: as many as the share of attention that the neediest
            head gives to the picture ("dynamic"), the share `fixed_share` ("fixed"), or a number
            drawn anew between the bounds at every step ("random").
        fixed_share: for budget="fixed", None otherwise.
        importance: tokens are ranked by the anchor layer's attention, mean over heads, as it is
            ("plain"), or at `temperature` as well ("tempered").
        seed: for budget="random"; draws are keyed by seed, step and request (its place in a batch
            that shares one policy, its turn in a chat).
        apply_to_last_prefill_row: the last token of the prompt selects too: it runs once more, as a
            decode step, and the first token of the answer comes from that. False: the first token
            comes from the prompt as it is.

    Raises:
        OptionError: a value outside its range, or an unknown option.
    """

    anchor_layer: int | None = None
    temperature: float = 0.4
    min_share: float = 0.05
    max_share: float = 0.10
    budget: str = "dynamic"
    fixed_share: float | None = None
    importance: str = "plain"
    seed: int = 0
    apply_to_last_prefill_row: bool = False

    sees_change = False

    def __post_init__(self) -> None:
        if self.anchor_layer is not None:
            require_int("anchor_layer", self.anchor_layer, 0, 1 << 20)
        require_float("temperature", self.temperature, 1e-6, 1e6)
        require_float("max_share", self.max_share, 0.0, 1.0, open_low=True)
        require_float("min_share", self.min_share, 0.0, self.max_share)
        require_int("seed", self.seed, 0)
        if not isinstance(self.apply_to_last_prefill_row, bool):
            raise OptionError("apply_to_last_prefill_row: expected True or False, got "
                              f"{show(self.apply_to_last_prefill_row)}")
        for name, known in CHOICES.items():
            require_choice(name, getattr(self, name), known)
        if (self.budget == "fixed") != (self.fixed_share is not None):
            raise OptionError("fixed_share: expected a share with budget='fixed' and None "
                              f"otherwise, got {show(self.fixed_share)} with "
                              f"budget={self.budget!r}")
        if self.fixed_share is not None:
            require_float("fixed_share", self.fixed_share, 0.0, 1.0, open_low=True)

    def to_dict(self) -> dict[str, Any]:
        """The options as plain values that `json.dumps` takes."""
        return asdict(self)

    @property
    def is_tempered(self) -> bool:
        """Whether a step looks at the anchor layer's attention at `temperature`."""
        return self.budget == "dynamic" or self.importance == "tempered"

    def settled_anchor(self, num_layers: int, first_layer: int) -> int:
        """The anchor layer in a model of `num_layers`, pruned before `first_layer`.

        Raises:
            OptionError: no layer would read a selection, or the anchor would read what is pruned.
        """
        default = math.floor(17 / 36 * num_layers + 0.5)
        return checked_anchor(self.anchor_layer, default, num_layers, first_layer)

    def bounds(self, num_base: int, step: int, request_idx: int = 0) -> tuple[int, int]:
        """The fewest and the most tokens that decode step `step` may read, of `num_base`; step 0
        is the last token of the prompt.

        The upper bound wins where no whole number lies between the shares, and 1 over both.
        """
        if self.budget == "fixed":
            count = max(1, math.floor(self.fixed_share * num_base + 0.5))
            return count, count
        # 1e-9: 0.07 * 100 is a little more than 7.
        high = max(1, math.floor(self.max_share * num_base + 1e-9))
        low = min(max(1, math.ceil(self.min_share * num_base - 1e-9)), high)
        if self.budget == "random":
            key = f"{self.seed} {step}" + (f" {request_idx}" if request_idx else "")
            low = high = random.Random(key).randint(low, high)
        return low, high

    def policy(self, num_base: int, step: int,
               request_idx: int = 0) -> tuple[list[int], list[float]]:
        """The rows of `ShiftState.policy` and `policy_float` in decode step `step`."""
        words = [0] * len(ops.PolicyWord)
        low, high = self.bounds(num_base, step, request_idx)
        words[ops.PolicyWord.SWAP] = ops.Swap.TOP
        words[ops.PolicyWord.MIN_BUDGET], words[ops.PolicyWord.BUDGET] = low, high
        words[ops.PolicyWord.JOINT] = int(self.importance == "tempered")
        return words, [0.0, 0.0]
