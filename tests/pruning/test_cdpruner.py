"""CDPruner against brute force: determinants of all candidate sets, in double."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from pydstp import PruningConfig
from pydstp.pruning import run_pruner
from pydstp.pruning.base import unit_rows
from pydstp.pruning.cdpruner import pick_by_determinant, relevance_of
from tests.compare import assert_bitwise
from tests.generators import normal
from tests.pruning.samples import GRIDS, make_tokens


def literal_relevance(features: Tensor, words: Tensor) -> list[float]:
    means = []
    for feature in features.double():
        cosines = [float(torch.cosine_similarity(feature, word, dim=0)) for word in words.double()]
        means.append(sum(cosines) / len(cosines))
    low, high = min(means), max(means)
    return [(mean - low + 1e-6) / (high - low) for mean in means]


def brute_force(features: Tensor, relevance: list[float], count: int) -> list[int]:
    """Every step tries every token and computes the determinant of the kernel from scratch."""
    unit = torch.nn.functional.normalize(features.double(), dim=1)
    r = torch.tensor(relevance, dtype=torch.float64)
    kernel = r[:, None] * (unit @ unit.T) * r
    picked: list[int] = []
    while len(picked) < count:
        best, best_token = -torch.inf, -1
        for token in range(len(features)):
            if token not in picked:
                some = [*picked, token]
                value = float(torch.linalg.slogdet(kernel[some][:, some])[1])
                if value > best + 1e-9:
                    best, best_token = value, token
        picked.append(best_token)
    return picked


def ours(features: Tensor, relevance: list[float] | Tensor, count: int) -> list[int]:
    weights = torch.as_tensor(relevance, dtype=torch.float32)
    return pick_by_determinant(unit_rows(features)[0], weights, count).tolist()


@pytest.mark.parametrize("dim", [8, 16, 64])
@pytest.mark.parametrize("n", [1, 2, 3, 9, 20])
def test_equals_brute_force(n, dim) -> None:
    for seed in range(4):
        features, words = normal(n, dim, seed=seed), normal(5, dim, seed=100 + seed)
        relevance = literal_relevance(features, words) if n > 1 else [1.0]
        found = relevance_of(unit_rows(features)[0], words)
        assert torch.allclose(found.double(), torch.tensor(relevance).double(), atol=1e-5)
        most = min(n, dim)  # more than dim tokens span no volume
        for count in {1, 2, most // 2, most - 1, most} & set(range(1, most + 1)):
            assert ours(features, relevance, count) == brute_force(features, relevance, count)


@pytest.mark.parametrize("grids", GRIDS, ids=str)
@pytest.mark.parametrize("quota", ["span", "global"])
def test_the_method_looks_at_each_span_by_itself(grids, quota) -> None:
    config = PruningConfig("cdpruner", 0.1, quota=quota)  # fewer than the 12 dimensions
    for seed in range(3):
        tokens, expected = make_tokens(config, grids, seed), []
        for (start, length), k in zip(tokens.spans, tokens.quotas, strict=True):
            features = tokens.features[start:start + length]
            relevance = literal_relevance(features, tokens.text_embeddings) if length > 1 else [1.0]
            expected += [start + i for i in brute_force(features, relevance, k)]
        assert run_pruner(config, tokens).kept.tolist() == sorted(expected)


def test_relevance_of_one_value_leaves_diversity() -> None:
    """No words, or words to which all tokens are equally near."""
    config = PruningConfig("cdpruner", num_kept=6)
    tokens = make_tokens(config, ((5, 5),))
    flat = sorted(brute_force(tokens.features, [1.0] * 25, 6))
    no_words = replace(tokens, text_embeddings=torch.empty(0, 12))
    zero = replace(tokens, text_embeddings=torch.zeros(3, 12))
    for changed in (no_words, zero):
        assert run_pruner(config, changed).kept.tolist() == flat
    assert run_pruner(config, tokens).kept.tolist() != flat
    weightless = PruningConfig("cdpruner", num_kept=6, relevance_weight=0)
    assert run_pruner(weightless, tokens).kept.tolist() == flat


@pytest.mark.parametrize("theta", [0.2, 0.5, 0.99])
def test_relevance_as_an_exponent(theta) -> None:
    config = PruningConfig("cdpruner", num_kept=7, relevance_weight=theta)
    for seed in range(3):
        tokens = make_tokens(config, ((5, 5),), seed)
        relevance = torch.tensor(literal_relevance(tokens.features, tokens.text_embeddings))
        weights = (theta / (2 * (1 - theta)) * relevance.double()).exp().tolist()
        expected = sorted(brute_force(tokens.features, weights, 7))
        assert run_pruner(config, tokens).kept.tolist() == expected


def test_a_factor_of_relevance_makes_no_difference() -> None:
    features, relevance = normal(30, 40), torch.rand(30, generator=torch.Generator().manual_seed(1))
    expected = ours(features, relevance, 20)
    for factor in (2.0**-20, 0.25, 1024.0):
        assert ours(features, relevance * factor, 20) == expected


def test_what_is_spanned_is_filled_by_relevance() -> None:
    """Three dimensions: the fourth token adds nothing to any determinant."""
    features = normal(10, 3)
    relevance = [0.9, 0.1, 0.5, 1.0, 0.3, 0.2, 0.8, 0.7, 0.6, 0.4]
    first = brute_force(features, relevance, 3)
    rest = sorted(set(range(10)) - set(first), key=lambda i: -relevance[i])
    for count in range(1, 11):
        assert ours(features, relevance, count) == (first + rest)[:count]
    copies = features[[0, 0, 0, 0]] * torch.tensor([[1.0], [3.0], [0.1], [7.0]])
    assert ours(copies, [0.5, 0.5, 0.5, 0.5], 4) == [0, 1, 2, 3]


def test_zero_and_broken_tokens_come_last() -> None:
    config = PruningConfig("cdpruner", num_kept=6)
    tokens = make_tokens(config, ((2, 4),))
    features = tokens.features.clone()
    features[2] = 0.0
    features[5, 3] = float("nan")
    broken = replace(tokens, features=features)
    assert 2 not in run_pruner(config, broken).kept and 5 not in run_pruner(config, broken).kept
    seven = replace(broken, quotas=(7,))
    assert run_pruner(config, seven).kept.tolist() == [0, 1, 2, 3, 4, 6, 7]


def test_words_of_any_length_count_alike() -> None:
    config = PruningConfig("cdpruner", num_kept=6)
    tokens = make_tokens(config, ((5, 5),))
    scales = torch.tensor([[8.0], [0.125], [1.0], [4.0]])
    longer = replace(tokens, text_embeddings=tokens.text_embeddings * scales)
    assert_bitwise(run_pruner(config, longer).kept, run_pruner(config, tokens).kept)
