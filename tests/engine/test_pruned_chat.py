"""Chats whose pictures are pruned turn by turn: against the plain model, and against themselves."""

from __future__ import annotations

import pytest
import torch

from pydstp import (
    DSTP,
    CancelledError,
    CapacityError,
    Engine,
    EngineConfig,
    Generation,
    PruningConfig,
    PydstpError,
)
from tests.checkpoints import tiny_qwen3_vl
from tests.engine.oracle import picture
from tests.engine.plain_chat import Conversation, assert_same_answer, sampling
from tests.engine.selection import (
    METHODS,
    Countdown,
    dstp,
    method,
    open_engine,
    reserve_rows,
    same,
)
from tests.shift.cases import SCORE_MARGIN, is_clear

FIRST, SECOND, THIRD = picture(130, 100, 1), picture(97, 161, 2), picture(64, 64, 3)
RATIO = 0.4
# (prompt, pictures, new tokens) per turn.
TALKS = {
    "new picture": (("What is it?", [FIRST], 4), ("And this? Look.", [SECOND], 10)),
    "only words": (("What is it?", [FIRST, THIRD], 4), ("Why?", [], 10)),
    "words first": (("Hello.", [], 3), ("What is it?", [FIRST], 10)),
    "three turns": (("What is it?", [FIRST], 4), ("Why?", [], 4), ("These?", [SECOND, THIRD], 8)),
}
SWAPPING = {"threshold": 0.97, "expand_steps": 2, "monitor_layers": "all"}
PLAIN_METHODS = {"fastv1": ("fastv", {"layer": 1}), "fastv3": ("fastv", {"layer": 3}),
                 "divprune": ("divprune", {}), "visionzip": ("visionzip", {})}
MODES = [("next", "lazy"), ("redo", "side"), ("redo", "deferred"), ("next", "full")]


@pytest.fixture(scope="module")
def engine():
    with open_engine(max_text_tokens=512) as engine:
        yield engine


@pytest.mark.parametrize("applies, reserve", MODES)
@pytest.mark.parametrize("talk", TALKS)
@pytest.mark.parametrize("name", PLAIN_METHODS)
@torch.inference_mode()
def test_a_turn_is_what_the_plain_model_says(engine, name, talk, applies, reserve, monkeypatch):
    """Rows of earlier answers keep what they saw; the prompt of a turn sees the base set."""
    kind, options = PLAIN_METHODS[name]
    if kind == "visionzip" and reserve == "full":
        pytest.skip("merged tokens exist in no unpruned prompt")
    told = Conversation(engine, tiny_qwen3_vl(), reserve=reserve,
                        pruning=PruningConfig(kind, retention_ratio=RATIO, **options),
                        shift=DSTP(**SWAPPING, applies=applies))
    with told.chat:
        for turn in TALKS[talk]:
            answer = told.send(*turn)
        pruning = told.plain_pruning(RATIO)
        truth = told.plain_answer(pruning, monkeypatch)
    assert pruning.margin > SCORE_MARGIN and is_clear(truth), "a close call: choose other pictures"
    assert answer.shift.triggers and answer.cached_tokens
    assert_same_answer(answer, truth)


TURNS = (("What?", [FIRST, THIRD], 6), ("Why?", [], 5), ("And this?", [SECOND], 6), ("So?", [], 6))


def talk(engine: Engine, turns=TURNS, **options: object) -> list[Generation]:
    with engine.chat(**options) as chat:
        return [chat.send(prompt, pictures, sampling(count)) for prompt, pictures, count in turns]


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("threshold", [0.95, 2.0, -1.0])
def test_side_lazy_and_deferred_agree_over_turns(engine, name, threshold, monkeypatch):
    """Also where the reserve of the first turn is computed in the third, or in pieces."""
    monkeypatch.setattr("pydstp.reserve.SideRows.chunks.__defaults__", (7,))
    runs, rows = {}, {}
    for reserve in ("side", "lazy", "deferred"):
        runs[reserve] = talk(engine, pruning=method(name), reserve=reserve,
                             shift=dstp(threshold=threshold, expand_steps=2))
        rows[reserve] = reserve_rows(engine._cache)
    for turn, others in zip(runs["side"], zip(runs["lazy"], runs["deferred"], strict=True),
                            strict=True):
        for other in others:
            assert same(turn, other) and turn.shift.trigger_steps == other.shift.trigger_steps
    if threshold > 0:
        assert torch.equal(rows["side"], rows["lazy"])
    assert torch.equal(rows["side"], rows["deferred"])


def test_a_reserve_waits_until_a_later_turn_needs_it(engine):
    """No step of the first turn can trigger: its only token is never fed."""
    turns = (("What?", [FIRST], 1), ("Why?", [], 1), ("And this?", [SECOND], 1), ("So?", [], 4))
    runs = talk(engine, turns, pruning=method("random"), shift=dstp(threshold=2.0))
    assert [run.shift.side_passes for run in runs] == [0, 0, 0, 2]
    kept = [run.shift.kept for run in runs]
    assert kept[0] == kept[1] < kept[2] == kept[3]
    assert [run.resident_tokens for run in runs[:3]] == kept[:3]
    assert runs[3].resident_tokens == runs[3].visual_tokens


def test_keeping_everything_is_the_plain_chat_bit_for_bit(engine):
    plain = talk(engine)
    for pruning in (PruningConfig("none"), method("fastv", 1.0), method("visionzip", 1.0)):
        kept = talk(engine, pruning=pruning, shift=dstp(threshold=2.0))
        assert all(map(same, plain, kept))
        assert [run.cached_tokens for run in kept] == [run.cached_tokens for run in plain]
        assert [run.shift.triggers for run in kept] == [0] * len(kept)


@pytest.mark.parametrize("name", METHODS)
def test_a_later_turn_changes_no_key_of_an_earlier_one(engine, name):
    cache = engine._cache
    with engine.chat(pruning=method(name), shift=dstp(threshold=2.0), reserve="side") as chat:
        chat.send("What?", [FIRST, THIRD], sampling(6))
        s = chat._seq_idx
        num_visual, shift = int(cache.visual_len[s]), cache.shift
        visual = cache.visual[:, s, :num_visual].clone()
        base = shift.base_mask[s, :num_visual].clone()
        answer = chat.send("And this?", [SECOND], sampling(6))
        assert answer.cached_tokens > num_visual and int(cache.visual_len[s]) > num_visual
        assert torch.equal(cache.visual[:, s, :num_visual], visual)
        assert torch.equal(shift.base_mask[s, :num_visual], base)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("applies, reserve", [("redo", "lazy"), ("early", "deferred"),
                                              ("next", "side")])
def test_a_turn_cancelled_anywhere_never_happened(engine, name, applies, reserve, monkeypatch):
    """In the tower, in any layer of the prompt, of a side pass, of a step or of its repetition."""
    monkeypatch.setattr("pydstp.reserve.SideRows.chunks.__defaults__", (8,))
    options = {"pruning": method(name), "reserve": reserve, "shift": dstp(
        trigger="every", applies=applies, expand_steps=1, monitor_layers=[1, 2])}
    untouched = talk(engine, (("What?", [FIRST], 3), ("So?", [THIRD], 4)), **options)[1]
    never = Countdown()
    with engine.chat(**options) as chat:
        chat.send("What?", [FIRST], sampling(3))
        chat.send("And this?", [SECOND], sampling(3), cancel=never)
    for count in range(1, never.looks + 1, 3):
        with engine.chat(**options) as chat:
            chat.send("What?", [FIRST], sampling(3))
            with pytest.raises(CancelledError):
                chat.send("And this?", [SECOND], sampling(3), cancel=Countdown(count))
            answer = chat.send("So?", [THIRD], sampling(4))
        assert same(answer, untouched), count
        assert answer.shift.trigger_steps == untouched.shift.trigger_steps
        assert answer.shift.side_passes == untouched.shift.side_passes


def test_a_turn_that_fails_behind_the_pruning_point_never_happened():
    """Merged tokens of the second picture do not fit; a third one without any does."""
    options = {"pruning": method("visionzip", 0.5), "shift": dstp(threshold=2.0)}
    with open_engine(max_visual_tokens=22) as engine:
        turns = (("What?", [FIRST], 4), ("So?", [THIRD], 6))
        expected = talk(engine, turns, **options)
        with engine.chat(**options) as chat:
            chat.send("What?", [FIRST], sampling(4))
            with pytest.raises(CapacityError, match="max_visual_tokens"):
                chat.send("And this?", [picture(97, 100, 2)], sampling(4))
            with pytest.raises(PydstpError):
                chat.send("And this?", b"broken", sampling(4))
            assert same(chat.send("So?", [THIRD], sampling(6)), expected[1])


@pytest.mark.parametrize("name", METHODS)
def test_a_template_that_drops_reasoning_rewinds_into_an_answer(name):
    path = tiny_qwen3_vl(thinking=True)
    with Engine(path, config=EngineConfig(max_visual_tokens=128, max_text_tokens=512)) as engine:
        options = {"pruning": method(name), "shift": dstp(threshold=2.0, expand_steps=2)}
        runs = talk(engine, **options)
        assert all(run.cached_tokens < run.prompt_tokens for run in runs)
        lazily = talk(engine, **options, reserve="side")
        assert all(map(same, runs, lazily))
