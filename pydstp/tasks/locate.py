"""`locate`: name every cell that shows the thing described. The answer may lie anywhere."""
from __future__ import annotations

import numpy as np

from .draw import ARROWS, Grid
from .grid import Example, cell_name, choose_size, finish, random_grid

KINDS = ("digit", "both")
MAX_HITS = 4
DECOYS = 0.25  # share of the other cells that show the digit with another arrow


def thin_out(rng: np.random.Generator, grid: Grid, digit: int, arrow: int | None,
             hits: int) -> None:
    """Change cells until exactly `hits` match the digit (and the arrow, if given).

    With an arrow, some of the others show the digit too, so that neither alone gives the answer.
    """
    shape = grid.digits.shape
    if arrow is not None:
        decoy = rng.random(shape) < DECOYS
        grid.digits[decoy] = digit
        grid.arrows[decoy] = ((arrow + rng.integers(1, 4, shape)) % 4)[decoy]
    wanted = np.ones(shape, bool) if arrow is None else grid.arrows == arrow
    match = wanted & (grid.digits == digit)
    others = (digit + rng.integers(1, 10, shape)) % 10
    grid.digits[match] = others[match]
    chosen = rng.permutation(grid.digits.size)[:hits]
    grid.digits.flat[chosen] = digit
    if arrow is not None:
        grid.arrows.flat[chosen] = arrow


def matches(grid: Grid, digit: int, arrow: int | None) -> list[tuple[int, int]]:
    """Cells (row, col) that match, in reading order."""
    match = grid.digits == digit
    if arrow is not None:
        match &= grid.arrows == arrow
    return [(int(row), int(col)) for row, col in np.argwhere(match)]


def make(rng: np.random.Generator, seed: int, rows: int | None = None, cols: int | None = None,
         kind: str | None = None, hits: int | None = None) -> Example:
    """One example; `kind` is "digit" or "both" (digit and arrow), `hits` is 0..4.

    By default digit and arrow with one hit, or none in a fifth of the examples: more hits the
    embedded checkpoint was not taught. Two words name what is sought, so it is looked up behind
    the first layer; a digit alone is one token and is found in the first.
    """
    rows, cols = choose_size(rng, rows, cols)
    kind = kind or "both"
    if kind not in KINDS:
        raise ValueError(f"kind: expected one of {KINDS}, got {kind!r}")
    limit = min(MAX_HITS, rows * cols)
    hits = int(rng.random() < 0.8) if hits is None else hits
    if not 0 <= hits <= limit:
        raise ValueError(f"hits: expected 0..{limit}, got {hits}")
    grid = random_grid(rng, rows, cols)
    digit, arrow = int(rng.integers(10)), int(rng.integers(4)) if kind == "both" else None
    thin_out(rng, grid, digit, arrow, hits)
    cells = matches(grid, digit, arrow)
    thing = f"the digit {digit}" + ("" if arrow is None else f" with an arrow {ARROWS[arrow]}")
    answer = ", ".join(cell_name(*cell) for cell in cells) or "none"
    return finish("locate", seed, rng, [grid], f"Which cells show {thing}?", answer, kind=kind,
                  digit=digit, arrow=arrow, cells=[(0, *cell) for cell in cells])
