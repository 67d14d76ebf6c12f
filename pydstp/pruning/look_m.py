"""LOOK-M (arXiv 2406.18139): the whole prompt is read, and then its cache made smaller."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pydstp.config import require_choice, require_float
from pydstp.pruning.base import Pruner, VisualTokens, first_largest, ranked, unit_rows
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
        require_choice("merge", self.merge, MERGES)
        require_float("recent", self.recent, 0.0, 1.0)

    def select(self, tokens: VisualTokens) -> Tensor:
        """All tokens: none leaves on the way through the layers."""
        return torch.arange(len(tokens), device=tokens.features.device)

    def compressed(self, kv: Tensor, scores: Tensor, visual: Tensor,
                   spans: list[tuple[slice, int]]) -> tuple[Tensor, Tensor]:
        """What is left of one layer's keys and values of a prompt.

        Args:
            kv: [n, 2, num_kv_heads, head_dim], keys and values.
            scores: [num_kv_heads, n] float32.
            visual: [num_visual] int64, sorted, the rows that are visual tokens.
            spans: (visual tokens, how many of them stay).

        Returns:
            Text [n - num_visual, 2, num_kv_heads, head_dim] and visual tokens [k, 2, num_kv_heads,
            head_dim], each in prompt order, float32.
        """
        heads = kv.permute(2, 0, 1, 3)
        is_recent = visual >= len(kv) - int(self.recent * len(kv))
        wanted = torch.where(is_recent, torch.inf, scores[:, visual])
        stays = torch.ones(heads.shape[:2], dtype=torch.bool, device=kv.device)
        stays[:, visual] = False
        for span, count in spans:
            best = visual[span][ranked(wanted[:, span])[:, :count]]
            stays.scatter_(1, best, True)
        left = self._merged(_chosen(heads, stays).float(), _chosen(heads, ~stays).float())
        is_visual = torch.zeros(len(kv), dtype=torch.bool, device=kv.device)
        is_visual[visual] = True
        pictures = is_visual.expand_as(stays)[stays].view(left.shape[:2])
        text, visual = _chosen(left, ~pictures), _chosen(left, pictures)
        return text.permute(1, 2, 0, 3), visual.permute(1, 2, 0, 3)

    def _merged(self, kept: Tensor, evicted: Tensor) -> Tensor:
        """kept [num_kv_heads, k, 2, head_dim], with evicted [num_kv_heads, e, 2, head_dim] merged
        into it."""
        if self.merge == "none" or not evicted.shape[1]:
            return kept
        cosines = _unit_keys(evicted) @ _unit_keys(kept).transpose(1, 2)
        target = first_largest(cosines)
        first = kept.shape[1] * torch.arange(len(kept), device=kept.device)
        rows = (target + first[:, None]).flatten()
        every, gone, weight = kept.flatten(0, 1), evicted.flatten(0, 1), 1.0
        if self.merge == "pivot":
            weight = 0.5  # of e; the other half of each is k
        elif self.merge == "weighted":
            similar = cosines.gather(2, target[..., None])
            joins = similar >= similar.mean(dim=1, keepdim=True) - 1e-6  # rounding decides nothing
            rows, gone = rows[joins.flatten()], (similar.view(-1, 1, 1) * gone)[joins.flatten()]
        count = every.new_zeros(len(every)).index_add_(0, rows, every.new_ones(len(rows)))
        total = ((1 + (1 - weight) * count)[:, None, None] * every).index_add_(
            0, rows, gone, alpha=weight)
        return (total / (1 + count)[:, None, None]).view_as(kept)


def _chosen(heads: Tensor, stays: Tensor) -> Tensor:
    """heads [num_kv_heads, n, 2, head_dim], stays [num_kv_heads, n] bool, k in each row -> the rows
    that stay, [num_kv_heads, k, 2, head_dim]."""
    return heads[stays].view(len(heads), -1, *heads.shape[2:])


def _unit_keys(kv: Tensor) -> Tensor:
    """[num_kv_heads, n, 2, head_dim] -> keys scaled to length 1, [num_kv_heads, n, head_dim]."""
    return unit_rows(kv[:, :, 0].flatten(0, 1))[0].view(*kv.shape[:2], -1)
