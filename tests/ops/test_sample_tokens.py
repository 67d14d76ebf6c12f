"""sample_tokens: the tokens that the sampler of the host gives, for every row of a mixed batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from pydstp import ops
from pydstp.config import SamplingParams
from pydstp.sampling import keyed_uniform, sample
from tests import sampling_reference as reference
from tests.compare import assert_bitwise
from tests.generators import Guarded, hostile_indices, integers, normal

NAN, INF = float("nan"), float("inf")
PART = 4096  # logits that one block looks at first
OPTIONS = [
    {}, {"temperature": 0.7}, {"temperature": 0.7, "top_k": 20, "top_p": 0.8},
    {"temperature": 1.0, "top_k": 1}, {"temperature": 1.0, "top_k": 13}, {"temperature": 1e-30},
    {"temperature": 1.0, "top_k": 10**6}, {"temperature": 2.0, "top_p": 0.9},
    {"temperature": 0.5, "top_p": 0.01}, {"temperature": 100.0, "top_p": 0.999},
    {"temperature": 1.0, "min_p": 0.1}, {"temperature": 3.0, "min_p": 1.0},
    {"temperature": 0.9, "top_k": 50, "top_p": 0.95, "min_p": 0.02}, {"temperature": 40.0},
    {"repetition_penalty": 1.3}, {"temperature": 1.0, "repetition_penalty": 0.5, "top_k": 40},
    {"temperature": 1.0, "presence_penalty": 1.5}, {"presence_penalty": -2.0},
    {"temperature": 1.0, "min_new_tokens": 9}, {"min_new_tokens": 9, "repetition_penalty": 1.1}]


class Requests:
    """A request per entry of OPTIONS, with some tokens written, and the state that describes it."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.params = [SamplingParams(**options).resolve({}) for options in OPTIONS]
        self.state = ops.SamplingState.allocate(len(OPTIONS) + 1, size)
        self.prompt_ids, self.new_ids, self.end_ids = [], [], [size // 2, size - 1]
        for row, options in enumerate(OPTIONS):
            self.prompt_ids.append([(7 * row + 3 * i) % size for i in range(5)])
            self.new_ids.append([])
            self.state.begin(row, self.prompt_ids[row], self.end_ids, draw_key=self.key(row),
                             **options)
        self.rows = torch.arange(len(OPTIONS), dtype=torch.int32)
        for i in range(3):
            self.note(torch.tensor([(5 * row + i // 2) % size for row in range(len(OPTIONS))],
                                   dtype=torch.int32))

    def key(self, row: int) -> tuple[int, int]:
        return (2**64 - 1 - row, row) if row % 2 else (row, 2**63 + row)

    def note(self, tokens: Tensor) -> None:
        self.state.note(self.rows, tokens)
        for new_ids, token in zip(self.new_ids, tokens.tolist(), strict=True):
            new_ids.append(token)

    def blocked(self, row: int) -> list[int]:
        return self.end_ids if len(self.new_ids[row]) < self.params[row].min_new_tokens else []

    def expected(self, logits: Tensor) -> list[int]:
        return [sample(values, self.params[row], prompt_ids=self.prompt_ids[row],
                       new_ids=self.new_ids[row], blocked_ids=self.blocked(row),
                       draw_key=self.key(row))
                for row, values in enumerate(logits.float().cpu().numpy())]

    def by_definition(self, logits: Tensor) -> list[int]:
        tokens = []
        for row, logit in enumerate(logits.tolist()):
            params, new_ids = self.params[row], self.new_ids[row]
            values = reference.penalised(
                logit, prompt_ids=self.prompt_ids[row], new_ids=new_ids,
                blocked_ids=self.blocked(row), repetition_penalty=params.repetition_penalty,
                presence_penalty=params.presence_penalty)
            if params.temperature == 0:
                tokens.append(reference.ranked(values)[0])
                continue
            kept = reference.survivors(values, temperature=params.temperature, top_k=params.top_k,
                                       top_p=params.top_p, min_p=params.min_p)
            tokens.append(reference.draw(kept, keyed_uniform(*self.key(row), len(new_ids))))
        return tokens


def logits_of(kind: str, size: int, dtype: torch.dtype) -> Tensor:
    rows = len(OPTIONS)
    if kind == "ties":
        signs = 1.0 - 2.0 * (torch.arange(size) % 2)  # zeros of both signs are equal
        return (integers(-2, 3, rows, size, seed=size) * signs).to(dtype)
    scale = {"usual": 3.0, "wide": 40.0, "flat": 0.0}[kind]
    return (normal(rows, size, seed=size) * scale).to(dtype)


@pytest.mark.parametrize("size", [3, 97, 769])
@pytest.mark.parametrize("kind", ["usual", "ties", "wide", "flat"])
def test_tokens_are_those_of_the_definition(isa, dtype, kind, size, pool):
    requests, logits = Requests(size), logits_of(kind, size, dtype)
    out = Guarded(len(OPTIONS), dtype=torch.int32)
    found = ops.sample_tokens(logits, requests.state, requests.rows, pool=pool, out=out.tensor)
    assert found is out.tensor
    out.check()
    assert found.tolist() == requests.by_definition(logits) == requests.expected(logits)


@pytest.mark.parametrize("size", [PART - 1, PART, 2 * PART + 1, 20011])
@pytest.mark.parametrize("kind", ["usual", "ties", "wide"])
def test_rows_of_several_parts_are_those_of_the_host(isa, dtype, kind, size, pool):
    requests, logits = Requests(size), logits_of(kind, size, dtype)
    found = ops.sample_tokens(logits, requests.state, requests.rows, pool=pool)
    assert found.tolist() == requests.expected(logits)


def test_an_answer_is_the_same_token_by_token(isa, dtype, pool):
    """The state counts and marks what comes; memory of the step before does no harm."""
    requests, size = Requests(301), 301
    needed = ops.sampling_workspace(len(OPTIONS), requests.state).numel()
    workspace = Guarded(needed, dtype=torch.uint8)
    for step in range(8):
        logits = (normal(len(OPTIONS), size, seed=step) * 4).to(dtype)
        expected = requests.expected(logits)
        found = ops.sample_tokens(logits, requests.state, requests.rows, pool=pool,
                                  workspace=workspace.tensor.fill_(255 * (step % 2)))
        workspace.check()
        assert found.tolist() == expected
        requests.note(found)


@pytest.mark.parametrize("size", [512, 5000])
def test_the_number_of_a_draw_is_that_of_the_host(isa, size, pool):
    """Over equals the drawn token is the number times the size."""
    keys = [(0, 0, 0), (7, 3, 5), (2**64 - 1, 2**64 - 1, 2**31), (2**63, 1, 2**40), (1, 2**63, 1)]
    state = ops.SamplingState.allocate(len(keys), size)
    for row, (seed, request, num_new) in enumerate(keys):
        state.begin(row, [], [], draw_key=(seed, request), temperature=1.0)
        state.counts[row, ops.SampleCount.NUM_NEW_TOKENS] = num_new
    rows = torch.arange(len(keys), dtype=torch.int32)
    found = ops.sample_tokens(torch.zeros(len(keys), size), state, rows, pool=pool)
    assert found.tolist() == [int(keyed_uniform(*key) * size) for key in keys]


def test_draws_have_the_distribution_that_was_asked_for(isa, pool):
    size, draws = 5, 64
    logits = torch.tensor([1.0, -INF, 0.0, 2.0, -1.0]).repeat(draws, 1)
    state = ops.SamplingState.allocate(draws, size)
    for row in range(draws):
        state.begin(row, [], [], draw_key=(11, row), temperature=1.0)
    counts = np.zeros(size)
    for step in range(8):
        state.counts[:, ops.SampleCount.NUM_NEW_TOKENS] = step
        found = ops.sample_tokens(logits, state, torch.arange(draws, dtype=torch.int32), pool=pool)
        counts += np.bincount(found.cpu().numpy(), minlength=size)
    expected = logits[0].cpu().softmax(0).numpy() * counts.sum()
    assert counts[1] == 0
    others = [0, 2, 3, 4]
    chi_square = ((counts - expected)[others] ** 2 / expected[others]).sum()
    assert chi_square < 16.3  # of 3 degrees of freedom: 1 in 1000


@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_what_is_no_number_is_told_and_the_other_rows_stand(isa, dtype, value, temperature, pool):
    size = PART + 7
    state = ops.SamplingState.allocate(3, size)
    for row in range(3):
        state.begin(row, [], [], draw_key=(row, 0), temperature=temperature, top_k=9)
    logits, rows = normal(3, size, dtype=dtype), torch.arange(3, dtype=torch.int32)
    good = ops.sample_tokens(logits, state, rows, pool=pool)
    logits[1, PART + 3] = value
    found = ops.sample_tokens(logits, state, rows, pool=pool)
    assert found.tolist() == [good[0], good[1] if value == -INF else -1, good[2]]
    logits[1] = -INF
    assert ops.sample_tokens(logits, state, rows, pool=pool)[1] == -1


def test_a_row_depends_on_its_sequence_alone(isa, dtype, pools):
    requests, logits = Requests(1025), logits_of("usual", 1025, dtype)
    expected = ops.sample_tokens(logits, requests.state, requests.rows, pool=pools[0])
    order = torch.tensor([5, 2, 19, 7, 0])
    for pool in pools:
        found = ops.sample_tokens(logits[order], requests.state, order.int(), pool=pool)
        assert_bitwise(found, expected[order])
    marks = requests.state.marks.clone()
    alone = [ops.sample_tokens(logits[i:i + 1], requests.state, requests.rows[i:i + 1],
                               pool=pools[0]) for i in range(len(OPTIONS))]
    assert_bitwise(torch.cat(alone), expected)
    assert_bitwise(requests.state.marks, marks)


def test_rows_without_a_sequence_are_skipped(isa, pool):
    state = ops.SamplingState.allocate(2, 5)
    logits = torch.tensor([[0.0, 3, 1, 2, 0]]).repeat(2, 1)
    status = torch.zeros(1, dtype=torch.int32)
    skipped = torch.tensor([-1, 1], dtype=torch.int32)
    found = ops.sample_tokens(logits, state, skipped, pool=pool, status=status)
    assert found.tolist() == [-1, 1] and status.item() == 0
    for index in [i for i in hostile_indices(2) if i != -1]:
        status.zero_()
        bad = torch.tensor([1, index], dtype=torch.int32)
        found = ops.sample_tokens(logits, state, bad, pool=pool, status=status)
        assert found.tolist() == [1, -1] and status.item() == 1
    assert ops.sample_tokens(logits[:0], state, skipped[:0], pool=pool).shape == (0,)


def test_notes_of_nothing_change_nothing(isa):
    state = ops.SamplingState.allocate(3, 7)
    state.begin(1, [2, 2], [6], draw_key=(0, 0))
    seqs = torch.tensor([1, -1, 2], dtype=torch.int32)
    state.note(seqs, torch.tensor([2, 5, -1], dtype=torch.int32))
    state.note(seqs, torch.tensor([2, 5, -1], dtype=torch.int32))
    both = ops.SampleMark.IN_PROMPT | ops.SampleMark.IN_ANSWER
    assert state.marks.tolist() == [[0] * 7, [0, 0, both, 0, 0, 0, ops.SampleMark.END_TOKEN],
                                    [0] * 7]
    assert state.counts[:, ops.SampleCount.NUM_NEW_TOKENS].tolist() == [0, 2, 0]
