"""Memory: what loading takes at its peak, what an engine is estimated to take, what there is."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pydstp.errors import CapacityError
from pydstp.models.name_map import QWEN3_VL, placements
from pydstp.models.registry import build_model
from pydstp.weights import available_memory, check_memory, estimate_memory, inspect, open_checkpoint
from pydstp.weights import memory as memory_module
from tests.checkpoints import tiny_qwen3_vl
from tests.loader.raw_files import config_of, edit_json

ROOT = Path(__file__).resolve().parents[2]
MAX_PEAK_RATIO = 1.15

MEASURE = """
import json, sys, torch
from pydstp.models.quantised import num_bytes
from tests.loader.raw_files import load

def status_bytes(key):
    with open("/proc/self/status") as status:
        return next(1024 * int(line.split()[1]) for line in status if line.startswith(key))

large, tiny = sys.argv[1:]
for kind in ("float", "int8"):  # everything is imported and has run once
    load(tiny, "float32", kind)
for dtype, kind in (("bfloat16", "int8"), ("bfloat16", "float"), ("float32", "float")):
    before = status_bytes("VmRSS:")
    model = load(large, dtype, kind)  # each peak is above the one before
    print(json.dumps({"peak": status_bytes("VmHWM:") - before, "kept": num_bytes(model)}))
    del model
"""


def write_large(folder: Path) -> int:
    """About 200 MB of bfloat16, a third of it in one tensor; returns the bytes."""
    config = json.loads((tiny_qwen3_vl() / "config.json").read_text())
    config["text_config"] |= {"hidden_size": 768, "intermediate_size": 3072, "vocab_size": 45000,
                              "num_hidden_layers": 10, "num_attention_heads": 24}
    config["vision_config"] |= {"out_hidden_size": 768, "hidden_size": 384, "num_heads": 8}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text("{}")
    vlm = memory_module.VLMConfig.from_dict(config)
    parameters = {n: tuple(p.shape) for n, p in build_model(vlm, tied=True).named_parameters()}
    shapes = {p.name: p.shape for p in placements(vlm, QWEN3_VL, parameters, {})}
    pool = torch.randn(45000 * 768).bfloat16()
    save_file({f"model.{name}": pool[: math.prod(shape)].view(shape).clone()
               for name, shape in shapes.items()}, folder / "model.safetensors")
    return (folder / "model.safetensors").stat().st_size


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc/self/status")
def test_peak_memory_is_the_weights_and_little_more(tmp_path: Path) -> None:
    file_bytes = write_large(tmp_path)
    command = [sys.executable, "-c", MEASURE, str(tmp_path), str(tiny_qwen3_vl())]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    (tmp_path / "model.safetensors").unlink()
    assert done.returncode == 0, done.stderr
    measured = [json.loads(line) for line in done.stdout.splitlines()]
    in_int8, half, full = (m["kept"] for m in measured)
    assert half == pytest.approx(file_bytes, rel=1e-3)
    assert full == 2 * half
    assert in_int8 < 0.6 * half
    ratios = [m["peak"] / m["kept"] for m in measured]
    print("peak / kept, int8, bfloat16 and float32:", ratios)
    assert max(ratios) <= MAX_PEAK_RATIO, measured


def test_estimate_counts_what_will_be_allocated() -> None:
    checkpoint = open_checkpoint(tiny_qwen3_vl(dtype="bfloat16"))
    config = config_of(checkpoint)
    half = estimate_memory(checkpoint, config, torch.bfloat16, 1000)
    full = estimate_memory(checkpoint, config, torch.float32, 1000)
    assert half.weights_bytes == 2 * 497024
    assert full.weights_bytes == 4 * 497024
    assert full.cache_bytes == 1000
    assert full.total_bytes == full.weights_bytes + 1000 + full.workspace_bytes
    small = estimate_memory(checkpoint, config, torch.float32, 1000, max_visual_tokens=8,
                            max_text_tokens=8)
    assert small.workspace_bytes < full.workspace_bytes


def test_a_model_that_does_not_fit_is_refused_with_the_numbers(
    monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = open_checkpoint(tiny_qwen3_vl())
    config = config_of(checkpoint)
    monkeypatch.setattr(memory_module, "available_memory", lambda: 3 << 30)
    assert check_memory(checkpoint, config, torch.float32, 2 << 30).cache_bytes == 2 << 30
    with pytest.raises(CapacityError, match=r"cache 4\.00, .*3\.00 GiB are available; lower max_b"):
        check_memory(checkpoint, config, torch.float32, 4 << 30)
    monkeypatch.setattr(memory_module, "available_memory", lambda: None)
    check_memory(checkpoint, config, torch.float32, 1 << 60)


@pytest.mark.parametrize("size", [10**12, 10**30, 10**4000])
def test_a_config_of_absurd_size_is_a_capacity_error(tmp_path: Path, size: int) -> None:
    folder = tiny_qwen3_vl(tmp_path)
    text = open_checkpoint(folder).config["text_config"] | {"intermediate_size": size}
    edit_json(folder / "config.json", text_config=text)
    checkpoint = open_checkpoint(folder)
    with pytest.raises(CapacityError, match="GiB are needed"):
        check_memory(checkpoint, config_of(checkpoint), torch.float32, size)
    assert json.dumps(inspect(folder).to_dict())


def fake_system(root: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.setattr(memory_module, "PROC", root / "proc")
    monkeypatch.setattr(memory_module, "CGROUP", root / "cgroup")


MEMINFO = {"proc/meminfo": "MemTotal: 9000 kB\nMemFree: 1 kB\nMemAvailable:    8000 kB\n"}


@pytest.mark.parametrize(("files", "expected"), [
    ({}, None),
    (MEMINFO, 8000 * 1024),
    (MEMINFO | {"proc/self/cgroup": "0::/\n", "cgroup/memory.max": "max\n",
                "cgroup/memory.current": "7\n"}, 8000 * 1024),
    ({"proc/self/cgroup": "0::/a/b\n", "cgroup/a/b/memory.max": "5000\n",
      "cgroup/a/b/memory.current": "3000\n",
      "cgroup/a/b/memory.stat": "anon 1\ninactive_file 200\nactive_file 50\n"}, 2250),
    ({"proc/self/cgroup": "0::/a/b\n", "cgroup/a/memory.max": "5000\n",
      "cgroup/a/memory.current": "4000\n", "cgroup/a/b/memory.max": "4500\n",
      "cgroup/a/b/memory.current": "1000\n"}, 1000),
    ({"proc/self/cgroup": "3:cpu:/x\n2:memory:/x\n0::/x\n",
      "cgroup/memory/memory.limit_in_bytes": "900\n",
      "cgroup/memory/memory.usage_in_bytes": "950\n"}, 0),
], ids=["nothing known", "machine", "no limit", "group", "outer group", "version 1"])  # fmt: skip
def test_available_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                          files: dict[str, str], expected: int | None) -> None:
    fake_system(tmp_path, monkeypatch, files)
    assert available_memory() == expected


def test_this_machine_has_memory() -> None:
    assert available_memory() is None or available_memory() > 1 << 20
