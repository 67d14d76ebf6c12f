"""Positions of a prompt and the angles they give, against worked examples."""

from __future__ import annotations

import math

import pytest
import torch

from pydstp.errors import PromptError
from pydstp.models.config import TextConfig
from pydstp.models.mrope import interleave_axes, mrope_positions, rotary_table

IMAGE = 7
TWO_IMAGES = [0, 1, 2, *[IMAGE] * 6, 3, 4, 2, *[IMAGE] * 6, 3, 5, 6]


def text_config(mrope_section: tuple[int, int, int] | None, head_dim: int = 128) -> TextConfig:
    return TextConfig(
        vocab_size=9, hidden_size=8, intermediate_size=8, num_layers=1, num_heads=1, num_kv_heads=1,
        head_dim=head_dim, rms_norm_eps=1e-6, max_position_embeddings=99, rope_theta=5e6,
        mrope_section=mrope_section,
    )  # fmt: skip


def test_positions_of_two_images() -> None:
    positions, next_position = mrope_positions(torch.tensor(TWO_IMAGES), [(4, 6), (6, 4)], IMAGE, 2)
    assert positions.tolist() == [
        [0, 1, 2, 3, 3, 3, 3, 3, 3, 6, 7, 8, 9, 9, 9, 9, 9, 9, 12, 13, 14],
        [0, 1, 2, 3, 3, 3, 4, 4, 4, 6, 7, 8, 9, 9, 10, 10, 11, 11, 12, 13, 14],
        [0, 1, 2, 3, 4, 5, 3, 4, 5, 6, 7, 8, 9, 10, 9, 10, 9, 10, 12, 13, 14],
    ]
    assert next_position == len(TWO_IMAGES) - 6
    assert positions.dtype == torch.int64


def test_a_later_turn_starts_where_the_first_ended() -> None:
    ids, grids = torch.tensor(TWO_IMAGES), [(4, 6), (6, 4)]
    whole, end = mrope_positions(ids, grids, IMAGE, 2)
    first, middle = mrope_positions(ids[:11], grids[:1], IMAGE, 2)
    second, last = mrope_positions(ids[11:], grids[1:], IMAGE, 2, start=middle)
    assert torch.equal(torch.cat((first, second), dim=1), whole)
    assert last == end


def test_text_alone_and_nothing_at_all() -> None:
    positions, next_position = mrope_positions(torch.tensor([1, 2, 3]), [], IMAGE, 2, start=4)
    assert positions.tolist() == [[4, 5, 6]] * 3
    assert next_position == 7
    positions, next_position = mrope_positions(torch.tensor([], dtype=torch.int64), [], IMAGE, 2)
    assert positions.shape == (3, 0)
    assert next_position == 0


@pytest.mark.parametrize(
    ("ids", "grids", "message"),
    [
        ([IMAGE], [], "expected 0 images, got image tokens of one more"),
        ([1, 2], [(2, 2)], "expected 1 images, got 0"),
        ([IMAGE, IMAGE, 1], [(4, 4)], "expected 4 image tokens at 0, got 2"),
        ([1, IMAGE], [(4, 4)], "expected 4 image tokens at 1, got 1"),
        ([IMAGE, IMAGE], [(2, 2)], "expected 1 images, got image tokens of one more"),
    ],
)
def test_image_tokens_and_grids_must_agree(ids: list[int], grids: list, message: str) -> None:
    with pytest.raises(PromptError, match=message):
        mrope_positions(torch.tensor(ids), grids, IMAGE, 2)


def test_axes_own_interleaved_frequencies() -> None:
    angles = torch.stack([torch.full((2, 64), float(axis)) for axis in range(3)])
    owner = interleave_axes(angles, (24, 20, 20))[1].tolist()
    assert owner[:60] == [0, 1, 2] * 20
    assert owner[60:] == [0, 0, 0, 0]


def test_rotary_angles_are_position_times_frequency() -> None:
    positions = torch.tensor([[3, 300_000], [5, 11], [900, 2]])
    table = rotary_table(positions, text_config((24, 20, 20)))
    for token in range(2):
        for i in range(64):
            axis = i % 3 if i < 60 else 0
            angle = positions[axis, token].item() / 5e6 ** (i / 64)
            tolerance = 1e-6 + 2e-7 * angle  # an fp32 angle
            assert abs(table[token, i].item() - math.cos(angle)) <= tolerance
            assert abs(table[token, 64 + i].item() - math.sin(angle)) <= tolerance


def test_one_dimensional_rope_is_mrope_with_equal_axes() -> None:
    positions = torch.arange(40)
    plain = rotary_table(positions, text_config(None))
    assert torch.equal(plain, rotary_table(positions.expand(3, -1), text_config((24, 20, 20))))
