"""Prefill and decode over the cache: greedy tokens, later turns, what a row may depend on."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from pydstp.models.plans import Context
from tests.checkpoints import reference_model, tiny_qwen3_vl
from tests.models.helpers import TOLERANCE, Inputs, Runner, gap, make_inputs, our_model

NUM_TOKENS = 64
PROMPT_GRIDS = (((4, 6),), (), ((2, 2), (6, 4)), ((8, 4),))
NO_PIXELS = torch.empty(0, 1536)


def oracle_greedy(oracle: PreTrainedModel, kwargs: dict[str, Tensor], num_tokens: int) -> list[int]:
    length = kwargs["input_ids"].shape[1]
    with torch.inference_mode():
        out = oracle.generate(
            **kwargs, max_new_tokens=num_tokens, do_sample=False, eos_token_id=None, pad_token_id=0
        )
    return out[0, length:].tolist()


OPTIONS = [{}, {"moe": True}, {"wide_queries": True, "tied": False}]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_greedy_tokens_equal_transformers_alone_and_in_a_batch(options: dict, ctx: Context) -> None:
    path = tiny_qwen3_vl(**options)
    oracle = reference_model(path)
    model = our_model(path, oracle)
    prompts = [make_inputs(model.config, grids, seed) for seed, grids in enumerate(PROMPT_GRIDS)]
    expected = [oracle_greedy(oracle, p.for_oracle(model.config), NUM_TOKENS) for p in prompts]
    assert min(len(set(tokens)) for tokens in expected) > 8, "greedy output must vary"
    assert Runner(model, ctx, max_batch=4).generate(prompts, NUM_TOKENS) == expected
    assert Runner(model, ctx).generate(prompts[:1], NUM_TOKENS) == expected[:1]


def test_second_turn_equals_one_long_prompt(ctx: Context) -> None:
    path = tiny_qwen3_vl()
    oracle = reference_model(path)
    model = our_model(path, oracle)
    first, second = make_inputs(model.config, ((4, 6),), 1), make_inputs(model.config, ((6, 2),), 2)
    runner = Runner(model, ctx, capacity=160)
    (answer,) = runner.generate([first], 9)
    # The last token of the answer was never fed: it opens the second turn.
    later_ids = torch.cat([torch.tensor(answer[-1:]), second.input_ids])
    later = Inputs(later_ids, second.pixel_values, second.grids)
    ours = runner.prefill(later)

    whole_ids = torch.cat([first.input_ids, torch.tensor(answer), second.input_ids])
    pixels = torch.cat([first.pixel_values, second.pixel_values])
    whole = Inputs(whole_ids, pixels, first.grids + second.grids)
    with torch.inference_mode():
        theirs = oracle(**whole.for_oracle(model.config)).logits[0]
    fresh = Runner(model, ctx, capacity=160)
    assert gap(fresh.prefill(whole), theirs) <= TOLERANCE
    assert gap(ours, theirs[-len(ours) :]) <= TOLERANCE
    assert runner.next_position == fresh.next_position

    token = int(ours[-1].argmax())
    expected = oracle_greedy(oracle, whole.for_oracle(model.config), 16)
    got = [token]
    for _ in range(15):
        got.append(int(runner.decode({0: got[-1]}).argmax()))
    assert got == expected


def test_a_later_chunk_of_one_token_sees_all_of_the_past(ctx: Context) -> None:
    path = tiny_qwen3_vl()
    model = our_model(path, reference_model(path))
    prompt = make_inputs(model.config, ((4, 4),))
    expected = Runner(model, ctx).prefill(prompt)
    runner = Runner(model, ctx)
    runner.prefill(Inputs(prompt.input_ids[:-1], prompt.pixel_values, prompt.grids))
    last = runner.prefill(Inputs(prompt.input_ids[-1:], NO_PIXELS, ()))
    assert gap(last, expected[-1:]) <= TOLERANCE


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("options", [{}, {"moe": True}], ids=str)
def test_a_row_does_not_depend_on_its_neighbours(
    options: dict, dtype: torch.dtype, ctx: Context
) -> None:
    path = tiny_qwen3_vl(**options)
    model = our_model(path, reference_model(path), dtype)
    num_rows = 11  # more than one block of the linear op
    prompts = [make_inputs(model.config, PROMPT_GRIDS[i % 4], seed=i) for i in range(num_rows)]
    tokens = {i: 7 * i for i in range(num_rows)}
    together = Runner(model, ctx, max_batch=num_rows)
    for i, prompt in enumerate(prompts):
        together.prefill(prompt, i)
    batch = together.decode(tokens)
    for i in (0, 3, 7, 8, 10):
        alone = Runner(model, ctx)
        alone.prefill(prompts[i])
        assert torch.equal(alone.decode({0: tokens[i]})[0], batch[i]), f"row {i}"


def test_rows_of_skipped_sequences_leave_the_others_alone(ctx: Context) -> None:
    path = tiny_qwen3_vl()
    model = our_model(path, reference_model(path))
    prompts = [make_inputs(model.config, PROMPT_GRIDS[i], seed=i) for i in range(3)]
    runners = [Runner(model, ctx, max_batch=3) for _ in range(2)]
    for runner in runners:
        for i, prompt in enumerate(prompts):
            runner.prefill(prompt, i)
    all_three = runners[0].decode({0: 9, 1: 1, 2: 5})
    two = runners[1].decode({2: 5, 0: 9})  # another order, sequence 1 pauses
    assert torch.equal(all_three[[2, 0]], two)
