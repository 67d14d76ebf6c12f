"""Random triggers and budgets: keyed by seed, request and step, as draws of tokens are."""

import pytest

from pydstp import SamplingParams, VisionPulse
from tests.engine.selection import IMAGE, PROMPT, dstp, method, open_engine

SAMPLING = SamplingParams(temperature=0.0, max_new_tokens=24, ignore_eos=True)
SHIFTS = [dstp(trigger="random", trigger_rate=0.4, seed=3, expand_steps=1),
          VisionPulse(budget="random", min_share=0.1, max_share=0.9, seed=3, anchor_layer=0)]


@pytest.fixture(scope="module")
def engine():
    with open_engine() as engine:
        yield engine


def drawn(generation):
    """What the policy did at each step."""
    return generation.shift.trigger_steps, [step.visible for step in generation.shift.steps]


def run(engine, count, shift):
    found = engine.generate([IMAGE] * count, [PROMPT] * count, SAMPLING, shift=shift,
                            pruning=method("random"), log_steps=True)
    return [drawn(generation) for generation in found]


@pytest.mark.parametrize("shift", SHIFTS, ids=["trigger", "budget"])
def test_rows_that_share_a_policy_draw_for_themselves(engine, shift):
    rows = run(engine, 4, shift)
    assert len({str(row) for row in rows}) == 4
    assert rows == run(engine, 4, shift)
    assert rows[0] == run(engine, 1, shift)[0]


@pytest.mark.parametrize("shift", SHIFTS, ids=["trigger", "budget"])
def test_rows_with_policies_of_their_own_draw_what_they_would_alone(engine, shift):
    other = type(shift)(**{**shift.to_dict(), "seed": 4})
    rows = run(engine, 3, [shift, other, shift])
    assert rows[0] == rows[2] == run(engine, 1, shift)[0] and rows[1] == run(engine, 1, other)[0]
    assert rows[0] != rows[1]


@pytest.mark.parametrize("shift", SHIFTS, ids=["trigger", "budget"])
def test_turns_of_a_chat_draw_for_themselves(engine, shift):
    with engine.chat(shift=shift, pruning=method("random")) as chat:
        chat._selection = chat._selection.with_changes(log_steps=True)
        turns = [drawn(chat.send(PROMPT, image, SAMPLING)) for image in (IMAGE, None)]
    assert turns[0] == run(engine, 1, shift)[0]
    assert turns[0] != turns[1]
