"""No pruning, under a name: what every method is compared with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pydstp.pruning.base import Pruner, VisualTokens
from pydstp.pruning.registry import register_pruner


@register_pruner("none")
@dataclass(frozen=True)
class KeepAll(Pruner):
    """Keeps every token."""

    keeps_all: ClassVar[bool] = True

    def select(self, tokens: VisualTokens) -> Tensor:
        """All of them."""
        return torch.arange(len(tokens), device=tokens.features.device)
