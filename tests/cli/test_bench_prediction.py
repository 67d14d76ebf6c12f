"""What `pydstp bench` predicts of a prompt, by what each layer saw of the picture."""

from __future__ import annotations

import pytest
import torch

from pydstp.bench.rates import Probe
from pydstp.bench.settings import BenchSettings
from pydstp.bench.turns import predict
from pydstp.cost import Cost


class CountingModel:
    """One operation per row and layer, one byte per token of a decode step."""

    def vision(self, num_visual: int, num_pictures: int) -> Cost:
        return Cost(flops=0)

    def prefill(self, num_rows: float, *, num_layers: int) -> Cost:
        return Cost(flops=num_rows * num_layers)

    def decode_step(self, num_tokens: float) -> Cost:
        return Cost(num_tokens)


def test_layers_count_the_tokens_that_they_saw() -> None:
    row = {"prompt_tokens": 110, "visual_tokens": 100, "kept": 20, "visible_share": 0.5,
           "visual_rows": (100, 60, 60, 20), "num_tiles": 1, "retention": 20}
    probe = Probe(1, torch.empty(0), torch.empty(0), torch.empty(0), [2.0], [4.0])
    found = predict(row, BenchSettings(threads=1, new_tokens=8), CountingModel(), probe)
    assert found["prefill_ms"] == pytest.approx((110 + 70 + 70 + 30) / 4e9 * 1e3)
    assert found["decode_ms"] == pytest.approx((10 + 50 + 4) / 2e9 * 1e3)
