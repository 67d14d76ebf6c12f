"""The benchmark of decode products runs through on tiny sizes, and its arithmetic is right."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks import bench_gemv, common, make_random_checkpoint


def test_products_and_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "random-tiny"
    monkeypatch.setattr(sys, "argv", ["make", str(folder), "--shape", "tiny"])
    make_random_checkpoint.main()
    monkeypatch.setattr(common, "RESULTS", tmp_path / "results")
    monkeypatch.setitem(bench_gemv.MATRICES, "qkv", (256, 128))
    page = bench_gemv.run(bench_gemv.parse_arguments(
        ["--matrices", "qkv", "--rows", "1", "3", "--pool-mib", "1", "--repeats", "2", "--steps",
         "2", "--threads", "1", "--visual-tokens", "32", "--checkpoint", str(folder)]))
    record = json.loads(page.with_suffix(".json").read_text())
    assert [row["rows"] for row in record["products"]] == [1, 3]
    for row in record["products"]:
        assert row["num_bytes"] == {"bfloat16": 65536, "int8": 32768 + 512}
        assert all(row["gb_s"][kind]["median"] > 0 for kind in ("read", "bfloat16", "int8"))
    num_bytes = record["steps"]["num_bytes"]
    assert 0.5 < num_bytes["int8"] / num_bytes["bfloat16"] < 0.6
    assert "| qkv " in page.read_text() and "Whole decode steps of random-tiny" in page.read_text()


def test_turns_rotate_and_the_first_round_does_not_count() -> None:
    order: list[str] = []

    def turn(name: str) -> bench_gemv.Turn:
        return lambda: order.append(name) or len(order)

    found = bench_gemv.take_turns({"a": turn("a"), "b": turn("b")}, 2)
    assert order == ["a", "b", "b", "a", "a", "b"]
    assert found == {"a": [4, 5], "b": [3, 6]}
