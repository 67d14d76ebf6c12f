"""Random, FastV, DivPrune and VisionZip against their definitions, written out."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from pydstp import OptionError, PruningConfig
from pydstp.pruning import run_pruner
from pydstp.pruning.base import first_largest, top_indices, unit_rows
from pydstp.pruning.divprune import pick_diverse
from pydstp.pruning.visionzip import VisionZip
from tests.generators import normal
from tests.pruning.samples import GRIDS, make_tokens


def ranked(scores: list[float]) -> list[int]:
    """Indices from the largest to the smallest; of equal ones the first comes first."""
    return sorted(range(len(scores)), key=lambda index: (-scores[index], index))


def test_top_indices_are_sorted_and_ties_go_to_the_first() -> None:
    for seed in range(50):
        scores = torch.randint(0, 4, (17,), generator=torch.Generator().manual_seed(seed)).float()
        for count in (0, 1, 5, 16, 17):
            assert top_indices(scores, count).tolist() == sorted(ranked(scores.tolist())[:count])
    nan, inf = float("nan"), float("inf")
    hostile = torch.tensor([nan, -inf, 2.0, nan, inf])
    assert [top_indices(hostile, k).tolist() for k in (1, 2, 3, 4)] == [
        [4], [2, 4], [0, 2, 4], [0, 1, 2, 4]]
    assert top_indices(torch.tensor([3, 9, 9]), 1).tolist() == [1]


def test_scores_of_another_shape_are_refused() -> None:
    tokens = make_tokens(PruningConfig("random", 0.5), ((3, 5),))
    for shape in ((14,), (16,), (15, 1), ()):
        with pytest.raises(OptionError, match=r"scores: expected shape \[15\], got \["):
            tokens.top(torch.zeros(shape))


def test_random_keeps_all_tokens_equally_often_and_more_with_a_larger_ratio() -> None:
    times = torch.zeros(15)
    for seed in range(2000):
        config = PruningConfig("random", num_kept=5, seed=seed)
        kept = run_pruner(config, make_tokens(config, ((3, 5),))).kept
        times[kept] += 1
        config = PruningConfig("random", num_kept=6, seed=seed)
        more = run_pruner(config, make_tokens(config, ((3, 5),))).kept
        assert set(kept.tolist()) < set(more.tolist())
    assert float(times.min()) > 560 and float(times.max()) < 780  # 667 +- 21: five deviations


@pytest.mark.parametrize("quota", ["global", "span"])
@pytest.mark.parametrize("grids", GRIDS, ids=str)
def test_fastv_keeps_what_the_row_says(grids, quota) -> None:
    for seed in range(5):
        config = PruningConfig("fastv", 0.4, quota=quota)
        tokens = make_tokens(config, grids, seed)
        row, expected = tokens.attention_row.tolist(), []
        for (start, length), k in zip(tokens.spans, tokens.quotas, strict=True):
            expected += [start + index for index in ranked(row[start:start + length])[:k]]
        assert run_pruner(config, tokens).kept.tolist() == sorted(expected)


# DivPrune: property 32

def distances(features: Tensor) -> Tensor:
    unit = torch.nn.functional.normalize(features.double(), dim=-1)
    return 1.0 - unit @ unit.T


def literal_divprune(features: Tensor, count: int) -> list[int]:
    """From the N x N matrix, in double; the whole matrix is looked at for every pick."""
    distance, n = distances(features), len(features)
    picked: list[int] = []
    while len(picked) < count:
        def gap(i: int) -> float:
            others = picked or [j for j in range(n) if j != i]
            return min((float(distance[i, j]) for j in others), default=float("inf"))
        picked.append(max((i for i in range(n) if i not in picked), key=gap))
    return picked


@pytest.mark.parametrize("dim", [2, 3, 64])
@pytest.mark.parametrize("n", [1, 2, 3, 20, 41])
def test_divprune_equals_the_literal_definition(n, dim) -> None:
    for seed in range(4):
        features = normal(n, dim, seed=seed)
        for count in {1, 2, n // 3, n - 1, n} & set(range(1, n + 1)):
            assert pick_diverse(features, count).tolist() == literal_divprune(features, count)


def test_divprune_in_blocks(monkeypatch) -> None:
    features = normal(41, 8)
    monkeypatch.setattr("pydstp.pruning.divprune._BLOCK", 7)
    assert pick_diverse(features, 15).tolist() == literal_divprune(features, 15)


@pytest.mark.parametrize("n, dim", [(1, 4), (9, 3), (40, 16)])
def test_divprune_without_kept_distances(monkeypatch, n, dim) -> None:
    monkeypatch.setattr("pydstp.pruning.divprune._MAX_KEPT", 0)
    features = torch.randn(n, dim, generator=torch.Generator().manual_seed(n))
    assert pick_diverse(features, n).tolist() == literal_divprune(features, n)


def test_divprune_does_not_see_lengths_or_the_other_pictures() -> None:
    config, grids = PruningConfig("divprune", 0.4), ((5, 5), (3, 3))
    tokens = make_tokens(config, grids)
    lengths = torch.linspace(-30, 30, 34).exp()[:, None]  # squares beyond fp32 on both sides
    kept = run_pruner(config, tokens).kept
    changed = replace(tokens, features=tokens.features * lengths)
    assert run_pruner(config, changed).kept.tolist() == kept.tolist()
    first, second = tokens.features.split([25, 9])
    apart = [*literal_divprune(first, 10), *(25 + i for i in literal_divprune(second, 4))]
    assert kept.tolist() == sorted(apart)


@pytest.mark.parametrize("n", [97, 769])
def test_divprune_distances_shrink_and_the_first_is_the_loneliest(n) -> None:
    features = normal(n, 16, seed=n)
    distance = distances(features)
    order = pick_diverse(features, n).tolist()
    assert sorted(order) == list(range(n))
    nearest = (distance + 9 * torch.eye(n)).min(dim=1).values
    assert float(nearest[order[0]]) >= float(nearest.max()) - 2e-6
    gaps = torch.stack([distance[order[i], order[:i]].min() for i in range(1, n)])
    assert (gaps.diff() <= 2e-6).all()


def test_divprune_takes_every_kind_before_any_copy() -> None:
    kinds = normal(6, 5)
    features = torch.cat([kinds, 3 * kinds, kinds, 0.1 * kinds])  # copies up to their lengths
    order = pick_diverse(features, 24).tolist()
    assert sorted(order) == list(range(24))
    assert sorted(index % 6 for index in order[:6]) == list(range(6))
    assert all(index < 6 for index in order[1:6])  # the first of each kind
    assert order[6:] == [index for index in range(24) if index not in order[:6]]


def test_divprune_and_rows_without_a_direction() -> None:
    features = normal(8, 4)
    features[[1, 5]] = 0.0
    features[[2, 6]] = torch.tensor([1.0, float("nan"), float("inf"), -float("inf")])
    unit, is_finite = unit_rows(features)
    assert is_finite.tolist() == [True, True, False, True, True, True, False, True]
    assert not unit[[1, 2, 5, 6]].any() and unit.isfinite().all()
    order = pick_diverse(features, 8).tolist()
    assert order[-2:] == [2, 6]
    good = [0, 1, 3, 4, 5, 7]
    assert order[:6] == [good[i] for i in literal_divprune(features[good], 6)]
    angles = torch.tensor([0.0, 120.0, 250.0]).deg2rad()  # all more than a right angle apart
    apart = torch.stack([angles.cos(), angles.sin()], dim=1)
    broken = torch.full((1, 2), float("nan"))
    assert pick_diverse(torch.cat([apart, broken]), 4).tolist() == [1, 2, 0, 3]


def test_unit_rows_of_every_size_of_number() -> None:
    rows = normal(6, 9).double()
    scales = torch.tensor([1e-38, 1e-30, 1e-3, 1.0, 1e25, 3e37]).double()[:, None]
    unit, is_finite = unit_rows((rows * scales).float())
    assert is_finite.all() and unit.dtype == torch.float32
    expected = rows / rows.norm(dim=1, keepdim=True)
    assert torch.allclose(unit.double(), expected, atol=1e-5, rtol=0)


def test_first_largest_sees_through_rounding() -> None:
    values = torch.tensor([[0.1, 0.5, 0.5 + 3e-7, 0.2], [1.0, 1.0, -2.0, 1.0 + 1e-5]])
    assert first_largest(values).tolist() == [1, 3]
    assert first_largest(torch.tensor([-2.0, float("inf"), float("inf")])).tolist() == 1


# VisionZip: property 34

def literal_visionzip(tokens, share: float) -> tuple[list[int], list[int], Tensor, list[Tensor]]:
    """(dominant, targets, merged features, tokens assigned to each target), in loops."""
    dominant, targets, merged, assigned = [], [], [], []
    attention, keys = tokens.vision_attention.tolist(), tokens.vision_keys.double()
    for (start, length), k in zip(tokens.spans, tokens.quotas, strict=True):
        span = list(range(start, start + length))
        contextual = 0 if k <= 1 or k == length else max(1, k - int(share * k + 0.5))
        order = [start + i for i in ranked(attention[start:start + length])]
        best = sorted(order[:k - contextual])
        dominant += best
        rest = [i for i in span if i not in best]
        step = len(rest) // contextual if contextual else 0
        mine = [rest[j * step] for j in range(contextual)]
        groups: dict[int, list[int]] = {target: [] for target in mine}
        for i in rest if contextual else []:
            if i not in mine:
                cosines = [float(torch.cosine_similarity(keys[i], keys[t], dim=0)) for t in mine]
                groups[mine[cosines.index(max(cosines))]].append(i)
        for target in mine:
            token = tokens.features[target].double()
            if groups[target]:
                token = token + sum(tokens.features[i].double() for i in groups[target]) / len(
                    groups[target])
            targets.append(target)
            merged.append(token)
            assigned.append(groups[target])
    return dominant, targets, torch.stack(merged) if merged else torch.empty(0), assigned


@pytest.mark.parametrize("quota", ["span", "global"])
@pytest.mark.parametrize("grids", GRIDS, ids=str)
@pytest.mark.parametrize("share", [5.4 / 6.4, 0.5, 0.0])
def test_visionzip_equals_the_literal_definition(grids, quota, share) -> None:
    for seed, ratio in enumerate((0.1, 1 / 3, 0.5, 0.9)):
        config = PruningConfig("visionzip", ratio, quota=quota, dominant_share=share)
        tokens = make_tokens(config, grids, seed)
        dominant, targets, merged, assigned = literal_visionzip(tokens, share)
        selection = run_pruner(config, tokens)
        assert selection.kept.tolist() == dominant
        assert (selection.merge is None) == (not targets)
        if targets:
            merge = selection.merge
            assert merge.targets.tolist() == targets and merge.weights.dtype == torch.float32
            ours = tokens.features[merge.targets] + merge.weights @ tokens.features
            assert torch.allclose(ours.double(), merged, atol=1e-5, rtol=0)
            assert [row.nonzero().squeeze(1).tolist() for row in merge.weights] == assigned


def test_visionzip_gives_every_other_token_to_one_target() -> None:
    config = PruningConfig("visionzip", 0.4)
    tokens = make_tokens(config, ((13, 7), (4, 4)))
    selection = run_pruner(config, tokens)
    times = (selection.merge.weights > 0).sum(dim=0)
    stays = torch.cat([selection.kept, selection.merge.targets])
    assert not times[stays].any() and int(times.sum()) == 91 + 16 - len(stays)
    assert int(times.max()) == 1
    sums = selection.merge.weights.sum(dim=1)
    assert torch.allclose(sums[sums > 0], torch.tensor(1.0))


def test_visionzip_splits_budgets_as_published() -> None:
    method = VisionZip()
    split = {64: 54, 128: 108, 192: 162, 6: 5, 3: 2, 2: 1, 1: 1}
    assert {k: method.num_dominant(k, 576) for k in split} == split
    assert method.num_dominant(576, 576) == 576
    assert VisionZip(dominant_share=1.0).num_dominant(64, 576) == 63
    assert VisionZip(dominant_share=0.0).num_dominant(64, 576) == 0
    assert [VisionZip(prune_only=True).num_dominant(k, 9) for k in (1, 5, 9)] == [1, 5, 9]
    assert [VisionZip(merge_only=True).num_dominant(k, 9) for k in (1, 5, 9)] == [0, 0, 9]


def test_visionzip_merge_only_and_prune_only() -> None:
    grids = ((3, 5), (1, 1))
    merged = PruningConfig("visionzip", num_kept=4, merge_only=True)
    selection = run_pruner(merged, make_tokens(merged, grids))
    assert selection.kept.tolist() == [15]  # a picture of one token has nothing to merge
    assert selection.merge.targets.tolist() == [0, 5, 10]
    pruned = PruningConfig("visionzip", num_kept=4, prune_only=True)
    tokens = make_tokens(pruned, grids)
    selection = run_pruner(pruned, tokens)
    assert selection.merge is None
    assert selection.kept[:3].tolist() == sorted(ranked(tokens.vision_attention[:15].tolist())[:3])


def test_visionzip_targets_alone_where_nothing_is_assigned_and_ties_go_to_the_first() -> None:
    config = PruningConfig("visionzip", num_kept=5, merge_only=True)
    keys = torch.ones(15, 4)  # every key alike: all go to the first target
    selection = run_pruner(config, make_tokens(config, ((3, 5),), vision_keys=keys))
    assert selection.merge.targets.tolist() == [0, 3, 6, 9, 12]
    groups = [row.nonzero().squeeze(1).tolist() for row in selection.merge.weights]
    assert groups == [[1, 2, 4, 5, 7, 8, 10, 11, 13, 14], [], [], [], []]
    keys[3] = float("nan")
    selection = run_pruner(config, make_tokens(config, ((3, 5),), vision_keys=keys))
    assert selection.merge.weights.isfinite().all() and not selection.merge.weights[1].any()
