"""The shift policies of all sequences, step by step, on state that lives in the cache."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pydstp import ops
from pydstp.errors import CapacityError
from pydstp.host_reads import fetched
from pydstp.kv_cache import SELECTED, KVCache
from pydstp.models.plans import Context
from pydstp.prefill import Prefill
from pydstp.sequence import Sequence
from pydstp.shift import DSTP

SideRun = Callable[[Sequence, Context], None]


class ShiftControl:
    """Says what decode attention gathers, and turns it into new visible lists.

    Attributes:
        monitor: attention over the base set goes here.
        queries: [num_layers, max_batch, num_heads, head_dim], by row of the batch.
        state, similarity: on the host, those of `ShiftState` as `act` last read them.
    """

    def __init__(self, cache: KVCache) -> None:
        g, shift = cache.geometry, cache.shift
        self.cache, self.shift = cache, shift
        self.queries = torch.empty(g.num_layers, g.max_batch, g.num_heads, g.head_dim,
                                   dtype=cache.visual.dtype, device=cache.device)
        logits = ops.monitor_workspace(g.max_batch, g.num_heads, cache.visible_indices)
        zeros = torch.zeros_like(cache.layer_to_group)
        weights = {"head_weights": shift.head_weights, "layer_weights": shift.layer_weights,
                   "logits": logits}
        self.monitor = ops.Monitor(probs=shift.probs, base_mask=shift.base_mask, norm=shift.norm,
                                   **weights)
        self._score = ops.Monitor(probs=shift.scores, base_mask=None, norm=zeros[:, 0].clone(),
                                  **weights)
        self.state, self.similarity = shift.state.cpu().clone(), shift.similarity.cpu().clone()
        self._last_slot = torch.full_like(zeros[:, 0], g.visual_capacity - 1)
        self._num_listed = [0] * g.max_batch  # slots that a trigger scores
        self._one_list = {"layer_to_group": zeros, "text_len": zeros[:, 0].clone()}

    def begin(self, seq: Sequence, prefill: Prefill) -> None:
        """Take the anchor of a new turn and set its policy up."""
        s, progress, shift = seq.seq_idx, seq.progress, self.shift
        shift.layer_weights[s] = 0
        shift.state[s] = self.state[s] = 0
        self.cache.show_base(s)
        progress.start(self.cache, s)
        if not progress.is_watched:
            return
        policy = progress.params.watch
        shift.layer_weights[s, list(progress.layers)] = 1 / len(progress.layers)
        shift.head_weights[s] = shift.head_weights.new_tensor(
            policy.head_weights(self.cache.geometry.num_heads))
        shift.norm[s] = int(policy.norm == "global_then_mean")
        self._write_policy(s, policy, progress.request_idx)
        shift.similarity_sum[s] = 0
        self._list_scored(s, is_joint=policy.scores == "joint")
        self._note_ready(s)
        shift.anchor[s] = 0
        prefill.watch_anchor(ops.Monitor(
            probs=shift.anchor, base_mask=shift.base_mask, norm=shift.norm,
            head_weights=shift.head_weights, layer_weights=shift.layer_weights,
            logits=self.monitor.logits))
        if progress.params.log_steps == "attention":
            progress.anchor = tuple(shift.anchor[s, :int(self.cache.visual_len[s])].tolist())

    def _write_policy(self, s: int, policy: DSTP, request_idx: int) -> None:
        """The numbers that the ops read."""
        shift, capacity = self.shift, self.cache.geometry.visual_capacity
        numbers, reals = policy.policy(int(shift.base_len[s]), capacity - 1, request_idx)
        shift.policy[s] = shift.policy.new_tensor(numbers)
        shift.policy_float[s] = shift.policy_float.new_tensor(reals)
        if not int(shift.reserve_len[s]):  # watched for the log alone: nothing can come back
            shift.policy[s, ops.PolicyWord.TRIGGER] = ops.Trigger.NEVER
        elif policy.swap == "merge" and int(self.cache.visual_len[s]) >= capacity:
            raise CapacityError(f"visual tokens: swap='merge' needs one slot beside {capacity}, "
                                f"but max_visual_tokens = {capacity}")

    def _list_scored(self, s: int, *, is_joint: bool) -> None:
        """What a trigger scores: the reserve, or all tokens that compete."""
        slots = self.shift.reserve_indices[s, :int(self.shift.reserve_len[s])]
        if is_joint:
            base = self.shift.base_indices[s, :int(self.shift.base_len[s])]
            slots = torch.cat([base, slots]).sort().values
        self.shift.score_indices[s, 0, :len(slots)] = slots
        self.shift.score_len[s, 0] = self._num_listed[s] = len(slots)

    def _note_ready(self, s: int) -> None:
        self.shift.state[s, ops.StateWord.RESERVE_READY] = int(not self.cache.pending[s])

    def begin_step(self, sequences: list[Sequence]) -> frozenset[int]:
        """Forget the last step's attention; returns the layers to monitor."""
        watched = [seq for seq in sequences if seq.progress.is_watched]
        for seq in watched:
            self.shift.probs[seq.seq_idx] = 0
        return frozenset(layer for seq in watched for layer in seq.progress.layers)

    def act(self, sequences: list[Sequence], phase: ops.Phase, run_side: SideRun, ctx: Context,
            after_layer: int | None = None) -> list[Sequence]:
        """Detect, score and select for the sequences of a step.

        Args:
            sequences: the rows of the step, in order.
            run_side: computes a sequence's reserve where a swap waits for it.
            after_layer: only sequences whose policy acts after this layer, within the step.

        Returns:
            The sequences whose step has to run again, in the order of the rows.
        """
        acting = [seq for seq in sequences if seq.progress.is_watched and (
            after_layer is None or seq.progress.early_layer == after_layer)]
        redone = []
        while acting:
            names = {seq.seq_idx for seq in acting}
            rows = self.shift.state.new_tensor(
                [seq.seq_idx if seq.seq_idx in names else -1 for seq in sequences])
            ops.shift_detect(self.shift, rows, phase, pool=ctx.pool)
            scored = self._read(len(rows))
            self._swap(rows, scored, acting, ctx)
            redone += [seq for seq in acting if self._outcome(seq) == ops.Outcome.REDO]
            acting = [seq for seq in acting if self._outcome(seq) == ops.Outcome.PENDING]
            for seq in acting:
                run_side(seq, ctx)
        return [seq for seq in sequences if seq in redone]

    def _read(self, batch: int) -> list[int]:
        """What `shift_detect` decided; returns the sequence to score of each row, or -1."""
        shift = self.shift
        state, similarity, scored = fetched(shift.state, shift.similarity, shift.score_idx[:batch])
        self.state.copy_(state)
        self.similarity.copy_(similarity)
        return scored.tolist()

    def _outcome(self, seq: Sequence) -> int:
        return int(self.state[seq.seq_idx, ops.StateWord.OUTCOME])

    def note_side_run(self, seq: Sequence) -> None:
        """A sequence's reserve has come further."""
        if seq.progress.is_watched:
            self._note_ready(seq.seq_idx)

    def _swap(self, rows: Tensor, found: list[int], acting: list[Sequence], ctx: Context) -> None:
        """Score the rows that swap, and write the lists of all that change.

        found: by row of the batch the sequence to score, or -1.
        """
        shift, cache = self.shift, self.cache
        swapping = {seq.seq_idx: seq for seq in acting if seq.seq_idx in found}
        scored = [s if s in swapping else -1 for s in found]
        if swapping:
            for s, seq in swapping.items():
                shift.scores[s] = 0
                seq.progress.num_scored += self._num_listed[s] * len(seq.progress.layers)
            score_idx = rows.new_tensor(scored)
            layers = {layer for seq in acting for layer in seq.progress.layers}
            for layer in sorted(layers):
                ops.attention_probs(
                    self.queries[layer, :len(rows)], cache.visual[layer], cache.text[layer],
                    seq_idx=score_idx, visible_indices=shift.score_indices,
                    visible_len=shift.score_len, layer_idx=layer, pool=ctx.pool,
                    scale=cache.geometry.head_dim**-0.5, monitor=self._score, **self._one_list)
        ops.shift_select(shift, rows, cache.visible_indices, cache.visible_len, SELECTED,
                         pool=ctx.pool)
        for seq in acting:
            if len(cache.stages[seq.seq_idx]) > 1:
                cache.show_stages(seq.seq_idx)
        merging = [s if s >= 0 and swapping[s].progress.params.watch.swap == "merge" else -1
                   for s in scored]
        if any(s >= 0 for s in merging):
            self._merge_dropped(merging, ctx)

    def _merge_dropped(self, merging: list[int], ctx: Context) -> None:
        """swap="merge": the tokens that left become one, in the last slot of the arena.

        merging: by row of the batch its sequence, or -1.
        """
        first = min(self.cache.last_stage(s) for s in merging if s >= 0)
        seq_idx = self._last_slot.new_tensor(merging)
        for layer in range(first, self.cache.geometry.num_layers):  # those below show all tokens
            ops.mean_kv(self.cache.visual[layer], seq_idx=seq_idx,
                        indices=self.shift.dropped_indices, index_len=self.shift.dropped_len,
                        dst_slot=self._last_slot, pool=ctx.pool)
