"""PyramidDrop (arXiv 2410.17247): fewer tokens from stage to stage."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from pydstp.pruning.base import VisualTokens
from pydstp.pruning.registry import register_pruner
from pydstp.pruning.stages import StagedPruner


@register_pruner("pyramiddrop")
@dataclass(frozen=True)
class PyramidDrop(StagedPruner):
    """Keeps, at each stage, the tokens with most attention of the last prompt token.

    The attention is that of the layer about to run, mean over heads, from its own norm, queries and
    keys; the layer runs only afterwards, with what is left. The paper prunes before layers 8, 16
    and 24 of 32 and keeps 1/2, 1/4 and 1/8 of the tokens: the ratio 1/8 with the defaults, which
    are a quarter, a half and three quarters of the layers, and equal proportions (lambda is the
    third root of the ratio). Rounding is that of all methods here; the authors' program rounds
    down.

    Corrected: the authors' program numbers the tokens anew at each stage, in decoding too, so that
    one token has different positions in different layers. Positions stay here.

    Attributes:
        layers, shares: as in `StagedPruner`.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"upcoming_row"})
    depths: ClassVar[tuple[float, ...]] = (1 / 4, 1 / 2, 3 / 4)

    def select(self, tokens: VisualTokens) -> Tensor:
        """The best by `upcoming_row`."""
        return tokens.top(tokens.upcoming_row)
