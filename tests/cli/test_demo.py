"""`pydstp demo`: the embedded checkpoint answers a fresh picture."""

from __future__ import annotations

import pytest
from PIL import Image

from pydstp import cli, demo
from pydstp.tasks import TASKS, make_example


@pytest.mark.parametrize("task", TASKS)
def test_the_embedded_model_is_right(task, tmp_path, capsys) -> None:
    path = tmp_path / "seen.png"
    assert cli.main(["demo", "--task", task, "--seed", "1", "--output", str(path)]) == 0
    out = capsys.readouterr().out
    example = make_example(task, 1, split="test")
    assert example.prompt in out and example.answer in out and "verdict   right" in out
    saved = sorted(tmp_path.iterdir())
    assert [str(file) in out for file in saved] == [True] * len(example.images)
    assert [Image.open(file).tobytes() for file in saved] == [
        image.tobytes() for image in example.images]


def test_every_run_draws_another_picture(tmp_path, monkeypatch) -> None:
    drawn = []
    monkeypatch.setattr(demo, "make_example", lambda task, seed, split: drawn.append(seed)
                        or make_example(task, seed, split))
    for _ in range(2):
        assert cli.main(["demo", "--output", str(tmp_path / "seen.png")]) == 0
    assert len(set(drawn)) == 2


def test_a_wrong_answer_is_said_and_status_1(tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(demo, "is_correct", lambda example, text: False)
    assert cli.main(["demo", "--seed", "1", "--output", str(tmp_path / "seen.png")]) == 1
    assert "verdict   wrong; the answer is: " in capsys.readouterr().out


def test_a_place_that_cannot_be_written_to_is_an_error(tmp_path, capsys) -> None:
    for name in ("missing/seen.png", "seen.unknown"):
        assert cli.main(["demo", "--output", str(tmp_path / name)]) == 2
        assert capsys.readouterr().err.startswith("error: output: expected a file a picture can")


@pytest.mark.parametrize(("arguments", "words"), [
    (["--seed", "-5"], "seed: expected"),
    (["--task", "haystack", "--output", ""], "output: expected"),
])
def test_odd_values_are_refused_in_one_line(arguments, words, model, capsys) -> None:
    assert cli.main(["demo", "--model", model, *arguments]) == 2
    out, err = capsys.readouterr()
    assert "error" not in out and err.startswith("error: ") and err.count("\n") == 1
    assert words in err


def test_the_task_list_is_that_of_the_package() -> None:
    parser = cli.build_parser()
    for task in TASKS:
        assert parser.parse_args(["demo", "--task", task]).task == task
