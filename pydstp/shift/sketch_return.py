"""Same-step return: every pruned layer looks at all visual keys through a small copy of them.

DSTP notices a shift after the step that needed the missing region. Here no step has to be noticed:
in every layer above the pruning point the reserve is scored with the current query and a key copy
of a few bits, and the best pruned tokens join that layer's attention with exact keys and values, in
the same step. 4-bit key scoring is known from text models (Twilight, arXiv 2502.02770; Quest, arXiv
2406.10774, scores pages); here it brings back visual tokens that prefill had pruned.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pydstp.config import names_unknown_options, require_choice, require_float, require_int
from pydstp.errors import OptionError, show
from pydstp.shift.dstp import DSTP

BITS = (2, 4, 8, 16)
MAX_RETURNED = 64  # tokens that one layer can bring back


@names_unknown_options
@dataclass(frozen=True)
class SketchReturn:
    """Options of the policy.

    Attributes:
        max_returned: pruned tokens that join a layer's attention at most, 0 to 64.
        bits: of the key copy; 16 scores with the keys themselves. Requests that run
            together share one number.
        per_head: every KV head returns its own; else all heads of a layer share them.
        mass: return tokens only until the share of attention that is estimated to be still missing
            is below this; None returns `max_returned` always.
        first_layer: layers below this one return nothing; those before the pruning point, which
            read all tokens anyway, never do.
        threshold: a gate. A step returns tokens only if the attention of the step before it, over
            the base set, was less similar than this to that of the prompt's last token (the
            similarity of DSTP; cosine, 0 to 1); the first step always does. None: every step does.
        monitor_layers: the layers whose attention the gate compares, as in `DSTP`.

    Raises:
        OptionError: a value outside its range, or an unknown option.
    """

    max_returned: int = 1
    bits: int = 4
    per_head: bool = False
    mass: float | None = None
    first_layer: int = 0
    threshold: float | None = None
    monitor_layers: str | Sequence[int] = "mid"

    def __post_init__(self) -> None:
        require_int("max_returned", self.max_returned, 0, MAX_RETURNED)
        require_choice("bits", self.bits, BITS)
        if not isinstance(self.per_head, bool):
            raise OptionError(f"per_head: expected True or False, got {show(self.per_head)}")
        if self.mass is not None:
            require_float("mass", self.mass, 0.0, 1.0, open_low=True)
        require_int("first_layer", self.first_layer, 0, 1 << 20)
        watched = DSTP(trigger="never", monitor_layers=self.monitor_layers)
        object.__setattr__(self, "monitor_layers", watched.monitor_layers)
        if self.threshold is not None:
            require_float("threshold", self.threshold, 0.0, math.inf)

    @property
    def gate(self) -> DSTP | None:
        """What watches attention for the threshold; it never swaps."""
        return None if self.threshold is None else DSTP(
            threshold=self.threshold, trigger="never", monitor_layers=self.monitor_layers)

    def to_dict(self) -> dict[str, Any]:
        """The options as plain values that `json.dumps` takes."""
        return asdict(self)
