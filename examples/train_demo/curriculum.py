"""What the model sees when: vision first, then small pictures, then all sizes and tasks."""
from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from pydstp.tasks import Example, make_example

SIDES = (2, 3, 4, 6, 8)  # the longest side of single pictures, level by level
LARGE = ((9, 6), (6, 10), (9, 8), (7, 10))
KINDS = (("read", "cell"), ("read", "row"), ("trail", None), ("locate", None), ("haystack", None))
SHARES = (  # per level: one share for each of KINDS
    (0.5, 0.5, 0.0, 0.0, 0.0),
    (0.2, 0.2, 0.6, 0.0, 0.0),
    (0.1, 0.1, 0.3, 0.25, 0.25),
    (0.1, 0.1, 0.3, 0.25, 0.25),
    (0.08, 0.08, 0.24, 0.4, 0.2),
)
FIRST_LESSONS = (0.05, 0.05, 0.1, 0.4, 0.4)  # on the last level, until the first two are over
# The two harder tasks have lessons of their own: the longest side of their pictures.
LESSONS = {"locate": (2, 3, 4, 6, 8), "haystack": (2, 3, 4, 5)}
FIRST = {("locate", 0): {"hits": 1}, ("haystack", 0): {"kind": "border"}}


@dataclass
class Curriculum:
    """Level and lessons, and running averages of exact answers that decide when they rise."""

    level: int = 0
    lessons: dict[str, int] = field(default_factory=lambda: dict.fromkeys(LESSONS, 0))
    exact: dict[str, float] = field(default_factory=dict)

    def record(self, task: str, share: float, decay: float = 0.9) -> None:
        """Note the share of exact answers of one step."""
        self.exact[task] = decay * self.exact.get(task, 0.0) + (1 - decay) * share

    def maybe_rise(self, needed: float = 0.85, passed: float = 0.75) -> bool:
        """Go up a level or a lesson whose tasks are mastered; `trail` counts from level 1 on."""
        before = (self.level, *self.lessons.values())
        watched = ["read"] + (["trail"] if self.level else [])
        good = {task for task, share in self.exact.items() if share >= needed}
        if good.issuperset(watched) and self.level < len(SIDES) - 1:
            self.level += 1
            self.exact = {task: self.exact.get(task, 0.0) for task in self.lessons}
        for task, last in ((task, len(LESSONS[task]) - 1) for task in self.lessons):
            if self.exact.get(task, 0.0) >= passed and self.lessons[task] < last:
                self.lessons[task] += 1
                self.exact[task] = 0.0
        return before != (self.level, *self.lessons.values())

    def draw(self, rng: np.random.Generator, step: int, batch: int) -> list[list[Example]]:
        """Examples of one step: up to three groups, each with pictures of one size."""
        options = {"read": self._single(rng, SIDES[self.level])}
        options["trail"] = options["read"]
        options["locate"] = self._single(rng, LESSONS["locate"][self.lessons["locate"]])
        options["haystack"] = self._several(rng)
        counts = rng.multinomial(batch, self._shares())
        groups: dict[str, list[Example]] = {"trail": [], "locate": [], "haystack": []}
        for index, kind in enumerate(np.repeat(np.arange(len(KINDS)), counts)):
            task, what = KINDS[kind]
            more = {"kind": what} if what else FIRST.get((task, self.lessons.get(task)), {})
            example = make_example(task, step * batch + index, "train", **options[task], **more)
            groups["trail" if task == "read" else task].append(example)
        return [group for group in groups.values() if group]

    def _shares(self) -> tuple[float, ...]:
        """How much of each of KINDS a step has."""
        begun = self.level < len(SIDES) - 1 or min(self.lessons.values()) >= 2
        return SHARES[self.level] if begun else FIRST_LESSONS

    def _single(self, rng: np.random.Generator, side: int) -> dict:
        """Rows and columns of single pictures."""
        if side == 8 and rng.random() < 0.12:
            rows, cols = LARGE[rng.integers(len(LARGE))]
        elif side == 8 and rng.random() < 0.2:
            rows, cols = 8, 8
        else:
            low = max(2, side - 2) if rng.random() < 0.6 else 2
            rows, cols = (int(value) for value in rng.integers(low, side + 1, 2))
        return {"rows": rows, "cols": cols}

    def _several(self, rng: np.random.Generator) -> dict:
        """Size and number of the pictures of a haystack."""
        lesson = self.lessons["haystack"]
        rows, cols = (int(value) for value in rng.integers(2, LESSONS["haystack"][lesson] + 1, 2))
        count = int(rng.integers(2, min(4, 2 + lesson) + 1))
        return {"rows": rows, "cols": cols, "num_images": count}


def draw_vision(rng: np.random.Generator, step: int) -> list[Example]:
    """Pictures for the vision warm-up: every size, borders and stars; about 400 cells."""
    rows, cols = int(rng.integers(2, 10)), int(rng.integers(2, 11))
    count = max(4, min(32, 400 // (rows * cols)))
    return [make_example("haystack", step * 32 + index, "train", rows=rows, cols=cols,
                         num_images=2) for index in range(count // 2)]
