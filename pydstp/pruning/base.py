"""What a pruning method sees, what it answers, and the class that it derives from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from pydstp.cost import Cost
from pydstp.errors import OptionError

# Of the decoder layer before the one that a method acts before.
LAYER_STATISTICS = ("attention_row", "picture_row", "received_attention", "text_attention",
                    "key_norms", "text_key_norms")
STATISTICS = ("vision_attention", "vision_keys", "text_embeddings", "text_states", "upcoming_row",
              *LAYER_STATISTICS)
QUOTAS = ("span", "global")
REDUCTIONS = ("sum", "max")
_SHORT, _LONG = 1e-12, 1e18  # lengths of rows whose squares fp32 holds, with few digits lost
_TIE = 1e-6  # cosines this close differ by rounding; which is larger would depend on the machine


@dataclass(frozen=True, eq=False)
class VisualTokens:
    """The visual tokens of a request's new pictures, N of them, in prompt order.

    Where a method acts before several layers, it is asked at each of these stages about the tokens
    that are left, merged ones among them.

    Attributes:
        features: [N, hidden_size], in the dtype of the model: embeddings where the method acts
            before the language model, hidden states entering the layer it acts before elsewhere.
        grids: (rows, cols) in tokens of each picture, or of each tile where the model cuts pictures
            into tiles (a thumbnail is one more); row by row they make up the tokens of the first
            stage.
        stage: how often the method was asked before about these pictures.
        origins: [N] int64, ascending: which token of the grids each one is, or, of a merged token,
            the one whose place it took.
        quotas: tokens to keep in each span, merged tokens included.
        spans: (start, length) that the quotas belong to: one for each grid (quota="span"), or
            one for all N tokens (quota="global").
        attention_row: [N] float32, attention of the last prompt token in the layer before,
            softmax over everything it sees, mean over heads; None unless the method needs it, as
            all that follows but `generator`.
        picture_row: [N] float32, the same of the last visual token of the picture that the token
            belongs to (a picture is all its tiles and the thumbnail).
        upcoming_row: [N] float32, the same as `attention_row` in the layer itself before which
            tokens leave; it takes that layer's queries and keys of all rows, and no more of it.
        text_attention: [R, N] float32, attention in the layer before of those rows of the text
            behind the last of the new pictures that `Pruner.raters` names, mean over heads.
        received_attention: [N] float32, the mean of the same over all other tokens of the prompt;
            those that come before the token see nothing of it and count as 0.
        key_norms: [N] float32, L1 norm of the token's keys in the layer before, as attention takes
            them, over all KV heads.
        text_key_norms: [T] float32, the same of the text behind the last of the new pictures.
        text_states: [T, hidden_size], like `features`, of that text; the last row is the last
            prompt token.
        vision_attention: [N] float32, attention received in block `block` of the vision tower, mean
            over heads and over the patches of the token: from the class token of the tile
            (InternVL), or, where the tower has none, mean over the queries of the picture.
            Entries of a picture of P patches then sum to 1/4, so those of a larger
            picture are smaller.
        vision_keys: [N, head_dim] float32, keys of the same block as attention takes them, mean
            over the patches of the token and over heads.
        text_embeddings: [num_text, hidden_size] in the dtype of the model: what the decoder takes
            for the words of the last user message, chat template and earlier turns left out; no
            rows where it has no words.
        generator: for all randomness, seeded with `PruningConfig.seed`; it draws on the CPU.
    """

    features: Tensor
    grids: tuple[tuple[int, int], ...]
    quotas: tuple[int, ...]
    spans: tuple[tuple[int, int], ...]
    stage: int = 0
    origins: Tensor | None = None
    attention_row: Tensor | None = None
    upcoming_row: Tensor | None = None
    text_attention: Tensor | None = None
    picture_row: Tensor | None = None
    received_attention: Tensor | None = None
    key_norms: Tensor | None = None
    text_key_norms: Tensor | None = None
    text_states: Tensor | None = None
    vision_attention: Tensor | None = None
    vision_keys: Tensor | None = None
    text_embeddings: Tensor | None = None
    generator: torch.Generator = field(default_factory=torch.Generator)

    def __len__(self) -> int:
        return len(self.features)

    def each_span(self) -> Iterator[tuple[slice, int]]:
        """(tokens of the span, how many of them to keep)."""
        for (start, length), quota in zip(self.spans, self.quotas, strict=True):
            yield slice(start, start + length), quota

    def top(self, scores: Tensor) -> Tensor:
        """The best tokens of each span, as many as its quota: [k] int64, sorted.

        Args:
            scores: [N], larger is better. Of equal ones the earlier token wins; NaN is worse than
                everything.

        Raises:
            OptionError: not one score for each token.
        """
        if tuple(scores.shape) != (len(self),):
            raise OptionError(f"scores: expected shape [{len(self)}], got {list(scores.shape)}")
        best = [span.start + top_indices(scores[span], quota) for span, quota in self.each_span()]
        return torch.cat(best) if best else scores.new_empty(0, dtype=torch.int64)


@dataclass(frozen=True, eq=False)
class MergePlan:
    """Merged ("pseudo") tokens. Token p is features[targets[p]] + weights[p] @ features.

    The same is done with every DeepStack map that is still to be added.

    Attributes:
        targets: [M] int64, sorted: the token whose place in the prompt each one takes. Targets are
            not kept beside it.
        weights: [M, N] float32.
        reduce: "sum", as above; "max", where token p is, number by number, the largest of the
            target and of the tokens whose weight is not 0.
    """

    targets: Tensor
    weights: Tensor
    reduce: str = "sum"


@dataclass(frozen=True, eq=False)
class Selection:
    """A decision: k tokens kept as they are, and perhaps others merged.

    Attributes:
        kept: [k] int64, sorted, each once.
        merge: what else stays, or None. Merged tokens count towards the quotas.
    """

    kept: Tensor
    merge: MergePlan | None = None


@dataclass(frozen=True)
class Pruner(ABC):
    """A pruning method. Subclasses are frozen dataclasses; their fields are the method's options.

    Attributes:
        needs: which of `STATISTICS` it looks at; the others are not computed.
        default_quota: "span" keeps a share of each picture or tile, "global" of all together.
        adaptive: the method may keep fewer or more tokens than asked, at least one.
        keeps_all: the method takes no ratio and no number.
        acts_on_picture: pictures are made smaller before the vision tower instead, each to its
            share of tokens; `select` is not asked, and nothing is left that could return.
        acts_on_cache: all tokens go through all layers, and the keys and values of a layer are made
            fewer by `compressed` once it has run; `select` is not asked, and nothing is left that
            could return.
        shrinks_behind: the stage from whose layer on, behind the prompt, all layers read what the
            last stage left; None: each what its own stage left.
        block: the block of the vision tower that `vision_*` come from; negative counts from the
            end.
    """

    needs: ClassVar[frozenset[str]] = frozenset()
    default_quota: ClassVar[str] = "span"
    adaptive: ClassVar[bool] = False
    keeps_all: ClassVar[bool] = False
    acts_on_picture: ClassVar[bool] = False
    acts_on_cache: ClassVar[bool] = False
    shrinks_behind: ClassVar[int | None] = None
    block: ClassVar[int] = -2

    @property
    def leaves_reserve(self) -> bool:
        """Whether there are pruned tokens that could return."""
        return not (self.acts_on_picture or self.acts_on_cache)

    @property
    def merges(self) -> bool:
        """Whether tokens are merged into new ones, which an unpruned prefill does not have."""
        return False

    @property
    def act_before(self) -> int:
        """The decoder layer before which tokens are dropped; 0 is before the language model."""
        return 0

    def cost(self, num_visual: int, num_kept: int, hidden_size: int) -> Cost:
        """What `select` reads and computes, for the cost model; statistics are counted elsewhere.

        Here: a few passes over all features as fp32.
        """
        return Cost(4.0 * 4 * num_visual * hidden_size)

    def stages(self, num_layers: int) -> tuple[int, ...]:
        """The decoder layers, ascending, before which tokens leave; most methods act once."""
        return (self.act_before,)

    def needs_at(self, stage: int) -> frozenset[str]:
        """`needs`, where not every stage looks at all of them."""
        return self.needs

    def share_at(self, stage: int, num_stages: int, share: float) -> float:
        """The share of the tokens that stays behind a stage, where `share` does in the end.

        In equal proportion from stage to stage unless a method says otherwise.
        """
        return share ** ((stage + 1) / num_stages)

    def raters(self, visual: Tensor, text: Tensor) -> Tensor:
        """[T] bool: the rows of `VisualTokens.text_attention`.

        Args:
            visual: [N, hidden_size], what the decoder takes for the new pictures.
            text: [T, hidden_size], the same for the text behind them.
        """
        return text.new_ones(len(text), dtype=torch.bool)

    @abstractmethod
    def select(self, tokens: VisualTokens) -> Selection | Tensor:
        """Decide. A tensor of indices stands for `Selection(indices)`.

        It must depend on nothing but `tokens` and the options.
        """


def top_indices(scores: Tensor, count: int) -> Tensor:
    """[n] -> [count] int64: where the largest are, sorted; the lower index wins, NaN never does."""
    return ranked(scores)[:count].sort().values


def ranked(scores: Tensor) -> Tensor:
    """[..., n] -> [..., n] int64: from the largest to the smallest, NaN last; of equal ones the
    first comes first."""
    if scores.is_floating_point():
        scores = torch.where(scores.isnan(), -torch.inf, scores)
    return scores.sort(dim=-1, descending=True, stable=True).indices


def unit_rows(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Rows scaled to length 1, and which of them are finite.

    Args:
        rows: [n, d].

    Returns:
        [n, d] float32, zero where a row is zero or not finite, so that its cosine with all others
        is 0; and [n] bool.
    """
    rows = rows.float()
    lengths = rows.norm(dim=1, keepdim=True)
    if bool(((lengths > _SHORT) & (lengths < _LONG)).all()):  # so their squares are in fp32
        return rows / lengths, torch.ones(len(rows), dtype=torch.bool, device=rows.device)
    is_finite = rows.isfinite().all(dim=1)
    rows = torch.where(is_finite[:, None], rows, 0.0)
    largest = rows.abs().amax(dim=1, keepdim=True)  # squares of the rows could leave fp32
    rows = rows / torch.where(largest > 0, largest, 1.0)
    return rows / rows.norm(dim=1, keepdim=True).clamp_(min=1.0), is_finite


def first_largest(values: Tensor) -> Tensor:
    """[..., n] cosines or distances -> [...] int64: the first that is as good as the largest."""
    near = values >= values.amax(dim=-1, keepdim=True) - _TIE
    return near.to(torch.uint8).argmax(dim=-1)


def best_of_whole(values: Tensor, count: int) -> Tensor:
    """[..., n] of `without_rounding`, or -inf -> [..., count] int64: where the largest are, in no
    order; of equal ones the first. Without sorting all of them."""
    size = values.shape[-1]
    places = torch.arange(size, device=values.device)
    unequal = values.double() * size - places  # exact: below 2^53
    return unequal.topk(count, dim=-1, sorted=False).indices


def without_rounding(values: Tensor) -> Tensor:
    """Cosines in whole steps of 1e-6, so that those which differ by rounding are equal."""
    return (values / _TIE).round()
