"""Calls of ops that are made once with all their checks and then repeated on the same tensors.

A decode step is some hundred small calls, and Python's part of each (checks of shapes, memory for
the result) costs more than the smaller kernels. A step that is recorded pays for it once; repeating
it makes the native calls alone, as a CUDA graph does on a GPU. What varies from step to step is
read from tensors that stay where they are.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import prod
from typing import Any

import torch
from torch import Tensor

_local = threading.local()


class Scratch:
    """Memory for the results of ops in `scratch` blocks; recordings that take turns share it."""

    def __init__(self) -> None:
        self._buffers: list[Tensor] = []
        self._others: list[Tensor] = []  # of the block before
        self._next = 0

    def reset(self) -> None:
        """What was taken before the last reset may be overwritten."""
        self._buffers, self._others = self._others, self._buffers
        self._next = 0

    def take(self, like: Tensor, shape: tuple[int, ...]) -> Tensor:
        """A tensor that nothing else has got since the reset before the last.

        like: has its dtype and lies where it will.
        """
        size = prod(shape) * like.dtype.itemsize
        if self._next == len(self._buffers):
            self._buffers.append(like.new_empty(0, dtype=torch.uint8))
        buffer = self._buffers[self._next]
        if len(buffer) < size or buffer.device != like.device:
            # Recordings that use the old one keep it alive.
            buffer = self._buffers[self._next] = like.new_empty(size, dtype=torch.uint8)
        self._next += 1
        return buffer[:size].view(like.dtype).view(shape)


class Recording:
    """The calls of ops in a `with` block, in order, to be made again by `replay`."""

    def __init__(self, scratch: Scratch) -> None:
        self._scratch = scratch
        self._calls: list[tuple[Callable[..., object], tuple[Any, ...]]] = []
        self._kept: list[Tensor] = []
        self._is_in_scratch = False

    def __enter__(self) -> Recording:
        _local.recording = self
        return self

    def __exit__(self, *exc_info: object) -> None:
        _local.recording = None

    def replay(self) -> None:
        """Make every call again. Exceptions of `perform` pass through, and the rest is not done."""
        for function, arguments in self._calls:
            function(*arguments)


def note_call(function: Callable[..., object], *arguments: Any) -> None:
    """A call that has been made belongs to the recording, if there is one."""
    recording = getattr(_local, "recording", None)
    if recording is not None:
        recording._calls.append((function, arguments))


def keep(tensor: Tensor) -> None:
    """The address of a tensor was taken: it lives as long as the recording, if there is one."""
    recording = getattr(_local, "recording", None)
    if recording is not None:
        recording._kept.append(tensor)


def new_result(like: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Memory for a result that the caller of an op gave none for."""
    recording = getattr(_local, "recording", None)
    if recording is None or not recording._is_in_scratch:
        return like.new_empty(shape)
    return recording._scratch.take(like, shape)


@contextmanager
def scratch() -> Iterator[None]:
    """Results of ops in this block live until the end of the next one, in a recording."""
    recording = getattr(_local, "recording", None)
    if recording is not None:
        recording._scratch.reset()
        recording._is_in_scratch = True
    try:
        yield
    finally:
        if recording is not None:
            recording._is_in_scratch = False


def perform(function: Callable[..., object], *arguments: Any) -> None:
    """Call something that is no op: at once, and at every replay.

    function: changes tensors in place, or raises to stop; its result is not looked at.
    """
    function(*arguments)
    note_call(function, *arguments)


def compute(function: Callable[..., Tensor], *arguments: Any) -> Tensor:
    """As `perform`, for a function that returns a tensor; ops within it are not recorded."""
    recording, _local.recording = getattr(_local, "recording", None), None
    try:
        result = function(*arguments)
    finally:
        _local.recording = recording
    if recording is not None:
        recording._kept.append(result)
        recording._calls.append((_overwrite, (result, function, arguments)))
    return result


def _overwrite(result: Tensor, function: Callable[..., Tensor], arguments: tuple[Any, ...]) -> None:
    result.copy_(function(*arguments))
