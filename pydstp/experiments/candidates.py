"""What a calibration chooses among: sets of layers, and the budget they have to meet."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pydstp.config import require_float
from pydstp.errors import OptionError, show
from pydstp.experiments.statistics import spread
from pydstp.shift.dstp import MONITOR_LAYERS

HEADER = ("layers", "spread", "mean", "threshold", "expanded", "visible", "triggers", "agreement",
          "right")
Layers = str | tuple[int, ...]


@dataclass(frozen=True)
class Target:
    """What a calibrated policy shall cost.

    Attributes:
        visible: mean share of the visual tokens that a decode step reads.
        expanded: share of the decode steps that read an expanded list; takes the place of
            `visible`, for swaps that do not lengthen the list.

    Raises:
        OptionError: a share outside (0, 1].
    """

    visible: float = 0.40
    expanded: float | None = None

    def __post_init__(self) -> None:
        require_float("target-visible", self.visible, 0.0, 1.0, open_low=True)
        if self.expanded is not None:
            require_float("target-expanded", self.expanded, 0.0, 1.0)

    def expanded_share(self, base: float, expanded: float) -> float | None:
        """The share of expanded steps that meets the target; None where none does.

        Args:
            base, expanded: shares of the visual tokens that a step reads in either state.
        """
        if self.expanded is not None:
            return self.expanded
        if not base <= self.visible <= expanded or base == expanded:
            return None
        return (self.visible - base) / (expanded - base)


@dataclass(eq=False)
class Candidate:
    """A set of layers, and what was found out about it.

    Attributes:
        layers: as for `DSTP.monitor_layers`.
        spread, mean: of its similarities in a run without swaps.
        visible_base, visible_expanded: shares of the visual tokens that a step reads.
        threshold, predicted_expanded: the choice; None where none meets the target.
        measured: what a real run with it costs and how good it is.
        series: per answer the similarities of the run without swaps.
    """

    layers: Layers
    series: list[list[float]]
    visible_base: float
    visible_expanded: float
    threshold: float | None = None
    predicted_expanded: float | None = None
    measured: dict[str, Any] = field(default_factory=dict)
    spread: float = field(init=False)
    mean: float = field(init=False)

    def __post_init__(self) -> None:
        pooled = np.concatenate(self.series)
        self.spread, self.mean = spread(pooled), float(pooled.mean())

    def to_dict(self) -> dict[str, Any]:
        """Plain values that `json.dumps` takes."""
        return {name: value for name, value in vars(self).items() if name != "series"}

    def cells(self) -> list[str]:
        """A row under `HEADER`."""
        def show(name: str, digits: int = 3) -> str:
            value = self.measured.get(name)
            return "-" if value is None else f"{value:.{digits}f}"

        right = self.measured.get("accuracy")
        return [describe_layers(self.layers), f"{self.spread:.3f}", f"{self.mean:.3f}",
                "-" if self.threshold is None else f"{self.threshold:.4f}", show("expanded"),
                show("mean_visible"), show("triggers", 1), show("agreement"),
                "-" if right is None else f"{100 * right:.1f} %"]


def describe_layers(layers: Layers) -> str:
    """`post_prune`, or `1+2`."""
    return layers if isinstance(layers, str) else "+".join(map(str, layers))


def parse_layers(flag: str, text: str) -> Layers:
    """A set of layers as the command line spells it: `post_prune`, or numbers such as `1+2`.

    Raises:
        OptionError: neither of them.
    """
    text = text.strip()
    if text in MONITOR_LAYERS:
        return text
    parts = text.split("+")
    if not all(part.strip().isascii() and part.strip().isdigit() for part in parts):
        raise OptionError(f"{flag}: expected one of {', '.join(MONITOR_LAYERS)} or layer numbers "
                          f"such as 1+2, got {show(text)}")
    return tuple(sorted({int(part) for part in parts}))


def candidate_layers(num_layers: int, first_layer: int) -> list[Layers]:
    """Every single layer from the pruning point on, all of those together, and all layers."""
    single: list[Layers] = [(layer,) for layer in range(first_layer, num_layers)]
    together: list[Layers] = ["post_prune"] if len(single) > 1 else []
    return [*single, *together, *(["all"] if first_layer > 0 else [])]
