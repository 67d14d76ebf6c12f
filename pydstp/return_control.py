"""Key sketches of all layers, and who may bring tokens back with them."""

from __future__ import annotations

from collections.abc import Callable
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from pydstp import ops
from pydstp.cache_geometry import int32
from pydstp.errors import CapacityError, OptionError
from pydstp.kv_cache import BASE, SELECTED, KVCache
from pydstp.models.plans import Returns
from pydstp.reserve import SideRows
from pydstp.sequence import Sequence
from pydstp.shift import MAX_RETURNED
from pydstp.shift_control import ShiftControl
from pydstp.weights.memory import GIB, available_memory, available_on_gpu


class ReturnControl:
    """The state of same-step return; memory for it is taken before the first run that asks for it.

    Attributes:
        before_free: makes others forget `returns`, which is about to be replaced.
        returns: what decode attention takes, None while no request has asked.
        scoring: of the step that runs, by sequence that may bring something back: how many layers
            look, and at how many entries each.
    """

    def __init__(self, cache: KVCache, pool: ops.ThreadPool, shift_control: ShiftControl,
                 before_free: Callable[[], None]) -> None:
        self._shift = shift_control
        self._num_listed = [0] * cache.geometry.max_batch  # entries of the reserve, by sequence
        self.cache, self._pool, self._before_free = cache, pool, before_free
        self.returns: Returns | None = None
        self.scoring: dict[int, tuple[int, int]] = {}
        self._users: WeakValueDictionary[int, Sequence] = WeakValueDictionary()

    def expect(self, sequences: list[Sequence]) -> None:
        """Take the memory for requests that are about to run.

        Raises:
            OptionError: different `bits` among them, or beside what runs already.
            CapacityError: there is no room for the key sketches.
        """
        policies = [seq.progress.params.returns for seq in [*sequences, *self._running()]]
        bits = sorted({policy.bits for policy in policies if policy is not None})
        if len(bits) > 1:
            raise OptionError(f"bits: expected one number for all requests that run together, "
                              f"got {bits}")
        if bits and (self.returns is None or self.returns.sketches[0].bits != bits[0]):
            self._before_free()
            self.returns = None  # its memory is free before the next is taken
            self.returns = _returns(self.cache, bits[0])

    def _running(self) -> list[Sequence]:
        """Sequences whose sketches are in use; at its next turn a chat writes its own anew."""
        return [seq for s, seq in self._users.items()
                if seq.seq_idx == s and seq.finish_reason is None]

    def begin(self, seq: Sequence) -> None:
        """Set a new turn up: what its policy allows, and the sketch of what is there already."""
        policy, s = seq.progress.params.returns, seq.seq_idx
        self._users.pop(s, None)
        if self.returns is not None:
            self.returns.max_returned[:, s] = 0
        if policy is None or seq.progress.reason is not None:
            return
        self.expect([seq])
        self._users[s] = seq
        returns, shift = self.returns, self.cache.shift
        returns.per_head[s] = int(policy.per_head)
        returns.mass[s] = policy.mass or 0.0
        base = (shift.base_mask[s] == BASE).nonzero().squeeze(1).int()
        for layer in self._layers(s):
            ops.sketch_scale(self.cache.visual[layer], returns.sketches[layer], s, base,
                             pool=self._pool)
        ready = shift.reserve_indices[s, :int(shift.reserve_len[s])].cpu()
        late = torch.cat([ready[:0].long(), *(rows.slots for rows in self.cache.pending[s])])
        returns.reserve_len[s] = self._num_listed[s] = 0
        self._add(s, ready[~torch.isin(ready, late)].to(self.cache.device))

    def note_side_run(self, seq: Sequence, rows: SideRows) -> None:
        """Rows of the reserve have got keys and values: they may return from now on."""
        if seq.progress.params.returns is not None and self.returns is not None:
            self._add(seq.seq_idx, rows.slots.int().to(self.cache.device))

    def begin_step(self, sequences: list[Sequence]) -> Returns | None:
        """What the attention of a step takes; None where no row brings anything back."""
        self.scoring = {}
        for seq in sequences:
            policy, s = seq.progress.params.returns, seq.seq_idx
            if policy is not None and seq.progress.reason is None:
                count = policy.max_returned if self._is_open(seq) else 0
                self.returns.max_returned[policy.first_layer:, s] = count
                if count:
                    first = max(policy.first_layer, self.cache.last_stage(s))
                    num_layers = max(0, self.cache.geometry.num_layers - first)
                    self.scoring[s] = num_layers, self._num_listed[s]
        return self.returns if self.scoring else None

    def _is_open(self, seq: Sequence) -> bool:
        """Whether the gate lets tokens return in this step."""
        gate = seq.progress.params.watch
        return (gate is None or not seq.progress.num_steps
                or float(self._shift.similarity[seq.seq_idx]) < gate.threshold)

    def _layers(self, s: int) -> range:
        return range(self.cache.last_stage(s), self.cache.geometry.num_layers)

    def _add(self, s: int, slots: Tensor) -> None:
        returns, start = self.returns, self._num_listed[s]
        for layer in self._layers(s):
            ops.sketch_keys(self.cache.visual[layer], returns.sketches[layer], s, slots,
                            pool=self._pool, first_entry=start)
        returns.reserve_indices[s, start:start + len(slots)] = slots
        returns.reserve_len[s] = self._num_listed[s] = start + len(slots)


def _returns(cache: KVCache, bits: int) -> Returns:
    g = cache.geometry
    _check_room(cache, bits)
    sketches = [ops.KeySketch.allocate(g.max_batch, g.visual_capacity, g.num_kv_heads, g.head_dim,
                                       bits, cache.device) for _ in range(g.num_layers)]
    shape, place = (g.num_layers, g.max_batch, g.num_kv_heads), {"device": cache.device}
    indices = int32(g.max_batch, g.visual_capacity, **place)
    return Returns(
        sketches=sketches, reserve_indices=indices,
        reserve_len=int32(g.max_batch, **place),
        max_returned=int32(g.num_layers, g.max_batch, **place),
        per_head=int32(g.max_batch, **place),
        mass=torch.zeros(g.max_batch, dtype=torch.float32, **place),
        returned_indices=int32(*shape, MAX_RETURNED, **place),
        returned_len=int32(*shape, **place), reserve_group=SELECTED,
        workspace=ops.attention_workspace(g.max_batch, g.num_heads, cache.visible_indices,
                                          cache.text[0], MAX_RETURNED),
        return_workspace=ops.return_workspace(g.max_batch, g.num_heads, sketches[0], indices,
                                              g.head_dim))


def _check_room(cache: KVCache, bits: int) -> None:
    g = cache.geometry
    by_head = g.head_dim * bits // 8 + 4 if bits < 16 else 0
    needed = g.num_layers * g.max_batch * g.visual_capacity * g.num_kv_heads * by_head
    on_gpu = cache.device.type == "cuda"
    available = available_on_gpu(cache.device) if on_gpu else available_memory()
    if available is not None and needed > available:
        raise CapacityError(f"bits: {needed / GIB:.2f} GiB are needed for key sketches of {bits} "
                            f"bits, {available / GIB:.2f} GiB are available; lower bits, max_batch "
                            "or max_visual_tokens")
