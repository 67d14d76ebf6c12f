"""The tasks: determinism, splits, and gold answers checked by a solver of its own."""
from __future__ import annotations

import hashlib
import re

import numpy as np
import pytest

from pydstp.tasks import SPLITS, TASKS, is_correct, make_example
from pydstp.tasks.draw import ARROW_MASKS, DIGIT_MASKS

NUM_EXAMPLES = 60
DIRECTIONS = {"up": (0, -1), "right": (1, 0), "down": (0, 1), "left": (-1, 0)}
WORDS = ("up", "right", "down", "left")


def fingerprint(example) -> str:
    """One hash of everything an example holds."""
    digest = hashlib.sha256(repr((example.prompt, example.answer, example.meta)).encode())
    for image in example.images:
        digest.update(image.tobytes())
    return digest.hexdigest()


def look(example, image: int, name: str) -> tuple[int, str]:
    """Digit and arrow at a cell name such as C4, read from meta."""
    grid = example.meta["grids"][image]
    col, row = "ABCDEFGHIJ".index(name[0]), int(name[1:]) - 1
    return grid["digits"][row][col], WORDS[grid["arrows"][row][col]]


def entry(example, image: int, name: str) -> str:
    """The answer's words for one cell."""
    digit, arrow = look(example, image, name)
    return f"{name}: {digit} {arrow}."


def solve_read(example) -> str:
    """Answer a `read` question from its words."""
    cell = re.fullmatch(r"What is in cell (\w\d)\?", example.prompt)
    if cell:
        return entry(example, 0, cell[1])
    row = re.fullmatch(r"What is in row (\d)\?", example.prompt)[1]
    letters = "ABCDEFGHIJ"[:example.meta["cols"]]
    return " ".join(entry(example, 0, letter + row) for letter in letters)


def solve_trail(example) -> str:
    """Answer a `trail` question by walking."""
    match = re.fullmatch(r"Start at (\w\d) and follow the red arrows for (\d) steps?\. "
                         r"What is the last digit\?", example.prompt)
    name, said = match[1], [entry(example, 0, match[1])]
    for _ in range(int(match[2])):
        right, down = DIRECTIONS[look(example, 0, name)[1]]
        name = chr(ord(name[0]) + right) + str(int(name[1:]) + down)
        said.append(entry(example, 0, name))
    return " ".join(said) + f" The last digit is {look(example, 0, name)[0]}."


def solve_locate(example) -> str:
    """Answer a `locate` question by looking at every cell."""
    match = re.fullmatch(r"Which cells show the digit (\d)(?: with an arrow (\w+))?\?",
                         example.prompt)
    names = [letter + str(row + 1) for row in range(example.meta["rows"])
             for letter in "ABCDEFGHIJ"[:example.meta["cols"]]]
    found = [name for name in names if look(example, 0, name)[0] == int(match[1])
             and match[2] in (None, look(example, 0, name)[1])]
    return ", ".join(found) or "none"


def solve_haystack(example) -> str:
    """Answer a `haystack` question by looking at every picture."""
    grids = example.meta["grids"]
    if example.prompt == "What is in the cell with the star?":
        stars = [(image, f"{'ABCDEFGHIJ'[col]}{row + 1}") for image, grid in enumerate(grids)
                 for row, marks in enumerate(grid["marks"]) for col, mark in enumerate(marks)
                 if mark == 2]
        assert len(stars) == 1, "exactly one star in all pictures"
        return entry(example, *stars[0])
    match = re.fullmatch(r"In the picture with the (\w+) border, what is in cell (\w\d)\?",
                         example.prompt)
    borders = [grid["border"] for grid in grids]
    assert borders.count(match[1]) == 1, "exactly one picture has that border"
    return entry(example, borders.index(match[1]), match[2])


SOLVERS = {"read": solve_read, "trail": solve_trail, "locate": solve_locate,
           "haystack": solve_haystack}


def test_every_task_has_a_solver():
    assert set(SOLVERS) == set(TASKS)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("split", SPLITS)
def test_gold_answers(task, split):
    for seed in range(NUM_EXAMPLES):
        example = make_example(task, seed, split)
        assert example.answer == SOLVERS[task](example), (seed, example.prompt)
        assert is_correct(example, f" {example.answer}\n")
        assert not is_correct(example, example.answer + " More.")


@pytest.mark.parametrize("task", TASKS)
def test_same_seed_same_example(task):
    for seed in (0, 1, 12345):
        one, two = (make_example(task, seed, "test") for _ in range(2))
        assert fingerprint(one) == fingerprint(two)


@pytest.mark.parametrize("task", TASKS)
def test_splits_and_seeds_share_no_picture(task):
    seen = set()
    for split in SPLITS:
        for seed in range(NUM_EXAMPLES):
            seen.update(hashlib.sha256(image.tobytes() + str(image.size).encode()).digest()
                        for image in make_example(task, seed, split).images)
    expected = sum(len(make_example(task, seed, split).images)
                   for split in SPLITS for seed in range(NUM_EXAMPLES))
    assert len(seen) == expected


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize(("rows", "cols"), [(2, 2), (3, 7), (9, 10), (8, 8)])
def test_picture_size_and_needed_cells(task, rows, cols):
    example = make_example(task, 5, rows=rows, cols=cols)
    assert (example.meta["rows"], example.meta["cols"]) == (rows, cols)
    for image in example.images:
        assert image.mode == "RGB" and image.size == (32 * cols, 32 * rows)
    for image, row, col in example.meta["cells"]:
        assert 0 <= image < len(example.images) and 0 <= row < rows and 0 <= col < cols


def test_sizes_vary_and_some_are_not_square():
    sizes = {make_example("trail", seed).images[0].size for seed in range(200)}
    assert len(sizes) > 20 and any(width != height for width, height in sizes)


def test_needed_cells_follow_the_trail():
    example = make_example("trail", 3, rows=8, cols=8, steps=6)
    named = re.findall(r"(\w\d): ", example.answer)
    cells = [f"{'ABCDEFGH'[col]}{row + 1}" for _, row, col in example.meta["cells"]]
    assert named == cells and len(set(cells)) == 7  # never twice the same cell


@pytest.mark.parametrize("hits", range(5))
@pytest.mark.parametrize("kind", ["digit", "both"])
def test_locate_number_of_hits(hits, kind):
    for seed in range(20):
        example = make_example("locate", seed, hits=hits, kind=kind)
        assert len(example.meta["cells"]) == hits
        assert example.answer == solve_locate(example)


@pytest.mark.parametrize("kind", ["border", "star"])
@pytest.mark.parametrize("num_images", [1, 2, 4, 5])
def test_haystack_number_of_images(kind, num_images):
    example = make_example("haystack", 1, kind=kind, num_images=num_images)
    assert len(example.images) == num_images and example.meta["kind"] == kind


def test_a_large_haystack_has_a_star():
    for seed in range(10):
        example = make_example("haystack", seed, num_images=10)
        assert len(example.images) == 10 and example.meta["kind"] == "star"
        assert example.answer == solve_haystack(example)


def read_cell(pixels: np.ndarray) -> tuple[int, int]:
    """Digit and arrow seen in the pixels [32, 32, 3] of one cell, by colour and shape."""
    pixels = pixels.astype(int)
    ink = (pixels.max(2) < 80)[3:22, :16]
    red = ((pixels[..., 0] - pixels[..., 1:].max(2)) > 100)[3:22, 14:]
    return match_shape(ink, DIGIT_MASKS), match_shape(red, ARROW_MASKS)


def match_shape(found: np.ndarray, shapes: np.ndarray) -> int:
    """Index of the shape equal to what was found, wherever it lies."""
    def cut(mask):
        y, x = np.nonzero(mask)
        return mask[y.min():y.max() + 1, x.min():x.max() + 1]
    fits = [np.array_equal(cut(found), cut(shape)) for shape in shapes]
    assert sum(fits) == 1
    return fits.index(True)


def test_pictures_show_what_meta_says():
    for seed in range(10):
        example = make_example("locate", seed, rows=5, cols=6)
        grid, pixels = example.meta["grids"][0], np.asarray(example.images[0])
        if grid["border"] is not None:
            pixels = pixels[32:-32, 32:-32]
            grid = {key: [row[1:-1] for row in grid[key][1:-1]] for key in ("digits", "arrows")}
        for row in range(pixels.shape[0] // 32):
            for col in range(pixels.shape[1] // 32):
                cell = pixels[32 * row:32 * row + 32, 32 * col:32 * col + 32]
                assert read_cell(cell) == (grid["digits"][row][col], grid["arrows"][row][col])


@pytest.mark.parametrize(("task", "options"), [
    ("walk", {}), ("read", {"split": "dev"}), ("read", {"rows": 1}), ("read", {"cols": 11}),
    ("read", {"kind": "column"}), ("trail", {"steps": 7}), ("trail", {"steps": 0}),
    ("locate", {"hits": 5}), ("locate", {"kind": "arrow"}), ("haystack", {"num_images": 11}),
    ("haystack", {"num_images": 0}), ("haystack", {"num_images": 6, "kind": "border"}),
    ("haystack", {"kind": "sound"}),
])
def test_bad_options_are_named(task, options):
    with pytest.raises(ValueError, match="expected"):
        make_example(task, 0, **options)


def test_negative_seed_is_refused():
    with pytest.raises(ValueError, match="seed"):
        make_example("read", -1)
