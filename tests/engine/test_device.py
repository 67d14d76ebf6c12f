"""Where an engine runs: what is accepted, and what an answer to "cuda" says."""

from __future__ import annotations

import pytest
import torch

from pydstp import _C, Engine, EngineConfig
from pydstp.errors import CapacityError, DeviceError, OptionError
from pydstp.weights.memory import available_on_gpu
from tests.checkpoints import tiny_qwen3_vl
from tests.ops.gpu import pretend_torch_reaches_gpus


@pytest.fixture
def gpu(monkeypatch):
    """A GPU with half a gibibyte, as far as anything that is asked says."""
    pretend_torch_reaches_gpus(monkeypatch, free=512 << 20)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 0)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 0)
    monkeypatch.setattr(_C, "cuda_status", lambda: 0, raising=False)
    monkeypatch.setattr(_C, "cuda_architectures", lambda: "90a-real", raising=False)


@pytest.mark.parametrize("value", ["tpu", "CUDA", "cuda:0", "", 0, ["cuda"], torch.device("cuda")])
def test_other_devices_are_refused(value):
    message = "^device: expected 'auto', 'cpu' or 'cuda', got "
    with pytest.raises(OptionError, match=message):
        EngineConfig(device=value)
    with pytest.raises(OptionError, match=message):
        Engine(tiny_qwen3_vl(), device=value)


def test_the_argument_replaces_the_one_of_the_configuration():
    with Engine(tiny_qwen3_vl(), device="cpu", config=EngineConfig(device="cuda")) as engine:
        assert engine.config.device == "cpu"


@pytest.mark.parametrize("options", [dict(device="cuda"), dict(config=EngineConfig(device="cuda"))])
def test_a_machine_without_a_gpu_is_told_what_is_missing(options):
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(DeviceError, match="^device: expected .* for 'cuda': "):
        Engine(tiny_qwen3_vl(), **options)


def test_what_does_not_fit_on_the_gpu_is_refused_with_its_sizes(gpu):
    config = EngineConfig(device="cuda", max_batch=64, max_text_tokens=1 << 20)
    with pytest.raises(CapacityError, match=r"memory: \d.* \(weights .*, cache .*, workspace .*\), "
                                            r"0.50 GiB are available"):
        Engine(tiny_qwen3_vl(), config=config)


def test_memory_that_torch_holds_without_use_is_available(monkeypatch):
    pretend_torch_reaches_gpus(monkeypatch, free=5 << 30)  # 3 GiB held, 1 GiB of them used
    assert available_on_gpu(torch.device("cuda", 0)) == 7 << 30
