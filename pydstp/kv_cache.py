"""The visual KV cache: two arenas of keys and values, and the lists that say what is visible.

It owns memory and decides nothing. Everything has its final size from the start; nothing here is
reallocated, moved or copied afterwards, and a token keeps its slot for as long as its sequence.

Lists of a sequence say which visual slots attention reads. Group ALL holds every original token;
group SELECTED is the one that pruning and swaps write. Layers below the pruning point belong to the
first, the others to the second; without pruning every layer belongs to the first. Where tokens
leave before several layers, each such stage but the last has a group of its own, from STAGED on,
for the layers up to the next. A policy that selects within a step writes group PULSED, and takes
the layers above its own for it.

What ops read lies on the device of the cache. What only decides lies on the host, where asking
costs nothing: how long things are, which layer reads which group, where tokens stand in the prompt.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pydstp import ops
from pydstp.cache_geometry import CacheGeometry, CacheMark, check_room, counting, int32, write_list
from pydstp.errors import CapacityError
from pydstp.reserve import SideRows

ALL, SELECTED, PULSED, STAGED = 0, 1, 2, 3
MAX_STAGES = 6
NUM_GROUPS = STAGED + MAX_STAGES - 1
NEVER = 2**31 - 1
NOT_BASE, BASE, PSEUDO = 0, 1, 2  # values of ShiftState.base_mask


class KVCache:
    """Keys (after RoPE) and values of every sequence, and their visible lists.

    A slot is a token's row. Slots [0, visual_capacity) lie in the visual arena, slots
    [visual_capacity, visual_capacity + text_capacity) in the text arena. Decode attention of a
    sequence reads the visible list of its layer's group and the first `text_len` text rows.

    Attributes:
        visual: [num_layers, max_batch, visual_capacity, 2, num_kv_heads, head_dim], K then V.
        text: [num_layers, max_batch, text_capacity, 2, num_kv_heads, head_dim].
        visible_indices: [max_batch, NUM_GROUPS, visual_capacity] int32, sorted, by group.
        visible_len: [max_batch, NUM_GROUPS] int32.
        layer_to_group: [max_batch, num_layers] int32.
        text_len: [max_batch] int32, rows of text.
        shift: base set, reserve, anchors and state of the shift policy of every sequence.
        groups, text_rows: on the host, what `layer_to_group` and `text_len` hold.
        list_lens: [max_batch, NUM_GROUPS] int32 on the host: the lists as `show_base` and
            `show_stages` wrote them; what a policy writes afterwards only `visible_len` knows.
        visual_len: [max_batch] int32 on the host, visual rows taken so far.
        num_tokens: [max_batch] int32 on the host, tokens of the sequence, without pseudo tokens.
        stages: per sequence the layers before which tokens leave; none where nothing is pruned.
        born, left: [max_batch, visual_capacity] int32 on the host: the layer before which a merged
            token was made, -1 for originals; before which a token left, NEVER for the base set.
        pending: per sequence the rows of its reserve that have no keys and values yet.
        prompt_order: [max_batch, visual_capacity + text_capacity] int32 on the host: how many
            tokens of the sequence came before the one in this slot. Positions are no substitute:
            all tokens of a picture share one temporal position.
    """

    def __init__(self, geometry: CacheGeometry, dtype: torch.dtype,
                 device: torch.device | str = "cpu") -> None:
        g = self.geometry = geometry
        self.device = torch.device(device)
        row = (2, g.num_kv_heads, g.head_dim)
        self.visual, self.text = (
            ops.empty_in_huge_pages(g.num_layers, g.max_batch, capacity, *row, dtype=dtype,
                                    device=device)
            for capacity in (g.visual_capacity, g.text_capacity))
        self.visible_indices = int32(g.max_batch, NUM_GROUPS, g.visual_capacity, device=device)
        self.visible_len = int32(g.max_batch, NUM_GROUPS, device=device)
        self.layer_to_group = int32(g.max_batch, g.num_layers, device=device)
        self.text_len = int32(g.max_batch, device=device)
        self.shift = ops.ShiftState.allocate(g.max_batch, g.visual_capacity, g.num_layers,
                                             g.num_heads, device)
        self.list_lens = int32(g.max_batch, NUM_GROUPS)
        self.groups = int32(g.max_batch, g.num_layers)
        self.visual_len, self.text_rows, self.num_tokens = (int32(g.max_batch) for _ in range(3))
        self.stages: list[tuple[int, ...]] = [()] * g.max_batch
        self.born = int32(g.max_batch, g.visual_capacity) - 1
        self.left = int32(g.max_batch, g.visual_capacity)
        self.pending: list[list[SideRows]] = [[] for _ in range(g.max_batch)]
        self.prompt_order = int32(g.max_batch, g.visual_capacity + g.text_capacity)
        self._free = list(reversed(range(g.max_batch)))

    def close(self) -> None:
        """Give up the memory of keys, values and waiting rows; the bookkeeping stays usable."""
        self.visual = self.text = torch.empty(0, device="cpu")
        self.pending = [[] for _ in self.pending]

    @property
    def first_layer(self) -> list[int]:
        """Per sequence the first pruning point, 0 where nothing is pruned."""
        return [layers[0] if layers else 0 for layers in self.stages]

    def last_stage(self, seq_idx: int) -> int:
        """The first layer that reads the base set, 0 where nothing is pruned."""
        return self.stages[seq_idx][-1] if self.stages[seq_idx] else 0

    @property
    def num_free(self) -> int:
        """Sequences that `acquire` can still hand out."""
        return len(self._free)

    def acquire(self) -> int:
        """An empty sequence; `CapacityError` if all `max_batch` are taken."""
        if not self._free:
            raise CapacityError(f"sequences: all max_batch = {self.geometry.max_batch} are in use")
        self.rewind(self._free[-1], CacheMark(0, 0, 0))
        return self._free.pop()

    def release(self, seq_idx: int) -> None:
        """Give a sequence back."""
        self.pending[seq_idx] = []
        self._free.append(seq_idx)

    def mark(self, seq_idx: int) -> CacheMark:
        """Where the sequence stands now."""
        return CacheMark(int(self.visual_len[seq_idx]), int(self.text_rows[seq_idx]),
                         int(self.num_tokens[seq_idx]))

    def rewind(self, seq_idx: int, mark: CacheMark) -> None:
        """Forget every token that came after `mark`; rows before it stay where they are."""
        self.visual_len[seq_idx] = mark.visual_len
        self._set_text_rows(seq_idx, mark.text_len)
        self.num_tokens[seq_idx] = mark.num_tokens
        self.shift.base_mask[seq_idx, mark.visual_len:] = NOT_BASE
        self.pending[seq_idx] = [kept for rows in self.pending[seq_idx]
                                 if (kept := rows.below(mark.visual_len))]
        if mark.visual_len == 0:
            self.set_group(seq_idx, ALL)
            self.stages[seq_idx] = ()
        self.show_base(seq_idx)

    def append(self, seq_idx: int, is_visual: torch.Tensor) -> torch.Tensor:
        """Slots for a run of new tokens, in prompt order; new visual tokens are in the base set.

        Args:
            seq_idx: the sequence.
            is_visual: [num_tokens] bool, on the host.

        Returns:
            slot_idx [num_tokens] int32, on the host.

        Raises:
            CapacityError: the run does not fit; nothing was changed.
        """
        num_visual = int(is_visual.sum())
        num_text = is_visual.numel() - num_visual
        mark = self.mark(seq_idx)
        g = self.geometry
        check_room("visual tokens", mark.visual_len + num_visual, g.visual_capacity,
                    "max_visual_tokens")
        check_room("text tokens", mark.text_len + num_text, g.text_capacity, "max_text_tokens")
        slot_idx = is_visual.new_empty(is_visual.numel(), dtype=torch.int32)
        slot_idx[is_visual] = counting(mark.visual_len, num_visual)
        slot_idx[~is_visual] = counting(g.visual_capacity + mark.text_len, num_text)
        order = counting(mark.num_tokens, is_visual.numel())
        self.prompt_order[seq_idx, slot_idx.long()] = order
        self.visual_len[seq_idx] += num_visual
        self._set_text_rows(seq_idx, mark.text_len + num_text)
        self.num_tokens[seq_idx] += is_visual.numel()
        self._enter(seq_idx, mark.visual_len, num_visual, BASE, -1)
        return slot_idx

    def append_pseudo(self, seq_idx: int, prompt_order: torch.Tensor, layer: int) -> torch.Tensor:
        """Slots for merged tokens, behind the originals; they are in the base set.

        Args:
            prompt_order: [num_pseudo] int32 on the host, their places among the prompt's tokens.
            layer: the first one that they go through.

        Returns:
            slot_idx [num_pseudo] int32, on the host.

        Raises:
            CapacityError: they do not fit.
        """
        start, count = int(self.visual_len[seq_idx]), prompt_order.numel()
        check_room("visual and merged tokens", start + count, self.geometry.visual_capacity,
                    "max_visual_tokens")
        self.prompt_order[seq_idx, start:start + count] = prompt_order
        self.visual_len[seq_idx] += count
        self._enter(seq_idx, start, count, PSEUDO, layer)
        return counting(start, count)

    def _enter(self, seq_idx: int, start: int, count: int, kind: int, born: int) -> None:
        """New slots in the base set."""
        new = slice(start, start + count)
        self.shift.base_mask[seq_idx, new] = kind
        self.born[seq_idx, new], self.left[seq_idx, new] = born, NEVER
        self.show_base(seq_idx)

    def set_stages(self, seq_idx: int, layers: Sequence[int]) -> None:
        """Tokens leave before these layers, ascending; `prune` says which."""
        self.stages[seq_idx] = tuple(layers)
        self.set_group(seq_idx, ALL)
        for stage, layer in enumerate(layers):
            self.set_group(seq_idx, STAGED + stage, layer)
        self.set_group(seq_idx, SELECTED, layers[-1])
        self.show_base(seq_idx)

    def set_group(self, seq_idx: int, group: int, first_layer: int = 0) -> None:
        """Layers from `first_layer` on read the list of `group`."""
        self.groups[seq_idx, first_layer:] = group
        self.layer_to_group[seq_idx].copy_(self.groups[seq_idx])

    def _set_text_rows(self, seq_idx: int, count: int) -> None:
        self.text_rows[seq_idx] = count
        self.text_len[seq_idx] = count

    def prune(self, seq_idx: int, slots: torch.Tensor, layer: int) -> None:
        """Take visual slots, on the host, out of the base set, from `layer`, a stage, on."""
        if layer not in self.stages[seq_idx]:
            self.set_stages(seq_idx, (layer,))
        self.shift.base_mask[seq_idx, slots.long()] = NOT_BASE
        self.left[seq_idx, slots.long()] = layer
        self.show_base(seq_idx)

    def shrink(self, seq_idx: int, layer: int) -> None:
        """Layers from `layer`, a stage, on show the base set, whatever left later."""
        left = self.left[seq_idx]
        left[(left > layer) & (left < NEVER)] = layer
        self.show_base(seq_idx)

    def show_base(self, seq_idx: int) -> None:
        """Write the lists anew: all originals, and the base set; and the reserve beside it.

        No layer is in group PULSED then.
        """
        groups = self.groups[seq_idx]
        groups[groups == PULSED] = SELECTED
        self.layer_to_group[seq_idx].copy_(groups)
        num_visual, shift = int(self.visual_len[seq_idx]), self.shift
        mask = shift.base_mask[seq_idx, :num_visual].cpu()
        is_original = (mask != PSEUDO) & (self.born[seq_idx, :num_visual] < 0)
        self._show(seq_idx, ALL, is_original)
        self._show(seq_idx, SELECTED, mask != NOT_BASE)
        self._show(seq_idx, PULSED, mask != NOT_BASE)
        write_list(mask != NOT_BASE, shift.base_indices[seq_idx], shift.base_len[seq_idx])
        write_list((mask == NOT_BASE) & is_original, shift.reserve_indices[seq_idx],
                    shift.reserve_len[seq_idx])
        self.show_stages(seq_idx)

    def show_stages(self, seq_idx: int) -> None:
        """Write the lists of all stages but the last: what has not left by then, and what group
        SELECTED shows of the reserve."""
        num_visual, shown = int(self.visual_len[seq_idx]), self.visible_slots(seq_idx, SELECTED)
        is_back = shown.new_zeros(self.geometry.visual_capacity, dtype=torch.bool)
        is_back[shown.long()] = True
        mask = self.shift.base_mask[seq_idx, :num_visual].cpu()
        is_back = is_back[:num_visual] & (mask == NOT_BASE)
        born, left = self.born[seq_idx, :num_visual], self.left[seq_idx, :num_visual]
        for stage, layer in enumerate(self.stages[seq_idx][:-1]):
            self._show(seq_idx, STAGED + stage, (born <= layer) & (left > layer) | is_back)

    def _show(self, seq_idx: int, group: int, flags: torch.Tensor) -> None:
        self.list_lens[seq_idx, group] = write_list(
            flags, self.visible_indices[seq_idx, group], self.visible_len[seq_idx, group])

    def append_text_rows(self, seq_idx: torch.Tensor) -> torch.Tensor:
        """A text slot for one new token of each sequence; seq_idx [batch] int64, distinct.

        Returns:
            slot_idx [batch] int32. The caller has made sure that there is room. Both on the host.
        """
        slot_idx = self.text_rows[seq_idx] + self.geometry.visual_capacity
        self.prompt_order[seq_idx, slot_idx.long()] = self.num_tokens[seq_idx]
        self.text_rows[seq_idx] += 1
        self.text_len.copy_(self.text_rows)
        self.num_tokens[seq_idx] += 1
        return slot_idx

    def context(self, seq_idx: int, visual_slots: torch.Tensor, end: int) -> torch.Tensor:
        """[num_slots] int64 in prompt order: some visual slots and all text, below order `end`;
        like visual_slots on the host."""
        text = counting(self.geometry.visual_capacity, int(self.text_rows[seq_idx])).long()
        slots = torch.cat([visual_slots.long(), text])
        order = self.prompt_order[seq_idx, slots]
        slots, order = slots[order < end], order[order < end]
        return slots[order.argsort(stable=True)]

    def visible_slots(self, seq_idx: int, group: int) -> torch.Tensor:
        """[n] int32, the list of one group as it is now, read back to the host."""
        return self.visible_indices[seq_idx, group, :int(self.visible_len[seq_idx, group])].cpu()

    def slots_in_prompt_order(self, seq_idx: int) -> torch.Tensor:
        """[num_tokens] int64: the slots of all rows of a sequence, first token first."""
        visual = counting(0, int(self.visual_len[seq_idx]))
        return self.context(seq_idx, visual, int(self.num_tokens[seq_idx]))

    def mark_at(self, seq_idx: int, num_tokens: int) -> CacheMark:
        """The mark after the first `num_tokens` tokens of a sequence."""
        visual = counting(0, int(self.visual_len[seq_idx]))
        slots = self.context(seq_idx, visual, num_tokens)
        num_visual = int((slots < self.geometry.visual_capacity).sum())
        return CacheMark(num_visual, len(slots) - num_visual, num_tokens)
