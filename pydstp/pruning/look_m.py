"""LOOK-M (arXiv 2406.18139): the whole prompt is read, and then its cache made smaller."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pydstp.config import require_float
from pydstp.errors import OptionError, show
from pydstp.pruning.base import Pruner, VisualTokens, first_largest, top_indices, unit_rows
from pydstp.pruning.registry import register_pruner

MERGES = ("pivot", "average", "weighted", "none")


@register_pruner("look_m")
@dataclass(frozen=True)
class LookM(Pruner):
    """Keeps, in every layer and KV head, the visual keys that the prompt looked at most.

    The score of a key is the sum of the attention that all rows of the prompt give it, mean over
    the query heads of its KV head. All text stays. The keys and values of a visual token that does
    not stay are merged into those of the kept token, of text or picture, whose key has the largest
    cosine with its own (of equal ones the first). Only rows of the turn that brought the pictures
    take part. The layers of the prompt see everything, so the first token is that of no pruning.

    The authors' program keeps the int(0.1 n) best and the int(0.1 n) last of a prompt of n tokens,
    with text always among the best, so that pictures get what text leaves of the first number. Here
    the ratio says how many visual tokens stay; those among the last of the prompt come first.

    A row of the cache holds another token in each layer and head afterwards. No policy can choose
    among such rows, and nothing is left that could return.

    Attributes:
        merge: what becomes of kept k, to which tokens e were assigned. "average": mean of k and all
            e. "pivot": mean of k and all (k + e) / 2. "weighted": mean of k and all s e, with s
            the cosine of the keys, of those e alone whose s is at least the mean of their head.
            "none": k.
        recent: share of the prompt, at its end, whose visual tokens come first.

    Corrected: for "weighted" the program compares means over the heads of what stands at the same
    number among the evicted of each, which are different tokens; here each head decides for itself.

    Raises:
        OptionError: a value outside its range.
    """

    acts_on_cache: ClassVar[bool] = True
    default_quota: ClassVar[str] = "global"

    merge: str = "pivot"
    recent: float = 0.1

    def __post_init__(self) -> None:
        if self.merge not in MERGES:
            raise OptionError(f"merge: expected one of {MERGES}, got {show(self.merge)}")
        require_float("recent", self.recent, 0.0, 1.0)

    def select(self, tokens: VisualTokens) -> Tensor:
        """All tokens: none leaves on the way through the layers."""
        return torch.arange(len(tokens))

    def compressed(self, kv: Tensor, scores: Tensor, visual: Tensor,
                   spans: list[tuple[slice, int]]) -> tuple[Tensor, Tensor]:
        """What is left of one layer's keys and values of a prompt.

        Args:
            kv: [n, 2, num_kv_heads, head_dim] float32, keys and values.
            scores: [num_kv_heads, n] float32.
            visual: [num_visual] int64, sorted, the rows that are visual tokens.
            spans: (visual tokens, how many of them stay).

        Returns:
            Text [n - num_visual, 2, num_kv_heads, head_dim] and visual tokens [k, 2, num_kv_heads,
            head_dim], each in prompt order, float32.
        """
        is_text = torch.ones(len(kv), dtype=torch.bool)
        is_text[visual] = False
        is_recent = visual >= len(kv) - int(self.recent * len(kv))
        texts, pictures = [], []
        for head in range(kv.shape[2]):
            wanted = torch.where(is_recent, torch.inf, scores[head, visual])
            best = torch.cat([span.start + top_indices(wanted[span], count)
                              for span, count in spans])
            stays = is_text.clone()
            stays[visual[best]] = True
            left = self._merged(kv[stays, :, head], kv[~stays, :, head])
            texts.append(left[is_text[stays]])
            pictures.append(left[~is_text[stays]])
        return torch.stack(texts, dim=2), torch.stack(pictures, dim=2)

    def _merged(self, kept: Tensor, evicted: Tensor) -> Tensor:
        """kept [k, 2, head_dim], with evicted [e, 2, head_dim] merged into it."""
        if self.merge == "none" or not len(evicted):
            return kept
        cosines = unit_rows(evicted[:, 0])[0] @ unit_rows(kept[:, 0])[0].T
        target = first_largest(cosines)
        similar = cosines.gather(1, target[:, None]).squeeze(1)
        joins = torch.ones(len(evicted), dtype=torch.bool)
        if self.merge == "pivot":
            evicted = (evicted + kept[target]) / 2
        elif self.merge == "weighted":
            joins = similar >= similar.mean() - 1e-6  # equal ones may differ by rounding
            evicted = similar[:, None, None] * evicted
        total = kept.index_add(0, target[joins], evicted[joins])
        count = torch.ones(len(kept)).index_add_(0, target[joins], joins[joins].float())
        return total / count[:, None, None]
