"""Every op test runs once per implementation: the CPU tiers of this machine, then the twins."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from pydstp import ops
from tests.generators import DTYPES


@pytest.fixture(params=ops.available_isas())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """The implementation that ops use during the test; simt runs in shuffled order."""
    ops.set_isa(request.param)
    if request.param == "simt":
        ops.set_simt_seed(1)
    yield request.param
    ops.set_isa(None)


@pytest.fixture(params=DTYPES, ids=["fp32", "bf16"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


@pytest.fixture(scope="module")
def pools() -> Iterator[list[ops.ThreadPool]]:
    """Pools of 1, 2 and 5 threads."""
    pools = [ops.ThreadPool(n) for n in (1, 2, 5)]
    yield pools
    for pool in pools:
        pool.close()
