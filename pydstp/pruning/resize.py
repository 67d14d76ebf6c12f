"""A smaller picture: the baseline that needs no method (arXiv 2510.07143 finds it hard to beat)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pydstp.pruning.base import Pruner, VisualTokens
from pydstp.pruning.registry import register_pruner


@register_pruner("resize")
@dataclass(frozen=True)
class Resize(Pruner):
    """Makes each picture so small that it becomes at most round(r N) tokens, N those of its own.

    Where pictures stay whole (Qwen3-VL), the R x C tokens become the largest grid within the number
    whose sides are those of the exact one, R sqrt(k / N) and C sqrt(k / N), rounded up or down; the
    limit `min_pixels` does not hold then. Where they are cut into tiles (InternVL), the number of
    tiles is chosen as ever, with fewer allowed; one tile is the least there is, so that a picture
    of one tile, or a ratio that leaves none, is an `OptionError`.

    Positions are those of the smaller picture. Nothing of the large one is computed, so that no
    policy can bring anything back.
    """

    acts_on_picture: ClassVar[bool] = True
    adaptive: ClassVar[bool] = True

    def select(self, tokens: VisualTokens) -> Tensor:
        """All tokens: those of the smaller picture."""
        return torch.arange(len(tokens), device=tokens.features.device)
