"""Same-step return in the engine: nothing returned is the base method, everything is all tokens."""

from __future__ import annotations

import pytest

from pydstp import (
    CapacityError,
    Engine,
    OptionError,
    SamplingParams,
    SketchReturn,
    demo_checkpoint,
)
from pydstp.tasks import is_correct, make_example
from tests.engine.selection import (
    ALL_METHODS,
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


@pytest.mark.parametrize("name", METHODS)
def test_nothing_returned_is_the_base_method_bit_for_bit(engine, name):
    base = answer(engine, pruning=method(name))
    none = answer(engine, pruning=method(name), shift=SketchReturn(max_returned=0))
    assert same(base, none) and none.shift.mean_visible == base.shift.mean_visible


@pytest.mark.parametrize("name", METHODS)
def test_everything_returned_by_exact_keys_is_attention_to_all(engine, name):
    """The same cache contents, read as DSTP reads them when every step shows all tokens."""
    policy = SketchReturn(max_returned=64, bits=16)
    returned = answer(engine, pruning=method(name), shift=policy, reserve="side")
    shown = answer(engine, pruning=method(name), shift=dstp(**EVERYTHING), reserve="side")
    assert returned.token_ids == shown.token_ids
    for ours, theirs in zip(returned.logprobs, shown.logprobs, strict=True):
        assert ours.logprob == pytest.approx(theirs.logprob, abs=1e-5)
    assert returned.shift.mean_visible == pytest.approx(shown.shift.mean_visible)
    assert returned.shift.forwards_per_token == 1 < shown.shift.forwards_per_token


@pytest.mark.parametrize("options", [{"max_returned": 3}, {"max_returned": 3, "per_head": True},
                                     {"max_returned": 8, "mass": 0.05}])
def test_neighbours_have_no_influence(engine, options):
    policy = SketchReturn(**options)
    methods = [method(name) for name in ALL_METHODS]
    alone = [answer(engine, pruning=one, shift=policy) for one in methods]
    sampling = SamplingParams(temperature=0.0, max_new_tokens=16, ignore_eos=True, logprobs=4)
    count = len(methods)
    batch = engine.generate([IMAGE] * count, [PROMPT] * count, sampling, pruning=methods,
                            shift=policy)
    assert all(same(one, row) for one, row in zip(alone, batch, strict=True))
    more = options["max_returned"] / alone[0].shift.num_visual + 1e-9
    assert all(one.shift.mean_visible <= answer(engine, 2, pruning=base).shift.mean_visible + more
               for one, base in zip(alone, methods, strict=True))


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
    ({"max_returned": 65}, "max_returned"), ({"first_layer": -1}, "first_layer"),
    ({"threshold": "low"}, "threshold"), ({"threshold": -0.1}, "threshold"),
    ({"monitor_layers": "some"}, "monitor_layers"), ({"mass": 0}, "mass"),
    ({"mass": "much"}, "mass"), ({"per_head": 1}, "per_head"), ({"thresh": 1}, "thresh")])
def test_wrong_options_are_named(options, name):
    with pytest.raises(OptionError, match=name):
        SketchReturn(**options)


def test_what_cannot_run_is_refused_and_the_engine_goes_on(engine):
    with pytest.raises(OptionError, match="reserve"):
        answer(engine, pruning=method("random"), shift=SketchReturn(), reserve="lazy")
    with pytest.raises(OptionError, match="monitor_layers"):
        answer(engine, pruning=method("random"),
               shift=SketchReturn(threshold=0.5, monitor_layers=[99]))
    policies = [SketchReturn(bits=4), SketchReturn(bits=8)]
    with pytest.raises(OptionError, match=r"bits.*\[4, 8\]"):
        engine.generate([IMAGE] * 2, [PROMPT] * 2, pruning=method("random"), shift=policies)
    assert len(answer(engine).token_ids) == 16


def test_bits_may_change_only_between_requests(engine):
    options = {"pruning": method("random"), "reserve": "side"}
    first = answer(engine, shift=SketchReturn(bits=4), **options)
    with engine.stream(IMAGE, PROMPT, shift=SketchReturn(bits=4), **options) as stream:
        next(stream)
        with pytest.raises(OptionError, match=r"bits.*\[4, 8\]"):
            answer(engine, shift=SketchReturn(bits=8), **options)
        next(stream)
    answer(engine, shift=SketchReturn(bits=8), **options)
    assert same(first, answer(engine, shift=SketchReturn(bits=4), **options))


def test_a_chat_sketches_anew_after_others_used_other_bits(engine):
    sampling = SamplingParams(temperature=0.0, max_new_tokens=16, ignore_eos=True)

    def talk(disturb):
        options = {"pruning": method("divprune"), "shift": SketchReturn(max_returned=4)}
        with engine.chat(**options) as chat:
            texts = [chat.send(PROMPT, IMAGE, sampling).token_ids]
            disturb()
            return [*texts, chat.send("And then?", None, sampling).token_ids]
    other = SketchReturn(bits=2, max_returned=4)
    assert talk(lambda: None) == talk(
        lambda: answer(engine, pruning=method("random"), shift=other))


def test_no_room_for_the_sketches_is_said(engine, monkeypatch):
    monkeypatch.setattr("pydstp.return_control.available_memory", lambda: 1000)
    with pytest.raises(CapacityError, match="key sketches of 2 bits"):
        answer(engine, pruning=method("random"), shift=SketchReturn(bits=2))
    monkeypatch.undo()
    assert answer(engine, pruning=method("random"), shift=SketchReturn(bits=2)).token_ids


@pytest.mark.parametrize("name", METHODS)
def test_a_gate_that_never_opens_lets_only_the_first_step_through(engine, name):
    options = {"pruning": method(name), "reserve": "side"}
    shut = answer(engine, shift=SketchReturn(max_returned=4, threshold=0.0), **options)
    always = answer(engine, shift=SketchReturn(max_returned=4, threshold=2.0), **options)
    assert shut.shift.trigger_steps == (1,) and always.shift.triggers == 15
    assert shut.shift.policy == always.shift.policy == "sketch"
    plain = answer(engine, shift=SketchReturn(max_returned=4), **options)
    assert same(plain, always) and plain.shift.triggers == 0
    base = answer(engine, 3, **options)
    assert base.shift.mean_visible < shut.shift.mean_visible < always.shift.mean_visible


def test_the_gate_opens_after_steps_that_turned_away(engine):
    policy = SketchReturn(max_returned=2, threshold=0.97, monitor_layers="post_prune")
    report = answer(engine, pruning=method("random"), shift=policy, reserve="side",
                    log_steps=True).shift
    opened = {1} | {step + 2 for step, log in enumerate(report.steps[:-1])
                    if log.similarity < 0.97}
    assert set(report.trigger_steps) == opened and 1 < len(opened) < len(report.steps)


def test_gates_of_a_batch_open_by_themselves(engine):
    policies = [SketchReturn(max_returned=2, threshold=tau, monitor_layers="post_prune")
                for tau in (0.0, 0.97, 2.0)]
    alone = [answer(engine, pruning=method("random"), shift=policy) for policy in policies]
    sampling = SamplingParams(temperature=0.0, max_new_tokens=16, ignore_eos=True, logprobs=4)
    batch = engine.generate([IMAGE] * 3, [PROMPT] * 3, sampling, pruning=method("random"),
                            shift=policies)
    assert all(same(one, row) for one, row in zip(alone, batch, strict=True))
    assert [one.shift.trigger_steps for one in alone] == [
        row.shift.trigger_steps for row in batch]


def test_layers_below_the_first_return_nothing(engine):
    options = {"pruning": method("random"), "reserve": "side"}
    num_layers = engine.model_config.text.num_layers
    base = answer(engine, **options).shift.mean_visible
    gains = [answer(engine, shift=SketchReturn(max_returned=4, first_layer=layer),
                    **options).shift.mean_visible - base for layer in range(num_layers + 1)]
    assert gains[-1] == 0
    with pytest.raises(OptionError, match="^first_layer: expected at most num_layers"):
        answer(engine, shift=SketchReturn(first_layer=num_layers + 1), **options)
    for layer, gain in enumerate(gains):
        assert gain == pytest.approx(gains[0] * (num_layers - layer) / num_layers)


@pytest.mark.parametrize("name", METHODS)
def test_one_token_per_layer_restores_the_trained_model(name):
    examples = [make_example("trail", seed, rows=8, cols=8) for seed in range(500, 512)]
    with Engine(demo_checkpoint()) as engine:
        def right(shift):
            answers = engine.generate([example.images for example in examples],
                                      [example.prompt for example in examples],
                                      pruning=method(name), shift=shift)
            return sum(is_correct(example, a.text)
                       for example, a in zip(examples, answers, strict=True))
        assert right(None) <= 4 and right(SketchReturn()) >= 11
