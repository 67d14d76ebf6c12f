"""Every op test runs once per implementation: the CPU tiers of this machine, then the twins, then,
where there is one, the kernels on a GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode

from pydstp import ops
from tests.generators import DTYPES

CUDA = "cuda"
GPUS = [CUDA] if torch.cuda.is_available() else []  # test_cuda.py has a test that says so
CPU_ONLY = {"test_prefill_attention", "test_quantised"}


class DrawnOnCpu(TorchFunctionMode):
    """Random numbers are the same for all implementations: generators of the CPU draw them."""

    def __torch_function__(self, function: Callable[..., Any], types: Any,
                           args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        if kwargs.get("generator") is None or "device" in kwargs:
            return function(*args, **kwargs)
        return function(*args, **kwargs, device="cpu").to(torch.get_default_device())


@pytest.fixture(params=[*ops.available_isas(), *GPUS])
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """The implementation that ops use during the test; simt runs in shuffled order.

    With "cuda", the tensors that a test makes lie on the GPU.
    """
    if request.param == CUDA:
        yield from _on_gpu(request.module.__name__.rpartition(".")[2])
        return
    ops.set_isa(request.param)
    if request.param == "simt":
        ops.set_simt_seed(1)
    yield request.param
    ops.set_isa(None)


def _on_gpu(module: str) -> Iterator[str]:
    if module in CPU_ONLY:
        pytest.skip("an operation of the CPU alone")
    torch.set_default_device(CUDA)
    with DrawnOnCpu():
        yield CUDA
    torch.set_default_device(None)


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
