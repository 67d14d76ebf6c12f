"""FasterVLM, VisPruner and PruMerge+ against their definitions, written out in loops."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from pydstp import PruningConfig, VisualTokens
from pydstp.pruning import run_pruner
from tests.compare import assert_bitwise
from tests.generators import normal
from tests.pruning.samples import GRIDS, make_tokens

every_grid = pytest.mark.parametrize("grids", GRIDS, ids=str)


def ranked(indices: list[int], scores: list[float]) -> list[int]:
    """From the largest score to the smallest; of equal ones the first comes first."""
    return sorted(indices, key=lambda index: -scores[index])


def cosine(first: Tensor, second: Tensor) -> float:
    """In double, rounded as far as fp32 can tell numbers apart."""
    return round(float(torch.cosine_similarity(first.double(), second.double(), dim=0)), 6)


def spans_of(tokens: VisualTokens) -> list[tuple[list[int], int]]:
    return [(list(range(start, start + length)), quota)
            for (start, length), quota in zip(tokens.spans, tokens.quotas, strict=True)]


# FasterVLM

@pytest.mark.parametrize("quota", ["span", "global"])
@every_grid
def test_fastervlm_keeps_what_the_tower_looks_at(grids, quota) -> None:
    for seed in range(4):
        config = PruningConfig("fastervlm", 0.4, quota=quota)
        tokens = make_tokens(config, grids, seed)
        expected = [index for span, k in spans_of(tokens)
                    for index in ranked(span, tokens.vision_attention.tolist())[:k]]
        assert run_pruner(config, tokens).kept.tolist() == sorted(expected)
        dominant = PruningConfig("visionzip", 0.4, quota=quota, prune_only=True)
        assert run_pruner(dominant, tokens).kept.tolist() == sorted(expected)


# VisPruner: property 35

def literal_vispruner(tokens: VisualTokens, share: float, drop: int = 8) -> list[int]:
    kept = []
    for span, k in spans_of(tokens):
        order = ranked(span, tokens.vision_attention.tolist())
        num_important = int(share * k)
        important, rest, wanted = order[:num_important], order[num_important:], k - num_important
        while wanted and len(rest) > wanted:
            first = [token for place, token in enumerate(rest) if place % 2 == 0]
            second = [token for place, token in enumerate(rest) if place % 2 == 1]
            likest = {a: max(cosine(tokens.features[a], tokens.features[b]) for b in second)
                      for a in first}
            first.sort(key=lambda a: -likest[a])
            rest = first[min(drop, len(rest) - wanted, len(first)):] + second
        kept += important + (rest if wanted else [])
    return sorted(kept)


@pytest.mark.parametrize("share", [0.0, 0.5, 0.75, 1.0])
def test_vispruner_for_every_number_of_tokens_and_places(share) -> None:
    """Odd ones, tiny ones, fewer than a round drops: exactly as many as asked."""
    for n in range(1, 24):
        for k in range(1, n + 1):
            config = PruningConfig("vispruner", num_kept=k, important_share=share)
            tokens = make_tokens(config, ((1, n),), 31 * n + k)
            kept = config.pruner.select(tokens).tolist()
            assert kept == literal_vispruner(tokens, share) and len(set(kept)) == k
            best = ranked(list(range(n)), tokens.vision_attention.tolist())
            assert set(best[:int(share * k)]) <= set(kept)


@pytest.mark.parametrize("quota", ["span", "global"])
@every_grid
def test_vispruner_equals_the_literal_definition(grids, quota) -> None:
    for seed, (ratio, drop) in enumerate([(0.1, 8), (1 / 3, 3), (0.5, 8), (0.9, 100), (0.2, 1)]):
        config = PruningConfig("vispruner", ratio, quota=quota, drop=drop)
        tokens = make_tokens(config, grids, seed)
        found = run_pruner(config, tokens).kept.tolist()
        if sum(tokens.quotas) < len(tokens):
            assert found == literal_vispruner(tokens, 0.5, drop)


def test_vispruner_with_only_important_tokens_is_fastervlm() -> None:
    for grids in GRIDS:
        only = PruningConfig("vispruner", 0.4, important_share=1)
        tokens = make_tokens(only, grids)
        plain = PruningConfig("fastervlm", 0.4)
        assert_bitwise(run_pruner(only, tokens).kept, run_pruner(plain, tokens).kept)


def test_vispruner_with_copies() -> None:
    """Cosines that are equal up to rounding: which is dropped does not depend on the machine."""
    kinds = normal(4, 5)
    scales = torch.linspace(-3, 3, 21).exp()[:, None]
    features = kinds[torch.arange(21) % 4] * scales
    for k in range(1, 21):
        config = PruningConfig("vispruner", num_kept=k, drop=2)
        tokens = make_tokens(config, ((3, 7),), k, features=features)
        assert run_pruner(config, tokens).kept.tolist() == literal_vispruner(tokens, 0.5, 2)


def test_vispruner_in_blocks(monkeypatch) -> None:
    config = PruningConfig("vispruner", 0.3)
    tokens = make_tokens(config, ((13, 7),))
    whole = run_pruner(config, tokens).kept
    monkeypatch.setattr("pydstp.pruning.vispruner._BLOCK", 7)
    assert_bitwise(run_pruner(config, tokens).kept, whole)


# PruMerge+

def quartile(values: list[float], share: float) -> float:
    """Linear between the two values whose ranks are nearest."""
    ordered, place = sorted(values), share * (len(values) - 1)
    low = math.floor(place)
    high = min(low + 1, len(values) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


def literal_prumerge(
    tokens: VisualTokens, neighbours: int = 32
) -> tuple[list[int], list[int], list[Tensor], list[dict[int, float]]]:
    """(kept, targets, merged features, what each target takes), in loops and in double."""
    attention, keys = tokens.vision_attention.tolist(), tokens.vision_keys
    kept, targets, merged, taken = [], [], [], []
    for span, k in spans_of(tokens):
        of_span = [attention[i] for i in span]
        low, high = quartile(of_span, 0.25), quartile(of_span, 0.75)
        outliers = [i for i in span if attention[i] > high + 1.5 * (high - low)]
        outliers = ranked(outliers, attention)[:k]
        others = [i for i in span if i not in outliers]
        missing = k - len(outliers)
        stays = sorted(outliers + [others[i * len(others) // missing] for i in range(missing)])
        if k == len(span):
            kept += stays
            continue
        for target in stays:
            likeness = {i: cosine(keys[i], keys[target]) for i in span if i != target}
            nearest = sorted(likeness, key=lambda i: -likeness[i])[:neighbours]
            shares = {i: attention[i] / sum(of_span) for i in nearest}
            features = tokens.features.double()
            targets.append(target)
            taken.append(shares)
            merged.append(features[target] + sum(shares[i] * features[i] for i in nearest))
    return kept, targets, merged, taken


def peaked(num_tokens: int, seed: int) -> Tensor:
    """Attention with some outliers, as towers give it."""
    generator = torch.Generator().manual_seed(seed)
    return (3 * torch.randn(num_tokens, generator=generator)).softmax(dim=0)


@pytest.mark.parametrize("neighbours", [1, 5, 32])
@pytest.mark.parametrize("quota", ["span", "global"])
@every_grid
def test_prumerge_equals_the_literal_definition(grids, quota, neighbours) -> None:
    for seed, ratio in enumerate((0.05, 0.2, 1 / 3, 0.7)):
        config = PruningConfig("prumerge", ratio, quota=quota, neighbours=neighbours)
        tokens = make_tokens(config, grids, seed)
        tokens = replace(tokens, vision_attention=peaked(len(tokens), seed))
        if sum(tokens.quotas) == len(tokens):
            continue  # the method is not asked
        kept, targets, merged, taken = literal_prumerge(tokens, neighbours)
        selection = run_pruner(config, tokens)
        assert selection.kept.tolist() == kept and selection.merge.targets.tolist() == targets
        for row, shares in zip(selection.merge.weights, taken, strict=True):
            assert row.nonzero().squeeze(1).tolist() == sorted(shares)
        ours = tokens.features[targets] + selection.merge.weights @ tokens.features
        assert torch.allclose(ours.double(), torch.stack(merged), atol=2e-6, rtol=0)
        only = PruningConfig("prumerge", ratio, quota=quota, prune_only=True)
        assert run_pruner(only, tokens).kept.tolist() == sorted(kept + targets)


def test_prumerge_keeps_outliers_and_spaces_the_rest_evenly() -> None:
    attention = torch.full((20,), 0.01)
    attention[[3, 11, 17]] = torch.tensor([0.5, 0.2, 0.3])
    for k, expected in ((1, [3]), (2, [3, 17]), (3, [3, 11, 17]), (4, [0, 3, 11, 17]),
                        (5, [0, 3, 9, 11, 17]), (20, list(range(20)))):
        config = PruningConfig("prumerge", num_kept=k, prune_only=True)
        tokens = make_tokens(config, ((4, 5),), vision_attention=attention)
        assert config.pruner.select(tokens).kept.tolist() == expected
    config = PruningConfig("prumerge", num_kept=5, prune_only=True)
    flat = make_tokens(config, ((4, 5),), vision_attention=torch.full((20,), 0.05))
    assert run_pruner(config, flat).kept.tolist() == [0, 4, 8, 12, 16]


def test_prumerge_of_equal_keys_gathers_the_first() -> None:
    config = PruningConfig("prumerge", num_kept=3, neighbours=2)
    tokens = make_tokens(config, ((3, 5),), vision_keys=torch.full((15, 4), 0.3),
                         vision_attention=torch.full((15,), 0.5))
    merge = run_pruner(config, tokens).merge
    assert merge.targets.tolist() == [0, 5, 10]
    assert [row.nonzero().squeeze(1).tolist() for row in merge.weights] == [[1, 2], [0, 1], [0, 1]]
    assert torch.allclose(merge.weights[merge.weights > 0], torch.tensor(1 / 15))


def test_prumerge_weights_are_finite_whatever_the_attention() -> None:
    nan, inf = float("nan"), float("inf")
    for values in ([nan] * 6, [inf] * 6, [0.0] * 6, [-1.0] * 6, [nan, inf, -inf, 0.2, 0.0, 0.1]):
        config = PruningConfig("prumerge", num_kept=2)
        tokens = make_tokens(config, ((2, 3),), vision_attention=torch.tensor(values))
        merge = run_pruner(config, tokens).merge
        assert merge.weights.isfinite().all() and (merge.weights >= 0).all()
