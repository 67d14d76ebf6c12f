"""What decode steps read: visible tokens and bytes, per sequence, and the log of steps."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from pydstp import ops
from pydstp.generation import StepLog
from pydstp.kv_cache import KVCache
from pydstp.models.moe import SparseMLP
from pydstp.models.quantised import num_bytes
from pydstp.models.qwen3 import Decoder
from pydstp.return_control import ReturnControl
from pydstp.selection import Progress
from pydstp.sequence import Sequence
from pydstp.shift_control import ShiftControl


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
    """One decode step: every forward pass adds what its layers read.

    What only the device knows is noted on the way and asked for once, at the end: `asks` are the
    tensors to bring to the host, `close` takes them and does the sums.
    """

    def __init__(self, cache: KVCache, bytes_of_weights: int, sequences: list[Sequence],
                 shift: ShiftControl) -> None:
        self._cache, self._shift = cache, shift
        self._weights = bytes_of_weights
        g = cache.geometry
        self._row_bytes = 2 * g.num_kv_heads * g.head_dim * cache.visual.element_size()
        self._rows = {seq.seq_idx: seq.progress for seq in sequences}
        self._visible = dict.fromkeys(self._rows, 0)  # summed over layers from first_selected on
        self._bytes = dict.fromkeys(self._rows, bytes_of_weights)
        self._shown: dict[int, tuple[int, str]] = {}
        self._redone: set[int] = set()
        self._asked: list[Tensor] = []
        self._sums: list[Callable[[list[Tensor]], None]] = []  # of what was asked for, in order
        self._has_policies = any(progress.is_watched or progress.anchor_layer is not None
                                 for progress in self._rows.values())

    def read(self, sequences: list[Sequence], layers: range) -> None:
        """Some layers are about to run with the lists as they are now."""
        cache, place = self._cache, len(self._asked)
        may_differ = self._has_policies and (layers.start > 0 or bool(self._redone))
        known = None if may_differ else cache.list_lens.clone()
        if may_differ:  # a policy may have written lists within this step
            self._asked.append(cache.visible_len.clone())
        for seq in sequences:
            s, progress = seq.seq_idx, seq.progress
            state = self._state(s)
            if progress.params.log_steps:
                progress.shown_now = tuple(cache.visible_slots(s, progress.group).tolist())
            self._sums.append(lambda found, s=s, state=state: self._add(
                s, layers, (found[place] if known is None else known)[s], state))

    def _add(self, s: int, layers: range, lens: Tensor, state: str) -> None:
        """lens: [NUM_GROUPS], of the lists of a sequence."""
        progress, by_group = self._rows[s], lens.tolist()
        groups = self._cache.groups[s, layers.start:layers.stop].tolist()
        by_layer = [by_group[group] for group in groups]
        self._visible[s] += sum(by_layer[max(0, progress.first_selected - layers.start):])
        rows = sum(by_layer) + len(layers) * int(self._cache.text_rows[s])
        self._bytes[s] += rows * self._row_bytes
        self._shown[s] = by_group[progress.group], state

    def _state(self, s: int) -> str:
        """What the lists of a sequence show, as `StepLog.state` says it."""
        if self._rows[s].anchor_layer is not None:
            return "selected"
        if not self._rows[s].is_watched:
            return "base"
        mode = int(self._shift.state[s, ops.StateWord.MODE])
        return "expanded" if mode == ops.Mode.EXPANDED else "base"

    def read_returned(self, sequences: list[Sequence], control: ReturnControl) -> None:
        """What joined the attention of each layer, and the key sketch that chose it."""
        returns, scoring, place = control.returns, control.scoring, len(self._asked)
        sketch_bytes = returns.sketches[0].slot_bytes or self._row_bytes // 2
        self._asked.append(returns.returned_len[:, :len(sequences)].clone())
        for row, seq in enumerate(sequences):
            if seq.seq_idx in scoring:
                num_layers, entries = scoring[seq.seq_idx]
                self._sums.append(lambda found, row=row, seq=seq, scored=num_layers * entries:
                                  self._add_returned(seq, found[place][:, row],
                                                     scored * sketch_bytes))

    def _add_returned(self, seq: Sequence, lens: Tensor, sketch_bytes: int) -> None:
        """lens: [num_layers, num_kv_heads] int32, how many rows came back."""
        s = seq.seq_idx
        joined = float(lens[self._cache.last_stage(s):].float().mean(-1).sum())
        self._visible[s] += joined
        self._bytes[s] += int(joined * self._row_bytes) + sketch_bytes
        if seq.progress.is_watched:
            seq.progress.triggers += 1
            seq.progress.trigger_steps.append(seq.progress.num_steps + 1)

    def redo(self, sequences: list[Sequence]) -> None:
        """The step runs again for some sequences; what they saw the first time does not count."""
        for s in (seq.seq_idx for seq in sequences):
            self._sums.append(lambda found, s=s: self._visible.__setitem__(s, 0))
            self._redone.add(s)
            self._bytes[s] += self._weights

    def asks(self) -> list[Tensor]:
        """What `close` has to be told."""
        shift = self._cache.shift
        ends = [self._cache.visible_len, shift.state, shift.similarity]
        return self._asked + (ends if self._has_policies else [])

    def mirror(self, found: list[Tensor]) -> None:
        """What the host knows of lists and policies becomes what is. found: as for `close`."""
        if self._has_policies:
            ends = self._cache.list_lens, self._shift.state, self._shift.similarity
            for mine, end in zip(ends, found[len(self._asked):], strict=True):
                mine.copy_(end)

    def close(self, found: list[Tensor]) -> None:
        """The step is committed. found: what `asks` asked for, on the host."""
        self.mirror(found)
        for add in self._sums:
            add(found)
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
        triggers = int(self._shift.state[s, ops.StateWord.TRIGGERS])
        if triggers > progress.triggers:
            progress.triggers = triggers
            progress.trigger_steps.append(progress.num_steps)

    def _log(self, s: int, progress: Progress) -> None:
        before, now = set(progress.shown_before), set(progress.shown_now)
        shift, (shown, state) = self._cache.shift, self._shown[s]
        has_mass = progress.anchor_layer is not None and progress.params.pulse.is_tempered
        progress.steps.append(StepLog(
            state=state,
            similarity=float(self._shift.similarity[s]) if progress.sees_change else None,
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
