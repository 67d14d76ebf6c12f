"""Every op test runs once per implementation: the CPU tiers of this machine, then the twins, then,
where there is one, the kernels on a GPU. Where tiers share one function, the best one runs it."""

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
CPU_ONLY = {"test_prefill_attention", "test_isa"}
NO_TWIN = {"test_prefill_attention"}  # "simt" would run portable again
ONE_FOR_ALL_TIERS = {  # and their sources in csrc/cpu; test_isa.py looks whether it is still so
    "test_argmax": {"argmax"}, "test_kv_rows": {"kv_rows"}, "test_mean_kv": {"mean_kv"},
    "test_shift": {"shift_detect", "shift_select"},
    "test_shift_rules": {"shift_detect", "shift_select"},
}  # fmt: skip


class DrawnOnCpu(TorchFunctionMode):
    """Random numbers are the same for all implementations: generators of the CPU draw them."""

    def __torch_function__(self, function: Callable[..., Any], types: Any,
                           args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        if kwargs.get("generator") is None or "device" in kwargs:
            return function(*args, **kwargs)
        return function(*args, **kwargs, device="cpu").to(torch.get_default_device())


def implementations(module: str) -> list[str]:
    """What the tests of a module that ask for `isa` run on."""
    tiers = ops.available_isas()
    if module in ONE_FOR_ALL_TIERS:
        tiers = [tier for tier in tiers if tier in (tiers[0], "simt")]
    if module in NO_TWIN:
        tiers = [tier for tier in tiers if tier != "simt"]
    return [*tiers, *([] if module in CPU_ONLY else GPUS)]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "isa" in metafunc.fixturenames:
        module = metafunc.module.__name__.rpartition(".")[2]
        metafunc.parametrize("isa", implementations(module), indirect=True)


@pytest.fixture
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """The implementation that ops use during the test; simt runs in shuffled order.

    With "cuda", the tensors that a test makes lie on the GPU.
    """
    if request.param == CUDA:
        yield from _on_gpu()
        return
    ops.set_isa(request.param)
    if request.param == "simt":
        ops.set_simt_seed(1)
    yield request.param
    ops.set_isa(None)


def _on_gpu() -> Iterator[str]:
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
