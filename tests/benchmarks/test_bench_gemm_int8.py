"""The benchmark of prompts in 8 bits runs through on tiny sizes and says what it compared."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks import bench_gemm_int8, common, make_random_checkpoint
from pydstp.models import plans
from pydstp.models.gemm import dequantised_gemm, quantised_gemm


def test_products_and_prompts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "random-tiny"
    monkeypatch.setattr(sys, "argv", ["make", str(folder), "--shape", "tiny"])
    make_random_checkpoint.main()
    monkeypatch.setattr(common, "RESULTS", tmp_path / "results")
    monkeypatch.setitem(bench_gemm_int8.MATRICES, "small o", (48, 130))
    page = bench_gemm_int8.run(bench_gemm_int8.parse_arguments(
        ["--matrices", "small o", "--rows", "9", "50", "--repeats", "2", "--threads", "1",
         "--sentences", "4", "--checkpoint", str(folder)]))
    record = json.loads(page.with_suffix(".json").read_text())
    assert page.name == "gemm-int8-1t.md"
    assert [row["rows"] for row in record["products"]] == [9, 50]
    for row in record["products"]:
        assert row["gflop"] == pytest.approx(2e-9 * row["rows"] * 48 * 130)
        assert all(row["gflop_s"][kind]["median"] > 0 for kind in bench_gemm_int8.KINDS)
    assert record["prompt"]["prompt_tokens"] > 20
    assert all(record["prompt"]["ms"][kind]["median"] > 0 for kind in bench_gemm_int8.KINDS)
    assert "| small o " in page.read_text() and "random-tiny" in page.read_text()


def test_weights_are_numbers_only_within() -> None:
    with bench_gemm_int8.weights_as_numbers():
        assert plans.quantised_gemm is dequantised_gemm
    assert plans.quantised_gemm is quantised_gemm
