"""The model on its cache: prefill of one sequence, one decode step of several."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch

from pydstp import ops
from pydstp.errors import CancelledError, PydstpError
from pydstp.kv_cache import KVCache
from pydstp.models.layers import Context
from pydstp.models.plans import DecodePlan, PrefillPlan
from pydstp.models.qwen3_vl_vision import VisionOutput
from pydstp.sequence import Sequence


class Runner:
    """Runs forward passes; the caller sees to it that only one runs at a time."""

    def __init__(self, model: torch.nn.Module, cache: KVCache, pool: ops.ThreadPool) -> None:
        self.model = model
        self.cache = cache
        self.pool = pool
        self._layers = range(cache.geometry.num_layers)
        self._workspace = ops.attention_workspace(
            cache.geometry.max_batch, model.config.text.num_heads, cache.visible_indices,
            cache.text[0])
        self._status = torch.zeros(1, dtype=torch.int32)

    def close(self) -> None:
        """Give up the weights, keys and values, whoever still holds the engine or a chat."""
        self.model = self._workspace = None
        self.cache.close()

    def prefill(self, seq: Sequence) -> np.ndarray:
        """Run the prompt, from `seq.num_cached` on, and fill the cache with it.

        Returns:
            [vocab_size] float32: the logits of the first new token.

        Raises:
            CancelledError: `seq.cancel` was set; rows written until then count as unwritten once
                the caller rewinds the sequence.
        """
        decoder, ctx = self.model.language_model, Context(self.pool, seq.cancel.check)
        input_ids = torch.tensor(seq.prompt.input_ids)
        grids = [image.grid for image in seq.images]
        positions, seq.next_position = self.model.positions(input_ids, grids)
        new_ids, positions = input_ids[seq.num_cached:], positions[:, seq.num_cached:]
        x, deepstack = self.model.embed(new_ids, self._encode_new_images(seq, ctx))
        started = time.perf_counter()
        x = decoder.forward_layers(
            x, layers=self._layers, cos_sin=decoder.rotary(positions), cache=self.cache,
            plan=self._prefill_plan(seq), ctx=ctx, deepstack=deepstack)
        logits = decoder.logits(x[-1:], ctx)[0].numpy()
        seq.timings.prefill_ms = 1e3 * (time.perf_counter() - started)
        return logits

    def decode(self, sequences: list[Sequence]) -> np.ndarray:
        """One step: feed each sequence's last token.

        Returns:
            [len(sequences), vocab_size] float32.

        Raises:
            CancelledError: every one of the sequences was cancelled.
        """
        decoder, ctx = self.model.language_model, Context(self.pool, _check_all(sequences))
        seq_idx = torch.tensor([seq.seq_idx for seq in sequences], dtype=torch.int32)
        positions = torch.tensor([seq.next_position for seq in sequences]).expand(3, -1)
        cache = self.cache
        plan = DecodePlan(
            seq_idx_rows=seq_idx, slot_idx=cache.append_text_rows(seq_idx.long()),
            visible_indices=cache.visible_indices, visible_len=cache.visible_len,
            layer_to_group=cache.layer_to_group, text_len=cache.text_len,
            workspace=self._workspace, status=self._status)
        x = decoder.embed(torch.tensor([seq.new_ids[-1] for seq in sequences]))
        x = decoder.forward_layers(x, layers=self._layers, cos_sin=decoder.rotary(positions),
                                   cache=cache, plan=plan, ctx=ctx)
        logits = decoder.logits(x, ctx).numpy()
        self._check_status()
        for seq in sequences:
            seq.next_position += 1
        return logits

    def _check_status(self) -> None:
        """Kernels skip what they cannot obey and leave a mark; see `pydstp.ops`."""
        status = int(self._status)
        self._status.zero_()
        if status:
            raise PydstpError(f"cache: expected lists and lengths within its capacities, got "
                              f"status {status} from decode_attention")

    def _encode_new_images(self, seq: Sequence, ctx: Context) -> VisionOutput | None:
        """Features of the pictures that are not cached yet, None where there are none."""
        new = [image for image, (start, _) in zip(seq.images, seq.prompt.image_spans, strict=True)
               if start >= seq.num_cached]
        if not new:
            return None
        started = time.perf_counter()
        patches = torch.cat([image.patches for image in new])
        vision = self.model.encode_images(patches, [image.grid for image in new], ctx)
        seq.timings.vision_ms = 1e3 * (time.perf_counter() - started)
        return vision

    def _prefill_plan(self, seq: Sequence) -> PrefillPlan:
        past = self.cache.slots_in_prompt_order(seq.seq_idx) if seq.num_cached else None
        slot_idx = self.cache.append(seq.seq_idx, seq.is_visual()[seq.num_cached:])
        seq_idx_rows = torch.full_like(slot_idx, seq.seq_idx)
        return PrefillPlan(seq_idx=seq.seq_idx, slot_idx=slot_idx, seq_idx_rows=seq_idx_rows,
                           past_slots=past)


def _check_all(sequences: list[Sequence]) -> Callable[[], None]:
    def check() -> None:
        if all(seq.cancel.is_cancelled for seq in sequences):
            raise CancelledError("every request of the batch was cancelled")
    return check
