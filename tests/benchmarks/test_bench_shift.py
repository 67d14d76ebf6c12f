"""The benchmark of swaps runs through on a tiny checkpoint, and its arithmetic is right."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks import bench_shift, common, make_random_checkpoint
from benchmarks.shift_harness import Step
from benchmarks.shift_replay import Trace, weighed_times
from pydstp import DSTP

QUICK = ["--tokens", "96", "--repeats", "2", "--steps", "2", "--replay-steps", "4", "--size",
         "256x256", "--rows", "60", "--ttft-repeats", "2", "--threads", "2", "--probe-mib", "1"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("random") / "random-tiny"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["make", str(folder), "--shape", "tiny"])
        make_random_checkpoint.main()
    return folder


@pytest.fixture(scope="module")
def record(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(common, "RESULTS", tmp_path_factory.mktemp("results"))
        page = bench_shift.run(bench_shift.parse_arguments(
            ["--checkpoint", str(checkpoint), *QUICK]))
    assert page.name == "shift-random-tiny.md" and page.read_text().count("\n## ") == 3
    return json.loads(page.with_suffix(".json").read_text())


def test_every_row_stands_beside_a_prediction(record) -> None:
    assert {part: len(record[part]) for part in bench_shift.PARTS} == {
        "decode": 8, "ttft": 6, "replay": 4}
    for row in [row for part in bench_shift.PARTS for row in record[part]]:
        assert row["ms"]["median"] > 0 and row["predicted_ms"] > 0
        assert row["ms"]["count"] == 2 and row["rates"]["read_gb_s"]["count"] >= 2


def test_decode_rows_say_what_was_read(record) -> None:
    rows = {(row["setting"], row["kind"]): row for row in record["decode"]}
    num_bytes = {key: row["cost"]["num_bytes"] for key, row in rows.items()}
    assert rows["all tokens", "quiet"]["visible"] == 96
    assert rows["pruned", "quiet"]["visible"] == rows["swaps: mid", "swap"]["visible"] == 32
    row_bytes = 2 * 2 * 128 * 2  # keys and values of two KV heads, bf16
    base = num_bytes["pruned", "quiet"]
    assert num_bytes["all tokens", "quiet"] == base + 2 * 64 * row_bytes
    assert num_bytes["watched: all", "quiet"] == base
    # The step that swaps comes two steps later, so it reads two more rows of text per layer ...
    swap = num_bytes["swaps: all", "swap"]
    assert base < swap <= base + 2 * 2 * row_bytes + 2 * 64 * row_bytes // 2  # ... and the keys


def test_the_first_token_of_lazy_needs_no_reserve(record) -> None:
    rows = {(row["source"], row["setting"]): row for row in record["ttft"]}
    for source, num_visual in (("picture", 64), ("rows", 60)):
        full, lazy, side = (rows[source, name] for name in ("all tokens", "lazy", "side"))
        assert full["num_visual"] == num_visual and full["side_passes"] == 0
        assert lazy["side_passes"] == side["side_passes"] == 1
        assert lazy["cost"]["flops"] < full["cost"]["flops"]
        assert (side["cost"]["flops"] - lazy["cost"]["flops"]
                == pytest.approx(lazy["second_cost"]["flops"]))


def test_a_part_can_run_alone(checkpoint, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(common, "RESULTS", tmp_path)
    options = ["--checkpoint", str(checkpoint), *QUICK, "--part", "replay", "--forwards", "1.5"]
    page = bench_shift.run(bench_shift.parse_arguments(options))
    record = json.loads(page.with_suffix(".json").read_text())
    assert page.name == "shift-random-tiny-replay.md" and "ttft" not in record
    redo = next(row for row in record["replay"] if row["setting"] == "redo")
    assert redo["shares"] == {"swap": 0.5, "expanded": 0.0, "quiet": 0.5}
    assert redo["predicted_against_pruned"] == pytest.approx(1.5, abs=0.01)


def test_a_trace_comes_from_a_record_of_eval(tmp_path) -> None:
    policy = DSTP(expand_steps=4, monitor_layers=[0, 3])
    row = {"task": "trail", "method": "fastv", "retention_ratio": 0.25, "shift": "dstp",
           "triggers": 2.0, "new_tokens": 21.0, "forwards_per_token": 1.0,
           "options": {"shift": policy.to_dict()}}
    plain = {**row, "triggers": 0.0, "options": {"shift": None}}
    path = tmp_path / "eval.json"
    path.write_text(json.dumps({"rows": [plain, row]}))
    trace = Trace.from_record(path, None)
    assert (trace.triggers, trace.forwards, trace.retention) == (0.1, 1.0, 0.25)
    assert trace.policy.monitor_layers == "post_prune" and "trail" in trace.source
    assert trace.shares("next") == pytest.approx({"swap": 0.1, "expanded": 0.4, "quiet": 0.5})
    assert trace.shares("redo") == pytest.approx({"swap": 0.1, "expanded": 0.3, "quiet": 0.6})
    assert trace.rate("next", 10_000) == pytest.approx(0.1 / 0.6)
    with pytest.raises(SystemExit, match="expected a row"):
        Trace.from_record(path, 0)


def test_times_are_weighed_by_the_shares_of_the_trace() -> None:
    def step(kind: str, ms: float) -> Step:
        return Step(kind, ms, 0, 0, None)

    warm_up = step("quiet", 99.0)
    runs = [[warm_up, step("quiet", 10.0), step("swap", 30.0)],
            [warm_up, step("quiet", 12.0), step("quiet", 12.0)]]
    shares = {"swap": 0.25, "expanded": 0.0, "quiet": 0.75}
    assert weighed_times(runs, shares) == [10.0 + 0.25 * 18.0, 12.0 + 0.25 * 18.0]
