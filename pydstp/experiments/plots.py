"""Figures of the experiments, drawn with matplotlib, an optional dependency (`pydstp[plots]`)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydstp.errors import OptionError, PydstpError
from pydstp.experiments.statistics import pareto_front

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = {"full": "0.45", "base": "tab:red", "shift": "tab:blue"}
NAMES = {"full": "all tokens", "base": "base method", "shift": "with the policy"}
NUM_CURVES = 3


def has_matplotlib() -> bool:
    """Whether figures can be drawn."""
    try:
        require_matplotlib()
    except PydstpError:
        return False
    return True


def require_matplotlib() -> None:
    """Check that figures can be drawn, before anything is measured for them.

    Raises:
        PydstpError: matplotlib is not installed.
    """
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        raise PydstpError("matplotlib: needed to draw figures; install it, for example with "
                          "pip install 'pydstp[plots]'") from None


def new_figure(columns: int = 1, rows: int = 1) -> tuple[Figure, list[Axes]]:
    """A figure with axes, row by row; nothing of it is global or shown."""
    require_matplotlib()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4 * columns, 4.2 * rows), layout="constrained")
    return figure, list(figure.subplots(rows, columns, squeeze=False).flat)


def save(figure: Figure, path: Path) -> None:
    """Write a PNG.

    Raises:
        OptionError: the file cannot be written.
    """
    try:
        figure.savefig(path, dpi=120, format="png")
    except OSError as error:
        raise OptionError(f"{path}: expected a file that can be written: {error}") from None


def plot_pareto(rows: list[dict[str, Any]], path: Path) -> list[dict[str, Any]]:
    """Accuracy against what is read, one point per row of an evaluation.

    Returns:
        The rows on the front of accuracy against mean visible tokens, the cheapest first.
    """
    figure, (left, right) = new_figure(2)
    full = next((row for row in rows if row["method"] == "none"), None)
    unit = full["bytes_per_token"] if full else 1024.0
    sides = ((left, "visible tokens, mean share of all", lambda row: row["mean_visible"]),
             (right, "bytes per token, all tokens = 1" if full else "KiB per token",
              lambda row: row["bytes_per_token"] / unit))
    for axes, label, cost in sides:
        _scatter(axes, rows, cost)
        axes.set_xlabel(label)
    left.set_ylabel("accuracy")
    left.legend(loc="lower right", fontsize=8)
    figure.colorbar(right.collections[0], ax=right, label="forward passes per token")
    first = next((row for row in rows if row["method"] != "none"), rows[0])
    figure.suptitle(f"{first['task']}, {first['method']}, {first['retention_ratio']:.3g} kept")
    save(figure, path)
    return [rows[index] for index in _front(rows, lambda row: row["mean_visible"])]


def _front(rows: list[dict[str, Any]], cost: Callable[[dict[str, Any]], float]) -> list[int]:
    return pareto_front([(cost(row), row["accuracy"]) for row in rows])


def _scatter(axes: Axes, rows: list[dict[str, Any]],
             cost: Callable[[dict[str, Any]], float]) -> None:
    """All rows, their front, and the two that everything is compared with."""
    axes.scatter([cost(row) for row in rows], [row["accuracy"] for row in rows], s=18,
                 c=[row["forwards_per_token"] for row in rows], cmap="viridis", zorder=3)
    front = [rows[index] for index in _front(rows, cost)]
    axes.plot([cost(row) for row in front], [row["accuracy"] for row in front], color="0.6", lw=1,
              label="front")
    for row in rows:
        if row["shift"] == "none":
            name = "all tokens" if row["method"] == "none" else f"{row['method']} alone"
            axes.plot(cost(row), row["accuracy"], "x" if row["method"] == "none" else "+", ms=10,
                      color="tab:red", label=name, ls="none", zorder=4)
    axes.set_ylim(-0.03, 1.03)
    axes.grid(alpha=0.3)


def plot_similarity(records: list[dict[str, Any]], below: float, path: Path) -> None:
    """Similarity with the prompt over the decode steps of a few answers, its minima marked."""
    figure, (axes,) = new_figure()
    for record in sorted(records, key=lambda record: -record["tokens"])[:NUM_CURVES]:
        values = record["similarity"]
        line, = axes.plot(range(1, len(values) + 1), values, lw=1,
                          label=f"seed {record['seed']}: {record['rvis']} shifts")
        axes.plot([step + 1 for step in record["shifts"]],
                  [values[step] for step in record["shifts"]], "v", color=line.get_color(), ms=5)
    axes.axhline(below, color="0.5", ls="--", lw=1)
    axes.set(xlabel="decode step", ylabel="cosine with the prompt's attention", ylim=(0, 1.02))
    axes.legend(fontsize=7)
    save(figure, path)


def plot_distribution(counts: dict[str, dict[int, int]], path: Path) -> None:
    """Share of the answers by their number of shifts, one bar per group of questions."""
    figure, (axes,) = new_figure()
    width = 0.8 / max(1, len(counts))
    for number, (name, found) in enumerate(counts.items()):
        total = sum(found.values())
        axes.bar([int(value) + (number - (len(counts) - 1) / 2) * width for value in found],
                 [count / total for count in found.values()], width,
                 label=f"{name} (n = {total})")
    axes.set(xlabel="shifts of relevant visual information", ylabel="share of the answers")
    axes.legend(fontsize=8)
    save(figure, path)


def plot_shifts_by_regions(records: list[dict[str, Any]], path: Path) -> None:
    """Quartiles of the number of shifts, by how many different cells an answer needs."""
    figure, (axes,) = new_figure()
    regions = sorted({record["regions"] for record in records})
    axes.boxplot([[record["rvis"] for record in records if record["regions"] == count]
                  for count in regions], positions=regions, widths=0.6)
    axes.set(xlabel="different cells that the answer needs",
             ylabel="shifts of relevant visual information")
    axes.grid(alpha=0.3, axis="y")
    save(figure, path)


def plot_success(success: dict[str, list[dict[str, Any]]], label: str, path: Path) -> None:
    """Success with its 95 % interval by a number, one line per run of `analysis.RUNS`."""
    figure, (axes,) = new_figure()
    for shift, (name, groups) in zip((-0.06, 0.0, 0.06), success.items(), strict=True):
        keys = [group["key"] for group in groups]
        step = min((b - a for a, b in zip(keys, keys[1:])), default=1)
        shares = [group["accuracy"] for group in groups]
        errors = [[max(0.0, group["accuracy"] - group["ci95"][0]) for group in groups],
                  [max(0.0, group["ci95"][1] - group["accuracy"]) for group in groups]]
        axes.errorbar([key + shift * step for key in keys], shares, yerr=errors, marker="o", ms=4,
                      capsize=3, lw=1.2, color=COLOURS[name], label=NAMES[name])
    axes.set(xlabel=label, ylabel="whole answers right", ylim=(-0.03, 1.03))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    save(figure, path)
