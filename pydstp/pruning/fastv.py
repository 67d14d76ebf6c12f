"""FastV (arXiv 2403.06764): keep what the last prompt token looks at in an early layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from pydstp.config import require_int
from pydstp.errors import OptionError, show
from pydstp.pruning.base import Pruner, VisualTokens
from pydstp.pruning.registry import register_pruner


@register_pruner("fastv")
@dataclass(frozen=True)
class FastV(Pruner):
    """Keeps the tokens with most attention from the last prompt token in layer `layer` - 1.

    Attributes:
        layer: tokens are dropped before this decoder layer (K of the paper); at least 1.
        rows: whose attention counts. "last": that of the last prompt token, as in the authors'
            program; nothing else is supported.

    Raises:
        OptionError: a value that is not listed.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"attention_row"})
    default_quota: ClassVar[str] = "global"

    layer: int = 2
    rows: str = "last"

    def __post_init__(self) -> None:
        require_int("layer", self.layer, 1, 1 << 20)
        if self.rows != "last":
            raise OptionError(f"rows: expected 'last', got {show(self.rows)}")

    @property
    def act_before(self) -> int:
        """`layer`."""
        return self.layer

    def select(self, tokens: VisualTokens) -> Tensor:
        """The best by `attention_row`."""
        return tokens.top(tokens.attention_row)
