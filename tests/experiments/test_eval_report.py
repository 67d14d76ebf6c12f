"""The report and the figures of an evaluation, from rows of any method and of any age."""

from __future__ import annotations

import json

import pytest

from benchmarks import plot_eval
from pydstp import OptionError
from pydstp.experiments import eval_plots, eval_report
from tests.experiments.test_figures import is_png

HEAD = {"model": "demo", "checkpoint_sha256": "0123456789abcdef",
        "environment": {"commit": "c0ffee", "date": "2026-01-01", "cpu": "a CPU", "processors": 2}}


def row(method: str = "fastv", ratio: float = 0.5, shift: str = "none", **changes) -> dict:
    return {"task": "trail", "method": method, "retention_ratio": ratio, "shift": shift, "n": 8,
            "accuracy": ratio, "ci95": [ratio - 0.1, min(1.0, ratio + 0.1)], "new_tokens": 40.0,
            "mean_visible_all_layers": ratio, "retention_achieved": ratio, "triggers": 1.5,
            "bytes_per_token": 3 * 2**20, "ms_per_token": 1.25, **changes}


def test_the_tables() -> None:
    rows = [row("none", 1.0, accuracy_of_full=1.0, trr=4.0),
            row(trr=8.0, prefill_gflops=1234.5, decode_gflops_per_token=0.0012345, kv_bytes=2**19,
                time_to_first_token_ms=12.34, resident_all_layers=20.0, visible_tokens=25.0)]
    text = eval_report.to_markdown(rows, HEAD, {"trail": "trail.png"})
    assert "| fastv  | 0.5  | none  | 50.0     | 40.0-60.0  | -       | 8.0 | 0.500   |" in text
    cells = eval_report.cost_cells(rows[1])
    assert dict(zip(eval_report.COST[3:], cells[3:], strict=False)) | {"visible": "25.0"} == {
        "prefill": "1234", "reserve": "-", "decode": "0.00123", "answer": "-", "MiB/step": "3",
        "resident": "20.0", "visible": "25.0", "KV MiB": "0.5", "first token": "12.3",
        "per token": "1.25"}
    assert "SHA-256 0123456789ab)" in text and "(trail.png)" in text and "c0ffee" in text
    assert "another version" not in text
    assert "3 rows of another version" in eval_report.to_markdown(rows, HEAD, num_others=3)


def test_a_report_that_cannot_be_written_is_an_error(tmp_path) -> None:
    with pytest.raises(OptionError, match="--output: expected a folder"):
        eval_report.write(tmp_path / "missing", [row()], HEAD, {}, 0)


def test_any_number_of_methods_and_policies_has_a_look_of_its_own(tmp_path, monkeypatch) -> None:
    pytest.importorskip("matplotlib")
    rows = [row(f"method{m}", ratio, f"policy{p}") for m in range(17) for p in range(11)
            for ratio in (0.2, 0.5)]
    drawn = []
    monkeypatch.setattr(eval_plots, "save", lambda figure, path: drawn.append(figure))
    eval_plots.plot_rows(rows, tmp_path / "x.png")
    looks = {(line.get_color(), line.get_marker(), line.get_linestyle())
             for line in drawn[0].axes[0].lines if not line.get_label().startswith("_")}
    assert len(looks) == 17 * 11


def test_panels_hold_every_row_that_has_a_time(tmp_path, monkeypatch) -> None:
    pytest.importorskip("matplotlib")
    drawn = []
    monkeypatch.setattr(eval_plots, "save", lambda figure, path: drawn.append(figure))
    rows = [row("none", 1.0), row(ratio=0.5), row(ratio=0.2, ms_per_token=None)]
    eval_plots.plot_rows(rows, tmp_path / "x.png")
    points = [sorted((x, y) for line in axes.lines for x, y in zip(*line.get_data(), strict=True))
              for axes in drawn[0].axes]
    assert points[0] == [(0.2, 0.2), (0.5, 0.5), (1.0, 1.0)]
    assert points[1] == [(1.0, 0.2), (1.0, 0.5), (1.0, 1.0)]  # bytes of all tokens = 1
    assert points[2] == [(1.25, 0.5), (1.25, 1.0)]
    assert points[3] == [(0.2, 40), (0.5, 40), (1.0, 40)]


def test_old_records_and_json_lines_are_drawn(tmp_path) -> None:
    pytest.importorskip("matplotlib")
    (tmp_path / "old.json").write_text(json.dumps({"rows": [row("vispruner"), row("none", 1.0)]}))
    (tmp_path / "rows.jsonl").write_text(json.dumps(row("my_own", task="read")) + "\n")
    assert plot_eval.plot([tmp_path / "old.json"]) == [tmp_path / "old.png"]
    both = plot_eval.plot([tmp_path / "old.json", tmp_path / "rows.jsonl"])
    assert both == [tmp_path / "old-trail.png", tmp_path / "old-read.png"]
    assert all(is_png(path) for path in [tmp_path / "old.png", *both])


@pytest.mark.parametrize("name, content", [
    ("x.json", "nonsense"), ("x.json", "[]"), ("x.json", '{"rows": [1]}'), ("x.json", "{}"),
    ("x.json", '{"rows": [{"task": "read"}]}'), ("x.jsonl", "[1]\n"), ("x.jsonl", "{\n")])
def test_other_files_are_refused(name, content, tmp_path) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(OptionError, match="expected a record of `pydstp eval`"):
        eval_plots.read_rows(tmp_path / name)
    with pytest.raises(OptionError, match="missing.json: expected a record"):
        eval_plots.read_rows(tmp_path / "missing.json")
