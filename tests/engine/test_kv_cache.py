"""The cache's bookkeeping: slots, order, marks, and buffers that never move."""

import pytest
import torch

from pydstp.errors import CapacityError
from pydstp.kv_cache import CacheGeometry, CacheMark, KVCache

GEOMETRY = CacheGeometry(num_layers=2, num_kv_heads=1, head_dim=4, max_batch=3,
                         visual_capacity=6, text_capacity=8)


@pytest.fixture
def cache() -> KVCache:
    return KVCache(GEOMETRY, torch.float32)


def mask(text: str) -> torch.Tensor:
    """'v' is a visual token, 't' any other."""
    return torch.tensor([letter == "v" for letter in text])


def test_slots_follow_the_two_arenas(cache):
    seq_idx = cache.acquire()
    assert cache.append(seq_idx, mask("ttvvt")).tolist() == [6, 7, 0, 1, 8]
    assert cache.append(seq_idx, mask("vt")).tolist() == [2, 9]
    assert cache.slots_in_prompt_order(seq_idx).tolist() == [6, 7, 0, 1, 8, 2, 9]
    assert cache.mark(seq_idx) == CacheMark(3, 4, 7)


def test_every_visual_token_is_visible_in_every_group(cache):
    seq_idx = cache.acquire()
    cache.append(seq_idx, mask("tvvtv"))
    assert cache.visible_len[seq_idx, :3].tolist() == [3, 3, 3]
    assert cache.visible_indices[seq_idx, :3, :3].tolist() == 3 * [[0, 1, 2]]


def test_decode_rows_go_behind_the_text(cache):
    first, second = cache.acquire(), cache.acquire()
    cache.append(first, mask("tvt"))
    cache.append(second, mask("ttt"))
    slots = cache.append_text_rows(torch.tensor([second, first]))
    assert slots.tolist() == [9, 8]
    assert cache.text_len[[first, second]].tolist() == [3, 4]
    assert cache.slots_in_prompt_order(first).tolist() == [6, 0, 7, 8]


def test_rewind_forgets_what_came_after(cache):
    seq_idx = cache.acquire()
    cache.append(seq_idx, mask("tvvt"))
    mark = cache.mark_at(seq_idx, 2)
    assert mark == CacheMark(1, 1, 2)
    cache.rewind(seq_idx, mark)
    assert cache.slots_in_prompt_order(seq_idx).tolist() == [6, 0]
    assert cache.visible_len[seq_idx, :3].tolist() == [1, 1, 1]
    assert cache.append(seq_idx, mask("vt")).tolist() == [1, 7]


@pytest.mark.parametrize("run, name", [("v" * 7, "max_visual_tokens"), ("t" * 9, "max_text")])
def test_a_run_that_does_not_fit_changes_nothing(cache, run, name):
    seq_idx = cache.acquire()
    cache.append(seq_idx, mask("tv"))
    with pytest.raises(CapacityError, match=name):
        cache.append(seq_idx, mask(run))
    assert cache.mark(seq_idx) == CacheMark(1, 1, 2)


def test_a_released_sequence_starts_empty(cache):
    taken = [cache.acquire() for _ in range(3)]
    with pytest.raises(CapacityError, match="max_batch = 3"):
        cache.acquire()
    cache.append(taken[1], mask("vvt"))
    cache.release(taken[1])
    assert cache.acquire() == taken[1]
    assert cache.mark(taken[1]) == CacheMark(0, 0, 0)
    assert cache.visible_len[taken[1], :3].tolist() == [0, 0, 0]


def test_buffers_never_move(cache):
    def addresses():
        return [value.data_ptr() for value in vars(cache).values() if torch.is_tensor(value)]
    before = addresses()
    for _ in range(1000):
        seq_idx = cache.acquire()
        cache.append(seq_idx, mask("tvvt"))
        cache.append_text_rows(torch.tensor([seq_idx]))
        cache.release(seq_idx)
    assert addresses() == before


def test_bytes_are_what_is_allocated(cache):
    allocated = cache.visual.nbytes + cache.text.nbytes
    assert GEOMETRY.kv_bytes(torch.float32) == allocated
