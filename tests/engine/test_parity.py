"""Whole answers against transformers: from pictures and text to token ids."""

import pytest

from pydstp.config import SamplingParams
from pydstp.engine import Engine
from tests.checkpoints import tiny_qwen3_vl
from tests.engine.oracle import greedy, picture, user
from tests.engine.whole_answers import check_greedy_tokens, greedy_params

STEPS = 64
GREEDY = greedy_params(STEPS)
PROMPTS = [
    ("Hello, what can you do?", []),
    ("What is in the picture?", [picture(97, 64, seed=1)]),
    ("Compare the three pictures.", [picture(64, 160, 2), picture(130, 75, 3), picture(33, 33, 4)]),
    ("Name the third cell of row 2.", [picture(200, 96, seed=5)]),
]


@pytest.mark.parametrize("options", [
    {}, dict(tied=False, wide_queries=True), dict(moe=True)],
    ids=["tied", "untied-wide", "moe"])
def test_greedy_tokens_equal_transformers(options):
    check_greedy_tokens(tiny_qwen3_vl(**options), PROMPTS, STEPS, greedy)


def test_second_turn_equals_transformers():
    path = tiny_qwen3_vl()
    images = [picture(97, 64, seed=1), picture(64, 96, seed=2)]
    with Engine(path) as engine, engine.chat() as chat:
        first = chat.send("What is this?", images[0], GREEDY)
        history = [user("What is this?", 1), {"role": "assistant", "content": first.text},
                   user("And this one?", 1)]
        second = chat.send("And this one?", images[1], GREEDY)
        third = chat.send("Which of them is larger?", None, GREEDY)
    assert second.token_ids == greedy(path, history, images, STEPS)
    assert second.cached_tokens > 0
    history += [{"role": "assistant", "content": second.text}, user("Which of them is larger?")]
    assert third.token_ids == greedy(path, history, images, STEPS)
    assert third.visual_tokens == sum(info.num_tokens for info in third.images)


def test_prompt_counts_are_right():
    with Engine(tiny_qwen3_vl()) as engine:
        generation = engine.generate(picture(97, 64), "What?", SamplingParams(max_new_tokens=2))
    assert generation.visual_tokens == generation.images[0].num_tokens
    assert generation.visible_tokens == generation.resident_tokens == generation.visual_tokens
    assert generation.images[0].original_size == (97, 64)
    assert len(generation.token_ids) <= 2
