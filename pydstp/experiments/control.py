"""A control for the length of answers: trails of equal length over few or many different cells.

Longer trails need more regions and more words at once, so that a method which fails on them may
fail for either reason. Here every answer has the same number of words, and only the number of
different cells varies: the last arrow of the path points back, and the rest of the trail goes to
and fro between two cells.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from pydstp.config import require_int
from pydstp.tasks.draw import ARROWS
from pydstp.tasks.grid import Cell, Example, cell_name, describe, finish, random_grid
from pydstp.tasks.trail import MAX_STEPS, lay, walk

STREAM = 1000  # apart from those of the tasks
SIDE = 6


def revisiting_trail(seed: int, distinct: int, steps: int = MAX_STEPS) -> Example:
    """A trail of `steps` steps over `distinct` different cells of a 6 x 6 grid.

    Args:
        seed: any number >= 0; the same numbers give the same example.
        distinct: 2 .. steps + 1; the largest is an ordinary trail.
        steps: 1 .. 6.

    Raises:
        OptionError: a number outside its range.
    """
    require_int("steps", steps, 1, MAX_STEPS)
    require_int("distinct", distinct, 2, steps + 1)
    require_int("seed", seed, 0)
    rng = np.random.default_rng([STREAM, distinct, steps, seed])
    grid = random_grid(rng, SIDE, SIDE)
    path = walk(rng, grid, distinct - 1)
    lay(grid, path)
    cells = _follow(path, steps)
    if distinct <= steps:
        lay(grid, [path[-1], path[-2]])
    prompt = (f"Start at {cell_name(*cells[0])} and follow the red arrows for {steps} "
              f"step{'s' if steps > 1 else ''}. What is the last digit?")
    answer = " ".join(describe(grid, *cell) for cell in cells)
    answer += f" The last digit is {grid.digits[cells[-1]]}."
    return finish("trail", seed, rng, [grid], prompt, answer, kind="control", steps=steps,
                  distinct=distinct, cells=[(0, *cell) for cell in cells], arrow_names=ARROWS)


def _follow(path: list[Cell], steps: int) -> list[Cell]:
    """The path, then to and fro between its last two cells: steps + 1 cells."""
    cells = list(path)
    while len(cells) <= steps:
        cells.append(cells[-2])
    return cells


@dataclass(frozen=True)
class Control:
    """`per_count` trails for every number of different cells, from few to many."""

    per_count: int
    steps: int = MAX_STEPS

    def __len__(self) -> int:
        return self.per_count * self.steps

    def __iter__(self) -> Iterator[Example]:
        return (revisiting_trail(seed, distinct, self.steps)
                for distinct in range(2, self.steps + 2) for seed in range(self.per_count))
