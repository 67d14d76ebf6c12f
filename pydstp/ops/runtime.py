"""The pool of threads that ops run on, and the instruction set they use."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import torch  # noqa: F401  # before _C, as everywhere: one C++ runtime, torch's

from pydstp import _C
from pydstp.errors import OptionError
from pydstp.ops.checks import op_device
from pydstp.ops.cuda import launch
from pydstp.ops.recording import note_call


class ThreadPool(_C.ThreadPool):
    """`num_threads` threads, the caller's included, that sleep while there is nothing to do.

    Several Python threads may use one pool; their calls take turns. After `close()` and in a forked
    child everything runs on the calling thread.
    """

    def __init__(self, num_threads: int) -> None:
        if isinstance(num_threads, bool) or not isinstance(num_threads, int):
            raise OptionError(f"num_threads: expected an int, got {num_threads!r}")
        if not 1 <= num_threads <= 1024:
            raise OptionError(f"num_threads: expected 1 to 1024, got {num_threads}")
        super().__init__(num_threads)


def call(native: Callable[..., None], pool: ThreadPool, *arguments: object) -> None:
    """Run a native function where the op's tensors lie: on `pool`, or on a GPU, in torch's stream.

    What its signature refuses becomes an `OptionError`.
    """
    device = op_device()
    on_gpu = device is not None and device.type == "cuda"
    run, *first = (launch, native, device) if on_gpu else (native, pool)
    try:
        run(*first, *arguments)
        note_call(run, *first, *arguments)
    except TypeError:
        if not on_gpu and not isinstance(pool, ThreadPool):
            raise OptionError(f"pool: expected a ThreadPool, got {type(pool).__name__}") from None
        odd = ", ".join(map(repr, _no_numbers(arguments)))
        raise OptionError(f"{native.__name__}: expected numbers as documented, got {odd}") from None


def _no_numbers(arguments: tuple[object, ...]) -> Iterator[object]:
    """Everything in nested tuples that is no number."""
    for argument in arguments:
        if isinstance(argument, tuple):
            yield from _no_numbers(argument)
        elif type(argument) not in (int, float):
            yield argument


def num_processors() -> int:
    """Processors that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cpu_features() -> dict[str, bool]:
    """The instruction set features that tiers need, and whether this machine has them."""
    return _C.cpu_features()


def available_isas() -> list[str]:
    """Tiers this build holds and this machine can run, best first, then test-only twins."""
    return _C.available_tiers()


def current_isa() -> str:
    """The tier that ops use now: "avx512bf16", "avx2" or "portable"."""
    return _C.current_tier()


def set_isa(tier: str | None) -> None:
    """For tests: make ops of the whole process use one tier; None goes back to the best."""
    if tier == "" or not _C.set_tier(tier or ""):
        raise OptionError(f"tier: expected one of {available_isas()}, got {tier!r}")


def set_simt_seed(seed: int) -> None:
    """For tests: the order in which the "simt" twins run blocks and threads; 0 is ascending."""
    if not hasattr(_C, "set_simt_seed"):
        raise OptionError("set_simt_seed: this build has no simt twins (PYDSTP_SIMT=ON)")
    _C.set_simt_seed(seed)
