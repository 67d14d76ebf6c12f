"""Tasks the project draws itself, with questions, gold answers, seeds and held-out splits.

>>> example = make_example("trail", seed=3, rows=8, cols=8, steps=6)
>>> example.prompt
'Start at ... and follow the red arrows for 6 steps. What is the last digit?'
"""
from __future__ import annotations

from . import haystack, locate, read, trail
from .grid import SPLITS, Example, make_rng

_MAKERS = {"read": read.make, "trail": trail.make, "locate": locate.make,
           "haystack": haystack.make}
TASKS = tuple(_MAKERS)

__all__ = ["SPLITS", "TASKS", "Example", "is_correct", "make_example"]


def make_example(task: str, seed: int, split: str = "test",
                 **options: int | str | None) -> Example:
    """Draw one example. The same (task, seed, split, options) always give the same example.

    Args:
        task: "read", "trail", "locate" or "haystack".
        seed: any number >= 0.
        split: "train", "validation" or "test"; the splits share no random stream.
        options: rows (2..9), cols (2..10), kind, steps (trail), hits (locate) and num_images
            (haystack).
    Raises:
        ValueError: an unknown task, split or kind, or an option out of its range.
    """
    if task not in _MAKERS:
        raise ValueError(f"task: expected one of {TASKS}, got {task!r}")
    return _MAKERS[task](make_rng(TASKS.index(task), seed, split), seed, **options)


def is_correct(example: Example, text: str) -> bool:
    """Whether `text` is the whole gold answer, up to white space at both ends."""
    return text.strip() == example.answer
