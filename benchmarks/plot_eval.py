"""The figure of `pydstp eval`, from its records: python -m benchmarks.plot_eval FILE...

Takes records of --json and rows.jsonl of --output, and puts the rows of all into one figure per
task, beside the first file: NAME.png, or NAME-TASK.png where there are several tasks.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from pydstp.experiments.eval_plots import plot_rows, read_rows


def plot(paths: Sequence[Path]) -> list[Path]:
    """One figure per task; returns their paths."""
    rows = [row for path in paths for row in read_rows(path)]
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    targets = []
    for task in tasks:
        name = paths[0].stem + (f"-{task}" if len(tasks) > 1 else "")
        targets.append(paths[0].with_name(f"{name}.png"))
        plot_rows([row for row in rows if row["task"] == task], targets[-1])
    return targets


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", type=Path, nargs="+")
    print(*plot(parser.parse_args().files), sep="\n")


if __name__ == "__main__":
    main()
