"""Streams left half-read, chats, cancellation, closing, and several engines."""

import signal
import threading
import time
import weakref

import pytest
import torch

from pydstp.config import EngineConfig, SamplingParams
from pydstp.engine import Engine
from pydstp.errors import CancelledError, CapacityError, PydstpError
from pydstp.generation import CancelToken
from tests.checkpoints import tiny_qwen3_vl
from tests.engine.oracle import picture

LONG = SamplingParams(temperature=0, max_new_tokens=200, ignore_eos=True)
SHORT = SamplingParams(temperature=0, max_new_tokens=3, ignore_eos=True)


@pytest.fixture
def engine():
    with Engine(tiny_qwen3_vl(), config=EngineConfig(max_batch=2)) as engine:
        yield engine


def test_a_cancelled_request_raises_and_carries_what_was_written(engine):
    cancel = CancelToken()
    with pytest.raises(CancelledError) as caught:
        engine.generate(None, "Go.", LONG, cancel=cancel,
                        callback=lambda piece, index: cancel.cancel())
    assert caught.value.generation.finish_reason == "cancelled"
    assert 1 <= len(caught.value.generation.token_ids) < 200
    assert engine._cache.num_free == 2


def test_a_first_answer_in_inference_mode_leaves_nothing_behind(engine):
    with torch.inference_mode():
        inside = engine.generate(picture(64, 64), "Go.", SHORT).token_ids
    assert engine.generate(picture(64, 64), "Go.", SHORT).token_ids == inside


def test_a_request_cancelled_before_it_starts_writes_nothing(engine):
    cancel = CancelToken()
    cancel.cancel()
    with pytest.raises(CancelledError) as caught:
        engine.generate(picture(64, 64), "Go.", LONG, cancel=cancel)
    assert caught.value.generation.token_ids == []


@pytest.mark.parametrize("calls_before", [1, 3, 6])
def test_cancellation_takes_effect_between_layers_and_blocks(engine, calls_before):
    class CountingToken(CancelToken):
        calls = 0

        def check(self):
            self.calls += 1
            if self.calls == calls_before:
                self.cancel()
            super().check()

    cancel = CountingToken()
    with pytest.raises(CancelledError):
        engine.generate(picture(96, 96), "Go.", LONG, cancel=cancel)
    assert cancel.calls == calls_before
    assert len(engine.generate(None, "Hello.", SHORT).token_ids) == 3


def test_cancelling_from_another_thread(engine):
    cancel = CancelToken()
    threading.Timer(0.05, cancel.cancel).start()
    with pytest.raises(CancelledError):
        engine.generate(None, "Go.", SamplingParams(ignore_eos=True, max_new_tokens=4000),
                        cancel=cancel)


def test_streams_may_be_read_side_by_side_and_dropped(engine):
    expected = engine.generate(None, "Two.", LONG).token_ids
    first, second = engine.stream(None, "One.", LONG), engine.stream(None, "Two.", LONG)
    next(first), next(second)
    first.close()
    assert first.generation.finish_reason == "cancelled"
    assert first.generation.text == engine.tokenizer.decode(first.generation.token_ids)
    for _ in second:
        pass
    assert second.generation.token_ids == expected
    assert engine._cache.num_free == 2


def test_waiting_for_ones_own_streams_is_an_error_not_a_deadlock(engine):
    streams = [engine.stream(None, "Go.", LONG) for _ in range(2)]
    for stream in streams:
        next(stream)
    with pytest.raises(CapacityError, match="max_batch = 2"):
        engine.generate(None, "Hello.", SHORT)
    streams[0].close()
    assert len(engine.generate(None, "Hello.", SHORT).token_ids) == 3
    streams[1].close()


def test_open_chats_hold_their_places(engine):
    with engine.chat(), engine.chat():
        with pytest.raises(CapacityError, match="chats"):
            engine.generate(None, "Hello.", SHORT)
        with pytest.raises(CapacityError, match="chats"):
            engine.chat()
    assert len(engine.generate(None, "Hello.", SHORT).token_ids) == 3


def test_a_failed_or_cancelled_turn_leaves_the_chat_as_it_was(engine):
    with engine.chat() as untouched:
        untouched.send("Hello.", picture(64, 64), SHORT)
        expected = untouched.send("And now?", None, SHORT).token_ids
    with engine.chat() as chat:
        chat.send("Hello.", picture(64, 64), SHORT)
        before = list(chat.messages)
        with pytest.raises(PydstpError):
            chat.send("", None, SHORT)
        with pytest.raises(PydstpError):
            chat.send("Look.", b"broken", SHORT)
        cancel = CancelToken()
        turn = chat.stream("Go.", None, LONG, cancel=cancel)
        next(turn)
        cancel.cancel()
        with pytest.raises(CancelledError):
            list(turn)
        half_read = chat.stream("Go.", None, LONG)
        next(half_read)
        half_read.close()
        assert chat.messages == before
        assert chat.send("And now?", None, SHORT).token_ids == expected


def test_a_chat_runs_one_turn_at_a_time(engine):
    with engine.chat() as chat:
        turn = chat.stream("Go.", None, LONG)
        next(turn)
        with pytest.raises(PydstpError, match="turn"):
            chat.send("Hello.", None, SHORT)
        turn.close()
        assert len(chat.send("Hello.", None, SHORT).token_ids) == 3


def test_of_two_threads_that_send_at_once_one_is_refused(engine):
    expected = engine.generate(picture(64, 64), "Hello.", SHORT).token_ids
    for _ in range(5):
        with engine.chat() as chat:
            tokens, refusals, barrier = [], [], threading.Barrier(2)

            def send(chat=chat, tokens=tokens, refusals=refusals, barrier=barrier):
                barrier.wait()
                try:
                    tokens.append(chat.send("Hello.", picture(64, 64), LONG).token_ids)
                except PydstpError as error:
                    refusals.append(error)

            threads = [threading.Thread(target=send) for _ in range(2)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(timeout=60)
            assert [len(tokens), len(refusals), len(chat.messages)] == [1, 1, 2]
            assert tokens[0][:3] == expected


def test_a_chat_closed_in_the_middle_of_a_turn_frees_its_place(engine):
    with engine.chat() as chat:
        next(chat.stream("Go.", None, LONG))
    assert engine._cache.num_free == 2
    with pytest.raises(PydstpError, match="closed"):
        chat.send("Hello.", None, SHORT)


def test_a_chat_that_does_not_fit_any_more_says_so():
    config = EngineConfig(max_text_tokens=48)
    with Engine(tiny_qwen3_vl(), config=config) as engine, engine.chat() as chat:
        chat.send("Hello.", None, SHORT)
        with pytest.raises(PydstpError, match="max_text_tokens"):
            for _ in range(20):
                chat.send("Hello again.", None, SHORT)


def test_close_is_idempotent_and_final(engine):
    stream = engine.stream(None, "Go.", LONG)
    next(stream)
    engine.close()
    engine.close()
    with pytest.raises(PydstpError, match="closed"):
        list(stream)
    with pytest.raises(PydstpError, match="closed"):
        engine.generate(None, "Hello.", SHORT)


def test_close_gives_up_weights_and_cache(engine):
    alive = [weakref.ref(tensor) for tensor in (
        engine._cache.visual, engine._cache.text, *engine._runner.model.parameters())]
    chat = engine.chat()
    chat.send("Hello.", None, SHORT)
    engine.close()
    assert not any(reference() is not None for reference in alive)
    chat.close()


def test_close_while_another_thread_generates(engine):
    caught = []

    def ask():
        try:
            engine.generate(None, "Go.", SamplingParams(ignore_eos=True, max_new_tokens=4000))
        except PydstpError as error:
            caught.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    time.sleep(0.05)
    engine.close()
    thread.join(timeout=30)
    assert len(caught) == 1


def test_a_damaged_visible_list_is_noticed(engine):
    stream = engine.stream(picture(64, 64), "Go.", LONG)
    next(stream)
    engine._cache.visible_indices[stream._seq.seq_idx, 0, 1] = 1 << 20
    with pytest.raises(PydstpError, match="status"):
        list(stream)
    assert len(engine.generate(None, "Hello.", SHORT).token_ids) == 3


def test_two_engines_live_side_by_side():
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with Engine(tiny_qwen3_vl()) as first, Engine(tiny_qwen3_vl(tied=False)) as second:
        one = first.generate(None, "Hello.", SHORT).token_ids
        two = second.generate(None, "Hello.", SHORT).token_ids
        assert first.generate(None, "Hello.", SHORT).token_ids == one != two
    assert handlers == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]


def test_engines_come_and_go_without_leaving_threads():
    before = len(list_threads())
    for _ in range(5):
        with Engine(tiny_qwen3_vl(), config=EngineConfig(num_threads=4)) as engine:
            engine.generate(None, "Hello.", SHORT)
    assert len(list_threads()) <= before + 1


def list_threads() -> list[str]:
    """Ids of all threads of this process, native ones included."""
    import os
    return os.listdir("/proc/self/task")
