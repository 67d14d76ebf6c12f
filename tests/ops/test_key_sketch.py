"""sketch_scale and sketch_keys: against the reference, and how well a sketch tells keys apart."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pydstp import ops
from pydstp.errors import OptionError
from tests import return_reference as reference
from tests.compare import assert_bitwise
from tests.generators import Guarded, hostile_indices, normal, poison

MAX_BATCH, SEQ = 3, 1
BITS = pytest.mark.parametrize("bits", [2, 4, 8])


def make_sketch(visual: Tensor, bits: int) -> tuple[ops.KeySketch, list[Guarded]]:
    """A sketch for this arena in guarded memory, all poison but the channel scales."""
    wanted = ops.KeySketch.allocate(MAX_BATCH, visual.shape[1], *visual.shape[3:], bits)
    memory = [Guarded(*t.shape, dtype=t.dtype) if t.dtype != torch.uint8 else None
              for t in (wanted.codes, wanted.scales, wanted.channel_scale)]
    memory[2].tensor.fill_(1.0)
    wanted.codes.fill_(170)
    sketch = ops.KeySketch(wanted.codes, memory[1].tensor, memory[2].tensor, bits)
    return sketch, memory[1:]


def make_visual(dtype: torch.dtype, capacity: int, num_kv_heads: int, head_dim: int) -> Tensor:
    visual = normal(MAX_BATCH, capacity, 2, num_kv_heads, head_dim, dtype=dtype, seed=capacity)
    visual[:, :, 0] *= normal(head_dim, dtype=dtype, seed=1).abs() + 0.1
    return visual


def some_slots(capacity: int) -> Tensor:
    generator = torch.Generator().manual_seed(capacity)
    return torch.randperm(capacity, generator=generator)[: max(1, capacity // 2)].int()


@BITS
@pytest.mark.parametrize("statistic", ["max", "rms"])
@pytest.mark.parametrize("capacity", [1, 3, 97, 769])
def test_sizes(isa, dtype, bits, statistic, capacity, pool):
    visual, slots = make_visual(dtype, capacity, 3, 20), some_slots(capacity)
    sketch, memory = make_sketch(visual, bits)
    before, entries = [t.clone() for t in reference.entries_of(sketch, SEQ)], slice(0, len(slots))
    ops.sketch_scale(visual, sketch, SEQ, slots, pool=pool, statistic=statistic,
                     check_indices=True)
    scale = reference.sketch_scale(visual, SEQ, slots, statistic)
    torch.testing.assert_close(sketch.channel_scale[SEQ], scale, rtol=2e-7, atol=0)
    assert (sketch.channel_scale[[0, 2]] == 1).all()
    ops.sketch_keys(visual, sketch, SEQ, slots, pool=pool, check_indices=True)
    for guarded in memory:
        guarded.check()
    codes, scales = reference.sketch_keys(visual[SEQ, slots.long(), 0],
                                          sketch.channel_scale[SEQ], bits)
    after = reference.entries_of(sketch, SEQ)
    assert_bitwise(after[0][entries], reference.pack(codes, bits))
    torch.testing.assert_close(after[1][entries], scales, rtol=1e-6, atol=0)
    for now, then in zip(after, before, strict=True):
        assert_bitwise(now[len(slots):], then[len(slots):])
    assert (sketch.codes[[0, 2]] == 170).all()


@BITS
def test_entries_are_written_in_any_pieces_and_order(isa, dtype, bits, pool):
    """And a piece leaves those beside it as they were."""
    visual, slots = make_visual(dtype, 97, 3, 20), torch.randperm(97).int()
    whole, _ = make_sketch(visual, bits)
    ops.sketch_keys(visual, whole, SEQ, slots, pool=pool)
    wanted = reference.entries_of(whole, SEQ)
    pieces, _ = make_sketch(visual, bits)
    written = torch.zeros(len(wanted[0]), dtype=torch.bool)
    for begin, end in ((40, 41), (90, 97), (0, 3), (41, 90), (3, 40)):
        before = [t.clone() for t in reference.entries_of(pieces, SEQ)]
        ops.sketch_keys(visual, pieces, SEQ, slots[begin:end], pool=pool, first_entry=begin)
        written[begin:end] = True
        for now, then, full in zip(reference.entries_of(pieces, SEQ), before, wanted, strict=True):
            assert_bitwise(now[written], full[written])
            assert_bitwise(now[~written], then[~written])


@BITS
@pytest.mark.parametrize("head_dim", [2, 6, 16, 64, 128, 130])
@pytest.mark.parametrize("num_kv_heads", [1, 11])
def test_heads(isa, dtype, bits, head_dim, num_kv_heads, pool):
    visual, slots = make_visual(dtype, 19, num_kv_heads, head_dim), some_slots(19)
    sketch, _ = make_sketch(visual, bits)
    ops.sketch_scale(visual, sketch, SEQ, slots, pool=pool)
    ops.sketch_keys(visual, sketch, SEQ, slots, pool=pool)
    codes, _ = reference.sketch_keys(visual[SEQ, slots.long(), 0], sketch.channel_scale[SEQ], bits)
    packed = reference.entries_of(sketch, SEQ)[0][:len(slots)]
    assert_bitwise(packed, reference.pack(codes, bits))
    assert_bitwise(reference.unpack(packed, bits, head_dim), codes)


@BITS
def test_a_sketch_is_as_near_as_its_bits_allow(isa, dtype, bits, pool):
    visual, slots = make_visual(dtype, 97, 2, 128), torch.arange(97, dtype=torch.int32)
    sketch, _ = make_sketch(visual, bits)
    ops.sketch_scale(visual, sketch, SEQ, slots, pool=pool)
    ops.sketch_keys(visual, sketch, SEQ, slots, pool=pool)
    keys = visual[SEQ, :, 0].float() / reference.folded(sketch.channel_scale[SEQ])
    packed, scales = (part[:97] for part in reference.entries_of(sketch, SEQ))
    levels = 2 * reference.unpack(packed, bits, 128).float() - (2**bits - 1)
    error = levels * scales.unsqueeze(-1) - keys
    allowed = {2: 0.17, 4: 0.015, 8: 1e-4}[bits]  # the best 4 levels for normal numbers: 0.119
    assert error.pow(2).mean() <= allowed * keys.pow(2).mean()


def test_threads_change_nothing(isa, dtype, pools):
    visual, slots = make_visual(dtype, 769, 2, 64), some_slots(769)
    sketches = []
    for pool in pools:
        sketch, _ = make_sketch(visual, 4)
        ops.sketch_scale(visual, sketch, SEQ, slots, pool=pool, statistic="rms")
        ops.sketch_keys(visual, sketch, SEQ, slots, pool=pool)
        sketches.append(sketch)
    for other in sketches[1:]:
        assert_bitwise(other.codes, sketches[0].codes)
        assert_bitwise(other.scales, sketches[0].scales)
        assert_bitwise(other.channel_scale, sketches[0].channel_scale)


def test_slots_that_name_no_row_are_skipped_and_reported(isa, dtype, pool):
    visual = make_visual(dtype, 19, 2, 16)
    bad = torch.tensor([3, *hostile_indices(19), 5], dtype=torch.int32)
    good = torch.tensor([3] + [-1] * (len(bad) - 2) + [5], dtype=torch.int32)
    for op in (ops.sketch_scale, ops.sketch_keys):
        results = []
        for slots, bits in ((bad, 2), (good, 0)):
            sketch, _ = make_sketch(visual, 4)
            status = torch.zeros(1, dtype=torch.int32)
            op(visual, sketch, SEQ, slots, pool=pool, status=status)
            assert status.item() == bits
            results.append(sketch)
        assert_bitwise(results[0].codes, results[1].codes)
        assert_bitwise(results[0].scales, results[1].scales)
        assert_bitwise(results[0].channel_scale, results[1].channel_scale)
        with pytest.raises(OptionError, match="slots: expected indices in"):
            op(visual, sketch, SEQ, bad, pool=pool, check_indices=True)


@BITS
def test_odd_keys_are_survived(isa, dtype, bits, pool):
    visual = poison(MAX_BATCH, 4, 2, 2, 16, dtype=dtype)
    visual[SEQ, 1] = 0.0
    visual[SEQ, 2] = 0.0
    visual[SEQ, 2, 0, 0, 3] = float("inf")
    visual[SEQ, 3] = 2.0
    slots = torch.arange(4, dtype=torch.int32)
    sketch, _ = make_sketch(visual, bits)
    ops.sketch_scale(visual, sketch, SEQ, slots, pool=pool)
    assert sketch.channel_scale[SEQ].isfinite().all()
    assert (sketch.channel_scale[SEQ] > 0).all()
    ops.sketch_keys(visual, sketch, SEQ, slots, pool=pool)
    scales = reference.entries_of(sketch, SEQ)[1]
    assert (scales[1] == 0).all()
    assert scales[3].isfinite().all()


def test_no_slots_give_scales_of_one(isa, dtype, pool):
    visual = make_visual(dtype, 3, 2, 16)
    sketch, _ = make_sketch(visual, 4)
    sketch.channel_scale.fill_(7.0)
    ops.sketch_scale(visual, sketch, SEQ, torch.empty(0, dtype=torch.int32), pool=pool)
    assert (sketch.channel_scale[SEQ] == 1).all()
    assert (sketch.channel_scale[0] == 7).all()


def test_bytes_are_reported():
    for bits, head_bytes in ((2, 32), (4, 64), (8, 128)):
        sketch = ops.KeySketch.allocate(2, 100, 8, 128, bits)
        assert sketch.slot_bytes == 8 * (head_bytes + 4)
        assert sketch.nbytes == 2 * 112 * sketch.slot_bytes + 2 * 8 * 64 * 4
    exact = ops.KeySketch.allocate(2, 100, 8, 128, 16)
    assert exact.slot_bytes == 0
    assert exact.nbytes == exact.channel_scale.nbytes


@pytest.mark.parametrize("outlier", [1.0, 10.0])
def test_channel_scales_keep_the_best_in_sight_of_outliers(isa, outlier, pool):
    """Of 769 keys, four bits find most of the true best eight; with three RoPE pairs ten times as
    large as the others, only if channels have scales."""
    visual = normal(MAX_BATCH, 769, 2, 1, 128, seed=3)
    for channel in (5, 20, 40):
        visual[..., [channel, channel + 64]] *= outlier
    slots, found = torch.arange(769, dtype=torch.int32), {}
    for has_scale in (False, True):
        sketch, _ = make_sketch(visual, 4)
        if has_scale:
            ops.sketch_scale(visual, sketch, SEQ, slots, pool=pool)
        ops.sketch_keys(visual, sketch, SEQ, slots, pool=pool)
        hits = 0
        for seed in range(20):
            q = normal(1, 128, seed=100 + seed)
            q[:, [5, 20, 40, 69, 84, 104]] /= outlier
            logits = reference.sketch_logits(q, visual, sketch, SEQ, slots, slots.long(), 1.0)[0]
            exact = visual[SEQ, :, 0, 0] @ q[0]
            hits += len(set(logits.topk(8).indices.tolist()) & set(exact.topk(8).indices.tolist()))
        found[has_scale] = hits / 160
    assert found[True] >= 0.8
    assert found[True] >= found[False] - (0.05 if outlier == 1.0 else -0.15), found


@pytest.mark.parametrize("name, value, message", [
    ("sketch", None, "sketch: expected a KeySketch, got NoneType"),
    ("seq_idx", MAX_BATCH, r"seq_idx: expected an int in \[0, 3\), got 3"),
    ("slots", torch.zeros(1), "slots: expected torch.int32, got torch.float32"),
    ("slots", torch.zeros(1, 1), r"slots: expected shape \[num_slots\]"),
    ("visual", torch.zeros(MAX_BATCH, 19, 2, 2, 16), r"sketch.codes: expected shape \[3, 2, 2, 2,"),
])
@pytest.mark.parametrize("op", [ops.sketch_scale, ops.sketch_keys])
def test_a_bad_argument_is_named(op, name, value, message, pool):
    visual = make_visual(torch.float32, 3, 2, 16)
    arguments = {"visual": visual, "sketch": make_sketch(visual, 4)[0], "seq_idx": 0,
                 "slots": torch.zeros(1, dtype=torch.int32), name: value}
    with pytest.raises(OptionError, match=message):
        op(**arguments, pool=pool)


def test_bad_options_are_named(pool):
    visual = make_visual(torch.float32, 3, 2, 16)
    with pytest.raises(OptionError, match=r"statistic: expected one of \['max', 'rms'\], got 'x'"):
        ops.sketch_scale(visual, make_sketch(visual, 4)[0], 0, some_slots(3), pool=pool,
                         statistic="x")
    with pytest.raises(OptionError, match="bits: expected one of"):
        ops.KeySketch.allocate(1, 1, 1, 16, 3)
    with pytest.raises(OptionError, match="head_dim: expected an even number, got 15"):
        ops.KeySketch.allocate(1, 1, 1, 15)
    for entry in (-1, 2, 1.0):
        with pytest.raises(OptionError, match=r"first_entry: expected an int in \[0, 1\] for 2"):
            ops.sketch_keys(visual, make_sketch(visual, 4)[0], 0, torch.zeros(2).int(), pool=pool,
                            first_entry=entry)
