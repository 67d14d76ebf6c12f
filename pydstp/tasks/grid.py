"""What the tasks share: seeds and splits, random grids, cell names, and the words of an answer."""
from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from .draw import ARROWS, BORDERS, FIRST_ARROW_MARK, Grid, render

SPLITS = ("train", "validation", "test")
MAX_ROWS, MAX_COLS = 9, 10  # row names stay one digit, column names one letter
SIDES = (4, 5, 6, 7, 8)
LARGE = ((9, 6), (6, 10), (9, 8), (7, 10))
COLUMNS = "ABCDEFGHIJ"

Cell = tuple[int, int]


@dataclass(frozen=True)
class Example:
    """One question about one or several pictures.

    meta: rows, cols, kind (which wording), cells (those the answer needs, in order, as (image, row,
    col)), grids (per image: digits, arrows, marks as nested lists, and the border), and what the
    task adds, such as steps.
    """

    task: str
    images: list[Image.Image]
    prompt: str
    answer: str
    seed: int
    meta: dict = field(default_factory=dict)


def make_rng(task_index: int, seed: int, split: str) -> np.random.Generator:
    """The generator of one example. No two (task, split, seed) share a stream."""
    if split not in SPLITS:
        raise ValueError(f"split: expected one of {SPLITS}, got {split!r}")
    if seed < 0:
        raise ValueError(f"seed: expected a number >= 0, got {seed}")
    return np.random.default_rng([SPLITS.index(split), task_index, seed])


def choose_size(rng: np.random.Generator, rows: int | None, cols: int | None) -> tuple[int, int]:
    """Rows and columns: those asked for, else 4..8 each and now and then a larger grid."""
    size = (int(rng.choice(SIDES)), int(rng.choice(SIDES)))
    if rng.random() < 0.1:
        size = LARGE[rng.integers(len(LARGE))]
    return check_size(rows or size[0], cols or size[1])


def check_size(rows: int, cols: int) -> tuple[int, int]:
    """Return (rows, cols) if every cell of such a grid has a name, else raise ValueError."""
    if not (2 <= rows <= MAX_ROWS and 2 <= cols <= MAX_COLS):
        limits = f"2..{MAX_ROWS} and 2..{MAX_COLS}"
        raise ValueError(f"rows, cols: expected {limits}, got {rows} and {cols}")
    return rows, cols


def random_grid(rng: np.random.Generator, rows: int, cols: int) -> Grid:
    """A grid of random digits and arrows; a third of the cells carry a mark to be ignored."""
    shape = (rows, cols)
    kinds = np.array([1, *range(FIRST_ARROW_MARK, FIRST_ARROW_MARK + 4)])  # anything but a star
    marks = np.where(rng.random(shape) < 0.33, kinds[rng.integers(0, len(kinds), shape)], 0)
    border = tuple(BORDERS)[rng.integers(len(BORDERS))] if rng.random() < 0.2 else None
    return Grid(rng.integers(0, 10, shape), rng.integers(0, 4, shape), marks, border)


def cell_name(row: int, col: int) -> str:
    """The name of a cell: a letter for the column, a number for the row, as in B3."""
    return f"{COLUMNS[col]}{row + 1}"


def describe(grid: Grid, row: int, col: int) -> str:
    """What a cell shows, in the words of an answer."""
    digit, arrow = grid.digits[row, col], ARROWS[grid.arrows[row, col]]
    return f"{cell_name(row, col)}: {digit} {arrow}."


def random_cell(rng: np.random.Generator, grid: Grid) -> Cell:
    """A cell (row, col) of the grid."""
    return int(rng.integers(grid.rows)), int(rng.integers(grid.cols))


def finish(task: str, seed: int, rng: np.random.Generator, grids: list[Grid], prompt: str,
           answer: str, **meta: Any) -> Example:
    """Draw the pictures and gather everything into an Example."""
    images = [render(grid, rng) for grid in grids]
    content = [{"digits": grid.digits.tolist(), "arrows": grid.arrows.tolist(),
                "marks": grid.marks.tolist(), "border": grid.border} for grid in grids]
    meta = {"rows": grids[0].rows, "cols": grids[0].cols, **meta, "grids": content}
    return Example(task, images, prompt, answer, seed, meta)
