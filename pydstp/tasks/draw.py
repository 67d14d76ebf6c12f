"""Pictures of grids, drawn from small sprites with numpy alone.

A cell is 32 x 32 pixels: one visual token of Qwen3-VL (patch 16, 2 x 2 patches merged). It shows a
digit and a red arrow on a pale background, and perhaps a mark in another colour that means nothing.
"""
from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

CELL = 32
ARROWS = ("up", "right", "down", "left")
BORDERS = {"blue": (40, 80, 220), "green": (30, 150, 60), "orange": (240, 150, 20),
           "purple": (150, 40, 190), "black": (20, 20, 20)}
NO_MARK, DOT, STAR, FIRST_ARROW_MARK = 0, 1, 2, 3  # marks 3..6 are small arrows, in ARROWS order
MARK_COLOURS = np.array([(60, 110, 230), (60, 170, 90), (130, 130, 130)], dtype=np.int16)
STAR_COLOUR = (235, 175, 0)
RED = (215, 30, 35)
INK = (30, 30, 45)

_DIGITS = (
    ".###. #...# #..## #.#.# ##..# #...# .###.", "..#.. .##.. ..#.. ..#.. ..#.. ..#.. .###.",
    ".###. #...# ....# ...#. ..#.. .#... #####", ".###. #...# ....# ..##. ....# #...# .###.",
    "...#. ..##. .#.#. #..#. ##### ...#. ...#.", "##### #.... ####. ....# ....# #...# .###.",
    ".###. #.... #.... ####. #...# #...# .###.", "##### ....# ...#. ...#. ..#.. ..#.. ..#..",
    ".###. #...# #...# .###. #...# #...# .###.", ".###. #...# #...# .#### ....# ....# .###.",
)
_STAR = ("....#.... ....#.... ...###... ######### .#######. ..#####.. "
         ".###.###. .##...##. #.......#")


def _bitmap(text: str, scale: int = 1) -> np.ndarray:
    """Turn rows of '#' and '.' into a mask [h * scale, w * scale] of bool."""
    rows = [[char == "#" for char in row] for row in text.split()]
    return np.kron(np.array(rows), np.ones((scale, scale), dtype=bool))


def _arrows(size: int) -> np.ndarray:
    """Masks [4, size, size] of an arrow pointing up, right, down and left; `size` is odd."""
    y, x = np.mgrid[:size, :size]
    offset = np.abs(x - size // 2)
    half = size // 2 + 1
    up = np.where(y < half, offset <= y, offset <= size // 8)
    return np.stack([np.rot90(up, -turn) for turn in range(4)])


DIGIT_MASKS = np.stack([_bitmap(text, 2) for text in _DIGITS])  # [10, 14, 10]
ARROW_MASKS = _arrows(13)  # [4, 13, 13]


def _marks() -> np.ndarray:
    """Masks [7, 9, 9]: nothing, dot, star, and the four small arrows."""
    y, x = np.mgrid[-4:5, -4:5]
    arrows = np.pad(_arrows(7), ((0, 0), (1, 1), (1, 1)))
    return np.stack([np.zeros((9, 9), dtype=bool), y * y + x * x <= 7, _bitmap(_STAR), *arrows])


MARK_MASKS = _marks()


@dataclass
class Grid:
    """What one picture shows. All arrays are [rows, cols]; `border` is a key of BORDERS or None."""

    digits: np.ndarray
    arrows: np.ndarray
    marks: np.ndarray
    border: str | None = None

    @property
    def rows(self) -> int:
        """Number of rows."""
        return self.digits.shape[0]

    @property
    def cols(self) -> int:
        """Number of columns."""
        return self.digits.shape[1]


def _stamp(canvas: np.ndarray, masks: np.ndarray, top: np.ndarray, left: np.ndarray,
           colours: np.ndarray) -> None:
    """Paint masks [n, h, w] at (top, left) [n] in colours [n] onto canvas [n, 32, 32]."""
    cell, y, x = np.nonzero(masks)
    start = np.arange(len(masks)) * CELL * CELL + top * CELL + left
    canvas.reshape(-1)[start[cell] + y * CELL + x] = colours[cell]


def _pack(colours: np.ndarray) -> np.ndarray:
    """Colours [n, 3] as one number each [n], so that a pixel is one write."""
    padded = np.zeros((len(colours), 4), dtype=np.uint8)
    padded[:, :3] = colours.clip(0, 255)
    return padded.view("<u4")[:, 0]


def _near(rng: np.random.Generator, colour: tuple[int, int, int], count: int) -> np.ndarray:
    """`count` packed colours [count] close to one colour."""
    return _pack(np.array(colour) + rng.integers(-20, 21, (count, 3)))


def render(grid: Grid, rng: np.random.Generator) -> Image.Image:
    """Draw a grid: an RGB image, 32 * rows pixels high. `rng` decides colours and jitter."""
    count = grid.rows * grid.cols
    pale = rng.integers(222, 246, 3) + rng.integers(-10, 11, (count, 3))
    canvas = np.empty((count, CELL, CELL), dtype="<u4")
    canvas[:] = _pack(pale)[:, None, None]
    jitter = rng.integers(0, 3, (6, count))
    _stamp(canvas, DIGIT_MASKS[grid.digits.ravel()], 4 + jitter[0], 3 + jitter[1],
           _near(rng, INK, count))
    _stamp(canvas, ARROW_MASKS[grid.arrows.ravel()], 4 + jitter[2], 16 + jitter[3],
           _near(rng, RED, count))
    marks = grid.marks.ravel()
    colours = MARK_COLOURS[rng.integers(0, len(MARK_COLOURS), count)]
    colours = np.where((marks == STAR)[:, None], STAR_COLOUR, colours)
    _stamp(canvas, MARK_MASKS[marks], 21 + jitter[4], 4 + 6 * jitter[5], _pack(colours))
    pixels = canvas.reshape(grid.rows, grid.cols, CELL, CELL).swapaxes(1, 2)
    pixels = pixels.reshape(grid.rows * CELL, grid.cols * CELL)
    if grid.border is not None:
        _frame(pixels, _pack(np.array([BORDERS[grid.border]]))[0])
    return Image.frombytes("RGB", pixels.shape[::-1], pixels.tobytes(), "raw", "RGBX")


def _frame(pixels: np.ndarray, colour: np.uint32, width: int = 3) -> None:
    """Paint a border of `width` pixels onto packed pixels [h, w]."""
    for edge in (pixels[:width], pixels[-width:], pixels[:, :width], pixels[:, -width:]):
        edge[:] = colour
