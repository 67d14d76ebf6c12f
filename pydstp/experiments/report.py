"""What an analysis leaves behind: a record, figures, pictures of answers, and a summary."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydstp.experiments import overlays, plots
from pydstp.experiments.analysis import RUNS, Analysis, summarise
from pydstp.experiments.record import markdown_table, write_json
from pydstp.tokenizer import Tokenizer

RECORD = "analysis.json"
CONTROL = "control"


def write_report(folder: Path, record: dict[str, Any], found: dict[str, list[dict[str, Any]]],
                 job: Analysis, tokenizer: Tokenizer) -> str:
    """Write everything an analysis found into a folder.

    Args:
        folder: exists.
        record: the head of the record; it is completed.
        found: what `Analysis.run` returned, by task; "control" is the control for length.
        job: the analysis.
        tokenizer: spells the tokens in the pictures.

    Returns:
        The summary as Markdown.

    Raises:
        OptionError: a file cannot be written.
    """
    summaries = {name: summarise(records) for name, records in found.items()}
    record |= {"options": _options(job), "summary": summaries, "answers": found}
    write_json("--output", folder / RECORD, record)
    _plot(folder, found, summaries, job.counting.below)
    _draw(folder, job, tokenizer)
    return _to_markdown(summaries) + f"\n{folder / RECORD}, figures and pictures beside it\n"


def _options(job: Analysis) -> dict[str, Any]:
    return {"pruning": job.pruning.to_dict(), "shift": job.shift.to_dict(), "watch": job.watch,
            "counting": vars(job.counting), "reserve": job.reserve,
            "max_new_tokens": job.asker.max_new_tokens}


def _plot(folder: Path, found: dict[str, list[dict[str, Any]]], summaries: dict[str, Any],
          below: float) -> None:
    tasks = [name for name in found if name != CONTROL]
    plots.plot_distribution({name: summaries[name]["distribution"] for name in tasks},
                            folder / "shifts.png")
    for name in tasks:
        summary = summaries[name]
        plots.plot_similarity(found[name], below, folder / f"similarity-{name}.png")
        plots.plot_shifts_by_regions(found[name], folder / f"shifts-by-regions-{name}.png")
        plots.plot_success(summary["success_by_rvis"], "shifts in the answer with all tokens",
                           folder / f"success-by-shifts-{name}.png")
        plots.plot_success(summary["success_by_tokens"], "tokens of the answer, from",
                           folder / f"success-by-length-{name}.png")
    if CONTROL in found:
        plots.plot_success(summaries[CONTROL]["success_by_regions"],
                           "different cells in an answer of constant length",
                           folder / "control.png")


def _draw(folder: Path, job: Analysis, tokenizer: Tokenizer) -> None:
    """Two sheets per answer that was kept: with all tokens, and with the policy."""
    for shown in job.shown:
        for name in ("full", "shift"):
            answer = shown.answers[name]
            tokens = [tokenizer.decode([token], skip_special_tokens=False)
                      for token in answer.token_ids]
            stem = f"steps-{shown.example.task}-{shown.example.seed}-{name}"
            overlays.draw_answer(shown.example.images, answer, tokens, folder / f"{stem}.png")


def _to_markdown(summaries: dict[str, Any]) -> str:
    """Shifts and success by task, then success by number of shifts, length and regions."""
    rows = [[name, str(s["n"]), f"{s['mean_rvis']:.2f}", _show(s["correlation_with_tokens"]),
             _show(s["correlation_with_regions"]),
             *(f"{100 * s['success'][run][0]['accuracy']:.1f}" for run in RUNS),
             f"{s['mean_visible']['shift']:.3f}", f"{s['triggers']:.1f}"]
            for name, s in summaries.items()]
    text = markdown_table(["task", "n", "shifts", "r tokens", "r regions", "full %", "base %",
                           "policy %", "visible", "triggers"], rows)
    for name, summary in summaries.items():
        keys = ("regions",) if name == CONTROL else ("rvis", "tokens", "regions")
        for key in keys:
            text += f"\n{name}, success by {key}\n\n{_groups(summary[f'success_by_{key}'], key)}"
    return text


def _groups(success: dict[str, list[dict[str, Any]]], key: str) -> str:
    rows = [[str(groups[0]["key"]), str(groups[0]["n"]), f"{groups[0]['mean_rvis']:.1f}",
             *(f"{100 * group['accuracy']:.1f}" for group in groups)]
            for groups in zip(*(success[run] for run in RUNS), strict=True)]
    return markdown_table([key, "n", "shifts", "full %", "base %", "policy %"], rows)


def _show(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
