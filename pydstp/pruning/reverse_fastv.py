"""Reverse FastV (arXiv 2502.11501, algorithm 2): FastV upside down."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from pydstp.pruning.base import VisualTokens
from pydstp.pruning.fastv import FastV
from pydstp.pruning.registry import register_pruner


@register_pruner("reverse_fastv")
@dataclass(frozen=True)
class ReverseFastV(FastV):
    """Keeps the tokens with *least* attention in layer `layer` - 1: a control for FastV.

    Corrected: the printed algorithm negates the scores twice and so keeps those with most
    attention; its text and its results are about the least. Of equal ones the first stays.
    Options as in `FastV`.
    """

    def select(self, tokens: VisualTokens) -> Tensor:
        """The worst by `scores`."""
        return tokens.top(-self.scores(tokens))
