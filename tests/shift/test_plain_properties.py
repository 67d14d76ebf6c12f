"""What DSTP promises, asked of the plain model; and whether the random cases are what they say."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch

from tests.shift.cases import (
    APPLIES,
    LOGIT_MARGIN,
    METHODS,
    SCORE_MARGIN,
    SIMILARITY_MARGIN,
    SWAPS,
    answer,
    prepare,
    solve,
)
from tests.shift.plain_model import PlainModel, PlainResult, decode
from tests.shift.plain_policy import PlainDSTP, View, cosine
from tests.shift.plain_pruning import PlainPruning
from tests.shift.test_plain import STEPS, near, prunings, run, setting

PRUNINGS = ("fastv2", "divprune", "visionzip")
ALWAYS = PlainDSTP(threshold=2.0, expand_steps=3)


def same(first: PlainResult, second: PlainResult) -> bool:
    return first.tokens == second.tokens and torch.equal(first.logits, second.logits)


@pytest.mark.parametrize("applies", APPLIES)
@pytest.mark.parametrize("name", PRUNINGS)
def test_9_a_limit_below_zero_is_the_base_method(name, applies):
    base, watched = run(name), run(name, PlainDSTP(threshold=-1.0, applies=applies))
    assert same(base, watched) and not watched.trigger_steps
    assert watched.mean_visible == len(base.base)


@pytest.mark.parametrize("name", PRUNINGS)
@pytest.mark.parametrize("applies, period", [("next", 4), ("redo", 3), ("early", 3)])
def test_10_a_limit_above_one_triggers_whenever_it_may(name, applies, period):
    result = run(name, replace(ALWAYS, applies=applies))
    assert result.trigger_steps == list(range(1, STEPS, period))
    assert result.redone_steps == (result.trigger_steps if applies == "redo" else [])
    assert not same(result, run(name))


@pytest.mark.parametrize("swap", sorted(set(SWAPS)))
@pytest.mark.parametrize("layer", [0, 2])
def test_11_keeping_everything_is_no_pruning(layer, swap):
    model, _, prompt = setting()
    everything = PlainPruning(tuple(range(len(prompt.visual_rows))), layer)
    options = replace(ALWAYS, swap=swap, max_returned=2)
    result = decode(model, prompt, everything, options, num_tokens=STEPS)
    assert same(result, run(None)) and result.trigger_steps


@pytest.mark.parametrize("norm", ["per_head_subset", "global_then_mean"])
@pytest.mark.parametrize("name", PRUNINGS)
def test_12_and_15_vectors_and_scores_are_shares(name, norm):
    separate = run(name, replace(ALWAYS, norm=norm, monitor_layers="all"))
    joint = run(name, replace(ALWAYS, norm=norm, monitor_layers="all", scores="joint"))
    assert cosine(separate.anchor, separate.anchor, separate.base) == pytest.approx(1.0, abs=1e-12)
    assert all(0.0 <= value <= 1.0 for value in separate.similarities)
    for result in (separate, joint):
        for step in result.steps:
            assert sum(step.scores.values()) == pytest.approx(1.0, abs=1e-5)
            total = sum(step.vector.values())
            assert total == pytest.approx(1.0, abs=1e-5) or norm == "global_then_mean" and total < 1
    assert set(separate.steps[0].scores) == set(separate.reserve)
    assert set(joint.steps[0].scores) == {*joint.base, *joint.reserve}


@pytest.mark.parametrize("applies", APPLIES)
@pytest.mark.parametrize("name", PRUNINGS)
def test_13_and_14_lists(name, applies):
    result = run(name, replace(ALWAYS, applies=applies))
    base, reserve, k = set(result.base), set(result.reserve), len(result.base)
    for step in result.steps:
        seen = set(step.policy.used.slots)
        assert base <= seen and seen - base <= reserve
        assert k <= len(seen) <= min(2 * k, len(base | reserve))
    first = 1 if applies == "next" else 0
    used = [step.policy.used.slots for step in result.steps]
    assert used[first] != result.base and used[first : first + 3] == [used[first]] * 3
    assert result.steps[first + 2].policy.after.slots == result.base


def test_17_full_is_attention_over_everything():
    model, _, prompt = setting()
    result = run("fastv2", replace(ALWAYS, swap="full"))
    plain = PlainModel(model, prompt, prunings()["fastv2"], None, "side")
    everything = View(tuple(range(len(prompt.visual_rows))))
    expanded = [i for i, step in enumerate(result.steps) if step.policy.expanded]
    assert expanded
    for i in expanded:
        views = [step.views for step in result.steps[:i]] + [plain.every_layer(everything)]
        with torch.inference_mode():
            last = plain.forward(result.tokens[: i + 1], views)[-1].output[-1:]
            assert near(result.logits[i + 1], plain.decoder.logits(last)[0])
    assert not near(result.logits[expanded[0] + 1], run(None).logits[expanded[0] + 1])


def test_19_hard_never_sees_more_than_the_base_method():
    for name in ("fastv2", "divprune"):
        result = run(name, replace(ALWAYS, swap="hard"))
        assert {len(slots) for slots in result.visible} == {len(result.base)}
        assert len(set(result.visible)) > 1 and result.mean_visible == len(result.base)


def test_20_the_same_request_gives_the_same_answer():
    options = replace(ALWAYS, trigger="random", trigger_rate=0.3, seed=4)
    first, second = run("visionzip", options), run("visionzip", options)
    assert same(first, second) and first.trigger_steps == second.trigger_steps


@pytest.mark.parametrize("name, layers", [("fastv2", (0, 1)), ("fastv3", (0, 2))])
def test_22_the_anchor_is_full_attention_renormalised_over_what_is_kept(name, layers):
    model, _, prompt = setting()
    pruning = prunings()[name]
    with torch.inference_mode():
        traces = PlainModel(model, prompt, pruning, None, "side").forward([], [])
    kept = [prompt.visual_rows[slot] for slot in pruning.kept]
    whole = [traces[layer].probs[:, len(prompt.ids) - 1, kept] for layer in layers]
    expected = torch.stack([part / part.sum(-1, keepdim=True) for part in whole]).mean((0, 1))
    anchor = run(name, replace(ALWAYS, monitor_layers=layers)).anchor
    assert near(torch.tensor([anchor[slot] for slot in pruning.kept]), expected)


@pytest.mark.parametrize("name", ["fastv2", "divprune"])
def test_full_reserve_prunes_decoding_alone(name):
    whole, side, full = run(None), run(name), run(name, reserve="full")
    assert torch.equal(full.logits[0], whole.logits[0])
    assert not near(side.logits[0], whole.logits[0]) and not near(full.logits[1], whole.logits[1])
    always = run(name, replace(ALWAYS, swap="full", expand_steps=STEPS, applies="redo"), "full")
    assert same(always, whole)  # every decode step sees everything: nothing is left of pruning


# When a swap takes effect

def test_a_redone_step_was_decided_by_its_first_pass():
    later, redo = run("divprune", ALWAYS), run("divprune", replace(ALWAYS, applies="redo"))
    assert later.similarities[0] == redo.similarities[0]
    assert later.steps[0].policy.after == redo.steps[0].policy.used
    assert not torch.equal(later.logits[1], redo.logits[1])


@pytest.mark.parametrize("name", PRUNINGS)
def test_early_after_the_last_layer_is_next_with_a_step_less(name):
    options = replace(ALWAYS, monitor_layers="last")
    assert same(run(name, replace(options, applies="early", expand_steps=4)),
                run(name, replace(options, applies="next", expand_steps=3)))


def test_early_below_the_pruning_point_is_redo():
    options = replace(ALWAYS, monitor_layers=(0, 2))
    assert same(run("fastv3", replace(options, applies="early")),
                run("fastv3", replace(options, applies="redo")))


# The random cases

@pytest.mark.parametrize("index", range(12))
def test_a_case_is_clear_and_telling(index):
    case, result = solve(index).case, solve(index).result
    assert case.method == METHODS[index % 4] and case.dstp.applies == APPLIES[index % 3]
    assert result.trigger_steps and result.smallest_logit_gap() > LOGIT_MARGIN
    assert all(step.policy.margin > SIMILARITY_MARGIN for step in result.steps)
    assert all(step.policy.selection_gap > SCORE_MARGIN for step in result.steps)
    prompt, pruning = prepare(replace(case, ratio=case.ratio or 0.5))
    if case.method == "given":
        pruning = PlainPruning(case.slots, case.layer)
    assert same(answer(case, prompt, pruning), result)
    assert set(case.shift_options()) == {field.name for field in fields(PlainDSTP)}
    assert len(case.images()) == len(prompt.grids)
