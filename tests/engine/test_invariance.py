"""A request's tokens depend on the request alone: not on its neighbours, not on threads."""

import threading
from functools import cache

import pytest

from pydstp.config import EngineConfig, SamplingParams
from pydstp.engine import Engine
from pydstp.generation import CancelToken
from tests.checkpoints import tiny_qwen3_vl
from tests.engine.oracle import picture

PROMPTS = ["Hello.", "Describe the second row of the picture, please.", "Why?", "One two three",
           "What is left of the star?", "Count.", "Is it red or blue?", "A longer question: " * 6]
IMAGES = [picture(64 + 32 * i, 160 - 16 * i, seed=i) if i % 2 else None for i in range(8)]
LENGTHS = [24, 3, 15, 24, 1, 9, 20, 8]


def params(index: int, **options) -> SamplingParams:
    values = dict(temperature=0.9, top_k=50, repetition_penalty=1.1, seed=100 + index,
                  max_new_tokens=LENGTHS[index], ignore_eos=True)
    return SamplingParams(**{**values, **options})


@cache
def alone(dtype: str) -> list[list[int]]:
    """Each request by itself, on one thread."""
    config = EngineConfig(max_batch=1, num_threads=1)
    with Engine(tiny_qwen3_vl(), dtype=dtype, config=config) as engine:
        return [engine.generate(IMAGES[i], PROMPTS[i], params(i)).token_ids for i in range(8)]


@pytest.mark.parametrize("dtype, max_batch", [
    ("float32", 8), ("float32", 3), ("bfloat16", 8)])
def test_tokens_are_the_same_alone_and_in_a_batch(dtype, max_batch):
    config = EngineConfig(max_batch=max_batch, num_threads=2)
    with Engine(tiny_qwen3_vl(), dtype=dtype, config=config) as engine:
        batch = engine.generate(IMAGES, PROMPTS, [params(i) for i in range(8)])
    assert [generation.token_ids for generation in batch] == alone(dtype)


def test_tokens_are_the_same_while_neighbours_are_cancelled():
    cancels = [CancelToken() for _ in range(8)]
    written = [0] * 8

    def stop_some(piece, index):
        written[index] += 1
        if index in (0, 3) and written[index] == 5:
            cancels[index].cancel()

    with Engine(tiny_qwen3_vl(), config=EngineConfig(max_batch=8)) as engine:
        batch = engine.generate(IMAGES, PROMPTS, [params(i) for i in range(8)], cancel=cancels,
                                callback=stop_some)
    expected = alone("float32")
    for index, generation in enumerate(batch):
        if index in (0, 3):
            assert generation.finish_reason == "cancelled"
            count = len(generation.token_ids)
            assert 5 <= count < LENGTHS[index]
            assert generation.token_ids == expected[index][:count]
        else:
            assert generation.finish_reason == "length"
            assert generation.token_ids == expected[index]


def test_threads_that_call_at_once_get_their_own_answers():
    expected, answers = alone("float32"), [None] * 8
    with Engine(tiny_qwen3_vl(), config=EngineConfig(max_batch=3)) as engine:
        def ask(index):
            answers[index] = engine.generate(IMAGES[index], PROMPTS[index], params(index))
        threads = [threading.Thread(target=ask, args=(i,)) for i in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=60)
    assert [answer.token_ids for answer in answers] == expected


def test_one_sampling_for_a_batch_draws_differently_per_request():
    with Engine(tiny_qwen3_vl()) as engine:
        first, second = engine.generate(None, ["Hello.", "Hello."],
                                        SamplingParams(temperature=1.5, seed=3, max_new_tokens=24))
        again = engine.generate(None, ["Hello."] * 2,
                                SamplingParams(temperature=1.5, seed=3, max_new_tokens=24))
    assert first.token_ids != second.token_ids
    assert [g.token_ids for g in again] == [first.token_ids, second.token_ids]
