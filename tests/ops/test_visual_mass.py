"""The share of attention that visual rows get, head by head, also at another temperature."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from pydstp import ops
from tests.compare import assert_bitwise, assert_matches
from tests.ops.attention_cases import LAYER, make_case
from tests.ops.test_attention_monitor import CONTEXT, MASKED, NORMS, check, make_monitor


@NORMS
@MASKED
def test_the_mass_of_a_head_is_the_sum_of_its_shares(isa, dtype, norm, masked, pool):
    case = make_case(dtype, list_len=97, batch=4)
    monitor = make_monitor(case, norm, masked)
    monitor.layer_weights.fill_(1.0)
    check(case, monitor, pool)
    together = replace(monitor, mass=monitor.mass.clone())
    case.run(ops.attention_probs, pool=pool, monitor=together)
    for head in range(case.q.shape[1]):
        alone = replace(monitor, probs=torch.zeros_like(monitor.probs), mass=None,
                        head_weights=torch.zeros_like(monitor.head_weights))
        alone.head_weights[:, head] = 1.0
        case.run(ops.attention_probs, pool=pool, monitor=alone)
        assert_matches(alone.probs.sum(1), together.mass[:, head])


@pytest.mark.parametrize("temperature", [1.0, 0.4, 0.1, 0.01])
def test_a_scale_divided_by_the_temperature_gives_tempered_mass(isa, dtype, temperature, pool):
    case = make_case(dtype, list_len=97, text_len=19)
    case.lists["scale"] /= temperature
    check(case, make_monitor(case, CONTEXT, False), pool)


def test_a_cold_mass_is_that_of_the_largest_logit(isa, dtype, pool):
    """As the temperature goes to 0: 1 where a slot of the list has it, 0 where a text row has."""
    case = make_case(dtype, list_len=97, text_len=19)
    case.lists["scale"] *= 1e5
    monitor = make_monitor(case, CONTEXT, False)
    case.run(ops.attention_probs, pool=pool, monitor=monitor)
    heads = case.q.shape[1]
    for row, seq in enumerate(case.lists["seq_idx"].tolist()):
        length = int(case.lists["visible_len"][seq, 1])
        listed = case.lists["visible_indices"][seq, 1, :length].long()
        text = case.text[seq, : int(case.lists["text_len"][seq]), 0]
        keys = torch.cat([case.visual[seq, listed, 0], text]).float().repeat_interleave(
            heads // text.shape[1], dim=1)
        winner = torch.einsum("hd,nhd->hn", case.q[row].float(), keys).argmax(1)
        assert_matches(monitor.mass[seq], (winner < length).float())


def test_what_has_no_weight_keeps_its_mass(isa, dtype, pool):
    case = make_case(dtype)
    monitor = make_monitor(case, CONTEXT, True)
    monitor.layer_weights[1, LAYER] = 0
    monitor.head_weights[0, 2] = 0
    monitor.mass.fill_(7.0)
    case.run(ops.decode_attention, pool=pool, monitor=monitor)
    assert (monitor.mass[1] == 7).all() and (monitor.mass[3] == 7).all()
    assert [head for head, mass in enumerate(monitor.mass[0].tolist()) if mass == 7] == [2]


@pytest.mark.parametrize("list_len, text_len, expected", [(0, 3, 0.0), (0, 0, 0.0), (3, 0, 1.0)])
def test_without_visual_rows_there_is_none(isa, dtype, list_len, text_len, expected, pool):
    case = make_case(dtype, list_len=list_len, text_len=text_len, batch=2)
    monitor = make_monitor(case, CONTEXT, False)
    for op in (ops.decode_attention, ops.attention_probs):
        monitor.mass.fill_(7.0)
        case.run(op, pool=pool, monitor=monitor)
        assert_matches(monitor.mass[:2], torch.full_like(monitor.mass[:2], expected))


def test_uniform_logits_give_the_share_of_the_rows(isa, dtype, pool):
    case = make_case(dtype, ratio=1, num_kv_heads=1, list_len=97, text_len=31, batch=1)
    case.q.zero_()
    monitor = make_monitor(case, CONTEXT, False)
    case.run(ops.attention_probs, pool=pool, monitor=monitor)
    assert monitor.mass[0].item() == pytest.approx(97 / 128, rel=1e-6)


@NORMS
def test_mass_does_not_depend_on_neighbours_or_threads(isa, dtype, norm, pools):
    case = make_case(dtype, list_len=769, text_len=111, batch=4)
    monitor = make_monitor(case, norm, True)

    def run(pool: ops.ThreadPool, *batches: list[int]) -> torch.Tensor:
        watched = replace(monitor, probs=monitor.probs.clone(), mass=torch.zeros_like(monitor.mass))
        for batch in batches:
            case.rows(batch).run(ops.attention_probs, pool=pool, monitor=watched)
        return watched.mass

    alone = run(pools[0], [0], [1], [2], [3])
    for pool in pools:
        for batches in ([[0, 1, 2, 3]], [[3, 1], [0, 2]]):
            assert_bitwise(run(pool, *batches), alone)
