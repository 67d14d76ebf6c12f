"""Pruned requests that are cancelled, fail, or share an engine: nothing of them stays behind."""

from __future__ import annotations

import weakref
from dataclasses import dataclass

import pytest
import torch

from pydstp import (
    CancelledError,
    CapacityError,
    Engine,
    EngineConfig,
    OptionError,
    Pruner,
    PruningConfig,
    PydstpError,
    SamplingParams,
    SketchReturn,
    register_pruner,
)
from tests.checkpoints import tiny_qwen3_vl
from tests.engine.oracle import picture
from tests.engine.selection import (
    IMAGE,
    METHODS,
    PROMPT,
    Countdown,
    answer,
    dstp,
    method,
    open_engine,
    same,
)

SHORT = SamplingParams(temperature=0.0, max_new_tokens=5, ignore_eos=True, logprobs=3)
ACTING = {"trigger": "every", "expand_steps": 1, "monitor_layers": [1, 2]}
MODES = [("redo", "lazy"), ("early", "side"), ("early", "deferred"), ("redo", "deferred")]


@register_pruner("misbehaving")
@dataclass(frozen=True)
class Misbehaving(Pruner):
    """A method that fails as it is told to."""

    how: str = "raise"
    layer: int = 1
    default_quota = "global"

    @property
    def act_before(self) -> int:
        return self.layer

    def select(self, tokens):
        if self.how == "raise":
            raise RuntimeError("out of ideas")
        return {"nothing": None, "text": "all of them", "floats": torch.rand(12),
                "too many": torch.arange(30), "outside": torch.arange(12) + 30,
                "twice": torch.zeros(12, dtype=torch.int64)}[self.how]


def misbehaving(how: str = "raise", **options: object) -> PruningConfig:
    return PruningConfig("misbehaving", retention_ratio=1 / 3, how=how, **options)


@pytest.fixture(scope="module")
def engine():
    with open_engine() as engine:
        yield engine


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr("pydstp.reserve.SideRows.chunks.__defaults__", (8,))


@pytest.mark.parametrize("applies, reserve", MODES)
@pytest.mark.parametrize("name", METHODS)
def test_cancelling_anywhere_leaves_nothing_behind(name, applies, reserve, small_chunks):
    """In the prompt, in a side pass, in a step or its repetition; the sequence is used again."""
    options = {"pruning": method(name), "reserve": reserve, "shift": dstp(**ACTING,
                                                                         applies=applies)}
    with open_engine(max_batch=1) as engine:
        expected, plain = (engine.generate(IMAGE, PROMPT, SHORT, **chosen)
                           for chosen in (options, {}))
        looks = Countdown()
        engine.generate(IMAGE, PROMPT, SHORT, cancel=looks, **options)
        for count in range(1, looks.looks + 1, 3):
            with pytest.raises(CancelledError) as caught:
                engine.generate(IMAGE, PROMPT, SHORT, cancel=Countdown(count), **options)
            written = caught.value.generation.token_ids
            assert written == expected.token_ids[:len(written)]
            assert engine._cache.num_free == 1 and not engine._cache.pending[0]
            chosen, truth = (options, expected) if count % 2 else ({}, plain)
            assert same(engine.generate(IMAGE, PROMPT, SHORT, **chosen), truth)


def test_no_request_sees_what_another_one_left_in_its_sequence(small_chunks):
    """Every pair of requests, one after the other, in the one sequence that there is."""
    requests = [
        {}, {"pruning": method("fastv", layer=3), "shift": dstp(threshold=2.0)},
        {"pruning": method("fastv")}, {"pruning": method("visionzip"), "reserve": "deferred",
                                       "shift": dstp(**ACTING, swap="merge", applies="redo")},
        {"pruning": method("random"), "shift": dstp(trigger="never"), "log_steps": "attention"},
        {"pruning": method("divprune", 0.7), "reserve": "full", "shift": dstp(
            trigger="random", trigger_rate=0.5, heads=[1], scores="joint")},
        {"pruning": method("random", 0.5), "shift": dstp(
            trigger="avg", monitor_layers=[0], expand_steps=1)},
        {"shift": dstp(trigger="never"), "log_steps": "attention"}]
    alone = []
    for options in requests:
        with open_engine(max_batch=1) as engine:
            alone.append(answer(engine, 6, **options))
    with open_engine(max_batch=1) as engine:
        for before in requests:
            for after, truth in zip(requests, alone, strict=True):
                answer(engine, 4, **before)
                found = answer(engine, 6, **after)
                assert same(found, truth) and found.shift.steps == truth.shift.steps
                assert found.shift.trigger_steps == truth.shift.trigger_steps
                assert found.shift.anchor == truth.shift.anchor


@pytest.mark.parametrize("how", ["raise", "nothing", "text", "floats", "too many", "outside",
                                 "twice"])
def test_a_method_that_misbehaves_ends_its_request_alone(engine, how):
    expected = answer(engine)
    stream = engine.stream(IMAGE, PROMPT, SHORT, pruning=method("fastv"), shift=dstp(**ACTING))
    next(stream)
    with pytest.raises(PydstpError, match="misbehaving"):
        answer(engine, pruning=misbehaving(how), shift=dstp())
    with pytest.raises(PydstpError, match="misbehaving"):
        engine.generate([IMAGE] * 3, [PROMPT] * 3, SHORT,
                        pruning=[method("random"), misbehaving(how, layer=0), None])
    assert engine._cache.num_free == 3
    assert list(stream) and len(stream.generation.token_ids) == 5
    assert same(expected, answer(engine)) and engine._cache.num_free == 4


@pytest.mark.parametrize("options, name", [
    ({"pruning": method("fastv", layer=5)}, "layer"),
    ({"pruning": method("random"), "shift": dstp(monitor_layers=[4])}, "monitor_layers"),
    ({"pruning": method("fastv", layer=4), "shift": dstp()}, "monitor_layers"),
    ({"shift": dstp(heads=[2])}, "heads")])
def test_what_the_model_does_not_have_is_refused_before_anything_runs(engine, options, name):
    written = []
    with pytest.raises(OptionError, match=rf"prompt\[1\]: {name}"):
        engine.generate([IMAGE] * 2, [PROMPT] * 2, SHORT, callback=lambda *_: written.append(1),
                        **{key: [None, value] for key, value in options.items()})
    assert not written
    with pytest.raises(OptionError, match=name):
        engine.stream(IMAGE, PROMPT, SHORT, **options)
    with engine.chat(**options) as chat, pytest.raises(OptionError, match=name):
        chat.stream(PROMPT, IMAGE, SHORT)


@pytest.mark.parametrize("shift", [dstp(threshold=2.0), SketchReturn(mass=0.1)])
@pytest.mark.parametrize("name", METHODS)
def test_the_default_dtype_of_the_process_is_its_own_business(engine, name, shift):
    expected = answer(engine, pruning=method(name), shift=shift)
    torch.set_default_dtype(torch.float64)
    try:
        with open_engine() as other:
            found = answer(other, pruning=method(name), shift=shift)
    finally:
        torch.set_default_dtype(torch.float32)
    assert same(expected, found)


def test_an_arena_that_is_full_to_the_last_slot():
    """35 tokens in 35 slots; `merge` needs one more, where it has anything to merge."""
    with open_engine(max_visual_tokens=35) as engine:
        for swap in ("cpts", "hard", "full"):
            policy = dstp(**ACTING, swap=swap, scores="joint")
            assert answer(engine, pruning=method("fastv"), shift=policy).shift.triggers
        merging = dstp(**ACTING, swap="merge")
        with pytest.raises(CapacityError, match="merge"):
            answer(engine, pruning=method("random"), shift=merging)
        with pytest.raises(CapacityError, match="max_visual_tokens"):
            answer(engine, pruning=method("visionzip"))
        plain = answer(engine)
        assert same(plain, answer(engine, pruning=method("random", 1.0), shift=merging))
        assert same(plain, answer(engine, shift=merging, log_steps="attention"))
        assert engine._cache.num_free == 4
    with open_engine(max_visual_tokens=36) as engine:
        assert answer(engine, pruning=method("random"), shift=merging).shift.triggers


def test_the_last_slot_forgets_what_it_was():
    """It belonged to a picture; now it holds what `merge` makes, which is in no base set."""
    merging = {"pruning": method("random"), "log_steps": True,
               "shift": dstp(**ACTING, swap="merge", scores="joint")}
    with open_engine(max_batch=1, max_visual_tokens=36) as engine:
        expected = answer(engine, **merging)
        assert any(35 in step.came for step in expected.shift.steps)
        engine.generate(picture(192, 192), PROMPT, SHORT)  # 36 tokens
        found = answer(engine, **merging)
    assert same(expected, found) and expected.shift.steps == found.shift.steps


def test_a_text_arena_that_is_full_to_the_last_row():
    """A step that runs again takes no further row, and a side pass takes none."""
    policy = {"pruning": method("fastv"), "shift": dstp(**ACTING, applies="redo")}
    with open_engine() as roomy:
        expected = roomy.generate(IMAGE, PROMPT, SHORT, **policy)
    num_text = expected.prompt_tokens - expected.visual_tokens
    with open_engine(max_text_tokens=num_text + 4) as tight:
        assert same(tight.generate(IMAGE, PROMPT, SHORT, **policy), expected)
        assert tight._cache.text_len[0] == num_text + 4
        longer = SamplingParams(temperature=0.0, max_new_tokens=6)
        with pytest.raises(CapacityError, match="max_text_tokens"):
            tight.generate(IMAGE, PROMPT, longer, **policy)


def test_a_callback_that_raises_frees_every_row(engine):
    def fail(piece: str, index: int) -> None:
        if index == 2:
            raise ZeroDivisionError

    expected = answer(engine, pruning=method("fastv"), shift=dstp(**ACTING))
    with pytest.raises(ZeroDivisionError):
        engine.generate([IMAGE] * 4, [PROMPT] * 4, SHORT, callback=fail, pruning=method("fastv"),
                        shift=dstp(**ACTING, applies="redo"))
    assert engine._cache.num_free == 4 and not any(engine._cache.pending)
    assert same(answer(engine, pruning=method("fastv"), shift=dstp(**ACTING)), expected)


def test_two_engines_and_streams_read_in_turns():
    policy = {"shift": dstp(**ACTING, applies="redo"), "reserve": "deferred"}
    paths = [tiny_qwen3_vl(), tiny_qwen3_vl(tied=False), tiny_qwen3_vl(moe=True)]
    config = EngineConfig(max_batch=2, max_visual_tokens=128, max_text_tokens=256, num_threads=2)
    engines = [Engine(path, config=config) for path in paths]
    names = ["fastv", "visionzip"]
    expected = [[engine.generate(IMAGE, PROMPT, SHORT, pruning=method(name), **policy)
                 for name in names] for engine in engines]
    streams = [[engine.stream(IMAGE, PROMPT, SHORT, pruning=method(name), **policy)
                for name in names] for engine in engines]
    unread = [stream for some in streams for stream in some]
    while unread:
        unread = [stream for stream in unread if next(stream, None) is not None]
    for wanted, found in zip(expected, streams, strict=True):
        assert all(same(one, stream.generation)
                   for one, stream in zip(wanted, found, strict=True))
    for engine in engines:
        assert engine._cache.num_free == 2
        engine.close()


def test_close_gives_up_the_rows_that_wait():
    with open_engine() as engine:
        chat = engine.chat(pruning=method("random"), shift=dstp(trigger="never"))
        chat.send("Hello.", [picture(96, 96)], SHORT)
        waiting = engine._cache.pending[chat._seq_idx]
        assert waiting
        alive = [weakref.ref(rows.x) for rows in waiting]
        del waiting
    assert not any(reference() is not None for reference in alive)
    chat.close()
