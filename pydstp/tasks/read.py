"""`read`: say what one cell shows, or transcribe one row. One region holds the answer."""
from __future__ import annotations

import numpy as np

from .draw import Grid
from .grid import Example, cell_name, choose_size, describe, finish, random_cell, random_grid

KINDS = ("cell", "row")


def ask(rng: np.random.Generator, grid: Grid, kind: str) -> tuple[str, str, dict]:
    """A question about one cell or one row of a grid: (prompt, answer, meta)."""
    row, col = random_cell(rng, grid)
    if kind == "cell":
        cells, prompt = [(row, col)], f"What is in cell {cell_name(row, col)}?"
    else:
        cells, prompt = [(row, c) for c in range(grid.cols)], f"What is in row {row + 1}?"
    answer = " ".join(describe(grid, *cell) for cell in cells)
    return prompt, answer, {"kind": kind, "cells": [(0, *cell) for cell in cells]}


def make(rng: np.random.Generator, seed: int, rows: int | None = None, cols: int | None = None,
         kind: str | None = None) -> Example:
    """One example; `kind` is "cell" or "row" (default: three in four ask for a cell)."""
    rows, cols = choose_size(rng, rows, cols)
    chosen = "cell" if rng.random() < 0.75 else "row"
    if kind is not None and kind not in KINDS:
        raise ValueError(f"kind: expected one of {KINDS}, got {kind!r}")
    grid = random_grid(rng, rows, cols)
    prompt, answer, meta = ask(rng, grid, kind or chosen)
    return finish("read", seed, rng, [grid], prompt, answer, **meta)
