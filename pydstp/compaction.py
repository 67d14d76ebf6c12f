"""Making the cache of a prompt smaller, layer by layer, behind a method that acts on it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pydstp import ops
from pydstp.layer_statistics import COLUMN_SUMS

if TYPE_CHECKING:
    from pydstp.prefill import Prefill


def run_compacting(prefill: Prefill) -> None:
    """Run all layers; what is left of the visual tokens takes the first slots of each span.

    A layer reads no keys but its own, so that each is made smaller as soon as it has run.
    """
    cache, s, rows = prefill.cache, prefill.seq_idx, prefill.rows
    cache.set_stages(s, (0,))
    pruner, slots = prefill.pruning.pruner, rows.slots
    spans = [(slice(start, start + length), quota) for (start, length), quota in zip(
        *prefill.pruning.quotas(prefill.grids), strict=True)]
    stays = rows.visual.new_zeros(len(rows.visual), dtype=torch.bool)
    for span, quota in spans:
        stays[span.start:span.start + quota] = True
    is_text = slots.new_ones(len(slots), dtype=torch.bool)
    is_text[rows.visual] = False
    targets = slots[is_text] - cache.geometry.visual_capacity, slots[rows.visual[stays]]
    on_device = {"device": cache.device}
    visual, context = rows.visual.to(**on_device), slots.int().to(**on_device)
    for layer in range(prefill.num_layers):
        sums = prefill.run_watched(layer, frozenset({COLUMN_SUMS}))[COLUMN_SUMS]
        kv = ops.gather_kv(cache.visual[layer], cache.text[layer], s, context,
                           pool=prefill.ctx.pool)
        started = time.perf_counter()
        left = pruner.compressed(kv, sums, visual, spans)
        _write(cache.text[layer, s], targets[0], left[0])
        _write(cache.visual[layer, s], targets[1], left[1])
        prefill.seq.progress.selection_ms += 1e3 * (time.perf_counter() - started)
    cache.prune(s, slots[rows.visual[~stays]], 0)


def _write(arena: Tensor, rows: Tensor, values: Tensor) -> None:
    arena[rows] = values.to(arena.dtype)
