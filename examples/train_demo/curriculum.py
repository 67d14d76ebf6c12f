"""What the model sees when: vision first, then small pictures, then all sizes and tasks."""
from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from data import Cells

from pydstp.tasks import Example, make_example

SIDES = (2, 3, 4, 6, 8)  # the longest side of single pictures, level by level
LARGE = ((9, 6), (6, 10), (9, 8), (7, 10))
KINDS = (("read", "cell"), ("read", "row"), ("trail", None), ("locate", "digit"),
         ("locate", "both"), ("haystack", None))
SHARES = (  # per level: one share for each of KINDS
    (0.5, 0.5, 0.0, 0.0, 0.0, 0.0),
    (0.2, 0.2, 0.6, 0.0, 0.0, 0.0),
    (0.1, 0.1, 0.3, 0.25, 0.0, 0.25),
    (0.1, 0.1, 0.3, 0.25, 0.0, 0.25),
    (0.08, 0.08, 0.24, 0.15, 0.25, 0.2),
)
# On the last level: until the first two lessons of `locate` and `haystack` are over, and then until
# those of "both" are.
FIRST_LESSONS = (0.05, 0.05, 0.1, 0.4, 0.0, 0.4)
THEN = (0.06, 0.06, 0.18, 0.15, 0.4, 0.15)
# The harder questions have lessons of their own: the longest side of their pictures.
LESSONS = {"locate": (2, 3, 4, 6, 8), "haystack": (2, 3, 4, 5), "both": (2, 3, 4, 6, 8)}
FIRST = {("locate", 0): {"hits": 1}, ("haystack", 0): {"kind": "border"}, ("both", 0): {"hits": 1}}


@dataclass
class Curriculum:
    """Level and lessons, and running averages of exact answers that decide when they rise."""

    tasks: tuple[str, ...] = ("read", "trail", "locate", "haystack")
    level: int = 0
    lessons: dict[str, int] = field(default_factory=lambda: dict.fromkeys(LESSONS, 0))
    exact: dict[str, float] = field(default_factory=dict)

    def record(self, task: str, share: float, decay: float = 0.9) -> None:
        """Note the share of exact answers of one step."""
        self.exact[task] = decay * self.exact.get(task, 0.0) + (1 - decay) * share

    def maybe_rise(self, needed: float = 0.85, passed: float = 0.75) -> bool:
        """Go up a level or a lesson whose tasks are mastered; `trail` counts from level 1 on."""
        before = (self.level, *self.lessons.values())
        watched = ["read"] + (["trail"] if self.level and "trail" in self.tasks else [])
        good = {task for task, share in self.exact.items() if share >= needed}
        if good.issuperset(watched) and self.level < len(SIDES) - 1:
            self.level += 1
            self.exact = {task: self.exact.get(task, 0.0) for task in self.lessons}
        for task, last in ((task, len(LESSONS[task]) - 1) for task in self.lessons):
            if self.exact.get(task, 0.0) >= passed and self.lessons[task] < last:
                self.lessons[task] += 1
                self.exact[task] = 0.0
        return before != (self.level, *self.lessons.values())

    def draw(self, rng: np.random.Generator, step: int, batch: int,
             style: Cells = Cells()) -> list[list[Example]]:
        """Examples of one step: up to four groups, each with pictures of one size."""
        options = {"read": self._single(rng, SIDES[self.level])}
        options["trail"] = options["read"]
        for name in ("locate", "both"):
            options[name] = self._single(rng, LESSONS[name][self.lessons[name]])
        options["haystack"] = self._several(rng)
        counts = rng.multinomial(batch, self._shares())
        groups: dict[str, list[Example]] = {"trail": [], **{name: [] for name in LESSONS}}
        for index, kind in enumerate(np.repeat(np.arange(len(KINDS)), counts)):
            task, what = KINDS[kind]
            name = what if what in LESSONS else task
            more = {"kind": what} if what else {}
            more |= FIRST.get((name, self.lessons.get(name)), {})
            size = options[name] | style.size(options[name]["rows"], options[name]["cols"])
            example = make_example(task, step * batch + index, "train", **size, **more)
            groups["trail" if name == "read" else name].append(example)
        return [group for group in groups.values() if group]

    def _shares(self) -> np.ndarray:
        """How much of each of KINDS a step has."""
        shares = np.array([share * (task in self.tasks)
                           for share, (task, _) in zip(self._all_shares(), KINDS)])
        return shares / shares.sum()

    def _all_shares(self) -> tuple[float, ...]:
        """The same before tasks are left out."""
        if self.level < len(SIDES) - 1:
            return SHARES[self.level]
        if min(self.lessons["locate"], self.lessons["haystack"]) < 2:
            return FIRST_LESSONS
        return THEN if self.lessons["both"] < 2 else SHARES[-1]

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


def draw_vision(rng: np.random.Generator, step: int, style: Cells = Cells()) -> list[Example]:
    """Pictures for the vision warm-up: every size, borders and stars; about 400 cells."""
    rows, cols = int(rng.integers(2, 10)), int(rng.integers(2, 11))
    count = max(4, min(32, 400 // (rows * cols)))
    return [make_example("haystack", step * 32 + index, "train", **style.size(rows, cols),
                         num_images=2) for index in range(count // 2)]
