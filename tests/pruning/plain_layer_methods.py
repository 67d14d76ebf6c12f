"""The methods that act before a decoder layer, written out in loops over plain numbers.

`plain(name, facts, **options)` answers with what stays. Nothing is shared with the package but the
names of options; ties go to the lowest index everywhere.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Facts:
    """What a method may look at: lists of numbers, one for each of N tokens.

    spans: (start, length); quotas: tokens to keep in each. grids: (rows, cols) one after the other.
    row: attention of the last prompt token; received: mean attention of all other tokens;
    of_picture: attention of the last token of the picture. norms: L1 norms of keys. hidden: hidden
    states. text_norms, text_hidden: of the text behind the pictures.
    """

    grids: list[tuple[int, int]]
    spans: list[tuple[int, int]]
    quotas: list[int]
    hidden: list[list[float]]
    row: list[float]
    received: list[float]
    of_picture: list[float]
    norms: list[float]
    text_norms: list[float]
    text_hidden: list[list[float]]


@dataclass(frozen=True)
class Answer:
    """Tokens that stay as they are; and merged ones: (token whose place it takes, its members)."""

    kept: list[int]
    merged: list[tuple[int, list[int]]] = field(default_factory=list)


def facts_of(tokens: Any) -> Facts:
    """From `VisualTokens` with every statistic."""
    def numbers(tensor: Tensor) -> list:
        return tensor.double().tolist()
    return Facts(
        list(tokens.grids), list(tokens.spans), list(tokens.quotas), numbers(tokens.features),
        numbers(tokens.attention_row), numbers(tokens.received_attention),
        numbers(tokens.picture_row), numbers(tokens.key_norms), numbers(tokens.text_key_norms),
        numbers(tokens.text_states))


def plain(name: str, facts: Facts, **options: Any) -> Answer:
    """What method `name` keeps."""
    method = {"fastv": fastv, "reverse_fastv": reverse_fastv, "window_fastv": window_fastv,
              "fastv_vis": fastv_vis, "alpha": alpha_balanced, "pooling": pooling, "dart": dart}
    return method[name](facts, **options)


def attention(facts: Facts, rows: str) -> list[float]:
    return facts.row if rows == "last" else facts.received


def best(scores: list[float], candidates: list[int], count: int) -> list[int]:
    return sorted(candidates, key=lambda i: (-scores[i], i))[:count]


def best_of_spans(facts: Facts, scores: list[float]) -> Answer:
    kept = []
    for (start, length), quota in zip(facts.spans, facts.quotas, strict=True):
        kept += best(scores, list(range(start, start + length)), quota)
    return Answer(sorted(kept))


def fastv(facts: Facts, rows: str = "last") -> Answer:
    return best_of_spans(facts, attention(facts, rows))


def reverse_fastv(facts: Facts, rows: str = "last") -> Answer:
    return best_of_spans(facts, [-score for score in attention(facts, rows)])


def fastv_vis(facts: Facts) -> Answer:
    return best_of_spans(facts, facts.of_picture)


# Windows

def windows(facts: Facts, start: int, length: int, high: int, wide: int) -> list[list[int]]:
    """Tokens of each window of the grids that lie in [start, start + length)."""
    found, first = [], 0
    for rows, cols in facts.grids:
        if start <= first < start + length:
            for top in range(0, rows, high):
                for left in range(0, cols, wide):
                    found.append([first + r * cols + c
                                  for r in range(top, min(top + high, rows))
                                  for c in range(left, min(left + wide, cols))])
        first += rows * cols
    return found


def pair(window: Any) -> tuple[int, int]:
    return tuple(window) if isinstance(window, tuple | list) else (window, window)


def window_fastv(facts: Facts, rows: str = "last", window: Any = 4) -> Answer:
    kept, scores = [], attention(facts, rows)
    for (start, length), quota in zip(facts.spans, facts.quotas, strict=True):
        parts = windows(facts, start, length, *pair(window))
        counts = [math.floor(quota * len(part) / length + 1e-12) for part in parts]
        rest = [quota * len(part) / length - count
                for part, count in zip(parts, counts, strict=True)]
        while sum(counts) < quota:
            winner = max(range(len(parts)),
                         key=lambda i: (round(rest[i], 9), len(parts[i]), -i))
            counts[winner] += 1
            rest[winner] = -1.0
        for part, count in zip(parts, counts, strict=True):
            kept += best(scores, part, count)
    return Answer(sorted(kept))


def nearest(facts: Facts, start: int, length: int, quota: int) -> tuple[int, int]:
    """The first of 1x1, 1x2, 2x1, 2x2, 2x3, ... whose number of windows misses the quota least."""
    best_size, best_miss = (1, 1), length
    for high in range(1, 20):
        for size in ((high, high), (high, high + 1), (high + 1, high)):
            miss = abs(len(windows(facts, start, length, *size)) - quota)
            if miss < best_miss:
                best_size, best_miss = size, miss
    return best_size


def pooling(facts: Facts, pool: str = "mean", window: Any = None) -> Answer:
    kept, merged = [], []
    for (start, length), quota in zip(facts.spans, facts.quotas, strict=True):
        size = nearest(facts, start, length, quota) if window is None else pair(window)
        for part in windows(facts, start, length, *size):
            if pool == "argmax_l1":
                norms = {i: sum(abs(x) for x in facts.hidden[i]) for i in part}
                kept.append(max(part, key=lambda i, norms=norms: (norms[i], -i)))
            elif len(part) == 1:
                kept += part
            else:
                merged.append((nearest_to_centre(facts, part), part))
    return Answer(sorted(kept), sorted(merged))


def place(facts: Facts, token: int) -> tuple[int, int]:
    """(row, column) in the token's grid."""
    for rows, cols in facts.grids:
        if token < rows * cols:
            return divmod(token, cols)
        token -= rows * cols
    raise AssertionError("no such token")


def nearest_to_centre(facts: Facts, part: list[int]) -> int:
    places = [place(facts, i) for i in part]
    centre = [(min(axis) + max(axis)) / 2 for axis in zip(*places, strict=True)]
    distances = [(r - centre[0]) ** 2 + (c - centre[1]) ** 2 for r, c in places]
    return part[distances.index(min(distances))]


def pooled(facts: Facts, part: list[int], pool: str) -> list[float]:
    """The mean or the largest of some hidden states, number by number."""
    columns = zip(*(facts.hidden[i] for i in part), strict=True)
    return [sum(column) / len(part) if pool == "mean" else max(column) for column in columns]


# Similarity

def cosine(a: list[float], b: list[float]) -> float:
    product = sum(x * y for x, y in zip(a, b, strict=True))
    return product / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))


def min_max(values: list[float]) -> list[float]:
    low, high = min(values), max(values)
    return [(value - low) / (high - low) if high > low else 0.0 for value in values]


def alpha_balanced(facts: Facts, rows: str = "last", alpha: float = 0.5) -> Answer:
    importance = min_max(attention(facts, rows))
    redundancy = min_max([cosine(x, facts.text_hidden[-1]) for x in facts.hidden])
    scores = [alpha * a + (1 - alpha) * (1 - c)
              for a, c in zip(importance, redundancy, strict=True)]
    return best_of_spans(facts, scores)


def dart(facts: Facts, visual_pivots: int = 4, text_pivots: int = 4) -> Answer:
    words = best(facts.text_norms, list(range(len(facts.text_norms))), text_pivots)
    kept = []
    for (start, length), quota in zip(facts.spans, facts.quotas, strict=True):
        everything = list(range(start, start + length))
        first = best(facts.norms, everything, min(visual_pivots, quota))
        pivots = [facts.hidden[i] for i in first] + [facts.text_hidden[i] for i in words]
        pool = [i for i in everything if i not in first]
        todo, shares = quota - len(first), [0] * len(pivots)
        for turn in range(todo):
            shares[turn % len(pivots)] += 1
        for pivot, share in zip(pivots, shares, strict=True):
            taken = sorted(pool, key=lambda i, p=pivot: (cosine(facts.hidden[i], p), i))[:share]
            pool = [i for i in pool if i not in taken]
        kept += [i for i in everything if i not in pool]
    return Answer(kept)
