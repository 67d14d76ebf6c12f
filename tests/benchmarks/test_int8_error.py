"""Models with large channels compute what they did, and errors are relative."""

from __future__ import annotations

import pytest
import torch

from benchmarks import int8_error
from pydstp import ops
from pydstp.models.plans import Context
from tests.checkpoints import tiny_qwen3_vl
from tests.loader.raw_files import load
from tests.models.helpers import TOLERANCE, Inputs, Runner, gap


def test_large_channels_change_nothing_in_fp32() -> None:
    ctx = Context(pool=ops.ThreadPool(1), check=lambda: None)
    path = tiny_qwen3_vl()
    model, changed = load(path, "float32"), int8_error.with_large_channels(load(path, "float32"), 8)
    norms = [m.language_model.layers[0].input_layernorm.weight for m in (model, changed)]
    assert int((norms[0] != norms[1]).sum()) == int8_error.LARGE_CHANNELS
    inputs = Inputs(torch.arange(20), torch.empty(0, model.config.vision.patch_dim), ())
    expected, found = (Runner(m, ctx).prefill(inputs) for m in (model, changed))
    assert gap(found, expected) <= TOLERANCE


def test_the_error_is_relative() -> None:
    exact = torch.tensor([3.0, 4.0])
    assert int8_error.error(exact, exact) == 0
    assert int8_error.error(exact + torch.tensor([0.3, 0.4]), exact) == pytest.approx(0.1)
