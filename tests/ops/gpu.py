"""Tensors that say they lie on a GPU, for tests of what happens before a kernel runs."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

STREAM = 4711


class OnGpu(torch.Tensor):
    """Memory of the host that says it lies on the first GPU, and so does what is made like it."""

    device = torch.device("cuda", 0)
    is_cpu = False
    is_cuda = True


class OnSecondGpu(OnGpu):
    device = torch.device("cuda", 1)


def on_gpu(tensor: torch.Tensor, kind: type[torch.Tensor] = OnGpu) -> torch.Tensor:
    return tensor.as_subclass(kind)


def pretend_torch_reaches_gpus(monkeypatch: pytest.MonkeyPatch, *,
                               capability: tuple[int, int] = (9, 0), free: int = 1 << 40) -> None:
    """What pydstp asks torch about GPUs has an answer, and torch's stream is `STREAM`."""
    answers = {
        "is_available": lambda: True, "current_device": lambda: 0,
        "get_device_capability": lambda device: capability,
        "get_device_name": lambda device: "Test GPU", "mem_get_info": lambda device: (free, free),
        "memory_reserved": lambda device: 3 << 30, "memory_allocated": lambda device: 1 << 30,
        "device": lambda device: nullcontext(),
        "current_stream": lambda: SimpleNamespace(cuda_stream=STREAM)}
    for name, answer in answers.items():
        monkeypatch.setattr(torch.cuda, name, answer)
