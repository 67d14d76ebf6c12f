"""What work costs: bytes read and operations done, and the time both take at a machine's rates."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Cost:
    """What cannot be avoided.

    Attributes:
        num_bytes: read from memory, once each.
        flops: floating point operations of products of many rows; those of a few rows hide behind
            the bytes of their weights.
    """

    num_bytes: float = 0.0
    flops: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.num_bytes + other.num_bytes, self.flops + other.flops)

    def __mul__(self, count: float) -> Cost:
        return Cost(count * self.num_bytes, count * self.flops)


@dataclass(frozen=True)
class Rates:
    """What a machine reaches: plain reads in GB/s, products of many rows in GFLOP/s."""

    read_gb_s: float
    gemm_gflop_s: float

    def ms(self, cost: Cost) -> float:
        """Milliseconds: bytes over the read rate and operations over the product rate."""
        return cost.num_bytes / self.read_gb_s / 1e6 + cost.flops / self.gemm_gflop_s / 1e6
