"""FasterVLM (arXiv 2412.01818, version 1): keep what the vision tower's class token looks at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from pydstp.config import require_int
from pydstp.pruning.base import Pruner, VisualTokens
from pydstp.pruning.registry import register_pruner


@register_pruner("fastervlm")
@dataclass(frozen=True)
class FasterVLM(Pruner):
    """Keeps the k tokens of each picture or tile with the largest a_i, where

        a_i = mean over heads and over the patches of token i of softmax(q k^T / sqrt(d)),

    q that of the class token in block `block` of the tower, k those of its tile. The paper reads
    CLIP, one patch per token, block -2. Qwen3-VL's tower has no class token: there the attention
    that the patches receive from all patches of their picture takes its place. These are also the
    dominant tokens of `visionzip`.

    Attributes:
        block: of the vision tower; negative counts from the end.

    Raises:
        OptionError: `block` is not an integer.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"vision_attention"})

    block: int = -2

    def __post_init__(self) -> None:
        require_int("block", self.block, -(1 << 20), 1 << 20)

    def select(self, tokens: VisualTokens) -> Tensor:
        """The best by `vision_attention`."""
        return tokens.top(tokens.vision_attention)
