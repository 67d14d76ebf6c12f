"""Trails of equal length over few or many cells: the answers are right, and equally long."""

from __future__ import annotations

import pytest

from pydstp import OptionError
from pydstp.experiments.control import Control, revisiting_trail
from tests.tasks.test_tasks import DIRECTIONS, look


@pytest.mark.parametrize("distinct", range(2, 8))
def test_the_arrows_of_the_picture_lead_to_the_answer(distinct) -> None:
    for seed in range(5):
        example = revisiting_trail(seed, distinct)
        name = example.prompt.split()[2]
        words, visited = [], []
        for _ in range(example.meta["steps"] + 1):
            digit, arrow = look(example, 0, name)
            words.append(f"{name}: {digit} {arrow}.")
            visited.append(name)
            right, down = DIRECTIONS[arrow]
            name = f"{chr(ord(name[0]) + right)}{int(name[1:]) + down}"
        assert example.answer == " ".join([*words, f"The last digit is {digit}."])
        assert len(set(visited)) == distinct == len(set(example.meta["cells"]))


def test_all_answers_are_equally_long() -> None:
    counts = {len(example.answer.split()) for example in Control(3)}
    assert len(counts) == 1
    assert [example.meta["distinct"] for example in Control(2, steps=3)] == [2, 2, 3, 3, 4, 4]
    assert len(list(Control(2))) == len(Control(2)) == 12


def test_the_same_numbers_give_the_same_example() -> None:
    first, again, other = (revisiting_trail(seed, 3) for seed in (1, 1, 2))
    assert first.images[0].tobytes() == again.images[0].tobytes()
    assert first.images[0].tobytes() != other.images[0].tobytes()


@pytest.mark.parametrize("seed, distinct, steps", [(0, 1, 6), (0, 8, 6), (0, 2, 0), (-1, 2, 6),
                                                   (0, 2, 7)])
def test_numbers_are_checked(seed, distinct, steps) -> None:
    with pytest.raises(OptionError):
        revisiting_trail(seed, distinct, steps)
