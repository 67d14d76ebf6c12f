"""The model on its cache: prefill of one sequence, one decode step of several."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from pydstp import ops
from pydstp.accounting import StepAccount, weight_bytes
from pydstp.break_even import BreakEven, measure_rates
from pydstp.cost_model import CostModel
from pydstp.decode_passes import DecodePasses, StepInputs
from pydstp.device_memory import enough_memory
from pydstp.errors import CancelledError, PydstpError
from pydstp.host_reads import fetched
from pydstp.image_patches import ProcessedImage
from pydstp.kv_cache import KVCache
from pydstp.models.plans import Context, PrefillPlan
from pydstp.models.qwen3 import DeepStack
from pydstp.models.visual_tokens import VisionOutput
from pydstp.next_tokens import NextTokens
from pydstp.prefill import Prefill, Rows
from pydstp.pulse_control import PulseControl
from pydstp.reserve import SideRows, visible_lengths
from pydstp.return_control import ReturnControl
from pydstp.sequence import Sequence
from pydstp.shift_control import ShiftControl


class Runner:
    """Runs forward passes; the caller sees to it that only one runs at a time."""

    def __init__(self, model: torch.nn.Module, cache: KVCache, pool: ops.ThreadPool) -> None:
        self.model, self.cache, self.pool = model, cache, pool
        self.num_layers = cache.geometry.num_layers
        self._shift = ShiftControl(cache)
        self._pulse = PulseControl(cache, self._shift)
        self._workspace = ops.attention_workspace(
            cache.geometry.max_batch, cache.geometry.num_heads, cache.visible_indices,
            cache.text[0])
        self._status = torch.zeros_like(cache.text_len[:1])
        self._passes = DecodePasses(
            model.language_model, cache, pool, workspace=self._workspace, status=self._status,
            monitor=self._shift.monitor, queries=self._shift.queries)
        self._returns = ReturnControl(cache, pool, self._shift, before_free=self._passes.forget)
        self._next_tokens = NextTokens(cache.geometry.max_batch, pool)
        self._weight_bytes = weight_bytes(model.language_model)
        costs = CostModel(model.config, cache.text.element_size(), self._weight_bytes)
        self._break_even = BreakEven(costs, lambda: measure_rates(self.model.language_model, pool))

    def close(self) -> None:
        """Give up the weights, keys and values, whoever still holds the engine or a chat."""
        self.model = self._workspace = self._passes = None
        self._shift = self._pulse = self._returns = self._next_tokens = None
        self.cache.close()

    def expect(self, sequences: list[Sequence]) -> None:
        """Get ready for requests; nothing of them runs yet. With bypass="auto", decide for them.

        Raises:
            OptionError, CapacityError: what they ask for cannot be had beside what there is.
        """
        self._break_even.apply(sequences)
        self._returns.expect(sequences)

    @enough_memory()
    def prefill(self, seq: Sequence) -> np.ndarray:
        """Run the prompt, from `seq.num_cached` on, and fill the cache with it.

        Returns:
            What `Sequence.choose` takes: [vocab_size] float32, the logits of the first new token,
            or the token.

        Raises:
            OptionError: the pruning method does not fit the model or the reserve mode.
            PydstpError: the pruning method failed.
            CapacityError: merged tokens, or the one of swap="merge", do not fit, or a GPU has no
                memory left.
            CancelledError: `seq.cancel` was set; rows written until then count as unwritten once
                the caller rewinds the sequence.
        """
        ctx = Context(self.pool, seq.cancel.check)
        prefill = self._prepare(seq, ctx)
        started = time.perf_counter()
        x = prefill.run()
        self._shift.begin(seq, prefill)
        self._pulse.begin(seq)
        self._returns.begin(seq)
        progress = seq.progress
        if progress.anchor_layer is not None and progress.params.pulse.apply_to_last_prefill_row:
            found = self._repeat_last_row(seq, ctx)
        else:
            logits = self.model.language_model.logits(x, ctx)
            found = self._fetch(logits, [seq], [])[0][0]
        seq.timings.prefill_ms = 1e3 * (time.perf_counter() - started)
        if seq.progress.params.reserve_mode == "side":
            self._finish_reserve(seq, ctx)
        return found

    def _repeat_last_row(self, seq: Sequence, ctx: Context) -> np.ndarray:
        """For `prefill`: the last token of the prompt once more, as a decode step that selects; its
        keys and values take the place of what the prompt left."""
        cache, rows = self.cache, slice(seq.seq_idx, seq.seq_idx + 1)
        slots = cache.text_rows[rows] - 1 + cache.geometry.visual_capacity
        step = StepAccount(cache, self._weight_bytes, [seq], self._shift)
        monitored = self._pulse.begin_step([seq])
        logits = self._forward([seq], slots, step, ctx, monitored)
        found, *answers = self._fetch(logits, [seq], step.asks())
        step.mirror(answers)  # and never closed: it is no step of the answer
        seq.progress.num_scored = 0
        return found[0]

    def _prepare(self, seq: Sequence, ctx: Context) -> Prefill:
        """Embed what is new in the prompt and give it its slots."""
        model, cache = self.model, self.cache
        input_ids = torch.tensor(seq.prompt.input_ids, device="cpu")
        positions, seq.next_position = model.positions(input_ids, _grids(seq.images))
        new_ids, positions = input_ids[seq.num_cached:], positions[..., seq.num_cached:]
        new = [image for image, (start, _) in zip(seq.images, seq.prompt.image_spans, strict=True)
               if start >= seq.num_cached]
        vision = self._encode(new, seq, ctx)
        x, deepstack = model.embed(new_ids, vision)
        slots = cache.append(seq.seq_idx, seq.is_visual()[seq.num_cached:]).long()
        rows = Rows(x, positions, slots, slots[:0], [])
        if deepstack is not None:
            rows = replace(rows, visual=deepstack.positions, features=deepstack.features)
        merge = model.config.vision.spatial_merge_size
        observed = None if vision is None or vision.attention is None else (
            vision.attention, vision.keys)
        return Prefill(model.language_model, cache, seq, rows,
                       [(height // merge, width // merge) for height, width in _grids(new)],
                       observed, self._workspace, ctx)

    @enough_memory()
    def decode(self, sequences: list[Sequence]) -> np.ndarray:
        """One step: feed each sequence's last token.

        Returns:
            A row for each, as `Sequence.choose` takes it: [len(sequences), vocab_size] float32
            logits, or [len(sequences)] tokens.

        Raises:
            CancelledError: every one of the sequences was cancelled.
            CapacityError: a GPU has no memory left.
        """
        cache, ctx = self.cache, Context(self.pool, _check_all(sequences))
        seq_idx = torch.tensor([seq.seq_idx for seq in sequences], device="cpu")
        slots = cache.append_text_rows(seq_idx)
        step = StepAccount(cache, self._weight_bytes, sequences, self._shift)
        monitored = self._shift.begin_step(sequences) | self._pulse.begin_step(sequences)
        logits = self._forward(sequences, slots, step, ctx, monitored)
        redone = self._shift.act(sequences, ops.Phase.END, self._finish_reserve, ctx)
        if redone:
            rows = [row for row, seq in enumerate(sequences) if seq in redone]
            step.redo(redone)
            logits[rows] = self._forward(redone, slots[rows], step, ctx)
            self._shift.act(redone, ops.Phase.REDONE, self._finish_reserve, ctx)
        found, *answers = self._fetch(logits, sequences, step.asks())
        step.close(answers)
        for seq in sequences:
            seq.next_position += 1
            if seq.progress.params.reserve_mode == "deferred":
                self._advance_reserve(seq, ctx)
        return found

    def _forward(self, sequences: list[Sequence], slots: torch.Tensor, step: StepAccount,
                 ctx: Context, monitored: frozenset[int] = frozenset()) -> torch.Tensor:
        """[len(sequences), vocab_size]; stops where a policy acts within the step.

        slots: [len(sequences)] int32, on the host. What differs from step to step goes over as one;
        a position is equal on all axes.
        """
        decoder, returns = self.model.language_model, self._returns.begin_step(sequences)
        rows = slots.new_tensor([
            [seq.seq_idx for seq in sequences], slots.tolist(),
            *zip(*(seq.last_token for seq in sequences), strict=True)]).to(self.cache.device)
        x = decoder.embed(rows[2])
        inputs = StepInputs(rows[0], rows[1], x, decoder.rotary(rows[3]))
        start = 0
        for stop in self._stops(sequences) if monitored else [self.num_layers]:
            step.read(sequences, range(start, stop))
            ctx.check()
            x = self._passes.run(replace(inputs, x=x), range(start, stop), monitored, returns)
            if monitored:
                self._shift.act(sequences, ops.Phase.MID, self._finish_reserve, ctx,
                                after_layer=stop - 1)
                self._pulse.act(sequences, stop - 1, ctx)
            start = stop
        if returns is not None:
            step.read_returned(sequences, self._returns)
        return decoder.logits(x, ctx)

    def _stops(self, sequences: list[Sequence]) -> list[int]:
        """Layers that begin after a policy has acted, and the end."""
        last = {layer for seq in sequences
                for layer in (seq.progress.early_layer, seq.progress.anchor_layer)} - {None}
        return sorted({layer + 1 for layer in last} | {self.num_layers})

    def _finish_reserve(self, seq: Sequence, ctx: Context) -> None:
        """Compute what is left of a sequence's reserve."""
        while self.cache.pending[seq.seq_idx]:
            self._advance_reserve(seq, ctx)

    def _advance_reserve(self, seq: Sequence, ctx: Context) -> None:
        """One side pass: keys and values of the next rows of the reserve."""
        if not self.cache.pending[seq.seq_idx]:
            return
        started = time.perf_counter()
        rows = self.cache.pending[seq.seq_idx][0]
        self._side_pass(seq.seq_idx, rows, ctx)
        self.cache.pending[seq.seq_idx].pop(0)
        self._shift.note_side_run(seq)
        self._returns.note_side_run(seq, rows)
        seq.progress.side_passes += 1
        seq.progress.resident += len(rows)
        seq.progress.reserve_ms += 1e3 * (time.perf_counter() - started)

    def _side_pass(self, seq_idx: int, rows: SideRows, ctx: Context) -> None:
        """Rows of the reserve see all that came before them; no row of the main stream sees them.

        Each joins where it left; those that come later are not there yet, so order alone decides.
        Merged tokens leave for good, so what is seen changes at every stage.
        """
        x, joins = rows.x.clone(), set(rows.first_layers.tolist())
        later = {layer for layer in self.cache.stages[seq_idx] if layer > min(joins)}
        stops = sorted(joins | later | {self.num_layers})
        for start, stop in pairwise(stops):
            on = (rows.first_layers <= start).nonzero().squeeze(1)
            x[on] = self._side_layers(seq_idx, replace(rows, x=x).select(on), range(start, stop),
                                      ctx)

    def _side_layers(self, seq_idx: int, rows: SideRows, layers: range,
                     ctx: Context) -> torch.Tensor:
        """[num_rows, hidden_size] behind some layers, between which no token leaves."""
        cache, decoder = self.cache, self.model.language_model
        order = cache.prompt_order[seq_idx]
        row_order = order[rows.slots]
        born, left = cache.born[seq_idx], cache.left[seq_idx]
        is_here = (born < 0) | (born <= layers.start) & (left > layers.start)
        visual = is_here[:int(cache.visual_len[seq_idx])].nonzero().squeeze(1)
        context = cache.context(seq_idx, visual, int(row_order.max()) + 1)
        slots = rows.slots.int().to(cache.device)
        plan = PrefillPlan(
            seq_idx=seq_idx, slot_idx=slots, context_slots=context.int().to(cache.device),
            seq_idx_rows=torch.full_like(slots, seq_idx),
            visible_len=visible_lengths(row_order, order[context]).to(cache.device))
        every = torch.arange(len(rows), device=cache.device)
        deepstack = DeepStack(rows.deepstack, every) if rows.deepstack else None
        return decoder.forward_layers(
            rows.x, layers=layers, plan=plan, ctx=ctx,
            cos_sin=decoder.rotary(rows.positions), cache=cache, deepstack=deepstack)

    def _fetch(self, logits: torch.Tensor, sequences: list[Sequence],
               asked: list[torch.Tensor]) -> list[Any]:
        """All that the host has to see of a step, in one copy: rows for `Sequence.choose`, and what
        was asked for. Kernels skip what they cannot obey and leave a mark; see `pydstp.ops`."""
        rows = self._next_tokens.for_host(logits, sequences)
        found, status, *answers = fetched(rows, self._status, *asked)
        if (mark := int(status)):
            self._status.zero_()
            raise PydstpError(f"cache: expected lists and lengths within its capacities, got "
                              f"status {mark} from decode_attention")
        return [found.numpy(), *answers]

    def _encode(self, new: list[ProcessedImage], seq: Sequence,
                ctx: Context) -> VisionOutput | None:
        """Features of pictures, None where there are none."""
        if not new:
            return None
        started = time.perf_counter()
        patches = torch.cat([image.patches for image in new])
        vision = self.model.encode_images(patches, _grids(new), ctx, observe=_observed_block(seq))
        seq.timings.vision_ms = 1e3 * (time.perf_counter() - started)
        return vision


def _grids(images: list[ProcessedImage]) -> list[tuple[int, int]]:
    """(height, width) in patches of every picture, or of its tiles."""
    return [grid for image in images for grid in image.grids]


def _observed_block(seq: Sequence) -> int | None:
    """The block of the vision tower whose attention the pruning method asks for."""
    pruning = seq.progress.params.pruning
    needs = pruning.pruner.needs if pruning else frozenset()
    return pruning.pruner.block if needs & {"vision_attention", "vision_keys"} else None


def _check_all(sequences: list[Sequence]) -> Callable[[], None]:
    def check() -> None:
        if all(seq.cancel.is_cancelled for seq in sequences):
            raise CancelledError("every request of the batch was cancelled")
    return check
