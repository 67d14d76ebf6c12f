"""Pictures of an answer: what each decode step could see, what came back, where it looked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from pydstp.errors import OptionError
from pydstp.generation import Generation, ImageInfo, ShiftReport

COLUMNS = 6
SIZE = 180  # pixels of the longer side of a frame
CAPTION = 14
HIDDEN = 0.25  # of a hidden cell's colour that is left
GREEN, RED = (20, 160, 60), (220, 30, 30)


@dataclass(frozen=True)
class Frame:
    """One decode step, by visual token in prompt order.

    Attributes:
        caption: the token that the step was fed, and what the policy did.
        visible: tokens that the step read.
        returned: those of them that are not in the base set.
        attention: [num_visual] the watched attention, any scale.
    """

    caption: str
    visible: frozenset[int]
    returned: frozenset[int]
    attention: Sequence[float]


def cell_grid(info: ImageInfo) -> tuple[int, int]:
    """(rows, cols) of the visual tokens of a picture: each covers a square of its area."""
    width, height = info.resized
    side = math.sqrt(width * height / info.num_tokens)
    return round(height / side), round(width / side)


def frames_of(report: ShiftReport, tokens: Sequence[str]) -> list[Frame]:
    """The steps of an answer that was logged with its attention.

    Args:
        report: with `steps` and `anchor`.
        tokens: the text of every token of the answer; step l feeds the l-th.
    """
    originals = set(range(report.num_visual))
    steps = report.steps or []
    base = {slot for slot in originals for values in [report.anchor, *(s.attention for s in steps)]
            if values is not None and slot < len(values) and values[slot] > 0}
    visible, frames = set(base), []
    for token, step in zip(tokens, steps):
        visible = ((visible | set(step.came)) - set(step.went)) & originals
        similarity = "" if step.similarity is None else f" {step.similarity:.2f}"
        frames.append(Frame(
            f"{token.strip() or '_'}{similarity}{' +' if step.state == 'expanded' else ''}",
            frozenset(visible), frozenset(visible - base),
            (step.attention or ())[:report.num_visual]))
    return frames


def draw_frame(pictures: Sequence[Image.Image], grids: Sequence[tuple[int, int]],
               frame: Frame) -> Image.Image:
    """A step on its pictures, side by side: hidden cells pale, returned ones framed in green, the
    attended ones tinted red and the most attended framed."""
    first, parts = 0, []
    peak = max(frame.attention, default=0.0)
    for picture, (rows, cols) in zip(pictures, grids, strict=True):
        parts.append(_draw_picture(picture, (rows, cols), frame, first, peak))
        first += rows * cols
    sheet = Image.new("RGB", (sum(p.width for p in parts) + 4 * (len(parts) - 1),
                              max(p.height for p in parts) + CAPTION), "white")
    left = 0
    for part in parts:
        sheet.paste(part, (left, CAPTION))
        left += part.width + 4
    caption = frame.caption.encode("ascii", "replace").decode()
    ImageDraw.Draw(sheet).text((2, 1), caption, fill="black")
    return sheet


def _draw_picture(picture: Image.Image, grid: tuple[int, int], frame: Frame, first: int,
                  peak: float) -> Image.Image:
    rows, cols = grid
    side = max(4, SIZE // max(rows, cols))
    pixels = np.asarray(picture.convert("RGB").resize((cols * side, rows * side)), np.float64)
    strength = np.ones((rows, cols, 1))
    tint = np.zeros((rows, cols, 1))
    for cell in range(rows * cols):
        slot, place = first + cell, divmod(cell, cols)
        strength[place] = 1.0 if slot in frame.visible else HIDDEN
        if slot < len(frame.attention) and peak > 0:
            tint[place] = 0.5 * frame.attention[slot] / peak
    strength, tint = (np.kron(a[..., 0], np.ones((side, side)))[..., None]
                      for a in (strength, tint))
    pixels = 255 - (255 - pixels) * strength
    pixels = pixels * (1 - tint) + np.array(RED) * tint
    drawn = Image.fromarray(pixels.astype(np.uint8))
    _outline(drawn, grid, frame, first, peak)
    return drawn


def _outline(drawn: Image.Image, grid: tuple[int, int], frame: Frame, first: int,
             peak: float) -> None:
    rows, cols = grid
    side, draw = drawn.width // cols, ImageDraw.Draw(drawn)
    for cell in range(rows * cols):
        slot, (row, col) = first + cell, divmod(cell, cols)
        box = (col * side, row * side, (col + 1) * side - 1, (row + 1) * side - 1)
        if slot in frame.returned:
            draw.rectangle(box, outline=GREEN, width=2)
        if slot < len(frame.attention) and 0 < peak == frame.attention[slot]:
            draw.rectangle([box[0] + 2, box[1] + 2, box[2] - 2, box[3] - 2], outline=RED, width=2)


def draw_answer(pictures: Sequence[Image.Image], answer: Generation, tokens: Sequence[str],
                path: Path) -> None:
    """All steps of an answer on one sheet, in reading order, as PNG.

    Nothing is drawn for an answer without decode steps, or where visual tokens are not the cells of
    one grid per picture (tiles and thumbnails).

    Raises:
        OptionError: the file cannot be written.
    """
    grids = [cell_grid(info) for info in answer.images]
    if [rows * cols for rows, cols in grids] != [info.num_tokens for info in answer.images]:
        return
    drawn = [draw_frame(pictures, grids, frame) for frame in frames_of(answer.shift, tokens)]
    if not drawn:
        return
    width, height = drawn[0].width + 8, drawn[0].height + 8
    lines = -(-len(drawn) // COLUMNS)
    sheet = Image.new("RGB", (min(COLUMNS, len(drawn)) * width, lines * height), "white")
    for number, frame in enumerate(drawn):
        row, column = divmod(number, COLUMNS)
        sheet.paste(frame, (column * width + 4, row * height + 4))
    try:
        sheet.save(path, format="PNG")
    except OSError as error:
        raise OptionError(f"{path}: expected a file that can be written: {error}") from None
