"""attention_with_return: what returns, and attention to it, against plain softmax."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from pydstp import ops
from pydstp.errors import OptionError
from tests import reference
from tests.compare import assert_bitwise, assert_matches
from tests.generators import INT_MAX, INT_MIN, hostile_indices
from tests.ops.attention_cases import LAYER
from tests.ops.return_cases import ReturnCase, check, make_return_case
from tests.ops.test_attention_monitor import make_monitor

BITS = pytest.mark.parametrize("bits", [2, 4, 8, 16])
BY_HEAD = pytest.mark.parametrize("per_head", [False, True], ids=["shared", "per_head"])


@BITS
@pytest.mark.parametrize("lengths", [(1, 0, 1, 1), (3, 3, 3, 2), (0, 97, 0, 5), (97, 0, 19, 3),
                                     (19, 64, 0, 4), (97, 769, 111, 8)], ids=str)
def test_lengths(isa, dtype, bits, lengths, pool):
    list_len, reserve_len, text_len, most = lengths
    check(make_return_case(dtype, bits=bits, list_len=list_len, reserve_len=reserve_len,
                           text_len=text_len, max_returned=most), pool, check_indices=True)


@BITS
@BY_HEAD
@pytest.mark.parametrize("ratio, head_dim", [(1, 128), (3, 20), (8, 64), (13, 2), (2, 256)])
def test_heads(isa, dtype, bits, per_head, ratio, head_dim, pool):
    check(make_return_case(dtype, bits=bits, per_head=per_head, ratio=ratio, num_kv_heads=3,
                           head_dim=head_dim), pool)


@BITS
def test_more_kv_heads_than_are_walked_together(isa, dtype, bits, pool):
    check(make_return_case(dtype, bits=bits, num_kv_heads=11, per_head=True), pool)


@BY_HEAD
def test_with_exact_keys_all_of_the_reserve_is_full_attention(isa, dtype, per_head, pool):
    case = make_return_case(dtype, bits=16, reserve_len=97, max_returned=97, per_head=per_head)
    out, _, length = case.run_return(pool)
    assert length.tolist() == [[97, 97], [48, 48], [1, 1]]
    full = case.with_all_returned()
    assert_matches(out, full.to(torch.float32).run(reference.decode_attention),
                   full.run(reference.decode_attention))
    if dtype == torch.float32:
        assert_matches(out, full.run(ops.decode_attention, pool=pool))


@pytest.mark.parametrize("off", ["max_returned", "reserve_len", "group"])
def test_nothing_to_return_is_decode_attention_bit_for_bit(isa, dtype, off, pool):
    case = make_return_case(dtype, max_returned=3)
    case.reserve["sketch"].scales.fill_(float("nan"))
    if off == "group":
        case.reserve["reserve_group"] = 0
    else:
        case.reserve[off].zero_()
    out, _, length = case.run_return(pool)
    assert (length == 0).all()
    assert_bitwise(out, case.run(ops.decode_attention, pool=pool))


def test_only_layers_of_the_reserve_group_return(isa, dtype, pool):
    case = make_return_case(dtype)
    every, _, _ = case.run_return(pool)
    case.reserve["reserve_group"] = int(case.lists["layer_to_group"][0, LAYER])
    assert_bitwise(case.run_return(pool)[0], every)
    case.lists["layer_to_group"][1, LAYER] = 0
    case.lists["visible_len"][1, 0] = 0
    out, _, length = case.run_return(pool)
    assert length.sum(1).tolist() == [6, 0, 2]
    assert_bitwise(out[[0, 2]], every[[0, 2]])
    check(case, pool)


@BITS
@BY_HEAD
def test_of_equals_the_lowest_slots_return(isa, dtype, bits, per_head, pool):
    case = make_return_case(dtype, bits=bits, reserve_len=769, max_returned=40, duplicates=True,
                            per_head=per_head)
    got = check(case, pool)
    for row, wanted in zip(got, case.wide().expected(), strict=True):
        assert row == [sorted(slots) for slots in wanted.slots]


@BITS
@pytest.mark.parametrize("mass", [0.0, 0.05, 0.4, 2.0])
def test_mass(isa, dtype, bits, mass, pool):
    case = make_return_case(dtype, bits=bits, mass=mass, max_returned=64, list_len=3)
    lengths = [len(row[0]) for row in check(case, pool)]
    if mass in (0.0, 2.0):
        assert lengths == ([64, 48, 1] if mass == 0.0 else [0, 0, 0])


def test_every_sequence_has_its_own_policy(isa, dtype, pool):
    case = make_return_case(dtype, batch=4, max_returned=8)
    case.lists["seq_idx"] = torch.tensor([1, 0, -1, 2], dtype=torch.int32)
    case.reserve["max_returned"] = torch.tensor([8, 3, 0, 1], dtype=torch.int32)
    case.reserve["per_head"] = torch.tensor([1, 0, 1, 0], dtype=torch.int32)
    case.reserve["mass"] = torch.tensor([0.05, 0.0, 0.0, 0.0])
    got = check(case, pool)
    assert [len(row[0]) for row in (got[0], got[2], got[3])] == [3, 0, 0]
    assert got[1][0] != got[1][1]
    assert got[0][0] == got[0][1]


@BY_HEAD
def test_the_order_of_the_reserve_does_not_matter(isa, dtype, per_head, pool):
    case = make_return_case(dtype, reserve_len=769, per_head=per_head)
    out, indices, _ = case.run_return(pool)
    reserve, sketch = case.reserve["reserve_indices"], case.reserve["sketch"]
    for seq, length in enumerate(case.reserve["reserve_len"].tolist()):
        reserve[seq, :length] = reserve[seq, :length].sort().values
        ops.sketch_keys(case.visual, sketch, seq, reserve[seq, :length], pool=pool)
    again, other_indices, _ = case.run_return(pool)
    assert_bitwise(other_indices, indices)
    assert_bitwise(again, out)


@BITS
@BY_HEAD
def test_a_row_is_the_same_alone_in_any_batch_and_on_any_threads(isa, dtype, bits, per_head, pools):
    case = make_return_case(dtype, bits=bits, per_head=per_head, list_len=97, reserve_len=400,
                            head_dim=64, batch=4, max_returned=70, mass=0.02)
    alone = [case.rows([i]).run_return(pools[0]) for i in range(4)]
    for pool in pools:
        for batch in ([0, 1, 2, 3], [3, 1], [2, 0, 1]):
            for parts, wanted in zip(zip(*case.rows(batch).run_return(pool), strict=True),
                                     [alone[i] for i in batch], strict=True):
                assert_bitwise(parts[2], wanted[2][0])
                assert_bitwise(parts[0], wanted[0][0])
                for kv, length in enumerate(parts[2].tolist()):
                    assert_bitwise(parts[1][kv, :length], wanted[1][0, kv, :length])


@pytest.mark.parametrize("norm", [0, 1], ids=["subset", "context"])
def test_a_monitor_sees_the_list(isa, dtype, norm, pool):
    case = make_return_case(dtype, bits=16, max_returned=97)
    monitor = make_monitor(case, norm, True)
    watched = replace(monitor, probs=monitor.probs.clone())
    out, _, _ = case.run_return(pool, monitor=watched)
    assert_bitwise(out, case.run_return(pool)[0])
    seen = case.with_all_returned() if norm else case
    if norm:  # returned rows count for the normaliser alone
        mask = monitor.base_mask.clone()
        mask[:, 195:] = 0
        monitor = replace(monitor, base_mask=mask)
    expected = replace(monitor, probs=monitor.probs.clone())
    seen.run(ops.decode_attention, pool=pool, monitor=expected)
    if norm:
        torch.testing.assert_close(watched.probs, expected.probs, rtol=1e-5, atol=1e-8,
                                   equal_nan=True)
    else:
        assert_bitwise(watched.probs, expected.probs)


def test_given_workspaces_are_used_and_may_be_larger(isa, dtype, pool):
    case = make_return_case(dtype)
    indices, nan = case.lists["visible_indices"], float("nan")
    workspace = ops.attention_workspace(8, 6, indices, case.text, case.capacity).fill_(nan)
    room = ops.return_workspace(8, 6, case.reserve["sketch"], case.reserve["reserve_indices"], 16)
    check(case, pool, workspace=workspace, return_workspace=room.fill_(nan))


@BITS
def test_entries_that_name_no_slot_are_skipped_and_reported(isa, dtype, bits, pool):
    case = make_return_case(dtype, bits=bits, reserve_len=200, max_returned=20)
    bad = hostile_indices(case.visual.shape[1])
    case.reserve["reserve_indices"][:, 3 : 3 + len(bad)] = torch.tensor(bad, dtype=torch.int32)
    case.reserve["reserve_indices"][0, 64:128] = INT_MIN  # a whole chunk
    status = torch.zeros(1, dtype=torch.int32)
    check(case, pool, status=status)
    assert status.item() == 2
    with pytest.raises(OptionError, match="reserve_indices: expected indices in"):
        case.run_return(pool, check_indices=True)


@pytest.mark.parametrize("name, value", [
    ("reserve_len", -1), ("reserve_len", 101), ("reserve_len", INT_MAX), ("max_returned", -1),
    ("max_returned", 4), ("max_returned", INT_MAX), ("max_returned", INT_MIN)])
def test_hostile_numbers_are_survived_and_reported(isa, dtype, name, value, pool):
    case = make_return_case(dtype)
    case.visual.nan_to_num_(0.0)
    alone = case.rows([0, 2]).run_return(pool)
    case.reserve[name][1] = value
    case.reserve["reserve_indices"][1].clamp_(max=case.visual.shape[1] - 1)
    status = torch.zeros(1, dtype=torch.int32)
    out, _, length = case.run_return(pool, status=status)
    assert status.item() == 8
    assert (length <= case.capacity).all()
    assert_bitwise(out[[0, 2]], alone[0])
    with pytest.raises(OptionError, match=f"{name}: expected indices in"):
        case.run_return(pool, check_indices=True)


@BITS
def test_large_scores_do_not_overflow(isa, dtype, bits, pool):
    case = make_return_case(dtype, bits=bits)
    case.q.mul_(100)
    check(case, pool)


@BITS
def test_a_sketch_that_is_no_number_never_wins(isa, dtype, bits, pool):
    case = make_return_case(dtype, bits=bits)
    lost = int(case.run_return(pool)[1][0, 0, 0])
    if bits == 16:
        case.visual[0, lost, 0] = float("nan")
    entry = case.reserve["reserve_indices"][0].tolist().index(lost)
    case.reserve["sketch"].scales[0, entry // 16 : entry // 16 + 1, :, entry % 16] = float("nan")
    assert lost not in check(case, pool)[0][0]


def test_nan_reaches_its_own_sequence_only(isa, dtype, pool):
    case = make_return_case(dtype)
    clean, _, _ = case.run_return(pool)
    case.text[0, 2] = float("nan")
    case.q[0] = float("inf")
    out, _, length = case.run_return(pool)
    assert (length <= 3).all()
    assert_bitwise(out[1:], clean[1:])


def bad_value(case: ReturnCase, name: str, bad: str) -> object:
    good = {**case.reserve, "per_head": torch.zeros(4, dtype=torch.int32), "mass": torch.zeros(4),
            "returned_indices": torch.zeros(3, 2, 3, dtype=torch.int32),
            "returned_len": torch.zeros(3, 2, dtype=torch.int32),
            "return_workspace": torch.zeros(100_000)}[name]
    return {"dtype": lambda: good.double(), "shape": lambda: good[:-1] if name[-1] != "e" else
            good[:9], "list": good.tolist, "device": lambda: good.to("meta"),
            "holes": lambda: good.repeat_interleave(2, dim=-1)[..., ::2]}[bad]()


@pytest.mark.parametrize("bad", ["dtype", "shape", "list", "device", "holes"])
@pytest.mark.parametrize("name", ["reserve_indices", "reserve_len", "max_returned", "per_head",
                                  "mass", "returned_indices", "returned_len", "return_workspace"])
def test_a_bad_argument_is_named(name, bad, pool):
    case = make_return_case(torch.float32)
    with pytest.raises(OptionError, match=rf"^{name}: expected .*, got "):
        case.run_return(pool, **{name: bad_value(case, name, bad)})


def test_bad_options_are_named(pool):
    case = make_return_case(torch.float32)
    with pytest.raises(OptionError, match="sketch: expected a KeySketch, got NoneType"):
        case.run_return(pool, sketch=None)
    with pytest.raises(OptionError, match=r"reserve_group: expected None or an int in \[0, 2\)"):
        case.run_return(pool, reserve_group=2)
    other = ops.KeySketch.allocate(4, 7, 2, 16)
    with pytest.raises(OptionError, match=r"sketch\.codes: expected shape"):
        case.run_return(pool, sketch=other)
    with pytest.raises(OptionError, match="return_workspace: expected at least"):
        case.run_return(pool, return_workspace=torch.zeros(8))
