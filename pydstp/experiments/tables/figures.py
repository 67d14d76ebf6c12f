"""The figures that go with tables."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pydstp.experiments.plots import require_matplotlib, save
from pydstp.experiments.tables.layout import Table


def draw_maps(table: Table, path: Path) -> None:
    """How often each cell is kept: one heat map per task and method, and its row histogram.

    Raises:
        PydstpError: matplotlib is not installed.
        OptionError: the file cannot be written.
    """
    require_matplotlib()
    from matplotlib.figure import Figure

    maps = {name: np.array(values) for name, values in table.figure["maps"].items()}
    tasks = list(dict.fromkeys(name.split(", ")[0] for name in maps))
    columns = max(sum(name.startswith(f"{task}, ") for name in maps) for task in tasks)
    figure = Figure(figsize=(1.5 * columns, 3.4 * len(tasks)), layout="constrained")
    axes = figure.subplots(2 * len(tasks), columns, squeeze=False)
    for line, task in enumerate(tasks):
        own = [name for name in maps if name.startswith(f"{task}, ")]
        for place in range(columns):
            above, below = axes[2 * line][place], axes[2 * line + 1][place]
            if place >= len(own):
                above.set_axis_off(), below.set_axis_off()
                continue
            picture = maps[own[place]]
            shown = above.imshow(picture, vmin=0, vmax=0.75, cmap="viridis")
            above.set_title(own[place].replace(", ", "\n"), fontsize=7)
            above.set(xticks=[], yticks=[])
            below.barh(range(len(picture)), picture.mean(axis=1), color="tab:blue")
            below.axvline(picture.mean(), color="0.5", ls="--", lw=1)
            below.set(xlim=(0, 0.75), yticks=[])
            below.invert_yaxis()
            below.tick_params(labelsize=6)
    figure.colorbar(shown, ax=axes, label="share of questions that keep the cell", shrink=0.5)
    save(figure, path)


def draw_points(table: Table, path: Path) -> None:
    """Activated tokens against visual mass: one panel per layer, one colour per task.

    Raises:
        PydstpError: matplotlib is not installed.
        OptionError: the file cannot be written.
    """
    require_matplotlib()
    from matplotlib.figure import Figure

    layers = table.figure["points"]
    figure = Figure(figsize=(4.2 * len(layers), 3.8), layout="constrained")
    for axes, (layer, tasks) in zip(figure.subplots(1, len(layers), squeeze=False)[0],
                                    layers.items(), strict=True):
        for task, points in tasks.items():
            values = np.array(points)
            axes.plot(values[:, 0], values[:, 2], ".", ms=3, alpha=0.5, label=task)
        axes.set(title=layer, xlabel="visual mass, mean over heads", ylabel="activated tokens")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)
    save(figure, path)
