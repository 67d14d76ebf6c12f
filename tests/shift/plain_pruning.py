"""Which visual tokens four methods keep, word for word.

Every `*_kept` function looks at one span (a picture, or all visual tokens). `margin` of a result is
how far the closest decision was from going the other way; other arithmetic may differ below it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tests.shift.plain_decoder import PlainDecoder
from tests.shift.plain_policy import ranked
from tests.shift.plain_prompt import Prompt, VisionStatistics


@dataclass(frozen=True)
class PlainPruning:
    """A decision.

    Attributes:
        kept: slots of originals kept as they are, sorted.
        layer: they are chosen before this layer; 0: before the language model.
        targets: sorted slots whose places pseudo tokens take; none of them is kept.
        weights: [len(targets), N]; pseudo token p is x[targets[p]] + weights[p] @ x, for what
            enters the layer and for every DeepStack map not yet added.
        margin: see above.
    """

    kept: tuple[int, ...]
    layer: int = 0
    targets: tuple[int, ...] = ()
    weights: Tensor | None = field(default=None, compare=False)
    margin: float = math.inf


def budget(ratio: float, num_tokens: int) -> int:
    return min(max(math.floor(ratio * num_tokens + 0.5), 1), num_tokens)


def top(scores: Tensor, count: int) -> tuple[list[int], float]:
    """Sorted indices of the `count` largest scores, ties to the lowest; and the margin."""
    order = ranked(dict(enumerate(scores.tolist())))
    gap = math.inf
    if 0 < count < len(order):
        gap = float(scores[order[count - 1]] - scores[order[count]])
    return sorted(order[:count]), gap


def per_picture(prompt: Prompt, ratio: float,
                keep: Callable[[range, int], PlainPruning]) -> PlainPruning:
    """A method that treats each picture by itself: `keep(its slots, its budget)`."""
    start, parts = 0, []
    for rows, columns in prompt.grids:
        slots = range(start, start + rows * columns)
        parts.append(keep(slots, budget(ratio, len(slots))))
        start += rows * columns
    weights = [part.weights for part in parts if part.weights is not None]
    return PlainPruning(
        kept=tuple(slot for part in parts for slot in part.kept),
        targets=tuple(slot for part in parts for slot in part.targets),
        weights=torch.cat(weights) if weights else None,
        margin=min(part.margin for part in parts))


# FastV

def fastv_row(model: PreTrainedModel, prompt: Prompt, layer: int) -> Tensor:
    """[N] what the last prompt row gives each visual token in layer - 1, mean over heads."""
    n = len(prompt.ids)
    causal = torch.ones(n, n, dtype=torch.bool).tril()
    traces = PlainDecoder(model).run(
        prompt.x, prompt.positions, lambda _: causal, num_layers=layer,
        deepstack=[spread(values, prompt) for values in prompt.deepstack])
    return traces[layer - 1].probs[:, -1, prompt.visual_rows].mean(0)


def spread(values: Tensor, prompt: Prompt) -> Tensor:
    """[N, hidden] -> [n, hidden], zero in the rows of text."""
    rows = torch.zeros_like(prompt.x)
    rows[prompt.visual_rows] = values
    return rows


def fastv(model: PreTrainedModel, prompt: Prompt, ratio: float, layer: int = 2) -> PlainPruning:
    scores = fastv_row(model, prompt, layer)
    kept, gap = top(scores, budget(ratio, len(scores)))
    return PlainPruning(tuple(kept), layer, margin=gap)


# DivPrune

def cosine_distances(features: Tensor) -> Tensor:
    """[N, N] of 1 - cos, in double."""
    unit = torch.nn.functional.normalize(features.double(), dim=-1)
    return 1.0 - unit @ unit.T


def divprune_order(features: Tensor, count: int) -> tuple[list[int], float]:
    """Tokens in the order they are picked: first the one farthest from its nearest neighbour, then
    each time the one farthest from everything picked; never one twice."""
    distance = cosine_distances(features)
    everyone = range(len(features))

    def nearest(token: int, others: Sequence[int]) -> float:
        return min((float(distance[token, other]) for other in others), default=math.inf)

    picked: list[int] = []
    margin = math.inf
    while len(picked) < count:
        rest = [token for token in everyone if token not in picked]
        far = {token: nearest(token, picked or [t for t in everyone if t != token])
               for token in rest}
        order = ranked(far)
        if len(order) > 1:
            margin = min(margin, far[order[0]] - far[order[1]])
        picked.append(order[0])
    return picked, margin


def divprune(prompt: Prompt, ratio: float) -> PlainPruning:
    features = prompt.features

    def keep(slots: range, count: int) -> PlainPruning:
        picked, margin = divprune_order(features[list(slots)], count)
        return PlainPruning(tuple(sorted(slots[i] for i in picked)), margin=margin)
    return per_picture(prompt, ratio, keep)


# VisionZip

DOMINANT_SHARE = 5.4 / 6.4


def split_budget(count: int, share: float = DOMINANT_SHARE) -> tuple[int, int]:
    """(dominant, contextual): at least one contextual, none of a budget of one."""
    if count <= 1:
        return count, 0
    dominant = min(math.floor(share * count + 0.5), count - 1)
    return dominant, count - dominant


def strided_targets(remaining: Sequence[int], count: int) -> list[int]:
    step = len(remaining) // count
    return [remaining[i * step] for i in range(count)]


def assign(keys: Tensor, tokens: Sequence[int],
           targets: Sequence[int]) -> tuple[dict[int, int], float]:
    """token -> the target whose key is most similar (cosine; the first of equals); margin."""
    similar = 1.0 - cosine_distances(keys)
    assignment, margin = {}, math.inf
    for token in tokens:
        order = ranked({target: float(similar[token, target]) for target in targets})
        if len(order) > 1:
            margin = min(margin, float(similar[token, order[0]] - similar[token, order[1]]))
        assignment[token] = order[0]
    return assignment, margin


def visionzip(prompt: Prompt, statistics: VisionStatistics, ratio: float,
              split: Callable[[int], tuple[int, int]] = split_budget) -> PlainPruning:
    """`split`: budget -> (dominant, contextual)."""
    num_tokens = len(prompt.visual_rows)

    def keep(slots: range, count: int) -> PlainPruning:
        dominant_count, contextual = split(count)
        chosen, gap = top(statistics.attention[list(slots)], dominant_count)
        dominant = tuple(slots[i] for i in chosen)
        if contextual == 0:
            return PlainPruning(dominant, margin=gap)
        remaining = [slot for slot in slots if slot not in dominant]
        targets = strided_targets(remaining, contextual)
        others = [slot for slot in remaining if slot not in targets]
        assignment, margin = assign(statistics.keys, others, targets)
        weights = torch.zeros(contextual, num_tokens)
        for p, target in enumerate(targets):
            assigned = [token for token in others if assignment[token] == target]
            for token in assigned:
                weights[p, token] = 1.0 / len(assigned)
        return PlainPruning(dominant, 0, tuple(targets), weights, min(gap, margin))
    return per_picture(prompt, ratio, keep)
