"""The methods that act at several layers, or on the cache, written out in loops over numbers.

Nothing is shared with the package but the names of options; ties go to the lowest index everywhere.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from tests.pruning.plain_layer_methods import Answer, best

Numbers = list[float]


@dataclass(frozen=True)
class StageFacts:
    """What a method may look at, for each of n tokens that are left at a stage.

    upcoming: attention of the last prompt token in the layer about to run. text: [T][n] attention
    of the text behind the pictures in the layer before; embedded_text [T], embedded_visual [N]:
    what the decoder takes for it and for all tokens. hidden: hidden states. vision: attention in
    the tower. origins: which token of the grids each one is.
    """

    stage: int
    spans: list[tuple[int, int]]
    quotas: list[int]
    grids: list[tuple[int, int]]
    origins: list[int]
    hidden: list[Numbers]
    upcoming: Numbers
    text: list[Numbers]
    vision: Numbers
    embedded_text: list[Numbers]
    embedded_visual: list[Numbers]


def pyramiddrop(facts: StageFacts) -> Answer:
    kept = []
    for (start, length), quota in zip(facts.spans, facts.quotas, strict=True):
        kept += best(facts.upcoming, list(range(start, start + length)), quota)
    return Answer(sorted(kept))


# SparseVLM

def raters(visual: list[Numbers], text: list[Numbers]) -> list[int]:
    """Text tokens whose mean softmax over the text is at or above the average."""
    relevance = [0.0] * len(text)
    for token in visual:
        logits = [sum(a * b for a, b in zip(token, word, strict=True)) for word in text]
        largest = max(logits)
        total = sum(math.exp(logit - largest) for logit in logits)
        for word, logit in enumerate(logits):
            relevance[word] += math.exp(logit - largest) / total / len(visual)
    mean = sum(relevance) / len(text)
    found = [word for word, value in enumerate(relevance) if value >= mean]
    return found or list(range(len(text)))


def clusters(points: list[Numbers], count: int) -> list[tuple[int, list[int]]]:
    """(centre, members) by density peaks."""
    n, width = len(points), len(points[0])
    apart = [[math.dist(a, b) / math.sqrt(width) for b in points] for a in points]
    density = [math.exp(-sum(d * d for d in sorted(row)[:count]) / count) for row in apart]
    ranking = sorted(range(n), key=lambda i: (-density[i], i))
    place = {point: rank for rank, point in enumerate(ranking)}
    score = []
    for i in range(n):
        denser = [apart[i][j] for j in range(n) if place[j] < place[i]]
        delta = min(denser) if denser else max(max(row) for row in apart)
        score.append(density[i] * delta)
    centres = best(score, list(range(n)), count)
    groups = {centre: [centre] for centre in sorted(centres)}
    for i in range(n):
        if i not in groups:
            groups[min(sorted(groups), key=lambda c, i=i: (apart[i][c], c))].append(i)
    return [(centre, sorted(members)) for centre, members in groups.items()]


def sparsevlm(facts: StageFacts, recycle: float = 0.3) -> Answer:
    rating = raters(facts.embedded_visual, facts.embedded_text)
    scores = [sum(facts.text[word][i] for word in rating) / len(rating)
              for i in range(len(facts.hidden))]
    kept, merged = [], []
    for (start, length), quota in zip(facts.spans, facts.quotas, strict=True):
        order = best(scores, list(range(start, start + length)), length)
        groups = 0
        if recycle and 2 <= quota < length:
            recycled = int(recycle * (length - quota)) + 1
            groups = min(recycled // 10 + 1, quota - 1)
        kept += order[:quota - groups]
        if groups:
            members = sorted(order[quota - groups:][:recycled])
            found = clusters([facts.hidden[i] for i in members], groups)
            merged += [(members[centre], [members[i] for i in part]) for centre, part in found]
    return Answer(sorted(kept), merged)


# MustDrop

def mustdrop(facts: StageFacts, window: int = 3, similarity: float = 0.8, key_share: float = 0.08,
             global_threshold: float = 1e-3, individual_threshold: float = 1e-3) -> Answer:
    if facts.stage == 0:
        return merge_windows(facts, window, similarity)
    n = len(facts.hidden)
    sums = [sum(row[i] for row in facts.text) for i in range(n)]
    total = sum(sums)
    kept = {i for i in range(n) if sums[i] >= global_threshold * total
            or any(row[i] >= individual_threshold for row in facts.text)}
    first = 0
    for rows, cols in facts.grids:
        mine = [i for i in range(n) if first <= facts.origins[i] < first + rows * cols]
        kept |= set(best(facts.vision, mine, math.ceil(key_share * (rows * cols - 1))))
        first += rows * cols
    return Answer(sorted(kept or best(sums, list(range(n)), 1)))


def merge_windows(facts: StageFacts, window: int, similarity: float) -> Answer:
    kept, merged, first = [], [], 0
    for rows, cols in facts.grids:
        for top in range(0, rows, window):
            for left in range(0, cols, window):
                high, wide = min(window, rows - top), min(window, cols - left)
                part = [first + (top + r) * cols + left + c
                        for r in range(high) for c in range(wide)]
                pairs = [cosine(facts.hidden[a], facts.hidden[b])
                         for a in part for b in part if a < b]
                if pairs and sum(pairs) / len(pairs) >= similarity:
                    merged.append((part[(high - 1) // 2 * wide + (wide - 1) // 2], part))
                else:
                    kept += part
        first += rows * cols
    return Answer(sorted(kept), sorted(merged))


def cosine(a: Numbers, b: Numbers) -> float:
    norms = math.hypot(*a) * math.hypot(*b)
    return sum(x * y for x, y in zip(a, b, strict=True)) / norms if norms else 0.0


# LOOK-M

def look_m(keys: list[Numbers], values: list[Numbers], scores: Numbers, visual: list[int],
           spans: list[tuple[int, int, int]], merge: str,
           recent: float = 0.1) -> tuple[list[int], list[Numbers], list[Numbers]]:
    """One KV head: rows that stay, and their keys and values; spans: (start, length, quota)."""
    n, stays = len(keys), set(range(len(keys))) - set(visual)
    for start, length, quota in spans:
        rows = visual[start:start + length]
        late = {row: row >= n - int(recent * n) for row in rows}
        stays |= set(sorted(rows, key=lambda row: (
            not late[row], 0.0 if late[row] else -scores[row], row))[:quota])
    kept, evicted = sorted(stays), [row for row in range(n) if row not in stays]
    found = {e: max(kept, key=lambda k, e=e: (round(cosine(keys[e], keys[k]), 6), -k))
             for e in evicted}
    similar = {e: cosine(keys[e], keys[k]) for e, k in found.items()}
    mean = sum(similar.values()) / max(1, len(similar))
    out: list[list[Numbers]] = []
    for table in (keys, values):
        rows = []
        for k in kept:
            parts = [table[k]]
            for e in [e for e in evicted if found[e] == k]:
                if merge == "average":
                    parts.append(table[e])
                elif merge == "pivot":
                    parts.append([(a + b) / 2 for a, b in zip(table[e], table[k], strict=True)])
                elif merge == "weighted" and similar[e] >= mean - 1e-9:
                    parts.append([similar[e] * a for a in table[e]])
            rows.append([sum(column) / len(parts) for column in zip(*parts, strict=True)])
        out.append(rows)
    return kept, out[0], out[1]
