"""Ten thousand swaps: lists change, and nothing else does."""

from __future__ import annotations

import torch
from torch.profiler import ProfilerActivity, profile

from pydstp import DSTP, ops
from pydstp.kv_cache import SELECTED, CacheGeometry, KVCache

GEOMETRY = CacheGeometry(num_layers=2, num_kv_heads=2, head_dim=8, max_batch=2, visual_capacity=40,
                         text_capacity=8, num_heads=4)
NUM_SWAPS = 10_000


def pruned_cache() -> KVCache:
    """Two sequences of 36 visual tokens, of which every third is kept, with random contents."""
    cache = KVCache(GEOMETRY, torch.float32)
    generator = torch.Generator().manual_seed(0)
    cache.visual.normal_(generator=generator)
    cache.text.normal_(generator=generator)
    for seq_idx in (cache.acquire(), cache.acquire()):
        cache.append(seq_idx, torch.arange(40) < 36)
        slots = torch.arange(36)
        cache.prune(seq_idx, slots[slots % 3 != 0], 0)
        shift = cache.shift
        numbers, reals = DSTP(trigger="every", expand_steps=1).policy(
            int(shift.base_len[seq_idx]), 39)
        shift.policy[seq_idx, :len(numbers)] = torch.tensor(numbers, dtype=torch.int32)
        shift.policy_float[seq_idx] = torch.tensor(reals)
        shift.state[seq_idx] = 0
        shift.state[seq_idx, ops.StateWord.RESERVE_READY] = 1
        for values in (shift.anchor, shift.probs, shift.scores):
            values[seq_idx].uniform_(generator=generator)
    return cache


def addresses(cache: KVCache) -> list[int]:
    tensors = [*vars(cache).values(), *vars(cache.shift).values()]
    return [tensor.data_ptr() for tensor in tensors if torch.is_tensor(tensor)]


def test_swaps_allocate_nothing_move_nothing_and_touch_no_keys(pool):
    cache, seq_idx = pruned_cache(), torch.tensor([0, 1], dtype=torch.int32)
    visual, text, places = cache.visual.clone(), cache.text.clone(), addresses(cache)
    base = cache.visible_slots(0, SELECTED).clone()
    lengths, length_of = set(), cache.visible_len.numpy()

    def step() -> None:
        ops.shift_detect(cache.shift, seq_idx, ops.Phase.END, pool=pool)
        ops.shift_select(cache.shift, seq_idx, cache.visible_indices, cache.visible_len, SELECTED,
                         pool=pool)

    step()
    expanded = cache.visible_slots(0, SELECTED).clone()
    assert len(expanded) > len(base)
    step()
    assert torch.equal(cache.visible_slots(0, SELECTED), base)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        for _ in range(NUM_SWAPS):
            step()
            lengths.add(int(length_of[0, SELECTED]))
        torch.empty(1000)  # the one that must be seen
    grown = [event for event in record.events()
             if event.self_cpu_memory_usage > 0]
    assert len(grown) == 1, f"{len(grown) - 1} allocations in {NUM_SWAPS} swaps"
    assert lengths == {len(base), len(expanded)}
    assert int(cache.shift.state[0, ops.StateWord.TRIGGERS]) == 1 + NUM_SWAPS // 2
    assert torch.equal(cache.visual, visual) and torch.equal(cache.text, text)
    assert addresses(cache) == places
