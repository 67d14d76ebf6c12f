"""Careless callers with several threads, signal handlers, or answers that nobody reads."""

import gc
import os
import signal
import threading

import pytest

from pydstp.config import EngineConfig, SamplingParams
from pydstp.engine import Engine
from pydstp.errors import CapacityError, PydstpError
from tests.checkpoints import tiny_qwen3_vl

LONG = SamplingParams(temperature=0, max_new_tokens=200, ignore_eos=True)
SHORT = SamplingParams(temperature=0, max_new_tokens=3, ignore_eos=True)


@pytest.fixture
def engine():
    with Engine(tiny_qwen3_vl(), config=EngineConfig(max_batch=2, num_threads=1)) as engine:
        yield engine


def run_in_threads(*functions):
    """The error of each function, None where there was none; all of them end within a minute."""
    errors = [None] * len(functions)

    def run(index):
        try:
            functions[index]()
        except Exception as error:
            errors[index] = error

    threads = [threading.Thread(target=run, args=(i,), daemon=True) for i in range(len(functions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert not any(thread.is_alive() for thread in threads)
    return errors


def test_threads_that_wait_for_each_others_places_do_not_deadlock(engine):
    both_hold_one = threading.Barrier(2)

    def ask():
        with engine.stream(None, "Go.", LONG) as stream:
            next(stream)
            both_hold_one.wait()
            engine.generate(None, "Hello.", SHORT)

    errors = run_in_threads(ask, ask)
    assert any(errors)
    assert all(error is None or isinstance(error, CapacityError) for error in errors)
    assert engine._cache.num_free == 2


def test_a_place_held_by_a_thread_that_has_ended_is_not_waited_for(engine):
    streams = []

    def begin():
        for _ in range(2):
            streams.append(engine.stream(None, "Go.", LONG))
            next(streams[-1])

    assert run_in_threads(begin) == [None]
    [error] = run_in_threads(lambda: engine.generate(None, "Hello.", SHORT))
    assert isinstance(error, CapacityError)
    streams.pop().close()
    assert len(engine.generate(None, "Hello.", SHORT).token_ids) == 3
    streams.pop().close()


@pytest.mark.parametrize("begin", ["stream", "chat"])
def test_closing_an_answer_that_another_thread_reads_is_a_typed_error(engine, monkeypatch, begin):
    reading, go_on = threading.Event(), threading.Event()
    decode = engine._runner.decode

    def slow_decode(sequences):
        reading.set()
        go_on.wait(30)
        return decode(sequences)

    monkeypatch.setattr(engine._runner, "decode", slow_decode)
    answer = engine.stream(None, "Go.", SHORT) if begin == "stream" else (
        engine.chat().stream("Go.", None, SHORT))
    reader = threading.Thread(target=lambda: list(answer))
    reader.start()
    assert reading.wait(30)
    for use in (answer.close, lambda: next(answer)):
        with pytest.raises(PydstpError, match=f"{begin}: expected one reader"):
            use()
    go_on.set()
    reader.join(30)
    assert answer.generation.finish_reason == "length"


def test_a_turn_that_its_reader_drops_does_not_block_the_chat(engine):
    with engine.chat() as chat:
        expected = chat.send("Hello.", None, SHORT).token_ids
    with engine.chat() as chat:
        for _ in chat.stream("Go.", None, LONG):
            break
        chat.stream("Go.", None, LONG)  # not even begun
        gc.collect()
        assert chat.send("Hello.", None, SHORT).token_ids == expected


def test_a_signal_handler_that_closes_the_engine_does_not_hang(engine, monkeypatch):
    refusals, calls = [], []
    decode = engine._runner.decode

    def interrupted_decode(sequences):
        if not calls:
            calls.append(os.kill(os.getpid(), signal.SIGUSR1))
        return decode(sequences)

    def close(*_):
        try:
            engine.close()
        except PydstpError as error:
            refusals.append(str(error))

    monkeypatch.setattr(engine._runner, "decode", interrupted_decode)
    before = signal.signal(signal.SIGUSR1, close)
    try:
        with pytest.raises(PydstpError, match="closed"):
            engine.generate(None, "Go.", LONG)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert len(refusals) == 1 and "signal handler" in refusals[0]
    engine.close()
    assert engine._is_closed


def test_a_forked_child_answers_and_ends(engine):
    expected = engine.generate(None, "Hello.", SHORT).token_ids
    child = os.fork()
    if child == 0:
        try:
            same = engine.generate(None, "Hello.", SHORT).token_ids == expected
            engine.close()
            os._exit(0 if same else 3)
        finally:
            os._exit(4)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert engine.generate(None, "Hello.", SHORT).token_ids == expected


def test_a_chat_that_is_dropped_gives_its_place_back(engine):
    for _ in range(3):
        engine.chat().send("Hello.", None, SHORT)
    gc.collect()
    assert engine._cache.num_free == 2
