"""MustDrop (arXiv 2411.10803): tokens leave in the picture, in the prompt and in the cache."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pydstp.config import require_float
from pydstp.errors import OptionError, show
from pydstp.pruning.base import Selection, VisualTokens, top_indices, unit_rows
from pydstp.pruning.registry import register_pruner
from pydstp.pruning.stages import StagedPruner
from pydstp.pruning.windows import (
    means_of,
    merged_windows,
    numbered_windows,
    window_size,
)

_TOKENS = 576  # of a picture in the paper, which its thresholds are made for


@register_pruner("mustdrop")
@dataclass(frozen=True)
class MustDrop(StagedPruner):
    """Merges what is alike, then drops what no word looks at; thresholds decide how many stay.

    Before the language model, windows of 3 x 3 tokens become their mean where the mean cosine of
    their pairs is at least 0.8; the mean takes the place of the token nearest the centre. At each
    later stage a token leaves if, over the rows of text behind the pictures, attention in the layer
    before, mean over heads, to it sums to less than `global_threshold` of the sum over all visual
    tokens of the span, and is below `individual_threshold` in every row. A key set, the ceil(0.08
    (n - 1)) tokens of a picture or tile with most attention in the vision tower, never leaves.
    Behind the prompt every layer from the second stage on reads what is left in the end.

    The paper acts behind layers 2, 6, 10 and 14 of 32; the defaults are the same shares of the
    model's layers. It merges behind the first block of the vision tower; later blocks here take
    whole grids, so that tokens are merged behind it, DeepStack features alike, and a merged token
    counts in the key set as the token whose place it takes. Attention in the tower is that of
    `VisualTokens.vision_attention`. Thresholds for 192, 128 and 64 of 576 tokens are (0.001,
    0.001), (0.0012, 0.001) and (0.011, 0.01), the global one first.

    The ratio has no say in how many tokens stay: 1 turns the method off, and that is all. The
    result reports what was achieved.

    Attributes:
        layers: as in `StagedPruner`, without the stage before the language model.
        shares: must be None.
        window: side of the windows in tokens, or (rows, columns).
        similarity: the cosine from which on a window is merged; above 1 none is.
        key_share: share of each picture or tile that is in the key set.
        global_threshold, individual_threshold: see above.
        scale_thresholds: multiply both by 576 / n, n the number of all visual tokens.

    Raises:
        OptionError: a value outside its range.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"text_attention", "vision_attention"})
    depths: ClassVar[tuple[float, ...]] = (3 / 32, 7 / 32, 11 / 32, 15 / 32)
    adaptive: ClassVar[bool] = True
    shrinks_behind: ClassVar[int | None] = 1

    window: int | tuple[int, int] = 3
    similarity: float = 0.8
    key_share: float = 0.08
    global_threshold: float = 0.001
    individual_threshold: float = 0.001
    scale_thresholds: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        window_size(self.window)
        require_float("similarity", self.similarity, -1.0, math.inf)
        require_float("key_share", self.key_share, 0.0, 1.0)
        require_float("global_threshold", self.global_threshold, 0.0, math.inf)
        require_float("individual_threshold", self.individual_threshold, 0.0, math.inf)
        if not isinstance(self.scale_thresholds, bool):
            raise OptionError(f"scale_thresholds: expected True or False, "
                              f"got {show(self.scale_thresholds)}")
        if self.shares is not None:
            raise OptionError(f"shares: expected None with 'mustdrop', got {show(self.shares)}")

    @property
    def act_before(self) -> int:
        """0."""
        return 0

    @property
    def merges(self) -> bool:
        """Unless `similarity` is above 1."""
        return self.similarity <= 1

    def stages(self, num_layers: int) -> tuple[int, ...]:
        """0, and the layers of `StagedPruner`."""
        return (0, *super().stages(num_layers))

    def needs_at(self, stage: int) -> frozenset[str]:
        """Nothing before the language model."""
        return self.needs if stage else frozenset()

    def select(self, tokens: VisualTokens) -> Selection:
        """Merge at the first stage, drop at the others."""
        if not tokens.stage:
            return self._merge(tokens)
        stays = torch.cat([self._stays(tokens, span) for span, _ in tokens.each_span()])
        stays[self._key_set(tokens)] = True
        if not stays.any():  # one has to stay
            stays[top_indices(tokens.text_attention.sum(dim=0), 1)] = True
        return Selection(stays.nonzero().squeeze(1))

    def _stays(self, tokens: VisualTokens, span: slice) -> Tensor:
        """[length of the span] bool: what some row of text looks at, or all of them together."""
        attention, factor = tokens.text_attention[:, span].double(), 1.0
        if self.scale_thresholds:
            factor = _TOKENS / sum(rows * cols for rows, cols in tokens.grids)
        sums = attention.sum(dim=0)
        is_weak = sums < factor * self.global_threshold * sums.sum()
        never = (attention < factor * self.individual_threshold).all(dim=0)
        return ~(is_weak & never)

    def _key_set(self, tokens: VisualTokens) -> Tensor:
        """Indices; they are the same tokens at every stage, as none of them leaves."""
        found, start = [], 0
        for rows, cols in tokens.grids:
            end = start + rows * cols
            mine = ((tokens.origins >= start) & (tokens.origins < end)).nonzero().squeeze(1)
            count = math.ceil(self.key_share * (end - start - 1) - 1e-9)
            found.append(mine[top_indices(tokens.vision_attention[mine], count)])
            start = end
        return torch.cat(found)

    def _merge(self, tokens: VisualTokens) -> Selection:
        if sum(tokens.quotas) == len(tokens):
            return Selection(torch.arange(len(tokens), device=tokens.features.device))
        unit, _ = unit_rows(tokens.features)
        kept, targets, weights = [], [], []
        for span, _ in tokens.each_span():
            numbers, centres = numbered_windows(tokens, span, window_size(self.window))
            is_alike = _mean_cosines(unit[span], numbers, len(centres)) >= self.similarity
            kept.append(span.start + (~is_alike[numbers]).nonzero().squeeze(1))
            targets.append(centres[is_alike])
            weights.append(means_of(numbers, centres, span.start, len(tokens))[is_alike])
        return merged_windows(kept, targets, weights)


def _mean_cosines(unit: Tensor, numbers: Tensor, count: int) -> Tensor:
    """[count] float64: of all pairs of different tokens of each window; of a single token -inf.

    unit: [n, d], the tokens at length 1. numbers: [n] int64, their windows.
    """
    unit = unit.double()
    sizes = numbers.bincount(minlength=count)
    total = unit.new_zeros(count, unit.shape[1]).index_add_(0, numbers, unit).square().sum(dim=1)
    own = unit.new_zeros(count).index_add_(0, numbers, unit.square().sum(dim=1))
    pairs = sizes * (sizes - 1)
    return torch.where(pairs > 0, (total - own) / pairs, -torch.inf)
