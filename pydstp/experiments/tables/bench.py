"""What tables are measured with: questions with options, and a memory of what is done."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from pydstp.errors import CancelledError, PydstpError
from pydstp.experiments.evaluation import Evaluation, one_line
from pydstp.experiments.record import commit
from pydstp.experiments.runs import Asker, Questions
from pydstp.experiments.settings import Setting, default_fastv_layer, prune
from pydstp.experiments.tables.layout import NOT_BUILT, REFUSED
from pydstp.models.config import VLMConfig
from pydstp.pruning import PruningConfig, available_pruners
from pydstp.shift import Shift
from pydstp.tasks import Example, make_example

FULL = Setting("none", 1.0, "none")
Options = tuple[tuple[str, int | str], ...]


class Column(NamedTuple):
    """Questions that make up a column: its title, the task, and options of the task."""

    title: str
    task: str
    options: Options = ()


@dataclass(frozen=True)
class Drawn(Questions):
    """Questions of a task, drawn with options such as `rows`."""

    options: Options = ()

    def __iter__(self) -> Iterator[Example]:
        return (make_example(self.task, seed, self.split, **dict(self.options))
                for seed in range(self.seed, self.seed + self.n))


@dataclass
class Bench:
    """Measures settings, each once.

    Attributes:
        asker: how questions are asked.
        n, seed: of the questions of a cell.
        config: of the model.
        checkpoint_sha256: stands in every result.
        results: what was measured, by what was asked: those of an earlier run may be in it.
        on_result: called with a line about each new one, when it is in `results`.
    """

    asker: Asker
    n: int
    seed: int
    config: VLMConfig
    checkpoint_sha256: str
    results: dict[str, Any] = field(default_factory=dict)
    on_result: Callable[[str], None] = lambda line: None

    @property
    def fastv_layer(self) -> int:
        """The decoder layer before which FastV and its kin prune here."""
        return default_fastv_layer(self.config.text.num_layers)

    def setting(self, method: str, ratio: float, policy: str = "none",
                shift: Shift | None = None, **options: Any) -> Setting | None:
        """A method at a ratio; None where there is no such method (yet).

        A random subset is drawn where FastV prunes, as in the paper, unless `layer` says otherwise.
        """
        if method == "none":
            return Setting("none", 1.0, policy, shift=shift)
        if method not in available_pruners():
            return None
        pruning = prune(method, ratio, self.fastv_layer)
        if method == "random":
            options = {"layer": self.fastv_layer, **options}
        if options:
            pruning = PruningConfig(**{**pruning.to_dict(), **options})
        return Setting(method, ratio, policy, pruning, shift)

    def run(self, setting: Setting | None, column: Column, num_timed: int = 0) -> dict[str, Any]:
        """A row of `Evaluation`; `absent` in place of it, and why, where it cannot be measured.

        Raises:
            CancelledError: Ctrl-C.
        """
        if setting is None:
            return {"absent": NOT_BUILT}
        try:
            return self.evaluation(column, num_timed).measure(setting)
        except CancelledError:
            raise
        except PydstpError as error:
            return {"absent": REFUSED, "why": str(error)}

    def row(self, setting: Setting | None, columns: Sequence[Column]) -> list[dict[str, Any]]:
        """A setting on every column."""
        return [self.run(setting, column) for column in columns]

    def evaluation(self, column: Column, num_timed: int = 0) -> Remembered:
        """What measures settings on the questions of a column."""
        questions = Drawn(column.task, self.n, self.seed, options=column.options)
        return Remembered(questions, self.asker, num_timed,
                          checkpoint_sha256=self.checkpoint_sha256, bench=self)

    def once(self, asked: dict[str, Any], measure: Callable[[], dict[str, Any]],
             tell: Callable[[dict[str, Any]], str]) -> dict[str, Any]:
        """What `measure` returns, or what it returned when the same was asked before."""
        key = json.dumps(asked, sort_keys=True)
        if key not in self.results:
            self.results[key] = {**measure(), "commit": commit()}
            self.on_result(tell(self.results[key]))
        return self.results[key]


@dataclass(frozen=True)
class Remembered(Evaluation):
    """An evaluation that asks nothing twice."""

    bench: Bench | None = None

    def measure(self, setting: Setting) -> dict[str, Any]:
        """As `Evaluation.measure`."""
        found = self.bench.once(self._asked(setting), lambda: Evaluation.measure(self, setting),
                                lambda row: f"{row['task']}: {one_line(row)}")
        return dict(found)  # `Evaluation.rows` adds to it

    def _asked(self, setting: Setting) -> dict[str, Any]:
        questions, shift = self.questions, setting.shift
        return {"task": questions.task, "options": dict(questions.options), "n": questions.n,
                "seed": questions.seed, "method": setting.method, "policy": setting.policy,
                "pruning": setting.pruning and setting.pruning.to_dict(),
                "shift": shift and [type(shift).__name__, shift.to_dict()],
                "timed": self.num_timed, "max_new_tokens": self.asker.max_new_tokens,
                "checkpoint": self.checkpoint_sha256}

    def _options(self, setting: Setting) -> dict[str, Any]:
        return {**super()._options(setting), "task_options": dict(self.questions.options)}

    def _times(self, selection: dict[str, Any]) -> dict[str, Any]:
        return super()._times(selection) if self.num_timed else {}


def labelled(setting: Setting | None, method: str) -> Setting | None:
    """The setting under another name."""
    return setting and replace(setting, method=method)
