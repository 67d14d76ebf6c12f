"""The plain pruning methods: against attention recorded in transformers, and their properties."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers.models.qwen3_vl import modeling_qwen3_vl

from tests.shift.plain_prompt import vision_statistics
from tests.shift.plain_pruning import (
    budget,
    cosine_distances,
    divprune,
    divprune_order,
    fastv,
    fastv_row,
    split_budget,
    strided_targets,
    top,
    visionzip,
)
from tests.shift.test_plain import near, setting


@pytest.fixture
def recorded(monkeypatch) -> list[tuple[Tensor, Tensor]]:
    """(weights, keys) of every attention of transformers' model in one pass: the vision tower,
    picture by picture in each block, then the decoder."""
    calls, plain = [], modeling_qwen3_vl.eager_attention_forward

    def record(module, query, key, value, *args, **kwargs):
        output, weights = plain(module, query, key, value, *args, **kwargs)
        calls.append((weights[0], key[0]))
        return output, weights

    model, inputs, _ = setting()
    monkeypatch.setattr(modeling_qwen3_vl, "eager_attention_forward", record)
    with torch.inference_mode():
        model(**inputs)
    return calls


@pytest.mark.parametrize("layer", [1, 2, 3])
def test_fastv_looks_at_the_attention_of_the_layer_before(recorded, layer):
    model, _, prompt = setting()
    weights, _ = recorded[-4:][layer - 1]
    with torch.inference_mode():
        row, kept = fastv_row(model, prompt, layer), fastv(model, prompt, 0.33, layer).kept
    expected = weights[:, -1, prompt.visual_rows].mean(0)
    assert near(row / expected.max(), expected / expected.max())
    assert kept == tuple(sorted(expected.topk(6).indices.tolist()))


@pytest.mark.parametrize("block", [-2, 0, -1])
def test_vision_statistics(recorded, block):
    model, inputs, _ = setting()
    with torch.inference_mode():
        statistics = vision_statistics(model, inputs, block)
    first = 2 * (block % 4)  # two pictures in each of four blocks
    calls = recorded[first : first + 2]
    received = torch.cat([weights.mean(0).mean(0) for weights, _ in calls])
    keys = torch.cat([keys.transpose(0, 1) for _, keys in calls]).mean(1)
    assert near(statistics.attention, received.view(-1, 4).mean(1))
    assert near(statistics.keys, keys.view(-1, 4, keys.shape[1]).mean(1))


def test_budgets():
    assert [budget(0.5, n) for n in (1, 2, 3, 5)] == [1, 1, 2, 3]
    assert budget(0.01, 9) == 1 and budget(1.0, 9) == 9
    assert [split_budget(k) for k in (64, 128, 192, 6, 2, 1)] == [
        (54, 10), (108, 20), (162, 30), (5, 1), (1, 1), (1, 0)]
    assert strided_targets([1, 4, 5, 7, 8, 9, 12], 3) == [1, 5, 8]
    assert top(torch.tensor([0.5, 0.25, 0.5, 0.5]), 2) == ([0, 2], 0.0)


# Property 32

def test_divprune_takes_what_is_far_away():
    features = torch.randn(20, 6, generator=torch.Generator().manual_seed(1))
    distance = cosine_distances(features)
    order, margin = divprune_order(features, 20)
    assert sorted(order) == list(range(20)) and margin > 0
    nearest = (distance + 9 * torch.eye(20)).min(1).values
    assert order[0] == int(nearest.argmax())
    gaps = [float(distance[order[i], order[:i]].min()) for i in range(1, 20)]
    assert gaps[1:] == sorted(gaps[1:], reverse=True)
    scale = torch.rand(20, 1, generator=torch.Generator().manual_seed(2)) + 0.1
    assert divprune_order(features * scale, 20)[0] == order


def test_divprune_takes_no_copy_twice():
    features = torch.randn(3, 6, generator=torch.Generator().manual_seed(1)).repeat(3, 1)
    order, _ = divprune_order(features, 7)
    assert len(set(order)) == 7 and len({i % 3 for i in order[:3]}) == 3


def test_divprune_works_picture_by_picture():
    _, _, prompt = setting()
    kept = divprune(prompt, 0.33).kept
    assert prompt.grids == [(2, 3), (3, 4)]
    assert sum(slot < 6 for slot in kept) == 2 and len(kept) == 2 + 4


# Property 34

def test_visionzip_gives_every_token_to_one_target():
    model, inputs, prompt = setting()
    with torch.inference_mode():
        statistics = vision_statistics(model, inputs)
        zipped = visionzip(prompt, statistics, 0.5)
        only_merged = visionzip(prompt, statistics, 0.5, split=lambda k: (0, k))
        only_pruned = visionzip(prompt, statistics, 0.5, split=lambda k: (k, 0))
    assert only_merged.kept == () and len(only_merged.targets) == 9
    assert len(only_pruned.kept) == 9 and only_pruned.weights is None
    first = statistics.attention[:6].topk(2).indices.tolist()
    assert sorted(first) == [slot for slot in zipped.kept if slot < 6]
    assert len(zipped.kept) + len(zipped.targets) == 9
    shares = zipped.weights > 0
    for slot in range(18):
        is_kept = slot in zipped.kept or slot in zipped.targets
        assert int(shares[:, slot].sum()) == (0 if is_kept else 1)
    for row, share in zip(zipped.weights, shares, strict=True):
        assert not share.any() or torch.allclose(row[share], 1 / share.sum())
    for p, target in enumerate(zipped.targets):  # targets gather within their picture
        assert not shares[p, 6:].any() if target < 6 else not shares[p, :6].any()
