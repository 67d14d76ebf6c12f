"""What an evaluation shall measure: the options of `pydstp eval`, from flags or from a file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from pydstp.config import EngineConfig, names_unknown_options, require_int
from pydstp.errors import OptionError, show
from pydstp.experiments import settings
from pydstp.experiments.runs import Asker, Questions, greedy
from pydstp.experiments.settings import Setting
from pydstp.experiments.startup import count_layers
from pydstp.selection import SelectionParams
from pydstp.tasks import TASKS

_LISTS = ("tasks", "methods", "ratios", "shift")
_TEXTS = ("reserve", "dtype", "weights")
_PATHS = ("pareto", "model", "json", "output")
_SWITCHES = ("ablation", "sketch_sweep", "fresh")


@names_unknown_options
@dataclass(frozen=True)
class EvalPlan:
    """Tasks x methods x ratios x policies, and how they are measured.

    Attributes:
        tasks: names among `pydstp.tasks.TASKS`; here and in the next three, a list or a text with
            commas.
        methods: pruning methods; "none" keeps all tokens.
        ratios: shares to keep, decimals or fractions such as "1/3".
        shift: policies by name, or files that `pydstp calibrate` wrote.
        ablation: also the paper's rows of triggers and swaps.
        sketch_sweep: instead of the grid, SketchReturn with one option changed at a time.
        pareto: instead of the grid, a sweep of DSTP; the file of its figure.
        fastv_layer: methods inside the decoder prune before this layer; None: 1 in models under
            ten layers, else 2.
        reserve: see `SelectionParams`.
        n, seed: questions per task, and the seed of the first.
        timed: answers per row that are timed alone.
        batch, max_new_tokens, max_visual_tokens: questions at once, and limits of each.
        model, dtype, weights: the checkpoint and its precision, as for `Engine`; None takes the
            embedded checkpoint.
        json: a file for the record as one JSON object.
        output: a folder for rows and answers as JSON lines, the report and the figures. What it
            holds already is not measured again, unless `fresh` throws it away.

    Raises:
        OptionError: a value of the wrong type, or a name that is not known.
    """

    tasks: str | list[str]
    methods: str | list[str] = "none,random,fastv,divprune,visionzip"
    ratios: str | list[float | str] = "0.666,0.333,0.2,0.1"
    shift: str | list[str] = "none,dstp,recommended"
    ablation: bool = False
    sketch_sweep: bool = False
    pareto: str | None = None
    fastv_layer: int | None = None
    reserve: str = "auto"
    n: int = 1000
    seed: int = 0
    timed: int = 8
    batch: int = 32
    max_new_tokens: int = 128
    max_visual_tokens: int = 512
    model: str | None = None
    dtype: str = "auto"
    weights: str = "float"
    json: str | None = None
    output: str | None = None
    fresh: bool = False

    def __post_init__(self) -> None:
        for name in _LISTS:
            object.__setattr__(self, name, _joined(name, getattr(self, name)))
        for name in (*_TEXTS, *_PATHS):
            value = getattr(self, name)
            if not isinstance(value, str) and not (value is None and name in _PATHS):
                raise OptionError(f"{name}: expected a text, got {show(value)}")
        for name in _SWITCHES:
            value = getattr(self, name)
            if not isinstance(value, bool):
                raise OptionError(f"{name}: expected true or false, got {show(value)}")
        if self.fresh and self.output is None:
            raise OptionError("fresh: expected output, the folder to start over in")
        require_int("timed", self.timed, 0)
        Asker(None, self.batch)
        EngineConfig(self.batch, self.max_visual_tokens, weights=self.weights)
        greedy(self.max_new_tokens)
        self.questions()

    @classmethod
    def from_file(cls, path: str | None, **given: Any) -> EvalPlan:
        """The options of a JSON file, one object; what is given beside it wins.

        Raises:
            OptionError: the file cannot be read, is no JSON object, or has an unknown option; no
                task in it or beside it.
        """
        options = {**({} if path is None else _read(path)), **given}
        unknown = [name for name in options if name not in _known()]
        if unknown:
            raise OptionError(f"--config: expected options among {', '.join(_known())}, "
                              f"got {show(unknown[0])} in {path!r}")
        if "tasks" not in options:
            raise OptionError(f"tasks: expected names among {', '.join(TASKS)}, on the command "
                              "line or in --config, got none")
        return cls(**options)

    def questions(self) -> list[Questions]:
        """The questions of each task."""
        names = settings.parse_names("task", self.tasks, TASKS)
        return [Questions(name, self.n, self.seed) for name in names]

    def settings(self) -> list[Setting]:
        """The rows of each task; the checkpoint's config.json is read for the number of layers.

        Raises:
            OptionError, CheckpointError: something that cannot run.
        """
        methods, ratios = settings.parse_methods(self.methods), settings.parse_ratios(self.ratios)
        policies = settings.parse_policies(self.shift)
        layer, num_layers = self.fastv_layer, count_layers(self.model)
        if layer is None:
            layer = settings.default_fastv_layer(num_layers)
        require_int("--fastv-layer", layer, 1, num_layers - 1)
        if self.pareto is not None:
            rows = settings.pareto(methods, ratios, layer)
        elif self.sketch_sweep:
            rows = settings.sketch_sweep(methods, ratios, layer)
        else:
            rows = settings.grid(methods, ratios, policies, layer)
            rows += settings.ablation(methods, ratios, layer) if self.ablation else []
        for row in rows:
            SelectionParams(row.pruning, row.shift, self.reserve)  # refuses what cannot run
        return settings.unique(rows)


def _known() -> list[str]:
    return [field.name for field in fields(EvalPlan)]


def _joined(name: str, value: Any) -> str:
    """A list, or a text that holds one, as a text with commas."""
    items = [value] if isinstance(value, str) else value
    if not isinstance(items, list | tuple) or not all(
            isinstance(item, str | int | float) and not isinstance(item, bool) for item in items):
        raise OptionError(f"{name}: expected a list or a text with commas, got {show(value)}")
    return ",".join(map(str, items))


def _read(path: str) -> Mapping[str, Any]:
    try:
        options = json.loads(Path(path).read_text("utf-8"))
    except OSError as error:
        raise OptionError(f"--config: expected a JSON file, got {path!r}: "
                          f"{error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise OptionError(f"--config: expected JSON in {path!r}: {error}") from None
    if not isinstance(options, dict):
        raise OptionError(f"--config: expected a JSON object in {path!r}, got {show(options)}")
    return options
