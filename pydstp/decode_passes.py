"""Forward passes of decode steps: the first of a kind is recorded, later ones repeat its calls.

On the CPU a recording is a list of calls. On a GPU it is a CUDA graph, for a number of rows out of
a few: rows that no sequence takes are skipped by every kernel that writes.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pydstp import ops
from pydstp.kv_cache import KVCache
from pydstp.models.plans import Context, DecodePlan, Returns
from pydstp.models.qwen3 import Decoder

MAX_KINDS = 32  # recordings that are kept: sizes of batches, and layers that are watched


@dataclass(frozen=True, eq=False)
class StepInputs:
    """What a pass reads: seq_idx, slots [batch] int32, x [batch, hidden_size], cos_sin [batch,
    head_dim] float32."""

    seq_idx: Tensor
    slots: Tensor
    x: Tensor
    cos_sin: Tensor

    def copy(self, num_rows: int) -> StepInputs:
        """Tensors of its own with the same values; further rows belong to no sequence."""
        mine = StepInputs(*(tensor.new_zeros(num_rows, *tensor.shape[1:])
                            for tensor in vars(self).values()))
        mine.set(self)
        return mine

    def set(self, other: StepInputs) -> None:
        """Take the values of `other`, which may have fewer rows."""
        count = len(other.x)
        for mine, theirs in zip(vars(self).values(), vars(other).values(), strict=True):
            mine[:count].copy_(theirs)
        self.seq_idx[count:].fill_(-1)


@dataclass(frozen=True, eq=False)
class _Pass:
    recording: ops.Recording | ops.GraphRecording
    inputs: StepInputs
    out: Tensor


class DecodePasses:
    """Runs some layers for one new token of every sequence of a batch."""

    def __init__(self, decoder: Decoder, cache: KVCache, pool: ops.ThreadPool, *,
                 workspace: Tensor, status: Tensor, monitor: ops.Monitor, queries: Tensor) -> None:
        self._decoder, self._cache = decoder, cache
        self._lists = {
            "visible_indices": cache.visible_indices, "visible_len": cache.visible_len,
            "layer_to_group": cache.layer_to_group, "text_len": cache.text_len,
            "workspace": workspace, "status": status, "monitor": monitor, "queries": queries}
        self._ctx = Context(pool, lambda: None)  # who wants to stop asks between passes
        self._scratch, self._graphs = ops.Scratch(), ops.GraphMemory()
        self._passes: OrderedDict[tuple[object, ...], _Pass] = OrderedDict()
        self._is_captured = cache.device.type == "cuda"

    def forget(self) -> None:
        """Drop what was recorded, and the memory it holds on to."""
        self._passes.clear()

    def run(self, inputs: StepInputs, layers: range, monitored: frozenset[int],
            returns: Returns | None) -> Tensor:
        """[batch, hidden_size] behind `layers`; the next pass of the same kind overwrites it."""
        batch = len(inputs.x)
        num_rows = bucket(batch, self._cache.geometry.max_batch) if self._is_captured else batch
        kind = (num_rows, layers, monitored, id(returns))
        if kind in self._passes:
            self._passes.move_to_end(kind)
            found = self._passes[kind]
            found.inputs.set(inputs)
            found.recording.replay()
        else:
            found = self._passes[kind] = self._record(inputs, num_rows, layers, monitored, returns)
            if len(self._passes) > MAX_KINDS:
                self._passes.popitem(last=False)
        return found.out[:batch]

    def _record(self, inputs: StepInputs, num_rows: int, layers: range,
                monitored: frozenset[int], returns: Returns | None) -> _Pass:
        # Tensors made in inference mode could not be written to by a caller that is not in it.
        with torch.inference_mode(False):
            inputs = inputs.copy(num_rows)
            plan = DecodePlan(seq_idx_rows=inputs.seq_idx, slot_idx=inputs.slots, returns=returns,
                              monitored=monitored, **self._lists)

            def forward() -> Tensor:
                return self._decoder.forward_layers(
                    inputs.x, layers=layers, cos_sin=inputs.cos_sin, cache=self._cache, plan=plan,
                    ctx=self._ctx)

            if self._is_captured:
                return self._capture(inputs, forward)
            with ops.Recording(self._scratch) as recording:
                return _Pass(recording, inputs, forward())

    def _capture(self, inputs: StepInputs, forward: Callable[[], Tensor]) -> _Pass:
        """The step itself is the run before the capture, which runs nothing."""
        with ops.warm_up():
            first = forward()
            recording = ops.GraphRecording(self._graphs)
            with recording:
                out = forward()
            out.copy_(first)
        return _Pass(recording, inputs, out)


def bucket(batch: int, max_batch: int) -> int:
    """The number of rows of the graph that runs a batch: the next power of two, or the largest
    batch there can be."""
    return min(1 << (batch - 1).bit_length(), max_batch)
