"""The plain policy itself, against time lines and numbers worked out by hand."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest

from tests.shift.plain_policy import (
    PlainDSTP,
    PlainPolicy,
    cosine,
    count_local_minima,
    normalised,
    ranked,
    uniform,
)

BASE, RESERVE = [0, 2, 5], [1, 3, 4, 6]
ANCHOR = {0: 0.6, 2: 0.3, 5: 0.1}
LIKE, UNLIKE = dict(ANCHOR), {0: 0.0, 2: 0.1, 5: 0.9}  # cosine 1 and 0.19
SCORES = {1: 0.1, 3: 0.5, 4: 0.15, 6: 0.25}
JOINT_SCORES = {0: 0.05, 1: 0.1, 2: 0.3, 3: 0.2, 4: 0.15, 5: 0.08, 6: 0.12}
APPLIES = ("next", "redo", "early")


def play(options: PlainDSTP, shifts: str, **arguments) -> tuple[PlainPolicy, list, str]:
    """`shifts` has a character per step: "x" looks elsewhere, "." as the anchor does. Returns what
    was used in each step as "E" (expanded) or "b" (base), to compare with time lines."""
    policy = PlainPolicy(options, BASE, RESERVE, ANCHOR, merge_slot=7, **arguments)
    steps = [policy.step(UNLIKE if mark == "x" else LIKE, SCORES) for mark in shifts]
    assert all(step.expanded == (step.used != policy.base_view) for step in steps)
    return policy, steps, "".join("E" if step.expanded else "b" for step in steps)


def fired(steps: list) -> str:
    return "".join("!" if step.fired else "-" for step in steps)


# Time lines: expand_steps = 3

@pytest.mark.parametrize("applies, retrigger, shifts, expanded, triggers", [
    ("next", "off", ".x.......", "..EEE....", "-!-------"),
    ("next", "off", ".xxxxxxx.", "..EEE.EEE", "-!---!---"),
    ("next", "extend", ".x..x....", "..EEEEEE.", "-!--!----"),
    ("next", "extend", ".x...x...", "..EEE.EEE", "-!---!---"),
    ("next", "reselect", ".xx......", "..EEEE...", "-!!------"),
    ("redo", "off", ".x.......", ".EEE.....", "-!-------"),
    ("redo", "off", ".xxxxxxx.", ".EEEEEEEE", "-!--!--!-"),
    ("redo", "extend", ".x.x.....", ".EEEEE...", "-!-!-----"),
    ("redo", "reselect", ".x.x.....", ".EEEEE...", "-!-!-----"),
    ("early", "off", ".x.......", ".EEE.....", "-!-------"),
    ("early", "off", ".xxxxxxx.", ".EEEEEEEE", "-!--!--!-"),
    ("early", "extend", ".x.x.....", ".EEEEE...", "-!-!-----"),
    ("early", "reselect", ".x.x.....", ".EEEEE...", "-!-!-----"),
])
def test_time_lines(applies, retrigger, shifts, expanded, triggers):
    options = PlainDSTP(expand_steps=3, applies=applies, retrigger=retrigger)
    policy, steps, line = play(options, shifts)
    assert line == expanded.replace(".", "b")
    assert fired(steps) == triggers
    assert policy.triggers == triggers.count("!") and policy.steps == len(shifts)


@pytest.mark.parametrize("applies", APPLIES)
@pytest.mark.parametrize("retrigger", ["off", "extend", "reselect"])
def test_outcomes(applies, retrigger):
    """Only a new selection of "redo" runs a step again, an extension does not."""
    _, steps, _ = play(PlainDSTP(expand_steps=3, applies=applies, retrigger=retrigger), ".xx....")
    redone = [step.outcome == "redo" for step in steps]
    assert redone[1] == (applies == "redo")
    assert redone[2] == (applies == "redo" and retrigger == "reselect")
    assert not any(redone[3:])
    for step in steps:
        changed_in_step = step.before != step.used
        assert not changed_in_step or applies != "next"
    assert all(later.before == step.after for step, later in zip(steps, steps[1:], strict=False))


@pytest.mark.parametrize("applies", ["redo", "early"])
def test_one_expanded_step_is_over_in_its_own_step(applies):
    policy, steps, line = play(PlainDSTP(expand_steps=1, applies=applies), "x.x")
    assert line == "EbE" and steps[0].after == policy.base_view
    _, steps, line = play(PlainDSTP(expand_steps=1, applies=applies, retrigger="extend"), "xx.")
    assert line == "EEb" and fired(steps) == "!!-"


# Properties 9, 10, 12 to 14, 19

@pytest.mark.parametrize("applies", APPLIES)
def test_a_limit_below_zero_never_triggers_and_one_above_one_always_does(applies):
    _, steps, line = play(PlainDSTP(threshold=-1.0, applies=applies), "x" * 20)
    assert line == "b" * 20 and fired(steps) == "-" * 20
    for length in range(1, 7):
        _, steps, _ = play(PlainDSTP(threshold=1.5, expand_steps=length, applies=applies), "." * 20)
        period = length + 1 if applies == "next" else length
        assert [step.fired for step in steps] == [i % period == 0 for i in range(20)]
        assert sum(step.fired for step in steps) == math.ceil(20 / period)


def test_similarity():
    assert cosine(ANCHOR, ANCHOR, BASE) == pytest.approx(1.0, abs=1e-15)
    scaled = {slot: 7.0 * value for slot, value in UNLIKE.items()}
    assert cosine(ANCHOR, UNLIKE, BASE) == pytest.approx(cosine(ANCHOR, scaled, BASE))
    assert cosine(ANCHOR, UNLIKE, BASE) == pytest.approx(0.12 / math.sqrt(0.46 * 0.82))
    assert cosine(ANCHOR, dict.fromkeys(BASE, 0.0), BASE) == 1.0
    assert cosine({}, UNLIKE, []) == 1.0
    outside = UNLIKE | {1: 5.0}
    assert cosine(ANCHOR, outside, BASE) == cosine(ANCHOR, UNLIKE, BASE)


def random_policy(rng: random.Random, **options) -> tuple[PlainPolicy, dict, dict]:
    slots = list(range(rng.randint(2, 30)))
    base = sorted(rng.sample(slots, rng.randint(1, len(slots))))
    reserve = [slot for slot in slots if slot not in base]
    pseudo = rng.sample(base, rng.randint(0, len(base)))
    vector = normalised({slot: rng.random() ** 3 for slot in base})
    joint = options.get("scores") == "joint"
    scores = normalised({slot: rng.random() ** 3 for slot in reserve + joint * base})
    policy = PlainPolicy(PlainDSTP(threshold=2.0, **options), base, reserve, vector,
                         pseudo=pseudo, merge_slot=len(slots))
    return policy, vector, scores


@pytest.mark.parametrize("scores_from", ["separate", "joint"])
@pytest.mark.parametrize("seed", range(20))
def test_the_list_of_each_swap(seed, scores_from):
    for swap in ("cpts", "hard", "merge", "full", "add"):
        policy, vector, scores = random_policy(
            random.Random(seed), swap=swap, scores=scores_from, expand_steps=2, max_returned=3)
        step = policy.step(vector, scores)
        base, reserve, k = policy.base, policy.reserve, len(policy.base)
        view, slots = step.after, set(step.after.slots)
        assert list(view.slots) == sorted(slots)
        competitors = scores if scores_from == "joint" else vector | scores
        chosen = set(ranked(competitors)[:k])
        if swap == "cpts":
            assert slots == base | chosen and k <= len(slots) <= min(2 * k, len(base | reserve))
            assert slots - base == chosen - base and slots - base <= reserve
        elif swap == "hard":
            assert slots == chosen | policy.pseudo
            assert policy.pseudo or len(slots) == k
        elif swap == "merge":
            assert set(view.dropped) == base - chosen - policy.pseudo
            merged = {policy.merge_slot} if view.dropped else set()
            assert slots == chosen | policy.pseudo | merged
        elif swap == "full":
            assert slots == base | reserve
        else:
            assert slots == base | set(ranked({s: scores[s] for s in reserve})[:3])
        policy.step(vector, scores)
        assert policy.step(vector, scores).after == policy.base_view  # two expanded steps later


def test_both_halves_count_as_much():
    """S0 sums to 1 whatever the monitored vector sums to: "global_then_mean" competes alike."""
    whole = PlainPolicy(PlainDSTP(threshold=2.0), BASE, RESERVE, ANCHOR).step(ANCHOR, SCORES)
    small = {slot: value / 100 for slot, value in ANCHOR.items()}
    scaled = PlainPolicy(PlainDSTP(threshold=2.0), BASE, RESERVE, ANCHOR).step(small, SCORES)
    assert whole.after == scaled.after == ((0, 2, 3, 5), ())


def test_joint_scores_decide_alone():
    options = PlainDSTP(threshold=2.0, scores="joint", swap="hard")
    step = PlainPolicy(options, BASE, RESERVE, ANCHOR).step(ANCHOR, JOINT_SCORES)
    assert step.after.slots == (2, 3, 4)


def test_equal_scores_and_no_numbers():
    assert ranked({3: 0.5, 1: 0.5, 2: 0.7}) == [2, 1, 3]
    assert ranked({3: math.nan, 1: 0.0, 2: -1.0, 0: math.nan}) == [0, 1, 3, 2]


# Property 11

@pytest.mark.parametrize("applies", APPLIES)
def test_an_empty_reserve_changes_nothing_but_counts(applies):
    policy = PlainPolicy(PlainDSTP(threshold=2.0, expand_steps=2, applies=applies), BASE, [],
                         ANCHOR, reserve_ready=False)
    steps = [policy.step(UNLIKE, {}) for _ in range(6)]
    assert all(step.used == step.after == policy.base_view for step in steps)
    assert policy.triggers == (2 if applies == "next" else 3)


# A reserve that comes late

@pytest.mark.parametrize("applies", APPLIES)
@pytest.mark.parametrize("trigger", ["risd", "avg", "every", "random"])
def test_a_pending_step_changes_nothing_and_ends_as_if_it_had_not_been(applies, trigger):
    options = PlainDSTP(expand_steps=2, applies=applies, trigger=trigger, trigger_rate=0.4, seed=3)
    late = PlainPolicy(options, BASE, RESERVE, ANCHOR, reserve_ready=False)
    ready = PlainPolicy(options, BASE, RESERVE, ANCHOR)
    refused = 0
    for mark in ".x.xx..x..":
        vector = UNLIKE if mark == "x" else LIKE
        expected, step = ready.step(vector, SCORES), late.step(vector, SCORES)
        if step.outcome == "pending":
            refused += 1
            assert not step.fired and step.before == step.used == step.after == late.base_view
            late.reserve_ready = True
            step = late.step(vector, SCORES)
        assert step == expected
    assert refused == 1 and late.triggers == ready.triggers > 0


# Other triggers

def test_average():
    policy = PlainPolicy(PlainDSTP(trigger="avg", expand_steps=1), BASE, RESERVE, ANCHOR)
    marks = [policy.step(v, SCORES).fired for v in (UNLIKE, LIKE, UNLIKE, LIKE, UNLIKE)]
    assert marks == [False, False, True, False, True]


def test_random_numbers_are_those_of_splitmix64():
    published = (0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F)  # seed 0
    assert [uniform(0, step) for step in range(3)] == [(n >> 40) / 2**24 for n in published]
    draws = [uniform(2**63 + 5, step) for step in range(2000)]
    assert 0.0 <= min(draws) and max(draws) < 1.0
    assert sum(draw < 0.1 for draw in draws) == pytest.approx(200, abs=60)


def test_random_triggers_come_from_the_seed_and_the_step():
    options = PlainDSTP(trigger="random", trigger_rate=0.3, expand_steps=1, retrigger="reselect",
                        seed=11)
    first, again = (fired(play(options, "." * 60)[1]) for _ in range(2))
    assert first == again != fired(play(replace(options, seed=12), "." * 60)[1])
    assert first == "".join("!" if uniform(11, i) < 0.3 else "-" for i in range(60))


# Property 21

@pytest.mark.parametrize("series, count", [
    ([0.9, 0.8, 0.7, 0.6, 0.5], 0), ([0.9, 0.69, 0.9], 1), ([0.9, 0.71, 0.9], 0),
    ([0.9, 0.5, 0.5, 0.5, 0.9], 1), ([0.2, 0.9, 0.1], 0), ([0.9, 0.3, 0.6, 0.4, 0.8], 2), ([], 0)])
def test_local_minima(series, count):
    assert count_local_minima(series) == count
