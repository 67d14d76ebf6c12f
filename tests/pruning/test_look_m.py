"""LOOK-M on keys and values of one layer, against its definition written in loops."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pydstp.pruning.look_m import MERGES, LookM
from tests.pruning.plain_staged_methods import look_m

HEADS, DIM = 3, 4


def sample(n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(n, 2, HEADS, DIM, generator=generator),
            torch.rand(HEADS, n, generator=generator))


@pytest.mark.parametrize("merge", MERGES)
@pytest.mark.parametrize("recent", [0.0, 0.1, 0.6])
@pytest.mark.parametrize("spans", [[(0, 11, 4)], [(0, 3, 1), (3, 8, 5)], [(0, 1, 1), (1, 10, 1)]],
                         ids=str)
def test_every_head_keeps_and_merges_its_own(merge, recent, spans) -> None:
    visual = torch.tensor([1, 2, 3, 4, 6, 7, 8, 9, 10, 11, 15])
    kv, scores = sample(17)
    scores[:, 2:6] = 0.5  # ties
    slices = [(slice(start, start + length), quota) for start, length, quota in spans]
    text, pictures = LookM(merge=merge, recent=recent).compressed(kv, scores, visual, slices)
    assert len(text) == 6 and len(pictures) == sum(quota for *_, quota in spans)
    for head in range(HEADS):
        kept, keys, values = look_m(
            kv[:, 0, head].double().tolist(), kv[:, 1, head].double().tolist(),
            scores[head].tolist(), visual.tolist(), spans, merge, recent)
        is_visual = [row in visual.tolist() for row in kept]
        for found, flag in ((text, False), (pictures, True)):
            for part, table in ((0, keys), (1, values)):
                expected = [row for row, own in zip(table, is_visual, strict=True) if own == flag]
                torch.testing.assert_close(found[:, part, head], torch.tensor(expected),
                                           atol=1e-6, rtol=1e-5)


def test_one_evicted_token() -> None:
    """Property 40: 0.75 c + 0.25 e, and (c + e) / 2."""
    kv = torch.zeros(3, 2, 1, 2)
    kv[0, 0, 0], kv[1, 0, 0], kv[2, 0, 0] = torch.tensor([[1.0, 0], [3, 0.1], [0, 1]])  # t, e, c
    kv[:, 1, 0, 0] = torch.tensor([8.0, 4, 1])
    scores = torch.tensor([[0.0, 0.1, 0.2]])
    for merge, key, value in (("pivot", [1.5, 0.025], 7.0), ("average", [2.0, 0.05], 6.0),
                              ("none", [1.0, 0.0], 8.0)):
        text, pictures = LookM(merge=merge, recent=0.0).compressed(
            kv, scores, torch.tensor([1, 2]), [(slice(0, 2), 1)])
        torch.testing.assert_close(text[0, 0, 0], torch.tensor(key))
        assert float(text[0, 1, 0, 0]) == value
        assert pictures[:, 0, 0].tolist() == [[0.0, 1.0]]


@pytest.mark.parametrize("merge", MERGES)
def test_with_room_for_all_nothing_changes(merge) -> None:
    kv, scores = sample(9)
    visual = torch.tensor([0, 3, 4, 8])
    text, pictures = LookM(merge=merge).compressed(kv, scores, visual, [(slice(0, 4), 4)])
    assert torch.equal(pictures, kv[visual])
    assert torch.equal(text, kv[[1, 2, 5, 6, 7]])


@pytest.mark.parametrize("value", [0.0, 1e30, float("inf"), float("nan")])
def test_broken_keys_still_leave_as_many(value) -> None:
    kv, scores = sample(9)
    kv[2:5] = value
    scores[:, 2] = float("nan")
    text, pictures = LookM().compressed(kv, scores, torch.arange(1, 7), [(slice(0, 6), 2)])
    assert text.shape[0] == 3 and pictures.shape[0] == 2
