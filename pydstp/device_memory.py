"""The device of an engine, and what becomes of a request that finds no memory on it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from pydstp import ops
from pydstp.config import CUDA, INT8, EngineConfig
from pydstp.errors import CapacityError


def chosen_device(config: EngineConfig) -> tuple[torch.device | None, torch.device]:
    """The GPU that an engine runs on, or None; and where it runs, the CPU included.

    Raises:
        DeviceError: there is none, or it lacks what the options need.
    """
    gpu = ops.find_gpu() if config.device == CUDA else None
    if gpu is not None and config.weights == INT8:
        ops.require_on_gpu("weights: 'int8'", gpu, "quantised_linear", "dequantise_rows")
    return gpu, gpu or torch.device("cpu")


@contextmanager
def enough_memory() -> Iterator[None]:
    """In this block, that the GPU has no room left is a `CapacityError`.

    What torch holds without use is given back then, so that the next one finds all there is.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        torch.cuda.empty_cache()
        reason = str(error).partition(". GPU")[0]
        raise CapacityError(f"memory: the GPU has no room left ({reason}); lower max_batch, "
                            "max_visual_tokens or max_text_tokens, or the size of pictures"
                            ) from error
