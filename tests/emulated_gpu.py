"""A GPU that is not there: tensors that say they lie on one, and keep torch's rules for it.

    with emulated_gpu(monkeypatch) as gpu:
        engine = Engine(path, device="cuda")      # the whole engine, on memory of the host
    gpu.reads                                     # what was read back, by name

Every call of torch is looked at. Tensors on different devices do not meet, with the exceptions that
torch makes (numbers of no dimension, places on the host that index a tensor on a GPU); what moves
or waits for the GPU is counted; kernels run on the host, from whatever source `ops.set_isa` says.
While a graph is captured nothing runs, and what CUDA forbids then is refused.

It cannot tell how fast anything is, and it has no second stream, so that nothing is out of order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

from pydstp import _C, ops
from pydstp.ops import runtime
from tests.ops.gpu import OnGpu, pretend_torch_reaches_gpus

CPU, CUDA = torch.device("cpu"), OnGpu.device
READS = {"item", "tolist", "__int__", "__float__", "__bool__", "__index__", "__contains__",
         "is_nonzero", "equal", "nonzero", "unique", "masked_select", "bincount",
         "repeat_interleave", "allclose", "matrix_rank"}
HOST_ONLY = {"numpy", "__array__"}
MOVES = {"to", "cpu", "cuda"}
INDEXED = {"__getitem__", "__setitem__", "index_put", "index_put_"}


class EmulatedGpu(TorchFunctionMode):
    """Runs what it is asked to on memory of the host.

    Attributes:
        reads: names of the calls that brought something to the host, and waited for it.
        uploads: names of those that brought something to the GPU.
        launches: kernels of our own that were started one by one.
        replays: graphs that were started.
        tape: what is being captured, or None.
    """

    def __init__(self) -> None:
        super().__init__()
        self.reads: list[str] = []
        self.uploads: list[str] = []
        self.launches, self.replays = 0, 0
        self.tape: list[Callable[[], object]] | None = None
        self._pool = ops.ThreadPool(1)

    def __torch_function__(self, function: Callable[..., Any], types: Any,
                           args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = dict(kwargs or {})
        name = getattr(function, "__name__", "")
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        asked = kwargs.get("device")
        is_here = any(isinstance(tensor, OnGpu) for tensor in tensors)
        if name in MOVES:
            return self._move(name, args, kwargs)
        if not is_here and (asked is None or torch.device(asked).type == "cpu"):
            return function(*args, **kwargs)
        if asked is not None:
            kwargs["device"] = CPU
            is_here = torch.device(asked).type == "cuda"
        self._check(name, args, tensors)
        return self._run(function, name, args, kwargs, is_here)

    def launch(self, native: Callable[..., None], device: torch.device, *arguments: Any) -> None:
        """What `pydstp.ops.cuda.launch` does, without a GPU."""
        assert device == CUDA
        self._do(lambda: native(self._pool, *arguments))
        self.launches += 1

    def _do(self, action: Callable[[], object]) -> object:
        """Run it, or while a graph is captured put it off."""
        if self.tape is None:
            return action()
        self.tape.append(action)
        return None

    def _move(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        tensor, *rest = args
        rest = [*rest, *kwargs.values()]
        targets = [torch.device(a) for a in rest if isinstance(a, str | torch.device)]
        targets += [a.device for a in rest if isinstance(a, Tensor)]
        target = {"cpu": CPU, "cuda": CUDA}.get(name) or (targets[0] if targets else tensor.device)
        dtypes = [a for a in rest if isinstance(a, torch.dtype)]
        dtypes += [a.dtype for a in rest if isinstance(a, Tensor)]
        moved = plain(tensor)
        if target.type != tensor.device.type:
            (self.reads if target.type == "cpu" else self.uploads).append(name)
            self._refuse_in_capture(name)
            moved = moved.clone()
        moved = moved.to(dtypes[0]) if dtypes else moved
        return wrapped(moved) if target.type == "cuda" else moved

    def _refuse_in_capture(self, name: str) -> None:
        if self.tape is not None:
            raise RuntimeError(f"{name}: operation not permitted when stream is capturing")

    def _check(self, name: str, args: tuple[Any, ...], tensors: Sequence[Tensor]) -> None:
        """Who may meet whom, and who waits."""
        if name in HOST_ONLY:
            raise TypeError(f"{name}: can't convert cuda:0 device type tensor to numpy")
        if name in INDEXED:
            return self._check_indexed(name, args)
        if name == "copy_":
            source, target = args[1], args[0]
            if isinstance(source, Tensor) and is_on_gpu(source) != is_on_gpu(target):
                (self.uploads if is_on_gpu(target) else self.reads).append(name)
                self._refuse_in_capture(name)
            return None
        if name in ("tensor", "new_tensor", "as_tensor"):
            self.uploads.append(name)
            self._refuse_in_capture(name)
        if name in READS and any(map(is_on_gpu, tensors)):
            self.reads.append(name)
            self._refuse_in_capture(name)
        places = {is_on_gpu(tensor) for tensor in tensors if tensor.ndim}
        if len(places) > 1:
            raise RuntimeError(f"{name}: expected all tensors to be on the same device, found at "
                               "least two devices, cpu and cuda:0")
        return None

    def _check_indexed(self, name: str, args: tuple[Any, ...]) -> None:
        places = [leaf for leaf in tree_leaves(args[1]) if isinstance(leaf, Tensor)]
        if any(is_on_gpu(place) for place in places) and not is_on_gpu(args[0]):
            raise RuntimeError(f"{name}: indices should be on the device of the tensor, cpu")
        if any(is_on_gpu(place) and place.dtype == torch.bool for place in places):
            self.reads.append(f"{name} by a mask")
            self._refuse_in_capture(name)
        if any(not is_on_gpu(place) and place.ndim for place in places):
            self.uploads.append(f"{name} by places")
            self._refuse_in_capture(name)
        value = args[2] if len(args) > 2 else None
        if isinstance(value, Tensor) and value.ndim and is_on_gpu(value) != is_on_gpu(args[0]):
            if any(place.ndim for place in places):
                raise RuntimeError(f"{name}: expected the values on the device of the tensor")
            (self.uploads if is_on_gpu(args[0]) else self.reads).append(name)
            self._refuse_in_capture(name)

    def _run(self, function: Callable[..., Any], name: str, args: tuple[Any, ...],
             kwargs: dict[str, Any], is_here: bool) -> Any:
        plain_args, plain_kwargs = tree_map(plain, args), tree_map(plain, kwargs)
        in_place = name == "__setitem__" or (name.endswith("_") and not name.endswith("__"))
        if self.tape is not None and in_place:
            self.tape.append(lambda: function(*plain_args, **plain_kwargs))
            return args[0]
        with torch._C.DisableTorchFunctionSubclass():
            out = function(*plain_args, **plain_kwargs)
        if self.tape is not None and tree_leaves(out) and not name.startswith("__get__"):
            self.tape.append(lambda: refill(out, function(*plain_args, **plain_kwargs)))
        return wrap_all(out) if is_here else out


def is_on_gpu(tensor: Tensor) -> bool:
    return isinstance(tensor, OnGpu)


def plain(value: Any) -> Any:
    """The memory behind a tensor on the GPU; anything else as it is."""
    if not isinstance(value, OnGpu):
        return value
    with torch._C.DisableTorchFunctionSubclass():
        return value.as_subclass(Tensor)


def wrapped(tensor: Tensor) -> Tensor:
    return tensor.as_subclass(OnGpu)


def wrap_all(out: Any) -> Any:
    if isinstance(out, Tensor):
        return wrapped(out)
    if type(out) in (tuple, list):
        return type(out)(map(wrap_all, out))
    if isinstance(out, tuple):  # such as what `sort` returns
        return type(out)([wrap_all(part) for part in out])
    return out


def refill(old: Any, new: Any) -> None:
    """The results of a call, in the memory that they had when it was captured."""
    for place, value in zip(tree_leaves(old), tree_leaves(new), strict=True):
        if isinstance(place, Tensor) and place.data_ptr() != value.data_ptr():
            place.copy_(value)


class Graph:
    """In place of `torch.cuda.CUDAGraph`."""

    gpu: EmulatedGpu

    def __init__(self) -> None:
        self._tape: list[Callable[[], object]] = []

    @contextmanager
    def capture(self) -> Iterator[None]:
        assert self.gpu.tape is None, "a capture within a capture"
        self.gpu.tape = self._tape
        try:
            yield
        finally:
            self.gpu.tape = None

    def replay(self) -> None:
        assert self.gpu.tape is None and self._tape
        self.gpu.replays += 1
        with torch._C.DisableTorchFunction():
            for action in self._tape:
                action()


@contextmanager
def emulated_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[EmulatedGpu]:
    """A machine with one, for as long as the block lasts."""
    gpu = EmulatedGpu()
    pretend_torch_reaches_gpus(monkeypatch)
    stream = SimpleNamespace(cuda_stream=0, wait_stream=lambda other: None)
    answers: dict[str, Any] = {
        "CUDAGraph": type("EmulatedGraph", (Graph,), {"gpu": gpu}),
        "graph": lambda graph, **options: graph.capture(), "graph_pool_handle": object,
        "Stream": lambda *args: stream, "stream": lambda stream: nothing(),
        "current_stream": lambda *args: stream, "synchronize": lambda *args: None,
        "empty_cache": lambda: None}
    for name, answer in answers.items():
        monkeypatch.setattr(torch.cuda, name, answer)
    monkeypatch.setattr(_C, "cuda_status", lambda: 0, raising=False)
    monkeypatch.setattr(_C, "cuda_architectures", lambda: "90a-real", raising=False)
    monkeypatch.setattr(runtime, "launch", gpu.launch)
    with gpu:
        yield gpu


@contextmanager
def nothing() -> Iterator[None]:
    yield
