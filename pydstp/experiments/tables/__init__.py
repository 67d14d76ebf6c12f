"""The tables of the founding papers, measured on the built-in tasks: `pydstp tables NAME`.

One file per paper, or per table where it is measured in its own way.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from pydstp.errors import OptionError, show
from pydstp.experiments.tables import (
    dstp,
    figures,
    right_problem,
    right_problem_cost,
    right_problem_position,
    vision_pulse,
    vision_pulse_correlation,
)
from pydstp.experiments.tables.bench import Bench
from pydstp.experiments.tables.layout import Table


class Recipe(NamedTuple):
    """How a table is measured, and its figure drawn, if it has one."""

    build: Callable[[Bench], Table]
    draw: Callable[[Table, Path], None] | None = None


TABLES = {
    "dstp-main": Recipe(dstp.main),
    "dstp-ablation": Recipe(dstp.ablation),
    "right-problem-1": Recipe(right_problem.methods),
    "right-problem-position": Recipe(right_problem_position.table, figures.draw_maps),
    "right-problem-2": Recipe(right_problem.grounding),
    "right-problem-3": Recipe(right_problem.haystack),
    "right-problem-4": Recipe(right_problem.alphas),
    "right-problem-5": Recipe(right_problem_cost.table),
    "right-problem-6": Recipe(right_problem.counted),
    "visionpulse-main": Recipe(vision_pulse.main),
    "visionpulse-ablation": Recipe(vision_pulse.ablation),
    "visionpulse-correlation": Recipe(vision_pulse_correlation.table, figures.draw_points),
}


def find_table(name: str) -> Recipe:
    """The table of a name.

    Raises:
        OptionError: there is none.
    """
    if name not in TABLES:
        raise OptionError(f"NAME: expected one of {', '.join(TABLES)}, got {show(name)}")
    return TABLES[name]
