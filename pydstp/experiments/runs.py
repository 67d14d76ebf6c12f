"""Questions, and the engine's answers to them, a batch at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from pydstp.config import SamplingParams, require_int
from pydstp.errors import OptionError, PromptError, show
from pydstp.generation import CancelToken, Generation
from pydstp.pruning import PruningConfig
from pydstp.shift import DSTP, VisionPulse
from pydstp.tasks import TASKS, Example, is_correct, make_example

FILES = "files"  # the task of a question that a user brings: it has no gold answer
Tick = Callable[[int], object]


@dataclass(frozen=True)
class Questions:
    """Questions of a built-in task, drawn when they are asked for.

    Attributes:
        task: one of `pydstp.tasks.TASKS`.
        n: how many.
        seed: of the first; the others follow.
        split: "test" to measure, "validation" to choose.

    Raises:
        OptionError: an unknown task, n < 1 or seed < 0.
    """

    task: str
    n: int
    seed: int = 0
    split: str = "test"

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise OptionError(f"task: expected one of {', '.join(TASKS)}, got {show(self.task)}")
        require_int("n", self.n, 1)
        require_int("seed", self.seed, 0)

    def __len__(self) -> int:
        return self.n

    def after(self, count: int) -> list[Example] | Questions:
        """The questions without the first `count`."""
        return replace(self, seed=self.seed + count, n=self.n - count) if count < self.n else []

    def __iter__(self) -> Iterator[Example]:
        return (make_example(self.task, seed, self.split)
                for seed in range(self.seed, self.seed + self.n))


def from_files(paths: list[str], prompts: list[str]) -> list[Example]:
    """A user's own questions: one picture each, and a prompt each or one prompt for all.

    Raises:
        OptionError: no picture, a number of prompts that does not fit, or a file that is not there.
    """
    if not paths or len(prompts) not in (1, len(paths)):
        raise OptionError(f"--prompts: expected one, or one per picture ({len(paths)}), "
                          f"got {len(prompts)}")
    for path in paths:
        if not Path(path).is_file():
            raise OptionError(f"--images: expected picture files, got {path!r}")
    prompts = prompts if len(prompts) == len(paths) else prompts * len(paths)
    return [Example(FILES, [path], prompt, "", number)
            for number, (path, prompt) in enumerate(zip(paths, prompts, strict=True))]


def is_right(example: Example, generation: Generation) -> bool | None:
    """Whether the whole answer is the right one; None where nobody knows."""
    return None if example.task == FILES else is_correct(example, generation.text)


def greedy(max_new_tokens: int) -> SamplingParams:
    """Sampling without chance."""
    return SamplingParams(temperature=0.0, max_new_tokens=max_new_tokens)


def seeded(selection: dict[str, Any], batch: list[Example]) -> dict[str, Any]:
    """The selection with a seed of its own for every question of a batch, added to the given one.

    A random method or trigger would otherwise draw the same numbers for each of them.
    """
    changed = dict(selection)
    if (pruning := selection.get("pruning")) is not None:
        options = pruning.to_dict()
        changed["pruning"] = [PruningConfig(**{**options, "seed": options["seed"] + example.seed})
                              for example in batch]
    if isinstance(shift := selection.get("shift"), DSTP | VisionPulse):
        changed["shift"] = [replace(shift, seed=shift.seed + example.seed) for example in batch]
    return changed


@dataclass(frozen=True)
class Asker:
    """Puts questions to an engine.

    Attributes:
        engine: a `pydstp.Engine`.
        batch: questions at once.
        max_new_tokens: the longest answer.
        cancel: stops everything.
        tick: called with the number of questions that have been answered since the last call.
    """

    engine: Any
    batch: int = 32
    max_new_tokens: int = 128
    cancel: CancelToken | None = None
    tick: Tick = lambda count: None

    def __post_init__(self) -> None:
        require_int("batch", self.batch, 1)

    def ask(self, questions: Iterable[Example],
            **selection: Any) -> Iterator[tuple[Example, Generation]]:
        """Every question with its answer, in order.

        Args:
            questions: drawn a batch at a time.
            selection: `pruning`, `shift`, `reserve`, `log_steps` of `Engine.generate`.

        Raises:
            CancelledError: `cancel` was set; answers of the batch under way are lost.
            PromptError: an answer without visual tokens, which says nothing here.
            OptionError: the engine's bypass="auto" answered with all tokens instead.
        """
        questions = iter(questions)
        while batch := list(islice(questions, self.batch)):
            answers = self.engine.generate(
                [example.images for example in batch], [example.prompt for example in batch],
                greedy(self.max_new_tokens), cancel=self.cancel, **seeded(selection, batch))
            self._check_cancelled()
            for example, answer in zip(batch, answers, strict=True):
                _check(example, answer)
                yield example, answer
            self.tick(len(batch))

    def ask_alone(self, example: Example, **selection: Any) -> Generation:
        """One answer in a batch of one."""
        answers = self.engine.generate(
            [example.images], [example.prompt], greedy(self.max_new_tokens), cancel=self.cancel,
            **seeded(selection, [example]))
        self._check_cancelled()
        _check(example, answers[0])
        return answers[0]

    def _check_cancelled(self) -> None:
        if self.cancel is not None:
            self.cancel.check()


def _check(example: Example, answer: Generation) -> None:
    """The answer must say something about what was asked for."""
    if answer.shift is None or not answer.shift.num_visual:
        raise PromptError(f"question {example.seed}: expected a picture with it")
    if answer.shift.reason == "below_break_even":
        raise OptionError("bypass: expected 'never' where methods are compared, got 'auto'")
