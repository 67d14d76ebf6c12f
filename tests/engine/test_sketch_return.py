"""Same-step return in the engine: nothing returned is the base method, everything is all tokens."""

from __future__ import annotations

import pytest

from pydstp import OptionError, SamplingParams, SketchReturn, demo_checkpoint
from pydstp.tasks import is_correct, make_example
from tests.engine.selection import (
    IMAGE,
    METHODS,
    PROMPT,
    answer,
    dstp,
    method,
    open_engine,
    same,
)

EVERYTHING = {"trigger": "every", "swap": "full", "applies": "redo", "expand_steps": 1}


@pytest.fixture(scope="module")
def engine():
    with open_engine() as engine:
        yield engine


@pytest.fixture(scope="module")
def exact():
    """An engine of its own: the bits of the key copy are one number per engine."""
    with open_engine() as engine:
        yield engine


@pytest.mark.parametrize("name", METHODS)
def test_nothing_returned_is_the_base_method_bit_for_bit(engine, name):
    base = answer(engine, pruning=method(name))
    none = answer(engine, pruning=method(name), shift=SketchReturn(max_returned=0))
    assert same(base, none) and none.shift.mean_visible == base.shift.mean_visible


@pytest.mark.parametrize("name", METHODS)
def test_everything_returned_by_exact_keys_is_attention_to_all(exact, name):
    """The same cache contents, read as DSTP reads them when every step shows all tokens."""
    policy = SketchReturn(max_returned=64, bits=16)
    returned = answer(exact, pruning=method(name), shift=policy, reserve="side")
    shown = answer(exact, pruning=method(name), shift=dstp(**EVERYTHING), reserve="side")
    assert returned.token_ids == shown.token_ids
    for ours, theirs in zip(returned.logprobs, shown.logprobs, strict=True):
        assert ours.logprob == pytest.approx(theirs.logprob, abs=1e-5)
    assert returned.shift.mean_visible == pytest.approx(shown.shift.mean_visible)
    assert returned.shift.forwards_per_token == 1 < shown.shift.forwards_per_token


@pytest.mark.parametrize("options", [{"max_returned": 3}, {"max_returned": 3, "per_head": True},
                                     {"max_returned": 8, "mass": 0.05}])
def test_neighbours_have_no_influence(engine, options):
    policy = SketchReturn(**options)
    methods = [method(name) for name in METHODS]
    alone = [answer(engine, pruning=one, shift=policy) for one in methods]
    sampling = SamplingParams(temperature=0.0, max_new_tokens=16, ignore_eos=True, logprobs=4)
    batch = engine.generate([IMAGE] * 4, [PROMPT] * 4, sampling, pruning=methods, shift=policy)
    assert all(same(one, row) for one, row in zip(alone, batch, strict=True))
    assert all(one.shift.mean_visible <= (one.shift.kept + options["max_returned"])
               / one.shift.num_visual + 1e-9 for one in alone)


def test_a_deferred_reserve_returns_after_the_first_step(engine):
    policy = SketchReturn(max_returned=4)
    side = answer(engine, 2, pruning=method("random"), shift=policy, reserve="side")
    deferred = answer(engine, 2, pruning=method("random"), shift=policy, reserve="deferred")
    base = answer(engine, 2, pruning=method("random"))
    assert deferred.shift.mean_visible == base.shift.mean_visible < side.shift.mean_visible
    later = answer(engine, 9, pruning=method("random"), shift=policy).shift
    assert later.reserve == "deferred" and later.mean_visible > base.shift.mean_visible


def test_rows_of_other_policies_are_as_if_alone(engine):
    policies = [SketchReturn(max_returned=2), None, dstp(threshold=1.1, expand_steps=2), None]
    methods = [method("random"), method("fastv"), method("divprune"), None]
    alone = [answer(engine, pruning=one, shift=policy)
             for one, policy in zip(methods, policies, strict=True)]
    sampling = SamplingParams(temperature=0.0, max_new_tokens=16, ignore_eos=True, logprobs=4)
    batch = engine.generate([IMAGE] * 4, [PROMPT] * 4, sampling, pruning=methods, shift=policies)
    assert all(same(one, row) for one, row in zip(alone, batch, strict=True))


@pytest.mark.parametrize("options, name", [
    ({"bits": 3}, "bits"), ({"bits": True}, "bits"), ({"max_returned": -1}, "max_returned"),
    ({"mass": 0}, "mass"), ({"mass": "much"}, "mass"), ({"per_head": 1}, "per_head"),
    ({"thresh": 1}, "thresh")])
def test_wrong_options_are_named(options, name):
    with pytest.raises(OptionError, match=name):
        SketchReturn(**options)


def test_what_cannot_run_is_refused_and_the_engine_goes_on(engine):
    answer(engine, 2, pruning=method("random"), shift=SketchReturn())
    for policy, reserve, name in ((SketchReturn(), "lazy", "reserve"),
                                  (SketchReturn(bits=8), "side", "bits"),
                                  (SketchReturn(max_returned=65), "side", "max_returned")):
        with pytest.raises(OptionError, match=name):
            answer(engine, pruning=method("random"), shift=policy, reserve=reserve)
    assert len(answer(engine).token_ids) == 16


@pytest.mark.parametrize("name", METHODS)
def test_one_token_per_layer_restores_the_trained_model(name):
    from pydstp import Engine

    examples = [make_example("trail", seed, rows=8, cols=8) for seed in range(500, 512)]
    with Engine(demo_checkpoint()) as engine:
        def right(shift):
            answers = engine.generate([example.images for example in examples],
                                      [example.prompt for example in examples],
                                      pruning=method(name), shift=shift)
            return sum(is_correct(example, a.text)
                       for example, a in zip(examples, answers, strict=True))
        assert right(None) <= 4 and right(SketchReturn()) >= 11
