"""Key sketches of all layers, and who may bring tokens back with them."""

from __future__ import annotations

import torch
from torch import Tensor

from pydstp import ops
from pydstp.errors import OptionError
from pydstp.kv_cache import BASE, SELECTED, KVCache
from pydstp.models.plans import Returns
from pydstp.reserve import SideRows
from pydstp.sequence import Sequence
from pydstp.shift import SketchReturn

RETURN_CAPACITY = 64  # tokens that one layer can bring back


class ReturnControl:
    """The state of same-step return; memory for it is taken when a request first asks for it.

    Attributes:
        returns: what decode attention takes, None while no request has asked.
    """

    def __init__(self, cache: KVCache, pool: ops.ThreadPool) -> None:
        self.cache, self._pool = cache, pool
        self.returns: Returns | None = None

    def begin(self, seq: Sequence) -> None:
        """Set a new turn up: what its policy allows, and the sketch of what is there already."""
        policy, s = seq.progress.params.returns, seq.seq_idx
        if self.returns is not None:
            self.returns.max_returned[s] = 0
        if policy is None or seq.progress.reason is not None:
            return
        self._allocate(policy)
        returns, shift = self.returns, self.cache.shift
        returns.max_returned[s] = policy.max_returned
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

    def plan(self, sequences: list[Sequence]) -> Returns | None:
        """What the attention of a step takes; None where no row brings anything back."""
        rows = [seq.seq_idx for seq in sequences]
        is_used = self.returns is not None and bool(self.returns.max_returned[rows].any())
        return self.returns if is_used else None

    def _layers(self, s: int) -> range:
        return range(self.cache.first_layer[s], self.cache.geometry.num_layers)

    def _add(self, s: int, slots: Tensor) -> None:
        returns, start = self.returns, int(self.returns.reserve_len[s])
        for layer in self._layers(s):
            ops.sketch_keys(self.cache.visual[layer], returns.sketches[layer], s, slots,
                            pool=self._pool)
        returns.reserve_indices[s, start:start + len(slots)] = slots
        returns.reserve_len[s] = start + len(slots)

    def _allocate(self, policy: SketchReturn) -> None:
        if policy.max_returned > RETURN_CAPACITY:
            raise OptionError(f"max_returned: expected at most {RETURN_CAPACITY}, "
                              f"got {policy.max_returned}")
        if self.returns is None:
            self.returns = _returns(self.cache, policy.bits)
        elif self.returns.sketches[0].bits != policy.bits:
            raise OptionError(f"bits: expected {self.returns.sketches[0].bits}, which this engine "
                              f"began with, got {policy.bits}")


def _returns(cache: KVCache, bits: int) -> Returns:
    g = cache.geometry
    sketches = [ops.KeySketch.allocate(g.max_batch, g.visual_capacity, g.num_kv_heads, g.head_dim,
                                       bits) for _ in range(g.num_layers)]
    indices = torch.zeros(g.max_batch, g.visual_capacity, dtype=torch.int32)
    shape = g.num_layers, g.max_batch, g.num_kv_heads
    int32 = {"dtype": torch.int32}
    return Returns(
        sketches=sketches, reserve_indices=indices,
        reserve_len=torch.zeros(g.max_batch, **int32),
        max_returned=torch.zeros(g.max_batch, **int32),
        per_head=torch.zeros(g.max_batch, **int32),
        mass=torch.zeros(g.max_batch, dtype=torch.float32),
        returned_indices=torch.zeros(*shape, RETURN_CAPACITY, **int32),
        returned_len=torch.zeros(*shape, **int32), reserve_group=SELECTED,
        workspace=ops.attention_workspace(g.max_batch, g.num_heads, cache.visible_indices,
                                          cache.text[0], RETURN_CAPACITY),
        return_workspace=ops.return_workspace(g.max_batch, g.num_heads, sketches[0], indices,
                                              g.head_dim))
