"""What the model sees when: vision first, then small pictures, then all sizes and tasks."""
from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from pydstp.tasks import Example, make_example

SIDES = (2, 3, 4, 6, 8)  # the longest side of single pictures, level by level
LARGE = ((9, 6), (6, 10), (9, 8), (7, 10))
SHARES = (  # per level: read cell, read row, trail, locate, haystack
    (0.5, 0.5, 0.0, 0.0, 0.0),
    (0.2, 0.2, 0.6, 0.0, 0.0),
    (0.15, 0.1, 0.4, 0.15, 0.2),
    (0.15, 0.1, 0.4, 0.15, 0.2),
    (0.12, 0.08, 0.36, 0.24, 0.2),
)


@dataclass
class Curriculum:
    """The level, and running averages of exact answers that decide when it rises."""

    level: int = 0
    exact: dict[str, float] = field(default_factory=dict)

    def record(self, task: str, share: float, decay: float = 0.9) -> None:
        """Note the share of exact answers of one step."""
        self.exact[task] = decay * self.exact.get(task, 0.0) + (1 - decay) * share

    def maybe_rise(self, needed: float = 0.85) -> bool:
        """Go up one level if this one's tasks are mastered (`trail` from level 1 on)."""
        watched = ["read"] + (["trail"] if self.level else [])
        ready = all(self.exact.get(task, 0.0) >= needed for task in watched)
        if not ready or self.level == len(SIDES) - 1:
            return False
        self.level, self.exact = self.level + 1, {}
        return True

    def draw(self, rng: np.random.Generator, step: int, batch: int) -> list[list[Example]]:
        """Examples of one step, in groups of like length, each with pictures of one size."""
        size = self._size(rng)
        small = tuple(int(value) for value in rng.integers(2, min(SIDES[self.level], 5) + 1, 2))
        counts = rng.multinomial(batch, SHARES[self.level])
        kinds = np.repeat(np.arange(5), counts)
        groups: list[list[Example]] = [[], [], []]
        for index, kind in enumerate(kinds):
            task = ("read", "read", "trail", "locate", "haystack")[kind]
            rows, cols = small if task == "haystack" else size
            options = {"kind": ("cell", "row")[kind]} if task == "read" else {}
            example = make_example(task, step * batch + index, "train", rows=rows, cols=cols,
                                   **options)
            groups[(0, 1, 1, 0, 2)[kind]].append(example)
        return [group for group in groups if group]

    def _size(self, rng: np.random.Generator) -> tuple[int, int]:
        """Rows and columns of this step's single pictures."""
        side = SIDES[self.level]
        if side == 8 and rng.random() < 0.12:
            return LARGE[rng.integers(len(LARGE))]
        if side == 8 and rng.random() < 0.2:
            return 8, 8
        low = max(2, side - 2) if rng.random() < 0.6 else 2
        rows, cols = rng.integers(low, side + 1, 2)
        return int(rows), int(cols)


def draw_vision(rng: np.random.Generator, step: int) -> list[Example]:
    """Pictures for the vision warm-up: every size, borders and stars; about 400 cells."""
    rows, cols = int(rng.integers(2, 10)), int(rng.integers(2, 11))
    count = max(4, min(32, 400 // (rows * cols)))
    return [make_example("haystack", step * 32 + index, "train", rows=rows, cols=cols,
                         num_images=2) for index in range(count // 2)]
