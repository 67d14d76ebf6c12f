"""Monitored attention: the shares of visual rows against plain softmax, and nothing disturbed."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from pydstp import ops
from pydstp.errors import OptionError
from tests import reference
from tests.compare import assert_bitwise, assert_matches
from tests.generators import GQA_RATIOS, INT_MAX, INT_MIN, Guarded, hostile_indices, normal, poison
from tests.ops.attention_cases import LAYER, MAX_BATCH, NUM_LAYERS, Case, make_case

SUBSET, CONTEXT = 0, 1
NORMS = pytest.mark.parametrize("norm", [SUBSET, CONTEXT], ids=["subset", "context"])
MASKED = pytest.mark.parametrize("masked", [False, True], ids=["all", "masked"])


def make_monitor(case: Case, norm: int, masked: bool, seed: int = 0) -> ops.Monitor:
    """Uneven weights; probs start uneven, and as NaN where nothing may be added."""
    generator = torch.Generator().manual_seed(seed)
    by_slot, num_heads = case.visual.shape[:2], case.q.shape[1]
    mask = torch.randint(0, 3, by_slot, generator=generator, dtype=torch.uint8) if masked else None
    weights = torch.rand(MAX_BATCH, num_heads, generator=generator) / num_heads
    layers = torch.rand(MAX_BATCH, NUM_LAYERS, generator=generator) + 0.1
    monitor = ops.Monitor(poison(*by_slot), mask, weights, layers,
                          torch.full((MAX_BATCH,), norm, dtype=torch.int32),
                          mass=poison(MAX_BATCH, num_heads))
    for seq in case.lists["seq_idx"].tolist():
        group = int(case.lists["layer_to_group"][seq, case.lists["layer_idx"]])
        length = int(case.lists["visible_len"][seq, group])
        for slot in case.lists["visible_indices"][seq, group, :length].tolist():
            if 0 <= slot < by_slot[1] and (mask is None or mask[seq, slot]):
                monitor.probs[seq, slot] = 0.01 * torch.rand(1, generator=generator)
    return monitor


def guarded(monitor: ops.Monitor) -> tuple[ops.Monitor, Guarded]:
    """The same monitor with its probs in guarded memory, and a mass of its own."""
    memory = Guarded(*monitor.probs.shape, dtype=torch.float32)
    memory.tensor.copy_(monitor.probs)
    return replace(monitor, probs=memory.tensor, mass=monitor.mass.clone()), memory


def assert_same_shares(actual: Tensor, truth: Tensor) -> None:
    """NaN in the same places, everything else within 1e-5 of the largest share."""
    largest = truth.nan_to_num(0.0).max().clamp(min=1e-6) if truth.numel() else torch.ones(())
    assert_matches(actual / largest, truth / largest)


def check(case: Case, monitor: ops.Monitor, pool: ops.ThreadPool, **options: object) -> Tensor:
    """Both ops against the reference, and against each other; returns the probs."""
    expected = replace(monitor, mass=monitor.mass.clone())
    truth = case.to(torch.float32).run(reference.attention_probs, monitor=expected)
    plain = case.run(ops.decode_attention, pool=pool)
    watched, memory = guarded(monitor)
    out = case.run(ops.decode_attention, pool=pool, monitor=watched, **options)
    memory.check()
    assert_bitwise(out, plain)
    assert_same_shares(watched.probs, truth)
    assert_matches(watched.mass, expected.mass)
    alone, memory = guarded(monitor)
    assert case.run(ops.attention_probs, pool=pool, monitor=alone, **options) is None
    memory.check()
    assert_bitwise(alone.probs, watched.probs)
    assert_bitwise(alone.mass, watched.mass)
    return watched.probs


@NORMS
@MASKED
@pytest.mark.parametrize("lengths", [(0, 1), (1, 0), (3, 3), (64, 64), (19, 97), (769, 111),
                                     (97, 1025)], ids=str)
def test_lengths(isa, dtype, lengths, norm, masked, pool):
    case = make_case(dtype, list_len=lengths[0], text_len=lengths[1])
    check(case, make_monitor(case, norm, masked), pool, check_indices=True)


@NORMS
@pytest.mark.parametrize("ratio", [*GQA_RATIOS, 2, 13])
@pytest.mark.parametrize("head_dim", [1, 20, 128])
def test_heads(isa, dtype, ratio, head_dim, norm, pool):
    case = make_case(dtype, ratio=ratio, num_kv_heads=3, head_dim=head_dim)
    check(case, make_monitor(case, norm, True), pool)


@NORMS
def test_more_kv_heads_than_are_walked_together(isa, dtype, norm, pool):
    case = make_case(dtype, ratio=3, num_kv_heads=11)
    check(case, make_monitor(case, norm, True), pool)


@NORMS
def test_a_mean_over_heads_sums_to_one(isa, dtype, norm, pool):
    case = make_case(dtype, list_len=97)
    monitor = make_monitor(case, norm, False)
    monitor.probs.zero_()
    monitor.head_weights.fill_(1 / case.q.shape[1])
    monitor.layer_weights.fill_(1.0)
    totals = check(case, monitor, pool).sum(1)
    assert (totals[:2] < 1.00001).all()
    assert norm == CONTEXT or (totals[:2] > 0.99999).all()


@NORMS
def test_given_workspaces_are_used_and_may_be_larger(isa, dtype, norm, pool):
    case = make_case(dtype)
    indices = case.lists["visible_indices"]
    monitor = replace(make_monitor(case, norm, True),
                      logits=ops.monitor_workspace(8, 6, indices).fill_(float("nan")))
    workspace = ops.attention_workspace(8, 6, indices, case.text).fill_(float("nan"))
    check(case, monitor, pool, workspace=workspace)


@NORMS
def test_the_logits_end_where_the_lists_do(isa, dtype, norm, pool):
    case = make_case(dtype, list_len=62)  # 65 entries fit: a chunk and one more
    size = ops.monitor_workspace(3, 6, case.lists["visible_indices"]).numel()
    case.lists["visible_len"][2, 1] = 65
    memory = Guarded(size, dtype=torch.float32)
    check(case, replace(make_monitor(case, norm, True), logits=memory.tensor), pool)
    memory.check()


@NORMS
def test_a_row_is_the_same_alone_in_any_batch_and_on_any_threads(isa, dtype, norm, pools):
    case = make_case(dtype, num_kv_heads=2, head_dim=64, list_len=769, text_len=111, batch=4)
    monitor = make_monitor(case, norm, True)

    def run(pool: ops.ThreadPool, *batches: list[int]) -> Tensor:
        watched = replace(monitor, probs=monitor.probs.clone())
        for batch in batches:
            case.rows(batch).run(ops.decode_attention, pool=pool, monitor=watched)
        return watched.probs

    alone = run(pools[0], [0], [1], [2], [3])
    for pool in pools:
        for batches in ([[0, 1, 2, 3]], [[3, 1], [0, 2]], [[2, 0, 3], [1]]):
            assert_bitwise(run(pool, *batches), alone)


def test_rows_without_weight_keep_their_probs(isa, dtype, pool):
    case = make_case(dtype)
    monitor = make_monitor(case, SUBSET, False)
    monitor.layer_weights[1, LAYER] = 0
    before = monitor.probs.clone()
    probs = check(case, monitor, pool)
    assert_bitwise(probs[1], before[1])
    assert not torch.equal(probs[0].nan_to_num(), before[0].nan_to_num())


def test_heads_of_weight_zero_are_not_looked_at(isa, dtype, pool):
    case = make_case(dtype)
    monitor = make_monitor(case, SUBSET, True)
    monitor.head_weights[:, [0, 4]] = 0
    case.q[:, [0, 4]] = float("nan")
    assert_bitwise(check(case, monitor, pool).isnan(), monitor.probs.isnan())


@NORMS
def test_layers_add_up(isa, dtype, norm, pool):
    case = make_case(dtype)
    case.lists["layer_to_group"].fill_(1)
    monitor = make_monitor(case, norm, True)
    truth = monitor
    for layer in range(NUM_LAYERS):
        case.lists["layer_idx"] = layer
        truth = replace(truth, probs=case.to(torch.float32).run(
            reference.attention_probs, monitor=truth))
        case.run(ops.decode_attention, pool=pool, monitor=monitor)
    assert_same_shares(monitor.probs, truth.probs)


@NORMS
def test_nothing_that_counts_adds_nothing(isa, dtype, norm, pool):
    case = make_case(dtype)
    monitor = make_monitor(case, norm, False)
    monitor = replace(monitor, base_mask=torch.zeros(case.visual.shape[:2], dtype=torch.uint8))
    assert_bitwise(check(case, monitor, pool), monitor.probs)
    case.lists["text_len"].fill_(0)
    case.lists["visible_indices"].fill_(-1)
    monitor = replace(monitor, base_mask=None)
    assert_bitwise(check(case, monitor, pool), monitor.probs)


def test_scores_alone_need_no_v_and_a_subset_needs_no_text(isa, dtype, pool):
    case = make_case(dtype)
    monitor = make_monitor(case, CONTEXT, True)
    truth = check(case, monitor, pool)
    case.visual[:, :, 1] = case.text[:, :, 1] = float("nan")
    case.run(ops.attention_probs, pool=pool, monitor=monitor)
    assert_bitwise(monitor.probs, truth)
    monitor = make_monitor(case, SUBSET, True)
    truth = case.to(torch.float32).run(reference.attention_probs, monitor=monitor)
    case.text.fill_(float("nan"))
    case.run(ops.attention_probs, pool=pool, monitor=monitor)
    assert_same_shares(monitor.probs, truth)


@NORMS
def test_list_entries_that_name_no_row_are_skipped_and_reported(isa, dtype, norm, pool):
    case = make_case(dtype, list_len=97)
    bad = hostile_indices(case.visual.shape[1])
    case.lists["visible_indices"][:, 1, 3 : 3 + len(bad)] = torch.tensor(bad, dtype=torch.int32)
    case.lists["visible_indices"][0, 1, 64:97] = INT_MIN  # a whole chunk
    status = torch.zeros(1, dtype=torch.int32)
    check(case, make_monitor(case, norm, True), pool, status=status)
    assert status.item() == 2


@pytest.mark.parametrize("name, bit", [("seq_idx", 1), ("layer_to_group", 4), ("text_len", 8),
                                       ("visible_len", 8)])
def test_hostile_numbers_are_survived_and_reported(isa, dtype, name, bit, pool):
    for value in (INT_MIN, -2, 1000, INT_MAX):
        case = make_case(dtype)
        case.visual.nan_to_num_(0.0)
        case.text.nan_to_num_(0.0)
        case.lists["visible_indices"].clamp_(max=case.visual.shape[1] - 1)
        monitor = make_monitor(case, CONTEXT, True)
        clean, memory = guarded(monitor)
        case.rows([0, 2]).run(ops.decode_attention, pool=pool, monitor=clean)
        case.lists[name][1] = value
        for op in (ops.decode_attention, ops.attention_probs):
            status = torch.zeros(1, dtype=torch.int32)
            watched, memory = guarded(monitor)
            case.run(op, pool=pool, monitor=watched, status=status)
            memory.check()
            assert status.item() == bit
            assert_bitwise(watched.probs[[0, 2]], clean.probs[[0, 2]])
            with pytest.raises(OptionError, match=f"{name}: expected indices in"):
                case.run(op, pool=pool, monitor=watched, check_indices=True)


@NORMS
def test_large_scores_do_not_overflow(isa, dtype, norm, pool):
    case = make_case(dtype, list_len=111)
    case.q.mul_(100)
    check(case, make_monitor(case, norm, True), pool)


def test_nan_in_a_visible_row_reaches_its_own_sequence_only(isa, dtype, pool):
    case = make_case(dtype)
    monitor = make_monitor(case, CONTEXT, False)
    clean, broken = guarded(monitor)[0], guarded(monitor)[0]
    case.run(ops.decode_attention, pool=pool, monitor=clean)
    case.text[0, 2] = float("nan")
    case.run(ops.decode_attention, pool=pool, monitor=broken)
    assert broken.probs[0].isnan().all()
    assert_bitwise(broken.probs[1:], clean.probs[1:])


FIELDS = ["probs", "base_mask", "head_weights", "layer_weights", "norm", "logits", "mass"]


@pytest.mark.parametrize("name", FIELDS)
@pytest.mark.parametrize("bad", ["dtype", "shape", "list", "device", "holes"])
def test_a_bad_monitor_is_named(name, bad, pool):
    case = make_case(torch.float32)
    monitor = replace(make_monitor(case, SUBSET, True),
                      logits=ops.monitor_workspace(3, 6, case.lists["visible_indices"]))
    good = getattr(monitor, name)
    value = {"dtype": lambda: good.double(), "shape": lambda: good[:-1], "list": good.tolist,
             "device": lambda: good.to("meta"),
             "holes": lambda: good.repeat_interleave(2, dim=-1)[..., ::2]}[bad]()
    for op in (ops.decode_attention, ops.attention_probs):
        with pytest.raises(OptionError, match=rf"^monitor\.{name}: expected .*, got "):
            case.run(op, pool=pool, monitor=replace(monitor, **{name: value}))


@pytest.mark.parametrize("op", [ops.decode_attention, ops.attention_probs])
def test_something_that_is_no_monitor_is_named(op, pool):
    case = make_case(torch.float32)
    with pytest.raises(OptionError, match="monitor: expected a Monitor.*, got Tensor"):
        case.run(op, pool=pool, monitor=normal(3))
