"""What decode steps read: visible tokens and bytes, per sequence, and the log of steps."""

from __future__ import annotations

from pydstp import ops
from pydstp.generation import StepLog
from pydstp.kv_cache import KVCache
from pydstp.models.moe import SparseMLP
from pydstp.models.plans import Returns
from pydstp.models.quantised import num_bytes
from pydstp.models.qwen3 import Decoder
from pydstp.selection import Progress
from pydstp.sequence import Sequence


def weight_bytes(decoder: Decoder) -> int:
    """Bytes of weights that one token reads on its way through the decoder and its head."""
    head = decoder.embed_tokens if decoder.lm_head is None else decoder.lm_head
    total = num_bytes(head) + num_bytes(decoder.norm) + num_bytes(decoder.layers)
    for layer in decoder.layers:
        if isinstance(layer.mlp, SparseMLP):
            moe = decoder.config.moe
            experts = num_bytes(layer.mlp.experts)
            total -= experts - experts * moe.num_experts_per_tok // moe.num_experts
    return total


class StepAccount:
    """One decode step: every forward pass adds what its layers read."""

    def __init__(self, cache: KVCache, bytes_of_weights: int, sequences: list[Sequence]) -> None:
        self._cache = cache
        self._weights = bytes_of_weights
        g = cache.geometry
        self._row_bytes = 2 * g.num_kv_heads * g.head_dim * cache.visual.element_size()
        self._rows = {seq.seq_idx: seq.progress for seq in sequences}
        self._visible = dict.fromkeys(self._rows, 0)  # summed over layers from first_selected on
        self._bytes = dict.fromkeys(self._rows, bytes_of_weights)
        self._shown: dict[int, tuple[int, str]] = {}
        self._redone: set[int] = set()

    def read(self, sequences: list[Sequence], layers: range) -> None:
        """Some layers are about to run with the lists as they are now."""
        cache = self._cache
        for s in (seq.seq_idx for seq in sequences):
            progress, groups = self._rows[s], cache.layer_to_group[s]
            by_layer = cache.visible_len[s, groups[layers.start:layers.stop].long()]
            self._visible[s] += int(by_layer[max(0, progress.first_selected - layers.start):].sum())
            rows = int(by_layer.sum()) + len(layers) * int(cache.text_len[s])
            self._bytes[s] += rows * self._row_bytes
            self._shown[s] = int(cache.visible_len[s, progress.group]), self._state(s)
            if progress.params.log_steps:
                progress.shown_now = tuple(cache.visible_slots(s, progress.group).tolist())

    def _state(self, s: int) -> str:
        """What the lists of a sequence show, as `StepLog.state` says it."""
        if self._rows[s].anchor_layer is not None:
            return "selected"
        is_expanded = int(self._cache.shift.state[s, ops.StateWord.MODE]) == ops.Mode.EXPANDED
        return "expanded" if self._rows[s].is_watched and is_expanded else "base"

    def read_returned(self, sequences: list[Sequence], returns: Returns) -> None:
        """What joined the attention of each layer, and the key sketch that chose it."""
        sketch_bytes = returns.sketches[0].slot_bytes or self._row_bytes // 2
        for row, seq in enumerate(sequences):
            s, first = seq.seq_idx, self._cache.last_stage(seq.seq_idx)
            num_layers = int((returns.max_returned[first:, s] > 0).sum())
            if not num_layers:
                continue
            joined = float(returns.returned_len[first:, row].float().mean(-1).sum())
            self._visible[s] += joined
            scored = int(returns.reserve_len[s]) * num_layers
            self._bytes[s] += int(joined * self._row_bytes) + scored * sketch_bytes
            if seq.progress.is_watched:
                seq.progress.triggers += 1
                seq.progress.trigger_steps.append(seq.progress.num_steps + 1)

    def redo(self, sequences: list[Sequence]) -> None:
        """The step runs again for some sequences; what they saw the first time does not count."""
        for s in (seq.seq_idx for seq in sequences):
            self._visible[s] = 0
            self._redone.add(s)
            self._bytes[s] += self._weights

    def close(self) -> None:
        """The step is committed."""
        for s, progress in self._rows.items():
            progress.num_steps += 1
            progress.num_forwards += 1 + (s in self._redone)
            scored, progress.num_scored = progress.num_scored, 0
            progress.bytes_read += self._bytes[s] + scored * self._row_bytes // 2  # keys alone
            num_pruned = progress.num_layers - progress.first_selected
            progress.visible_sum += (self._visible[s] / num_pruned if num_pruned
                                     else self._shown[s][0])
            if progress.sees_change:
                self._count_triggers(s, progress)
            if progress.params.log_steps:
                self._log(s, progress)

    def _count_triggers(self, s: int, progress: Progress) -> None:
        triggers = int(self._cache.shift.state[s, ops.StateWord.TRIGGERS])
        if triggers > progress.triggers:
            progress.triggers = triggers
            progress.trigger_steps.append(progress.num_steps)

    def _log(self, s: int, progress: Progress) -> None:
        before, now = set(progress.shown_before), set(progress.shown_now)
        shift, (shown, state) = self._cache.shift, self._shown[s]
        has_mass = progress.anchor_layer is not None and progress.params.pulse.is_tempered
        progress.steps.append(StepLog(
            similarity=float(shift.similarity[s]) if progress.sees_change else None, state=state,
            visible=shown, resident=progress.resident, came=tuple(sorted(now - before)),
            went=tuple(sorted(before - now)), redone=s in self._redone,
            attention=self._attention(s, progress),
            mass=float(shift.mass[s].max()) if has_mass else None))
        progress.shown_before = progress.shown_now

    def _attention(self, s: int, progress: Progress) -> tuple[float, ...] | None:
        is_seen = progress.is_watched or progress.anchor_layer is not None
        if progress.params.log_steps != "attention" or not is_seen:
            return None
        return tuple(self._cache.shift.probs[s, :int(self._cache.visual_len[s])].tolist())
