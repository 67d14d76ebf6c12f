"""Draw the loss curve and write the accuracy table: python plot.py RESULTS_FOLDER.

Reads loss.jsonl and accuracy.json of the folder, writes loss.png and accuracy.md into it.
"""
from __future__ import annotations

import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot


def draw_loss(folder: Path) -> None:
    """Loss per answer token and exact answers on training pictures, over the steps."""
    lines = [json.loads(line) for line in (folder / "loss.jsonl").read_text().splitlines()]
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4))
    for task in ("read", "trail", "locate", "haystack"):
        steps = [line["step"] for line in lines if task in line]
        left.plot(steps, [line[task]["loss"] for line in lines if task in line], label=task)
        right.plot(steps, [line[task]["exact"] for line in lines if task in line], label=task)
    left.set(xlabel="step", ylabel="loss per answer token", yscale="log")
    right.set(xlabel="step", ylabel="exact answers, training pictures")
    for line, following in zip(lines, lines[1:]):
        if line["level"] != following["level"]:
            left.axvline(following["step"], color="lightgrey", zorder=0)
            right.axvline(following["step"], color="lightgrey", zorder=0)
    left.legend()
    figure.tight_layout()
    figure.savefig(folder / "loss.png", dpi=80)


def row(name: str, entry: dict) -> str:
    """One line of a table."""
    low, high = entry["wilson95"]
    return (f"| {name} | {entry['examples']} | {100 * entry['accuracy']:.2f} "
            f"| {100 * low:.2f} - {100 * high:.2f} |")


def write_table(folder: Path) -> None:
    """accuracy.md from accuracy.json."""
    report = json.loads((folder / "accuracy.json").read_text())
    head = ["| examples | number | exact % | Wilson 95 % |", "|---|---|---|---|"]
    text = ["# The embedded checkpoint", "",
            f"model.safetensors sha256 `{report['sha256']}`", ""]
    text += [f"- {key}: {value}" for key, value in report.get("training", {}).items()]
    text += ["", "Whole answers, greedy, held-out pictures, all visual tokens, fp32:", "", *head]
    for task, parts in report["accuracy"].items():
        text += [row(task if name == "all" else f"{task}, {name}", entry)
                 for name, entry in parts.items()]
    text += ["", "8 x 8 pictures; two thirds of the visual tokens hidden at random in layers >= 1, "
             "at prefill and while decoding. *start*: the cell the question names is always kept; "
             "*asked*: every cell the answer needs is.", "", *head]
    for name, parts in report.get("masking", {}).items():
        text += [row(f"{name}, {setting}", entry) for setting, entry in parts.items()]
    if "bfloat16" in report:
        text += ["", "Weights rounded to bf16 (computed in fp32):", "", *head]
        text += [row(task, entry) for task, entry in report["bfloat16"].items()]
    if "beyond" in report:
        text += ["", "Questions it was taught little or nothing of:", "", *head]
        text += [row(name, entry) for name, entry in report["beyond"].items()]
    if "generate" in report:
        text += ["", "Answers written by transformers' generate(), one by one (and on how many of "
                 "them the one-pass decision above agrees):", "", *head]
        text += [row(f"{task} ({entry['agrees_with_one_pass']} agree)", entry)
                 for task, entry in report["generate"].items()]
    (folder / "accuracy.md").write_text("\n".join(text) + "\n")


if __name__ == "__main__":
    draw_loss(Path(sys.argv[1]))
    write_table(Path(sys.argv[1]))
