"""SparseVLM (arXiv 2410.04417): the words that speak of the picture choose, at several layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pydstp.config import require_choice, require_float
from pydstp.pruning.base import MergePlan, Selection, VisualTokens, ranked, top_indices
from pydstp.pruning.clusters import density_peaks
from pydstp.pruning.registry import register_pruner
from pydstp.pruning.stages import StagedPruner

SCHEDULES = ("fixed", "rank")
_BLOCK_ROWS = 256  # visual tokens whose products with the text exist at a time
_GROUP = 10  # recycled tokens for each cluster


@register_pruner("sparsevlm")
@dataclass(frozen=True)
class SparseVLM(StagedPruner):
    """Keeps the tokens with most attention of the raters, and recycles some of the others.

    Raters are chosen once, from what the decoder takes: softmax over the text behind the pictures
    of (visual tokens) (text)^T, mean over visual tokens; text tokens at or above the mean of these
    rate. The score of a token is the raters' attention in the layer before, mean over heads and
    raters. Of n_p pruned tokens the int(0.3 n_p) + 1 best are recycled: clustered around density
    peaks into one group for every ten, and one more, whose means become tokens in the places of
    their centres.

    The paper acts behind layers 2, 6 and 15 of 32; the defaults are layers 2, 7 and 17 of 36,
    scaled to the model, so that tokens leave before 3, 8 and 18. The authors' lists for an average
    of 192 tokens of 576, [300, 200, 110], are `PruningConfig("sparsevlm", 110 / 576, shares=(300 /
    576, 200 / 576))`. Clusters count towards the quota here; in the authors' program they come on
    top of it. As there, they compete with all others at the next stage.

    Corrected: the program takes the length of a layer's cache for the position of the next token,
    which then differs from layer to layer, and adds noise to densities. Positions stay here, and of
    equally good centres the first is taken.

    Not here: the later SparseVLM+. It recycles nothing (recycle=0), keeps positions, as is done
    here, divides attention by the "RoPE response" of queries and keys that are all ones, and counts
    the 14 heads of the largest attention between raters and picture. How the response is taken
    where positions have three axes, whether before or after the softmax, and what becomes of 14
    with another number of heads, our sources do not say.

    Attributes:
        layers, shares: as in `StagedPruner`.
        recycle: share of the pruned tokens that is recycled; 0 recycles none.
        schedule: "fixed" keeps the quotas; "rank" at most int(rank_scale rank + rank_bias) tokens
            within them, where rank is that of the raters' attention to the tokens of a span. The
            program's first version has no other bound.
        rank_scale, rank_bias: the program's are (13.5, 0), (9, 6) and (0.8, 0) for 192, 128 and 64
            tokens of 576.

    Raises:
        OptionError: a value outside its range.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"text_attention"})
    depths: ClassVar[tuple[float, ...]] = (3 / 36, 8 / 36, 18 / 36)

    recycle: float = 0.3
    schedule: str = "fixed"
    rank_scale: float = 13.5
    rank_bias: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require_float("recycle", self.recycle, 0.0, 1.0)
        require_float("rank_scale", self.rank_scale, 0.0, 1e6)
        require_float("rank_bias", self.rank_bias, -1e6, 1e6)
        require_choice("schedule", self.schedule, SCHEDULES)

    @property
    def merges(self) -> bool:
        """Unless `recycle` is 0."""
        return self.recycle > 0

    @property
    def adaptive(self) -> bool:
        """With schedule="rank"."""
        return self.schedule == "rank"

    def raters(self, visual: Tensor, text: Tensor) -> Tensor:
        """[T] bool: text tokens of at least average relevance; all, where it is not a number."""
        relevance = torch.zeros(len(text), dtype=torch.float64, device=text.device)
        for rows in visual.split(_BLOCK_ROWS):
            relevance += (rows.float() @ text.float().T).softmax(dim=1).sum(dim=0)
        chosen = relevance >= relevance.mean()
        return chosen if chosen.any() else torch.ones_like(chosen)

    def select(self, tokens: VisualTokens) -> Selection:
        """Span by span."""
        scores = tokens.text_attention.float().mean(dim=0)
        kept, targets, weights = [], [], []
        for span, quota in tokens.each_span():
            quota = self._settled(tokens.text_attention[:, span], quota)
            recycled, num_clusters = self._amounts(span.stop - span.start, quota)
            kept.append(span.start + top_indices(scores[span], quota - num_clusters))
            if num_clusters:
                best = span.start + ranked(scores[span])[quota - num_clusters:][:recycled]
                found = _clusters(tokens.features, best.sort().values, num_clusters)
                targets.append(found[0])
                weights.append(found[1])
        merge = MergePlan(torch.cat(targets), torch.cat(weights)) if targets else None
        return Selection(torch.cat(kept), merge)

    def _settled(self, attention: Tensor, quota: int) -> int:
        """The quota, or less where the rank of the raters' attention is small; at least 1."""
        if self.schedule == "fixed" or not quota:
            return quota
        rank = int(torch.linalg.matrix_rank(attention.nan_to_num(0.0, 0.0, 0.0).float()))
        return min(max(int(self.rank_scale * rank + self.rank_bias), 1), quota)

    def _amounts(self, num_tokens: int, quota: int) -> tuple[int, int]:
        """How many tokens are recycled, and how many clusters they become; one token at least
        stays as it is."""
        if not self.recycle or quota >= num_tokens or quota < 2:
            return 0, 0
        recycled = int(self.recycle * (num_tokens - quota)) + 1
        return recycled, min(recycled // _GROUP + 1, quota - 1)


def _clusters(features: Tensor, members: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Targets [count] and weights [count, N] of a `MergePlan` of some tokens, sorted."""
    centres, groups = density_peaks(features[members].double(), count)
    weights = features.new_zeros(count, len(features), dtype=torch.float32)
    for row, centre in enumerate(centres.tolist()):
        mine = members[groups == row]
        weights[row, mine] = 1.0 / len(mine)
        weights[row, members[centre]] -= 1.0  # a merged token begins as its target
    return members[centres], weights
