"""What `pydstp tables` does: the table to stdout, progress to stderr, records into files."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from pydstp.console import cancelled_by_ctrl_c, loading_bar, say, write

EXIT_OK = 0


def run_tables(options: argparse.Namespace) -> int:
    """`pydstp tables`."""
    from pydstp.config import require_int
    from pydstp.errors import OptionError
    from pydstp.experiments.plots import require_matplotlib
    from pydstp.experiments.startup import start_record
    from pydstp.experiments.tables import find_table
    from pydstp.experiments.tables.files import read_results, require_outputs, write_table

    recipe = find_table(options.name)
    require_int("n", options.n, 1)
    require_int("seed", options.seed, 0)
    path = None if options.output is None else require_outputs(options.output)
    if options.resume and path is None:
        raise OptionError("--resume: expected --output, which names the record to go on with")
    results = read_results(path) if options.resume else {}
    if path is not None and recipe.draw is not None:
        require_matplotlib()
    record = {**start_record(options.model), "name": options.name if path is None else path.stem,
              "n": options.n, "seed": options.seed, "table": None, "results": results}
    table = _measure(options, recipe, record, path)
    write(iter([table.to_markdown()]))
    if path is not None:
        write_table(path, record, table, f"pydstp tables {options.name} --n {options.n}")
        if recipe.draw is not None:
            recipe.draw(table, path.with_suffix(".png"))
    return EXIT_OK


def _measure(options: argparse.Namespace, recipe: Any, record: dict[str, Any],
             path: Path | None) -> Any:
    """The table; what is measured is in the record's file as soon as it is."""
    from pydstp.experiments.record import write_json
    from pydstp.experiments.runs import Asker
    from pydstp.experiments.startup import open_engine
    from pydstp.experiments.tables.bench import Bench

    def keep(line: str) -> None:
        if path is not None:
            write_json("--output", path, record)
        say(line)

    engine = open_engine(options.model, options.dtype, options.batch, options.max_new_tokens,
                         options.max_visual_tokens, loading_bar(), options.weights)
    with engine, cancelled_by_ctrl_c() as cancel:
        asker = Asker(engine, options.batch, options.max_new_tokens, cancel)
        bench = Bench(asker, options.n, options.seed, model_config(options.model),
                      record["checkpoint_sha256"], record["results"], keep)
        return recipe.build(bench)


def model_config(path: str | None) -> Any:
    """The shapes of a checkpoint."""
    from pydstp.experiments.startup import checkpoint_folder
    from pydstp.models.config import VLMConfig
    from pydstp.weights import open_checkpoint

    checkpoint = open_checkpoint(checkpoint_folder(path))
    return VLMConfig.from_dict(checkpoint.config, str(checkpoint.config_path))
