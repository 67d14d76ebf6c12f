"""The script for machines with a GPU: what it runs, and what it says where there is none."""

from __future__ import annotations

import pytest
import torch

from benchmarks import gpu
from pydstp import _C
from tests.ops.gpu import pretend_torch_reaches_gpus


@pytest.fixture
def commands(monkeypatch):
    """What would have been run: (command, environment), with status 0."""
    made = []
    monkeypatch.setattr(gpu, "run", lambda command, **more: made.append((command, more)) or 0)
    return made


@pytest.mark.parametrize("part", ["test", "sanitize"])
def test_without_a_gpu_a_part_says_what_is_missing(part, commands, capsys):
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    assert gpu.main(["--part", part]) == 2
    assert f"{part}: device: expected " in capsys.readouterr().err
    assert commands == []


def test_without_a_compiler_nothing_is_built(commands, monkeypatch, capsys):
    monkeypatch.setattr(gpu.shutil, "which", lambda name: None)
    assert gpu.main(["--part", "build"]) == 2
    assert "build: expected nvcc on PATH, found none" in capsys.readouterr().err
    assert commands == []


def test_what_the_parts_run(commands, monkeypatch):
    pretend_torch_reaches_gpus(monkeypatch, capability=(9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    monkeypatch.setattr(_C, "cuda_status", lambda: 0, raising=False)
    monkeypatch.setattr(_C, "cuda_architectures", lambda: "90a-real", raising=False)
    monkeypatch.setattr(gpu.shutil, "which", lambda name: f"/usr/bin/{name}")
    assert [gpu.main(["--part", part]) for part in gpu.PARTS] == [0] * 7
    assert [command[1] for command, _ in commands[:2]] == ["setup.py", "-m"]
    assert commands[0][1]["CMAKE_ARGS"].endswith("-DCMAKE_CUDA_ARCHITECTURES=90a-real")
    assert [command[2] for command, _ in commands[3:5]] == ["memcheck", "racecheck"]
    assert [command[-1] for command, _ in commands[5:]] == ["4b", "8b", "4b"]
    monkeypatch.setattr(gpu, "run", lambda command, **more: 3)
    assert gpu.main(["--part", "test"]) == 1


def test_all_parts_run_in_order_and_the_first_that_fails_is_the_last(monkeypatch):
    made, statuses = [], iter([0, 2, 0])
    monkeypatch.setattr(gpu, "run", lambda command: made.append(command[-1]) or next(statuses))
    assert gpu.main([]) == 2
    assert made == ["build", "test"]
