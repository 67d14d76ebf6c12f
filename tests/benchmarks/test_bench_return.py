"""The benchmark of same-step return runs through on a tiny checkpoint, and counts bytes right."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks import bench_return, common, make_random_checkpoint

QUICK = ["--shape", "tiny", "--cases", "1x48", "2x96", "--bits", "4", "--repeats", "2", "--steps",
         "2", "--threads", "2", "--probe-mib", "1"]


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> dict:
    folder = tmp_path_factory.mktemp("random")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["make", str(folder / "random-tiny"), "--shape", "tiny"])
        make_random_checkpoint.main()
        patch.setattr(common, "RESULTS", folder)
        patch.setattr(bench_return, "find_checkpoint", lambda options: folder / "random-tiny")
        page = bench_return.run(bench_return.parse_arguments(QUICK))
    assert page.startswith("# Same-step return on the clock: random-tiny")
    record = json.loads((folder / "return-random-tiny.json").read_text())
    assert Path(record["setup"]["checkpoint"]).name == "random-tiny"
    return {(row["batch"], row["num_visual"], row["setting"]): row for row in record["rows"]}


def test_every_case_has_every_setting_beside_a_prediction(rows) -> None:
    assert len(rows) == 2 * 4
    for row in rows.values():
        assert row["ms"]["count"] == 2 and row["ms"]["median"] > 0 and row["predicted_ms"] > 0
    for (_, _, setting), row in rows.items():
        if setting == "pruned":
            assert row["against_pruned"]["median"] == row["predicted_against_pruned"] == 1


def test_bytes_are_weights_once_and_rows_and_sketches_of_each_sequence(rows) -> None:
    layers, row_bytes, sketch_bytes = 2, 2 * 2 * 128 * 2, 2 * (128 // 2 + 4)  # two KV heads
    for batch, num_visual in ((1, 48), (2, 96)):
        full, base, one, eight = (rows[batch, num_visual, name]["bytes"] for name in (
            "all tokens", "pruned", "4 bits, 1 returned", "4 bits, 8 returned"))
        kept = num_visual // 3
        assert full - base == batch * layers * (num_visual - kept) * row_bytes
        assert one - base == batch * layers * (row_bytes + (num_visual - kept) * sketch_bytes)
        assert eight - one == batch * layers * 7 * row_bytes
    weights = rows[1, 48, "pruned"]["bytes"]
    assert rows[2, 96, "pruned"]["bytes"] < 2 * weights
