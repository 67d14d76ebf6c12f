"""What methods share that drop tokens inside the decoder."""

from __future__ import annotations

from dataclasses import dataclass

from pydstp.config import require_int
from pydstp.pruning.base import Pruner


@dataclass(frozen=True)
class LayerPruner(Pruner):
    """A method that acts before decoder layer `layer`; the layers below see all tokens.

    Attributes:
        layer: K of the papers; at least 1.

    Raises:
        OptionError: `layer` is not an integer >= 1.
    """

    layer: int = 2

    def __post_init__(self) -> None:
        require_int("layer", self.layer, 1, 1 << 20)

    @property
    def act_before(self) -> int:
        """`layer`."""
        return self.layer
