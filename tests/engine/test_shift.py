"""DSTP in the engine: what must hold whatever the model says (properties of the method)."""

from __future__ import annotations

import pytest
import torch

from pydstp import EngineConfig, OptionError
from pydstp.kv_cache import PSEUDO
from tests.compare import assert_bitwise
from tests.engine.selection import (
    ALL_METHODS,
    IMAGE,
    METHODS,
    PROMPT,
    answer,
    dstp,
    method,
    open_engine,
    reserve_rows,
    same,
)

EVERY = {"trigger": "every"}


@pytest.fixture(scope="module")
def engine():
    with open_engine() as engine:
        yield engine


@pytest.mark.parametrize("name", ALL_METHODS)
def test_retention_one_is_no_pruning_bit_for_bit(engine, name):
    plain = answer(engine)
    kept = answer(engine, pruning=method(name, 1.0), shift=dstp(threshold=2.0))
    assert same(plain, kept)
    assert kept.shift.reason == "retention_is_one" and kept.shift.triggers == 0


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("reserve", ["side", "lazy", "deferred"])
def test_a_threshold_below_zero_is_the_base_method_bit_for_bit(engine, name, reserve):
    base = answer(engine, pruning=method(name))
    watched = answer(engine, pruning=method(name), shift=dstp(threshold=-1), reserve=reserve)
    assert same(base, watched)
    assert watched.shift.triggers == 0
    assert watched.shift.side_passes == (0 if reserve == "lazy" else 1)
    assert base.shift.kept == watched.shift.kept < base.visual_tokens


@pytest.mark.parametrize("expand_steps", [1, 3, 5])
def test_a_threshold_above_one_triggers_whenever_it_may(engine, expand_steps):
    policy = dstp(threshold=1.1, expand_steps=expand_steps)
    shift = answer(engine, 17, pruning=method("random"), shift=policy).shift
    assert shift.trigger_steps == tuple(range(1, 17, expand_steps + 1))


@pytest.mark.parametrize("name", ALL_METHODS)
def test_the_prompt_itself_is_not_a_shift(engine, name):
    """The anchor is what the watched layers saw at the last prompt token."""
    run = answer(engine, 2, pruning=method(name), shift=dstp(), log_steps="attention").shift
    assert sum(run.anchor) == pytest.approx(1, abs=1e-5)
    assert sum(run.steps[0].attention) == pytest.approx(1, abs=1e-5)
    assert 0 <= run.steps[0].similarity <= 1


@pytest.mark.parametrize("swap, options", [
    ("cpts", {}), ("hard", {}), ("merge", {}), ("full", {}), ("add", {"max_returned": 3})])
@pytest.mark.parametrize("name", METHODS)
def test_lists_of_a_swap(engine, name, swap, options):
    policy = dstp(**EVERY, swap=swap, expand_steps=2, **options)
    shift = answer(engine, 10, pruning=method(name), shift=policy, log_steps=True).shift
    kept, total = shift.kept, shift.num_visual
    merged = int((engine._cache.shift.base_mask[0] == PSEUDO).sum())  # they never leave
    for step in shift.steps:
        if step.state == "base":
            assert step.visible == kept
            continue
        bounds = {"cpts": (kept, min(2 * kept, total + merged)), "hard": (kept, kept + merged),
                  "merge": (kept, kept + merged + 1), "full": (total + merged, total + merged),
                  "add": (kept + 3, kept + 3)}[swap]
        assert bounds[0] <= step.visible <= bounds[1]
    assert [step.state for step in shift.steps[:4]] == ["base", "expanded", "expanded", "base"]
    assert shift.steps[1].went == () or swap in ("hard", "merge")
    came, went = shift.steps[1].came, shift.steps[1].went
    assert (shift.steps[3].came, shift.steps[3].went) == (went, came)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("applies", ["next", "redo"])
def test_lazy_deferred_and_side_agree(engine, name, applies):
    runs, rows = [], []
    for reserve in ("side", "lazy", "deferred"):
        policy = dstp(threshold=1.1, expand_steps=2, applies=applies)
        runs.append(answer(engine, pruning=method(name), shift=policy, reserve=reserve,
                           log_steps=True))
        rows.append(reserve_rows(engine._cache))
        assert runs[-1].shift.side_passes == 1
    assert same(runs[0], runs[1]) and same(runs[0], runs[2])
    assert torch.equal(rows[0], rows[1]) and torch.equal(rows[0], rows[2])
    assert runs[0].shift.trigger_steps == runs[1].shift.trigger_steps != ()


def test_redo_runs_the_step_again_and_next_does_not(engine):
    policy = {**EVERY, "expand_steps": 1, "swap": "add", "max_returned": 3}
    redo = answer(engine, pruning=method("random"), shift=dstp(**policy, applies="redo"),
                  log_steps=True).shift
    assert redo.forwards_per_token == 2 and redo.triggers == len(redo.steps)
    assert all(step.redone and step.state == "expanded" for step in redo.steps)
    early = answer(engine, pruning=method("random"), reserve="side", shift=dstp(
        **policy, applies="early", monitor_layers=[0])).shift
    assert early.forwards_per_token == 1 and early.triggers == redo.triggers
    assert early.mean_visible < redo.mean_visible


@pytest.mark.parametrize("max_batch", [4, 2])
def test_neighbours_change_neither_tokens_nor_triggers(engine, max_batch):
    policies = [dstp(threshold=1.1, expand_steps=2), None, dstp(threshold=0.9, applies="redo"),
                dstp(trigger="random", trigger_rate=0.5, seed=3)]
    methods = [method("fastv"), method("random"), method("divprune"), method("visionzip")]
    alone = [answer(engine, pruning=one, shift=policy, log_steps=True)
             for one, policy in zip(methods, policies, strict=True)]
    from pydstp import SamplingParams

    sampling = SamplingParams(temperature=0.0, max_new_tokens=16, ignore_eos=True, logprobs=4)
    with open_engine(max_batch=max_batch) as other:
        batch = other.generate([IMAGE] * 4, [PROMPT] * 4, sampling, pruning=methods,
                               shift=policies, log_steps=True)
    for one, row in zip(alone, batch, strict=True):
        assert same(one, row)
        assert one.shift.trigger_steps == row.shift.trigger_steps
        assert one.shift.steps == row.shift.steps


def test_a_swap_moves_no_keys_and_no_buffers(engine):
    before = engine._cache.visual.data_ptr()
    answer(engine, 40, pruning=method("random"), reserve="side",
           shift=dstp(**EVERY, expand_steps=1))
    first = engine._cache.visual.clone()
    answer(engine, 40, pruning=method("random"), reserve="side",
           shift=dstp(**EVERY, expand_steps=1))
    assert engine._cache.visual.data_ptr() == before
    assert_bitwise(first, engine._cache.visual)


@pytest.mark.parametrize("options, name", [
    ({"threshold": "high"}, "threshold"), ({"threshold": float("nan")}, "threshold"),
    ({"expand_steps": 0}, "expand_steps"), ({"monitor_layers": []}, "monitor_layers"),
    ({"monitor_layers": "some"}, "monitor_layers"), ({"swap": "add"}, "max_returned"),
    ({"max_returned": 2}, "max_returned"), ({"applies": "now"}, "applies"),
    ({"unheard": 1}, "unheard"), ({"trigger_rate": 2}, "trigger_rate")])
def test_wrong_options_are_named(options, name):
    with pytest.raises(OptionError, match=name):
        dstp(**options)


@pytest.mark.parametrize("shift, pruning, reserve, name", [
    (dstp(monitor_layers=[99]), "random", "lazy", "monitor_layers"),
    (dstp(heads=[99]), "random", "lazy", "heads"),
    (dstp(applies="early"), "random", "lazy", "reserve"),
    (None, "visionzip", "full", "reserve"), (None, "random", "sometimes", "reserve")])
def test_what_does_not_fit_is_refused_and_the_engine_goes_on(engine, shift, pruning, reserve,
                                                             name):
    with pytest.raises(OptionError, match=name):
        answer(engine, shift=shift, pruning=method(pruning), reserve=reserve)
    with pytest.raises(OptionError, match="layer"):
        answer(engine, pruning=method("fastv", layer=99))
    assert len(answer(engine).token_ids) == 16


def test_a_request_without_pictures_says_so(engine):
    from pydstp import SamplingParams

    sampling = SamplingParams(temperature=0.0, max_new_tokens=4, ignore_eos=True)
    plain = engine.generate(None, "Hello.", sampling)
    pruned = engine.generate(None, "Hello.", sampling, pruning=method("divprune"), shift=dstp())
    assert plain.token_ids == pruned.token_ids and pruned.shift.reason == "no_image"


def test_defaults_of_the_engine_and_none_for_a_request():
    from pydstp import Engine
    from tests.checkpoints import tiny_qwen3_vl

    with Engine(tiny_qwen3_vl(), config=EngineConfig(max_visual_tokens=128, max_text_tokens=256),
                pruning=method("random"), shift=dstp(threshold=2)) as engine:
        assert answer(engine).shift.triggers > 0
        assert answer(engine, shift=None).shift.triggers == 0
        assert answer(engine, pruning=None).shift.reason == "no_method"
