"""Figures and pictures of answers: they are written, and show what they should."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pydstp import OptionError, PydstpError
from pydstp.experiments import overlays, plots
from pydstp.generation import ImageInfo, StepLog
from tests.experiments.fakes import generation, report

WHITE = Image.new("RGB", (96, 64), "white")
BLACK = Image.new("RGB", (96, 64), "black")


def row(method: str, accuracy: float, visible: float, forwards: float = 1.0) -> dict:
    return {"task": "trail", "method": method, "retention_ratio": 1 / 3, "accuracy": accuracy,
            "shift": "none" if forwards == 1 else "dstp", "mean_visible": visible,
            "bytes_per_token": 1e6 * visible, "forwards_per_token": forwards}


def is_png(path: Path) -> bool:
    with Image.open(path) as picture:
        return picture.format == "PNG" and min(picture.size) > 100


def test_the_front_of_a_sweep(tmp_path) -> None:
    pytest.importorskip("matplotlib")
    rows = [row("none", 1.0, 1.0), row("fastv", 0.1, 0.33), row("fastv", 0.9, 0.4, 1.5),
            row("fastv", 0.5, 0.45, 2.0)]
    front = plots.plot_pareto(rows, tmp_path / "front.png")
    assert front == [rows[1], rows[2], rows[0]] and is_png(tmp_path / "front.png")
    plots.plot_pareto(rows[1:], tmp_path / "no_full.png")


def test_a_figure_that_cannot_be_written_is_an_error(tmp_path) -> None:
    pytest.importorskip("matplotlib")
    with pytest.raises(OptionError, match="missing"):
        plots.plot_distribution({"read": {0: 1}}, tmp_path / "missing" / "x.png")


def test_a_missing_matplotlib_is_named(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(PydstpError, match=r"pip install 'pydstp\[plots\]'"):
        plots.require_matplotlib()


@pytest.mark.parametrize("size, tokens, grid", [
    ((192, 160), 30, (5, 6)), ((32, 32), 1, (1, 1)), ((640, 320), 200, (10, 20))])
def test_cells_of_a_picture(size, tokens, grid) -> None:
    assert overlays.cell_grid(ImageInfo(size, size, tokens, False)) == grid


def steps_of_three() -> list[StepLog]:
    """Tokens 0 and 2 are kept; 4 comes in the second step and goes after it."""
    seen = (0.9, 0.0, 0.1, 0.0, 0.0, 0.0)
    return [StepLog(0.5, "base", 2, 6, (), (), False, seen),
            StepLog(None, "expanded", 3, 6, (4,), (), True, seen),
            StepLog(0.9, "base", 2, 6, (), (4,), False, seen)]


def test_frames_follow_the_log() -> None:
    log = report(num_visual=6, kept=2, steps=steps_of_three(), anchor=(0.5, 0, 0.5, 0, 0, 0))
    frames = overlays.frames_of(log, ["A", " ", "up", "end"])
    assert [frame.visible for frame in frames] == [{0, 2}, {0, 2, 4}, {0, 2}]
    assert [frame.returned for frame in frames] == [set(), {4}, set()]
    assert [frame.caption for frame in frames] == ["A 0.50", "_ +", "up 0.90"]


def test_merged_tokens_have_no_cell() -> None:
    steps = [StepLog(0.5, "base", 2, 7, (), (), False, (0.5, 0, 0, 0, 0, 0, 0.5))]
    log = report(num_visual=6, kept=2, steps=steps, anchor=(0.5, 0, 0, 0, 0, 0, 0.5))
    frame, = overlays.frames_of(log, ["A"])
    assert frame.visible == {0} and len(frame.attention) == 6


def test_a_frame_shows_what_is_hidden_returned_and_attended() -> None:
    frame = overlays.Frame("x", frozenset({0, 4}), frozenset({4}), (1.0, 0, 0, 0, 0, 0))
    pixels = np.asarray(overlays.draw_frame([BLACK], [(2, 3)], frame))[overlays.CAPTION:]
    side = pixels.shape[1] // 3
    middle = [tuple(pixels[row * side + side // 2, col * side + side // 2])
              for row in range(2) for col in range(3)]
    assert middle[0] == (110, 15, 15)  # attended: half red
    assert middle[4] == (0, 0, 0) and {middle[i] for i in (1, 2, 3, 5)} == {(191, 191, 191)}
    assert tuple(pixels[side, side]) == overlays.GREEN and tuple(pixels[2, 2]) == overlays.RED


def test_pictures_stand_side_by_side() -> None:
    frame = overlays.Frame("é", frozenset({0}), frozenset(), (0.0,) * 6 + (1.0,) + (0.0,) * 5)
    one = overlays.draw_frame([WHITE], [(2, 3)], frame)
    two = overlays.draw_frame([WHITE, WHITE], [(2, 3)] * 2, frame)
    assert two.width > 2 * one.width and two.height == one.height


def test_an_answer_on_one_sheet(tmp_path) -> None:
    answer = generation("", report(num_visual=6, kept=2, steps=steps_of_three()))
    answer = type(answer)(**{**vars(answer), "images": (ImageInfo((96, 64), (96, 64), 6, False),)})
    overlays.draw_answer([WHITE], answer, ["a", "b", "c", "d"], tmp_path / "sheet.png")
    assert is_png(tmp_path / "sheet.png")
    with pytest.raises(OptionError, match="missing"):
        overlays.draw_answer([WHITE], answer, ["a"], tmp_path / "missing" / "x.png")


@pytest.mark.parametrize("steps, num_tokens", [([], 6), (steps_of_three(), 7)])
def test_what_cannot_be_drawn_is_left_out(steps, num_tokens, tmp_path) -> None:
    answer = generation("", report(num_visual=6, steps=steps))
    info = ImageInfo((96, 64), (96, 64), num_tokens, False)
    answer = type(answer)(**{**vars(answer), "images": (info,)})
    overlays.draw_answer([WHITE], answer, ["a", "b"], tmp_path / "empty.png")
    assert not (tmp_path / "empty.png").exists()
