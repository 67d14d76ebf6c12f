"""A random subset: the baseline that a method has to beat."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pydstp.config import require_int
from pydstp.cost import Cost
from pydstp.pruning.base import Pruner, VisualTokens
from pydstp.pruning.registry import register_pruner


@register_pruner("random")
@dataclass(frozen=True)
class RandomSubset(Pruner):
    """Keeps tokens drawn uniformly; the same seed and number of tokens give the same ones.

    Attributes:
        layer: tokens are dropped before this decoder layer.

    Raises:
        OptionError: `layer` is not an integer >= 0.
    """

    layer: int = 0

    def __post_init__(self) -> None:
        require_int("layer", self.layer, 0, 1 << 20)

    @property
    def act_before(self) -> int:
        """`layer`."""
        return self.layer

    def cost(self, num_visual: int, num_kept: int, hidden_size: int) -> Cost:
        """It looks at nothing."""
        return Cost()

    def select(self, tokens: VisualTokens) -> Tensor:
        """The tokens with the largest of N random numbers."""
        drawn = torch.rand(len(tokens), dtype=torch.float64, generator=tokens.generator,
                           device="cpu")  # the same numbers on every device
        return tokens.top(drawn.to(tokens.features.device))
