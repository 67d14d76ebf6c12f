"""A tiny model and a picture for the command line, and the command line itself."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.checkpoints import tiny_qwen3_vl

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _threads_of_torch() -> Iterator[None]:
    """`--threads` sets them for the process, which other tests share."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def model() -> str:
    """The folder of a tiny checkpoint with random weights."""
    return str(tiny_qwen3_vl())


@pytest.fixture(scope="session")
def picture(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A picture file."""
    path = tmp_path_factory.mktemp("pictures") / "noise.png"
    pixels = np.random.default_rng(0).integers(0, 256, (96, 128, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return str(path)


@pytest.fixture
def start() -> Callable[..., subprocess.Popen]:
    """Start `python ARGUMENTS` in the repository with text pipes; killed when the test ends."""
    started = []

    def start_python(*arguments: str, **environment: str) -> subprocess.Popen:
        variables = {k: v for k, v in os.environ.items() if not k.startswith("OMP_WAIT")}
        process = subprocess.Popen(
            [sys.executable, *arguments], cwd=ROOT, text=True, env=variables | environment,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        started.append(process)
        return process

    yield start_python
    for process in started:
        process.kill()
        process.communicate()
