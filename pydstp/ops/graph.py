"""Calls that are captured once as a CUDA graph and then started as one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


class GraphMemory:
    """What the graphs of one engine share: memory for what they make on the way.

    Only one of them runs at a time, and what outlives a replay is held by whoever captured it, so
    they may use the same. Nothing is taken before the first capture.
    """

    def __init__(self) -> None:
        self._handle: object | None = None

    def handle(self) -> object:
        """What `torch.cuda.graph` takes as `pool`."""
        if self._handle is None:
            self._handle = torch.cuda.graph_pool_handle()
        return self._handle


class GraphRecording:
    """The calls of a `with` block, captured and not run, to be made by `replay`.

    They are made once before, in `warm_up`: the first launch of a kernel loads it, which a capture
    does not allow. What varies is read from tensors that live as long as the recording.
    """

    def __init__(self, memory: GraphMemory) -> None:
        self._graph = torch.cuda.CUDAGraph()
        self._capture = torch.cuda.graph(self._graph, pool=memory.handle(),
                                         capture_error_mode="thread_local")

    def __enter__(self) -> GraphRecording:
        self._capture.__enter__()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._capture.__exit__(*exc_info)

    def replay(self) -> None:
        """One launch, in torch's current stream."""
        self._graph.replay()


@contextmanager
def warm_up() -> Iterator[None]:
    """A stream of its own for the calls of this block, as torch asks for before a capture."""
    main, side = torch.cuda.current_stream(), torch.cuda.Stream()
    side.wait_stream(main)
    with torch.cuda.stream(side):
        yield
    main.wait_stream(side)
