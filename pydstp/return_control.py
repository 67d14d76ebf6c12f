"""Key sketches of all layers, and who may bring tokens back with them."""

from __future__ import annotations

from collections.abc import Callable
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from pydstp import ops
from pydstp.errors import CapacityError, OptionError
from pydstp.kv_cache import BASE, SELECTED, CacheGeometry, KVCache
from pydstp.models.plans import Returns
from pydstp.reserve import SideRows
from pydstp.sequence import Sequence
from pydstp.shift import MAX_RETURNED
from pydstp.weights.memory import GIB, available_memory


class ReturnControl:
    """The state of same-step return; memory for it is taken before the first run that asks for it.

    Attributes:
        before_free: makes others forget `returns`, which is about to be replaced.
        returns: what decode attention takes, None while no request has asked.
    """

    def __init__(self, cache: KVCache, pool: ops.ThreadPool,
                 before_free: Callable[[], None]) -> None:
        self.cache, self._pool, self._before_free = cache, pool, before_free
        self.returns: Returns | None = None
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
        late = torch.cat([torch.empty(0, dtype=torch.int64),
                          *(rows.slots for rows in self.cache.pending[s])])
        ready = shift.reserve_indices[s, :int(shift.reserve_len[s])]
        returns.reserve_len[s] = 0
        self._add(s, ready[~torch.isin(ready, late)])

    def note_side_run(self, seq: Sequence, rows: SideRows) -> None:
        """Rows of the reserve have got keys and values: they may return from now on."""
        if seq.progress.params.returns is not None and self.returns is not None:
            self._add(seq.seq_idx, rows.slots.int())

    def begin_step(self, sequences: list[Sequence]) -> Returns | None:
        """What the attention of a step takes; None where no row brings anything back."""
        is_used = False
        for seq in sequences:
            policy = seq.progress.params.returns
            if policy is not None and seq.progress.reason is None:
                count = policy.max_returned if self._is_open(seq) else 0
                self.returns.max_returned[policy.first_layer:, seq.seq_idx] = count
                is_used |= count > 0
        return self.returns if is_used else None

    def _is_open(self, seq: Sequence) -> bool:
        """Whether the gate lets tokens return in this step."""
        gate = seq.progress.params.watch
        return (gate is None or not seq.progress.num_steps
                or float(self.cache.shift.similarity[seq.seq_idx]) < gate.threshold)

    def _layers(self, s: int) -> range:
        return range(self.cache.last_stage(s), self.cache.geometry.num_layers)

    def _add(self, s: int, slots: Tensor) -> None:
        returns, start = self.returns, int(self.returns.reserve_len[s])
        for layer in self._layers(s):
            ops.sketch_keys(self.cache.visual[layer], returns.sketches[layer], s, slots,
                            pool=self._pool, first_entry=start)
        returns.reserve_indices[s, start:start + len(slots)] = slots
        returns.reserve_len[s] = start + len(slots)


def _returns(cache: KVCache, bits: int) -> Returns:
    g = cache.geometry
    _check_room(g, bits)
    sketches = [ops.KeySketch.allocate(g.max_batch, g.visual_capacity, g.num_kv_heads, g.head_dim,
                                       bits) for _ in range(g.num_layers)]
    indices = torch.zeros(g.max_batch, g.visual_capacity, dtype=torch.int32)
    shape = g.num_layers, g.max_batch, g.num_kv_heads
    int32 = {"dtype": torch.int32}
    return Returns(
        sketches=sketches, reserve_indices=indices,
        reserve_len=torch.zeros(g.max_batch, **int32),
        max_returned=torch.zeros(g.num_layers, g.max_batch, **int32),
        per_head=torch.zeros(g.max_batch, **int32),
        mass=torch.zeros(g.max_batch, dtype=torch.float32),
        returned_indices=torch.zeros(*shape, MAX_RETURNED, **int32),
        returned_len=torch.zeros(*shape, **int32), reserve_group=SELECTED,
        workspace=ops.attention_workspace(g.max_batch, g.num_heads, cache.visible_indices,
                                          cache.text[0], MAX_RETURNED),
        return_workspace=ops.return_workspace(g.max_batch, g.num_heads, sketches[0], indices,
                                              g.head_dim))


def _check_room(g: CacheGeometry, bits: int) -> None:
    by_head = g.head_dim * bits // 8 + 4 if bits < 16 else 0
    needed = g.num_layers * g.max_batch * g.visual_capacity * g.num_kv_heads * by_head
    available = available_memory()
    if available is not None and needed > available:
        raise CapacityError(f"bits: {needed / GIB:.2f} GiB are needed for key sketches of {bits} "
                            f"bits, {available / GIB:.2f} GiB are available; lower bits, max_batch "
                            "or max_visual_tokens")
