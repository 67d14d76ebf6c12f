"""FastV_VIS (arXiv 2502.11501, section 5): no word of the prompt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from pydstp.pruning.base import VisualTokens
from pydstp.pruning.before_layer import LayerPruner
from pydstp.pruning.registry import register_pruner


@register_pruner("fastv_vis")
@dataclass(frozen=True)
class FastVVis(LayerPruner):
    """Keeps what the last *visual* token attends to most in layer `layer` - 1, mean over heads.

    That token sees all of its picture and nothing of the question behind it. The paper has one
    picture; here each picture is ranked by its own last token (of the thumbnail, where there are
    tiles). Rows of different tokens are not comparable, since a later one shares its attention
    among more, so the quota is by span unless asked otherwise. The paper prunes before layer 2.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"picture_row"})

    def select(self, tokens: VisualTokens) -> Tensor:
        """The best by `picture_row`."""
        return tokens.top(tokens.picture_row)
