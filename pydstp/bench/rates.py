"""What the machine reaches: plain reads, and products of many rows."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from pydstp.bench.spreads import spread
from pydstp.cost import Rates
from pydstp.models.config import TextConfig
from pydstp.models.gemm import gemm

READ_BYTES = 1 << 29  # far more than the last cache holds
GEMM_ROWS = 1024
PASSES = 7


def _seconds(run: Callable[[], object], num_threads: int) -> float:
    """Median of some passes, the first left out; torch's number of threads is put back."""
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    times = []
    try:
        for _ in range(PASSES + 1):
            started = time.perf_counter()
            run()
            times.append(time.perf_counter() - started)
    finally:
        torch.set_num_threads(before)
    return statistics.median(times[1:])


@dataclass
class Probe:
    """Samples of both rates at one number of threads.

    Attributes:
        num_threads: that read and multiply.
        weight, x: of the product, as large as the model's widest one of a decoder layer.
        data: what is read.
        read_gb_s, gemm_gflop_s: one entry per sample.
    """

    num_threads: int
    weight: torch.Tensor
    x: torch.Tensor
    data: torch.Tensor
    read_gb_s: list[float] = field(default_factory=list)
    gemm_gflop_s: list[float] = field(default_factory=list)

    @classmethod
    def of(cls, text: TextConfig, dtype: torch.dtype, num_threads: int,
           read_bytes: int = READ_BYTES) -> Probe:
        """For a decoder of these sizes."""
        weight = torch.randn(2 * text.intermediate_size, text.hidden_size).to(dtype)
        x = torch.randn(GEMM_ROWS, text.hidden_size).to(dtype)
        return cls(num_threads, weight, x, torch.ones(read_bytes // 4))

    def at(self, num_threads: int) -> Probe:
        """A probe of the same tensors with another number of threads."""
        return Probe(num_threads, self.weight, self.x, self.data)

    def sample(self) -> None:
        """Measure both once more.

        The sum of a tensor far larger than the last cache is limited by nothing but reads.
        """
        seconds = _seconds(self.data.sum, self.num_threads)
        self.read_gb_s.append(self.data.nbytes / seconds / 1e9)
        seconds = _seconds(lambda: gemm(self.x, self.weight), self.num_threads)
        self.gemm_gflop_s.append(2e-9 * len(self.x) * self.weight.numel() / seconds)

    def rates(self) -> Rates:
        """Medians of the samples."""
        return Rates(statistics.median(self.read_gb_s), statistics.median(self.gemm_gflop_s))

    def to_dict(self) -> dict[str, Any]:
        """For the record."""
        return {"threads": self.num_threads, "read_gb_s": spread(self.read_gb_s),
                "gemm_gflop_s": spread(self.gemm_gflop_s)}
