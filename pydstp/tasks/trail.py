"""`trail`: follow the red arrows from cell to cell. Each step needs a region the last one names."""
from __future__ import annotations

import numpy as np

from .draw import ARROWS, Grid
from .grid import Cell, Example, cell_name, choose_size, describe, finish, random_cell, random_grid

MAX_STEPS = 6
MOVES = ((-1, 0), (0, 1), (1, 0), (0, -1))  # row and column change, in ARROWS order


def walk(rng: np.random.Generator, grid: Grid, steps: int) -> list[Cell]:
    """A path of steps + 1 different cells, each beside the one before it."""
    while True:
        path = [random_cell(rng, grid)]
        while len(path) <= steps:
            row, col = path[-1]
            near = [(row + dy, col + dx) for dy, dx in MOVES]
            free = [(y, x) for y, x in near
                    if 0 <= y < grid.rows and 0 <= x < grid.cols and (y, x) not in path]
            if not free:
                break
            path.append(free[rng.integers(len(free))])
        if len(path) > steps:
            return path


def lay(grid: Grid, path: list[Cell]) -> None:
    """Turn the arrow of every cell of the path but the last towards the next cell."""
    for (row, col), (next_row, next_col) in zip(path, path[1:]):
        grid.arrows[row, col] = MOVES.index((next_row - row, next_col - col))


def make(rng: np.random.Generator, seed: int, rows: int | None = None, cols: int | None = None,
         steps: int | None = None) -> Example:
    """One example; `steps` is 1..6 (default: any of them)."""
    rows, cols = choose_size(rng, rows, cols)
    chosen = int(rng.integers(1, MAX_STEPS + 1))
    steps = min(chosen, rows * cols - 1) if steps is None else steps
    if not 1 <= steps <= min(MAX_STEPS, rows * cols - 1):
        raise ValueError(f"steps: expected 1..{min(MAX_STEPS, rows * cols - 1)}, got {steps}")
    grid = random_grid(rng, rows, cols)
    path = walk(rng, grid, steps)
    lay(grid, path)
    prompt = (f"Start at {cell_name(*path[0])} and follow the red arrows for {steps} "
              f"step{'s' if steps > 1 else ''}. What is the last digit?")
    answer = " ".join(describe(grid, *cell) for cell in path)
    answer += f" The last digit is {grid.digits[path[-1]]}."
    return finish("trail", seed, rng, [grid], prompt, answer, kind="trail", steps=steps,
                  cells=[(0, *cell) for cell in path], arrow_names=ARROWS)
