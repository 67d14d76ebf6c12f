"""decode_attention: against softmax in fp32 over exactly the visible rows."""

from __future__ import annotations

import pytest
import torch

from pydstp import ops
from pydstp.errors import OptionError
from tests import reference
from tests.compare import assert_bitwise, assert_matches
from tests.generators import GQA_RATIOS, INT_MAX, INT_MIN, Guarded, hostile_indices
from tests.ops.attention_cases import Case, make_case


def check(case: Case, pool: ops.ThreadPool, **options: object) -> None:
    out = Guarded(*case.q.shape, dtype=case.q.dtype)
    assert case.run(ops.decode_attention, pool=pool, out=out.tensor, **options) is out.tensor
    out.check()
    truth = case.to(torch.float32).run(reference.decode_attention)
    assert_matches(out.tensor, truth, case.run(reference.decode_attention))


@pytest.mark.parametrize("lengths", [(0, 1), (1, 0), (3, 3), (64, 64), (19, 97), (769, 111),
                                     (65, 1025)], ids=str)
def test_lengths(isa, dtype, lengths, pool):
    check(make_case(dtype, list_len=lengths[0], text_len=lengths[1]), pool, check_indices=True)


@pytest.mark.parametrize("ratio", [*GQA_RATIOS, 2, 13])
@pytest.mark.parametrize("head_dim", [1, 16, 20, 128])
def test_heads(isa, dtype, ratio, head_dim, pool):
    check(make_case(dtype, ratio=ratio, num_kv_heads=3, head_dim=head_dim), pool)


def test_a_given_workspace_is_used_and_may_be_larger(isa, dtype, pool):
    case = make_case(dtype)
    workspace = ops.attention_workspace(8, 6, case.lists["visible_indices"], case.text)
    check(case, pool, workspace=workspace.fill_(float("nan")))


def test_a_row_is_the_same_alone_in_any_batch_and_on_any_threads(isa, dtype, pools):
    case = make_case(dtype, num_kv_heads=2, head_dim=64, list_len=769, text_len=111, batch=8)
    alone = [case.rows([i]).run(ops.decode_attention, pool=pools[0]) for i in range(8)]
    for pool in pools:
        for size in (1, 2, 3, 8):
            parts = [case.rows(slice(i, i + size)).run(ops.decode_attention, pool=pool)
                     for i in range(0, 8, size)]
            assert_bitwise(torch.cat(parts), torch.cat(alone))
        shuffled = [5, 0, 7, 2]
        rows = case.rows(shuffled).run(ops.decode_attention, pool=pool)
        assert_bitwise(rows, torch.cat([alone[i] for i in shuffled]))


def test_layers_read_the_list_of_their_group(isa, dtype, pool):
    case = make_case(dtype)
    case.lists["visible_indices"][:, 0, :1] = case.lists["visible_indices"][:, 1, :1]
    case.lists["visible_len"][:, 0] = torch.tensor([1, 1, 1, 0])
    case.lists["layer_idx"] = 0
    check(case, pool)


def test_rows_that_are_skipped_or_have_nothing_to_read_are_zero(isa, dtype, pool):
    case = make_case(dtype)
    case.lists["seq_idx"] = torch.tensor([-1, 1, 2], dtype=torch.int32)
    case.lists["visible_len"].fill_(0)
    case.lists["text_len"][2] = 0
    out = case.run(ops.decode_attention, pool=pool, check_indices=True)
    assert_bitwise(out[[0, 2]], torch.zeros_like(out[[0, 2]]))
    check(case, pool)


def test_list_entries_that_name_no_row_are_skipped_and_reported(isa, dtype, pool):
    case = make_case(dtype, list_len=97)
    bad = hostile_indices(case.visual.shape[1])
    case.lists["visible_indices"][:, 1, 3 : 3 + len(bad)] = torch.tensor(bad, dtype=torch.int32)
    case.lists["visible_indices"][0, 1, 64:97] = INT_MIN  # a whole chunk
    status = torch.zeros(1, dtype=torch.int32)
    check(case, pool, status=status)
    assert status.item() == 2
    with pytest.raises(OptionError, match="visible_indices: expected indices in"):
        case.run(ops.decode_attention, pool=pool, check_indices=True)


@pytest.mark.parametrize("name, bit", [("seq_idx", 1), ("layer_to_group", 4), ("text_len", 8),
                                       ("visible_len", 8)])
def test_hostile_numbers_are_survived_and_reported(isa, dtype, name, bit, pool):
    for value in (INT_MIN, -2, 1000, INT_MAX):
        case = make_case(dtype)
        case.visual.nan_to_num_(0.0)
        case.text.nan_to_num_(0.0)
        case.lists["visible_indices"].clamp_(max=case.visual.shape[1] - 1)
        case.lists[name][1] = value
        status = torch.zeros(1, dtype=torch.int32)
        out = case.run(ops.decode_attention, pool=pool, status=status)
        assert status.item() == bit
        assert_bitwise(out[[0, 2]], case.rows([0, 2]).run(ops.decode_attention, pool=pool))
        with pytest.raises(OptionError, match=f"{name}: expected indices in"):
            case.run(ops.decode_attention, pool=pool, check_indices=True)


def test_large_scores_do_not_overflow(isa, dtype, pool):
    case = make_case(dtype, list_len=111)
    case.q.mul_(100)
    check(case, pool)


def test_nan_in_a_visible_row_reaches_its_own_sequence_only(isa, dtype, pool):
    case = make_case(dtype)
    clean = case.run(ops.decode_attention, pool=pool)
    case.text[0, 2] = float("nan")
    out = case.run(ops.decode_attention, pool=pool)
    assert out[0].isnan().all()
    assert_bitwise(out[1:], clean[1:])
