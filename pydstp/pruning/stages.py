"""What methods share that drop tokens before several decoder layers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from pydstp.config import require_float, require_int
from pydstp.errors import OptionError, show
from pydstp.pruning.base import Pruner
from pydstp.pruning.registry import PruningConfig


@dataclass(frozen=True)
class StagedPruner(Pruner):
    """A method that acts before several decoder layers; each keeps a part of what was left.

    The ratio, or the number, says what is left behind the last of them. Layers between two stages
    read what the first of the two has left, in the prompt and while the answer is written.

    Attributes:
        depths: where the stages are by default, as shares of the model's layers.
        layers: the layers before which tokens leave, ascending, each at least 1; None: `depths`.
        shares: the shares of all tokens that stay behind each stage but the last, descending; None:
            the same proportion of what is left leaves at every stage. Never fewer stay than in the
            end.

    Raises:
        OptionError: a value outside its range.
    """

    default_quota: ClassVar[str] = "global"
    depths: ClassVar[tuple[float, ...]] = ()

    layers: Sequence[int] | None = None
    shares: Sequence[float] | None = None

    def __post_init__(self) -> None:
        if self.layers is not None:
            for layer in _listed("layers", self.layers):
                require_int("layers: each", layer, 1, 1 << 20)
            if list(self.layers) != sorted(set(self.layers)) or not self.layers:
                raise OptionError(f"layers: expected ascending numbers, got {show(self.layers)}")
        if self.shares is not None:
            for share in _listed("shares", self.shares):
                require_float("shares: each", share, 0.0, 1.0, open_low=True)
            if list(self.shares) != sorted(self.shares, reverse=True):
                raise OptionError(f"shares: expected descending numbers, got {show(self.shares)}")

    @property
    def act_before(self) -> int:
        """The first of `layers`; where they follow from the model, no layer below 1."""
        return self.layers[0] if self.layers else 1

    def stages(self, num_layers: int) -> tuple[int, ...]:
        """`layers`, or those that `depths` means, each behind the one before.

        Raises:
            OptionError: another number of `shares` than stages but one.
        """
        found = list(self.layers or ())
        for depth in () if self.layers else self.depths:
            found.append(max(math.floor(depth * num_layers + 0.5), found[-1] + 1 if found else 1))
        if not self.layers:
            found = [layer for layer in found if layer < num_layers] or [1]
        if self.shares is not None and len(self.shares) != len(found) - 1:
            raise OptionError(f"shares: expected {len(found) - 1} numbers, one for each of the "
                              f"layers {found} but the last, got {show(self.shares)}")
        return tuple(found)

    def share_at(self, stage: int, num_stages: int, share: float) -> float:
        """`shares`, or equal proportions."""
        if self.shares is None or stage == num_stages - 1:
            return super().share_at(stage, num_stages, share)
        return self.shares[stage]


def checked_stages(config: PruningConfig, num_layers: int, max_stages: int) -> tuple[int, ...]:
    """The layers before which a method takes tokens out of a model of `num_layers`.

    Raises:
        OptionError: a layer that the model does not have, or more stages than there is room for.
    """
    stages, needs = config.pruner.stages(num_layers), config.pruner.needs
    if stages[-1] > num_layers:
        raise OptionError(f"layer: expected at most num_layers = {num_layers}, got {stages[-1]}")
    if stages[-1] == num_layers and "upcoming_row" in needs:
        raise OptionError(f"layers: expected layers below num_layers = {num_layers} with "
                          f"{config.name}, which looks into them, got {show(stages)}")
    if len(stages) > max_stages or list(stages) != sorted(set(stages)):
        raise OptionError(f"layers: expected at most {max_stages} ascending layers with "
                          f"{config.name}, got {show(stages)}")
    if len(stages) > 1 and "picture_row" in needs:
        raise OptionError(f"{config.name}: expected other needs than picture_row with a method "
                          "that acts before several layers (that row may have left)")
    return stages


def _listed(name: str, value: Any) -> Sequence[Any]:
    if not isinstance(value, tuple | list):
        raise OptionError(f"{name}: expected a list of numbers or None, got {show(value)}")
    return value
