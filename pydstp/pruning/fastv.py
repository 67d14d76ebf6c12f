"""FastV (arXiv 2403.06764): keep what is looked at in an early layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from pydstp.config import require_choice
from pydstp.pruning.base import VisualTokens
from pydstp.pruning.before_layer import LayerPruner
from pydstp.pruning.registry import register_pruner

_STATISTIC = {"last": "attention_row", "all": "received_attention"}


@register_pruner("fastv")
@dataclass(frozen=True)
class FastV(LayerPruner):
    """Keeps the tokens with most attention in layer `layer` - 1, mean over heads.

    The paper prunes before layer 2 and drops half of the tokens.

    Attributes:
        rows: whose attention counts. "last": that of the last prompt token, as in the authors'
            program. "all": the mean over all other tokens of the prompt, as the paper words it.
            Only later tokens see a token, so that early ones are favoured; the paper names no
            correction, and none is made. It costs one more product of all queries and keys of that
            layer, a block of rows at a time.

    Raises:
        OptionError: a value that is not listed.
    """

    default_quota: ClassVar[str] = "global"

    rows: str = "last"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_choice("rows", self.rows, tuple(_STATISTIC))

    @property
    def needs(self) -> frozenset[str]:
        """The attention that `rows` names."""
        return frozenset({_STATISTIC[self.rows]})

    def scores(self, tokens: VisualTokens) -> Tensor:
        """[N] float32, the attention that `rows` names."""
        return getattr(tokens, _STATISTIC[self.rows])

    def select(self, tokens: VisualTokens) -> Tensor:
        """The best by `scores`."""
        return tokens.top(self.scores(tokens))
