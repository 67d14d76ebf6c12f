"""DyCoke in the engine: what it is at its limits, and that lists change at triggers alone."""

from __future__ import annotations

import pytest

from pydstp import DyCoke, Engine, EngineConfig, OptionError, VisionPulse
from tests.checkpoints import tiny_qwen3_vl
from tests.engine.oracle import picture
from tests.engine.plain_chat import sampling
from tests.engine.selection import IMAGE, METHODS, PROMPT, answer, dstp, method, open_engine, same
from tests.internvl_checkpoints import tiny_internvl


@pytest.fixture(scope="module")
def engine():
    with open_engine(max_text_tokens=512) as engine:
        yield engine


@pytest.mark.parametrize("name", [None, *METHODS])
def test_selecting_everything_is_the_base_method_bit_for_bit(engine, name):
    pruning = None if name is None else method(name)
    base = answer(engine, pruning=pruning)
    assert same(base, answer(engine, pruning=pruning, shift=DyCoke(share=1.0)))


@pytest.mark.parametrize("name", [None, *METHODS])
def test_a_threshold_above_one_selects_at_every_step(engine, name):
    pruning = None if name is None else method(name)
    every = answer(engine, pruning=pruning, shift=DyCoke(1.1, 0.2, 1), log_steps=True)
    fixed = answer(engine, pruning=pruning, shift=VisionPulse(1, budget="fixed", fixed_share=0.2))
    assert same(every, fixed) and every.shift.mean_visible == fixed.shift.mean_visible
    assert every.shift.trigger_steps == tuple(range(1, 16)) and every.shift.triggers == 15
    assert every.shift.bytes_per_token == fixed.shift.bytes_per_token


def test_a_threshold_below_zero_selects_once(engine):
    once = answer(engine, shift=DyCoke(-1.0, 0.2), log_steps=True).shift
    assert (once.policy, once.triggers, once.trigger_steps) == ("dycoke", 1, (1,))
    assert once.steps[0].went and not any(step.came or step.went for step in once.steps[1:])
    assert {step.visible for step in once.steps} == {7} and once.mean_visible == 7 / 35
    assert all(0 <= step.similarity <= 1 and step.state == "selected" for step in once.steps)


def test_lists_change_at_triggers_alone(engine):
    run = answer(engine, shift=DyCoke(0.9, 0.3, 1), log_steps=True).shift
    changed = [number for number, step in enumerate(run.steps, 1) if step.came or step.went]
    assert set(changed) <= set(run.trigger_steps) and 1 < len(run.trigger_steps) < 15
    below = [number for number, step in enumerate(run.steps, 1) if step.similarity < 0.9]
    assert run.trigger_steps == (1, *below)


@pytest.mark.parametrize("internvl", [False, True], ids=["qwen3vl", "internvl"])
def test_rows_of_other_policies_are_as_if_alone(internvl):
    path = tiny_internvl() if internvl else tiny_qwen3_vl()
    shifts = [DyCoke(0.95), dstp(threshold=1.1, applies="redo", expand_steps=1),
              DyCoke(0.9, 0.5, 1), VisionPulse(max_share=0.9, anchor_layer=1)]
    methods = [None, method("random"), method("fastv"), method("visionzip")]
    images = [IMAGE, IMAGE, picture(90, 160), IMAGE]
    config = EngineConfig(max_batch=4, max_visual_tokens=256, max_text_tokens=256, num_threads=2)
    with Engine(path, dtype="float32", config=config) as engine:
        alone = [engine.generate(image, PROMPT, sampling(12), pruning=one, shift=shift,
                                 log_steps="attention")
                 for image, one, shift in zip(images, methods, shifts, strict=True)]
        batch = engine.generate(images, [PROMPT] * 4, sampling(12), pruning=methods, shift=shifts,
                                log_steps="attention")
    for one, row in zip(alone, batch, strict=True):
        assert same(one, row) and one.shift.steps == row.shift.steps
        assert one.shift.trigger_steps == row.shift.trigger_steps


def test_every_turn_selects_at_its_first_step(engine):
    with engine.chat(shift=DyCoke(-1.0)) as chat:
        runs = [chat.send("What?", [picture(130, 100, 1)], sampling(5)),
                chat.send("Why?", [], sampling(5))]
    assert [run.shift.trigger_steps for run in runs] == [(1,), (1,)]
    assert same(answer(engine), answer(engine, shift=None))


def test_without_a_picture_there_is_nothing_to_select(engine):
    plain = engine.generate(None, "Hello.", sampling(6))
    run = engine.generate(None, "Hello.", sampling(6), shift=DyCoke(), log_steps=True)
    assert same(plain, run) and (run.shift.reason, run.shift.triggers) == ("no_image", 0)


@pytest.mark.parametrize("options, name", [
    ({"threshold": float("nan")}, "threshold"), ({"threshold": "low"}, "threshold"),
    ({"share": 0}, "share"), ({"share": 1.5}, "share"), ({"anchor_layer": -1}, "anchor_layer"),
    ({"anchor_layer": "3"}, "anchor_layer"), ({"budget": 1}, "budget")])
def test_wrong_options_are_named(options, name):
    with pytest.raises(OptionError, match=name):
        DyCoke(**options)


def test_an_anchor_that_no_layer_follows_is_refused(engine):
    with pytest.raises(OptionError, match="anchor_layer: expected a layer in "):
        answer(engine, shift=DyCoke(anchor_layer=3))
    with pytest.raises(OptionError, match="anchor_layer: expected a layer in "):
        answer(engine, pruning=method("fastv", layer=2), shift=DyCoke(anchor_layer=1))


@pytest.mark.parametrize("num_layers, first, anchor", [(36, 0, 3), (4, 0, 2), (36, 7, 7)])
def test_the_default_anchor_is_layer_3(num_layers, first, anchor):
    assert DyCoke().settled_anchor(num_layers, first) == anchor
