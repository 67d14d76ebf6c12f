"""Accuracy against visible tokens of a file of `pydstp eval`: python -m benchmarks.plot_eval FILE.

Writes a PNG beside the file.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

LABELS = {"none": "base method alone", "dstp": "DSTP, the paper's setting",
          "recommended": "DSTP.recommended()", "sketch": "SketchReturn()"}
MARKERS = {"random": "o", "fastv": "s", "divprune": "^", "visionzip": "D"}


def plot(path: Path) -> Path:
    """One line per method and policy over its retention ratios."""
    from matplotlib import pyplot

    rows = [row for row in json.loads(path.read_text())["rows"] if row["method"] != "none"]
    figure, axes = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
    for policy, color in zip(LABELS, ("tab:red", "tab:orange", "tab:blue", "tab:green"),
                             strict=True):
        for method, marker in MARKERS.items():
            chosen = sorted((row["mean_visible"], row["accuracy"]) for row in rows
                            if (row["method"], row["shift"]) == (method, policy))
            if chosen:
                axes.plot(*zip(*chosen, strict=True), color=color, marker=marker, alpha=0.7,
                          label=LABELS[policy] if method == "random" else None)
    axes.plot([], [], " ", label=", ".join(f"{name} {mark}" for name, mark in MARKERS.items()))
    axes.set(xlabel="visual tokens read per step, mean share of all", ylabel="accuracy")
    axes.set_title("trail: kept at prefill 10, 20, 33.3 and 66.6 %", fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="center right")
    target = path.with_suffix(".png")
    figure.savefig(target, dpi=120)
    return target


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path)
    print(plot(parser.parse_args().file))


if __name__ == "__main__":
    main()
