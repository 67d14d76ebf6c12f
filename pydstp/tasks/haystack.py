"""`haystack`: several pictures, one cell of one of them counts; a border or a star says which."""
from __future__ import annotations

import numpy as np

from .draw import BORDERS, STAR, Grid
from .grid import Cell, Example, cell_name, check_size, describe, finish, random_cell, random_grid

KINDS = ("border", "star")
MAX_IMAGES = 4  # that are drawn
MOST_IMAGES = 10  # that can be asked for
SIDES = (2, 3, 4, 5)


def ask(rng: np.random.Generator, grids: list[Grid], kind: str, target: int,
        cell: Cell) -> str:
    """Make one picture or cell stand out, and return a question about it."""
    if kind == "star":
        grids[target].marks[cell] = STAR
        return "What is in the cell with the star?"
    colours = [tuple(BORDERS)[index] for index in rng.permutation(len(BORDERS))]
    for grid, colour in zip(grids, colours):
        grid.border = colour
    return f"In the picture with the {colours[target]} border, what is in cell {cell_name(*cell)}?"


def make(rng: np.random.Generator, seed: int, rows: int | None = None, cols: int | None = None,
         kind: str | None = None, num_images: int | None = None) -> Example:
    """One example; `kind` is "border" or "star", `num_images` is 1..10, all of one size.

    By default there are 2 to 4 pictures. More than there are border colours ask for the star.
    """
    rows, cols = check_size(rows or int(rng.choice(SIDES)), cols or int(rng.choice(SIDES)))
    asked, kind = kind, kind or KINDS[rng.integers(len(KINDS))]
    if kind not in KINDS:
        raise ValueError(f"kind: expected one of {KINDS}, got {kind!r}")
    count = int(rng.integers(2, MAX_IMAGES + 1)) if num_images is None else num_images
    if not asked and count > len(BORDERS):
        kind = "star"
    most = MOST_IMAGES if kind == "star" else len(BORDERS)
    if not 1 <= count <= most:
        raise ValueError(f"num_images: expected 1..{most} with kind {kind!r}, got {count}")
    grids = [random_grid(rng, rows, cols) for _ in range(count)]
    target = int(rng.integers(count))
    cell = random_cell(rng, grids[target])
    prompt = ask(rng, grids, kind, target, cell)
    return finish("haystack", seed, rng, grids, prompt, describe(grids[target], *cell), kind=kind,
                  target=target, cells=[(target, *cell)])
