"""VisionPulse and DyCoke of all sequences: after the anchor layer, the list of the layers above."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from pydstp import ops
from pydstp.kv_cache import PULSED, KVCache
from pydstp.models.plans import Context
from pydstp.sequence import Sequence
from pydstp.shift_control import ShiftControl


class PulseControl:
    """Has the anchor layer watched, and turns what it saw into the lists of group PULSED.

    It works on rows of `ShiftState` and of the monitor that belong to no other policy.
    """

    def __init__(self, cache: KVCache, shift_control: ShiftControl) -> None:
        self._cache, self._shift = cache, cache.shift
        self._queries = shift_control.queries
        self._tempered = replace(shift_control.monitor, probs=cache.shift.scores,
                                 mass=cache.shift.mass)

    def begin(self, seq: Sequence) -> None:
        """Set a new turn up, after `ShiftControl.begin`."""
        anchor, s, shift = seq.progress.anchor_layer, seq.seq_idx, self._shift
        if anchor is None:
            return
        self._cache.set_group(s, PULSED, anchor + 1)
        shift.layer_weights[s, anchor] = 1.0
        shift.head_weights[s] = 1 / self._cache.geometry.num_heads
        shift.norm[s] = 1
        shift.state[s, ops.StateWord.ACTION] = ops.Action.SELECT
        shift.state[s, ops.StateWord.RESERVE_READY] = 1  # nothing waits for it
        shift.anchor[s] = 0

    def begin_step(self, sequences: list[Sequence]) -> frozenset[int]:
        """Forget the last step's attention; returns the anchor layers."""
        pulsed = [seq for seq in sequences if seq.progress.anchor_layer is not None]
        for seq in pulsed:
            s, progress, shift = seq.seq_idx, seq.progress, self._shift
            shift.probs[s] = 0
            shift.scores[s] = 0
            step = progress.num_steps + bool(seq.new_ids)  # 0: the last token of the prompt
            words, reals = progress.params.pulse.policy(
                progress.kept, step, progress.request_idx)
            shift.policy[s] = shift.policy.new_tensor(words)
            shift.policy_float[s] = shift.policy_float.new_tensor(reals)
        return frozenset(seq.progress.anchor_layer for seq in pulsed)

    def act(self, sequences: list[Sequence], after_layer: int, ctx: Context) -> None:
        """Choose what the layers above read, for the sequences whose anchor was the last layer.

        Args:
            sequences: the rows of the step, in order.
        """
        acting = [seq for seq in sequences if seq.progress.anchor_layer == after_layer]
        if not acting:
            return
        self._compare(sequences, [seq for seq in acting if seq.progress.sees_change], ctx)
        tempered = [seq for seq in acting if seq.progress.params.pulse.is_tempered]
        for temperature in sorted({seq.progress.params.pulse.temperature for seq in tempered}):
            rows = self._rows(sequences, [seq for seq in tempered if
                                     seq.progress.params.pulse.temperature == temperature])
            self._weigh(rows, after_layer, temperature, ctx)
        for seq in tempered:
            group = self._cache.groups[seq.seq_idx, after_layer]
            seq.progress.num_scored += int(self._cache.list_lens[seq.seq_idx, group])
            seq.progress.num_scored += int(self._cache.text_rows[seq.seq_idx])
        ops.shift_select(self._shift, self._rows(sequences, acting), self._cache.visible_indices,
                         self._cache.visible_len, PULSED, pool=ctx.pool)

    def _compare(self, sequences: list[Sequence], comparing: list[Sequence], ctx: Context) -> None:
        """Whether attention has changed since the step before, for policies that ask."""
        if comparing:
            rows = self._rows(sequences, comparing)
            ops.shift_detect(self._shift, rows, ops.Phase.MID, pool=ctx.pool)
        for seq in comparing:
            self._shift.anchor[seq.seq_idx] = self._shift.probs[seq.seq_idx]

    def _weigh(self, rows: Tensor, layer: int, temperature: float, ctx: Context) -> None:
        """The anchor layer's attention again, its logits divided by the temperature."""
        cache = self._cache
        ops.attention_probs(
            self._queries[layer, :len(rows)], cache.visual[layer], cache.text[layer],
            seq_idx=rows, visible_indices=cache.visible_indices, visible_len=cache.visible_len,
            layer_to_group=cache.layer_to_group, layer_idx=layer, text_len=cache.text_len,
            scale=cache.geometry.head_dim**-0.5 / temperature, monitor=self._tempered,
            pool=ctx.pool)

    def _rows(self, sequences: list[Sequence], meant: list[Sequence]) -> Tensor:
        """[batch] int32: the sequence of each row that is meant, -1 elsewhere."""
        names = {seq.seq_idx for seq in meant}
        return self._shift.state.new_tensor(
            [seq.seq_idx if seq.seq_idx in names else -1 for seq in sequences])
