"""Forward passes of decode steps: the first of a kind is recorded, later ones repeat its calls."""

from __future__ import annotations

from collections import OrderedDict
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

    def copy(self) -> StepInputs:
        """Tensors of its own with the same values."""
        return StepInputs(*(tensor.clone() for tensor in vars(self).values()))

    def set(self, other: StepInputs) -> None:
        """Take the values of `other`."""
        for mine, theirs in zip(vars(self).values(), vars(other).values(), strict=True):
            mine.copy_(theirs)


@dataclass(frozen=True, eq=False)
class _Pass:
    recording: ops.Recording
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
        self._scratch = ops.Scratch()
        self._passes: OrderedDict[tuple[object, ...], _Pass] = OrderedDict()

    def forget(self) -> None:
        """Drop what was recorded, and the memory it holds on to."""
        self._passes.clear()

    def run(self, inputs: StepInputs, layers: range, monitored: frozenset[int],
            returns: Returns | None) -> Tensor:
        """[batch, hidden_size] behind `layers`; the next pass of the same kind overwrites it."""
        kind = (len(inputs.x), layers, monitored, id(returns))
        if kind not in self._passes:
            self._passes[kind] = self._record(inputs, layers, monitored, returns)
            if len(self._passes) > MAX_KINDS:
                self._passes.popitem(last=False)
            return self._passes[kind].out
        self._passes.move_to_end(kind)
        found = self._passes[kind]
        found.inputs.set(inputs)
        found.recording.replay()
        return found.out

    def _record(self, inputs: StepInputs, layers: range, monitored: frozenset[int],
                returns: Returns | None) -> _Pass:
        # Tensors made in inference mode could not be written to by a caller that is not in it.
        with torch.inference_mode(False), ops.Recording(self._scratch) as recording:
            inputs = inputs.copy()
            plan = DecodePlan(seq_idx_rows=inputs.seq_idx, slot_idx=inputs.slots, returns=returns,
                              monitored=monitored, **self._lists)
            out = self._decoder.forward_layers(
                inputs.x, layers=layers, cos_sin=inputs.cos_sin, cache=self._cache, plan=plan,
                ctx=self._ctx)
        return _Pass(recording, inputs, out)
