"""The checkpoint that ships: it is a true one, it is small, and it answers as transformers does."""

import numpy as np
import pytest
import torch

from pydstp import Engine, SamplingParams, demo_checkpoint
from pydstp.tasks import TASKS, is_correct, make_example
from tests.checkpoints import reference_model
from tests.engine.oracle import greedy, prompt_inputs, user

SEEDS = range(3)
MAX_BYTES = 8_000_000


@pytest.fixture(scope="module")
def engine():
    with Engine(demo_checkpoint()) as engine:
        yield engine


def test_it_is_small():
    assert sum(path.stat().st_size for path in demo_checkpoint().iterdir()) <= MAX_BYTES


@pytest.mark.parametrize("task", TASKS)
def test_answers_equal_transformers(engine, task):
    for seed in SEEDS:
        example = make_example(task, seed)
        answer = engine.generate(example.images, example.prompt, SamplingParams(temperature=0.0))
        messages = [user(example.prompt, len(example.images))]
        count = len(answer.token_ids)
        assert answer.token_ids == greedy(demo_checkpoint(), messages, example.images, count)
        assert answer.finish_reason == "stop"


@pytest.mark.parametrize("task", TASKS)
@torch.inference_mode()
def test_logits_equal_transformers(engine, task):
    example = make_example(task, 7)
    inputs = prompt_inputs(demo_checkpoint(), [user(example.prompt, len(example.images))],
                           example.images)
    expected = reference_model(demo_checkpoint())(**inputs).logits[0, -1].numpy()
    answer = engine.generate(example.images, example.prompt, SamplingParams(
        temperature=0.0, max_new_tokens=1, logprobs=20))
    reference = torch.tensor(expected, dtype=torch.float64).log_softmax(0).numpy()
    top = answer.logprobs[0].top
    ours = np.array([logprob for _, logprob in top])
    gap = np.abs(ours - reference[[token_id for token_id, _ in top]]).max()
    assert gap <= 2e-5 * max(1.0, np.abs(expected).max())


@pytest.mark.parametrize("task", TASKS)
def test_most_answers_are_right(engine, task):
    examples = [make_example(task, seed) for seed in range(100, 112)]
    answers = engine.generate([example.images for example in examples],
                              [example.prompt for example in examples])
    right = sum(is_correct(example, answer.text)
                for example, answer in zip(examples, answers, strict=True))
    assert right >= 11, [(e.answer, a.text) for e, a in zip(examples, answers, strict=True)]


def test_it_follows_a_second_question_in_a_chat(engine):
    example = make_example("read", 5, kind="cell")
    with engine.chat() as chat:
        chat.send(example.prompt, example.images)
        again = chat.send(example.prompt, None)
    assert again.cached_tokens >= again.visual_tokens
    assert again.text
