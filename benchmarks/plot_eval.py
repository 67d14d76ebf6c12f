"""Accuracy against what is read, of files of `pydstp eval`: python -m benchmarks.plot_eval FILE...

Writes a PNG beside the first file, with the rows of all.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

LABELS = {"none": "base method alone", "dstp": "DSTP, the paper's setting",
          "recommended": "DSTP.recommended()", "sketch": "SketchReturn()"}
COLORS = ("tab:red", "tab:orange", "tab:blue", "tab:green")
MARKERS = {"random": "o", "fastv": "s", "divprune": "^", "visionzip": "D"}


def plot(paths: Sequence[Path]) -> Path:
    """One line per method and policy over its retention ratios."""
    from matplotlib import pyplot

    rows = [row for path in paths for row in json.loads(path.read_text())["rows"]]
    full = next(row["bytes_per_token"] for row in rows if row["method"] == "none")
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.5), layout="constrained",
                                            sharey=True)
    sides = ((left, "visual tokens read per step, mean share of all", "mean_visible", 1.0),
             (right, "bytes read per token, all tokens = 1", "bytes_per_token", full))
    for axes, label, key, unit in sides:
        _lines(axes, rows, key, unit)
        axes.set_xlabel(label)
        axes.grid(alpha=0.3)
    left.plot([], [], " ", label=", ".join(f"{name} {mark}" for name, mark in MARKERS.items()))
    left.set_ylabel("accuracy")
    left.legend(fontsize=8, loc="center right")
    ratios = sorted({row["retention_ratio"] for row in rows if row["method"] != "none"})
    kept = ", ".join(f"{100 * ratio:.3g}" for ratio in ratios)
    figure.suptitle(f"{rows[0]['task']}: kept at prefill {kept} %", fontsize=10)
    target = paths[0].with_suffix(".png")
    figure.savefig(target, dpi=120)
    return target


def _lines(axes: Any, rows: list[dict[str, Any]], key: str, unit: float) -> None:
    for policy, color in zip(LABELS, COLORS, strict=True):
        for method, marker in MARKERS.items():
            chosen = sorted((row["retention_ratio"], row[key] / unit, row["accuracy"])
                            for row in rows if (row["method"], row["shift"]) == (method, policy))
            axes.plot([cost for _, cost, _ in chosen], [accuracy for *_, accuracy in chosen],
                      color=color, marker=marker, alpha=0.7,
                      label=LABELS[policy] if method == "random" else None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", type=Path, nargs="+")
    print(plot(parser.parse_args().files))


if __name__ == "__main__":
    main()
