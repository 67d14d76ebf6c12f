"""Sampling against transformers' logits processors, and its promises about randomness."""

import inspect

import numpy as np
import pytest
import torch
from transformers.generation import logits_process as hf

from pydstp.config import EngineConfig, SamplingParams
from pydstp.errors import OptionError, PydstpError
from pydstp.sampling import distribution, keyed_uniform, penalised, sample, token_logprob

VOCAB = 97


def resolved(**options):
    return SamplingParams(**options).resolve({})


def random_logits(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 3, VOCAB).astype(np.float32)


def draw(logits, params, new_ids=(), prompt_ids=(), blocked=(), key=(7, 0)):
    return sample(logits, params, prompt_ids=list(prompt_ids), new_ids=list(new_ids),
                  blocked_ids=list(blocked), draw_key=key)


def test_greedy_takes_the_lowest_index_among_equals():
    logits = np.zeros(VOCAB, dtype=np.float32)
    logits[[5, 60]] = 2.0
    assert draw(logits, resolved()) == 5


def test_logits_are_not_modified():
    logits = random_logits(0)
    before = logits.copy()
    draw(logits, resolved(repetition_penalty=1.3, temperature=0.7, top_k=5), prompt_ids=[1, 2])
    np.testing.assert_array_equal(logits, before)


@pytest.mark.parametrize("penalty", [0.5, 1.3])
def test_repetition_penalty_equals_the_reference(penalty):
    logits, prompt, new = random_logits(1), [3, 4, 4, 90], [5, 3]
    ours = penalised(logits, resolved(repetition_penalty=penalty), prompt, new, [])
    reference = hf.RepetitionPenaltyLogitsProcessor(penalty)
    theirs = reference(torch.tensor([prompt + new]), torch.tensor(logits)[None])[0]
    np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-6)


def test_presence_penalty_counts_new_tokens_once():
    logits = random_logits(2)
    ours = penalised(logits, resolved(presence_penalty=1.5), [1, 2], [7, 7, 9], [])
    expected = logits.copy()
    expected[[7, 9]] -= 1.5
    np.testing.assert_array_equal(ours, expected)


@pytest.mark.parametrize("options", [
    dict(temperature=0.7), dict(temperature=1.0, top_k=1), dict(temperature=1.0, top_k=13),
    dict(temperature=2.0, top_p=0.8), dict(temperature=0.5, top_p=0.01),
    dict(temperature=1.0, min_p=0.1), dict(temperature=0.9, top_k=20, top_p=0.8, min_p=0.02),
    dict(temperature=1.0, top_k=VOCAB + 5)])
def test_distribution_equals_the_reference(options):
    for seed in range(5):
        logits = random_logits(seed)
        chain = [hf.TemperatureLogitsWarper(options["temperature"])]
        if options.get("top_k"):
            chain.append(hf.TopKLogitsWarper(options["top_k"]))
        if options.get("top_p"):
            chain.append(hf.TopPLogitsWarper(options["top_p"]))
        if options.get("min_p"):
            chain.append(hf.MinPLogitsWarper(options["min_p"]))
        scores = torch.tensor(logits, dtype=torch.float64)[None]
        for warper in chain:
            scores = warper(torch.zeros(1, 1, dtype=torch.long), scores)
        expected = scores[0].softmax(-1).numpy()
        token_ids, probabilities = distribution(logits, resolved(**options))
        dense = np.zeros(VOCAB)
        dense[token_ids] = probabilities / probabilities.sum()
        np.testing.assert_allclose(dense, expected, atol=1e-12)
        assert (np.diff(probabilities) <= 0).all()


@pytest.mark.parametrize("temperature", [1e-3, 1e-300, 5e-324])
def test_a_tiny_temperature_is_greedy(temperature):
    logits = random_logits(6)
    assert draw(logits, resolved(temperature=temperature)) == logits.argmax()


def test_draws_follow_the_distribution():
    logits, params = random_logits(3), resolved(temperature=1.0, top_k=4)
    counts = np.zeros(VOCAB)
    for seed in range(3000):
        counts[draw(logits, params, key=(seed, 0))] += 1
    token_ids, probabilities = distribution(logits, params)
    expected = 3000 * probabilities / probabilities.sum()
    chi_square = ((counts[token_ids] - expected) ** 2 / expected).sum()
    assert counts.sum() == counts[token_ids].sum()
    assert chi_square < 16.3  # 0.999 quantile for 3 degrees of freedom


def test_draws_depend_on_seed_request_and_index_only():
    keys = [(1, 0, 0), (1, 0, 1), (1, 1, 0), (2, 0, 0), (2**64 - 1, 3, 1000)]
    values = [keyed_uniform(*key) for key in keys]
    assert len(set(values)) == len(values)
    assert values == [keyed_uniform(*key) for key in keys]
    assert all(0 <= value < 1 for value in values)


def test_blocked_tokens_never_come():
    logits = np.zeros(VOCAB, dtype=np.float32)
    logits[8] = 50.0
    assert draw(logits, resolved(), blocked=[8]) == 0
    assert draw(logits, resolved(temperature=1.0), blocked=[8]) != 8


@pytest.mark.parametrize("options", [{}, dict(temperature=0.8, top_k=5)])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_logits_that_are_not_finite_are_an_error(options, value):
    logits = random_logits(4)
    logits[11] = value
    with pytest.raises(PydstpError, match="finite"):
        draw(logits, resolved(**options))


def test_logprobs_are_the_models_own():
    logits = random_logits(5)
    entry = token_logprob(logits, 42, 3)
    reference = torch.tensor(logits, dtype=torch.float64).log_softmax(-1)
    assert entry.logprob == pytest.approx(float(reference[42]), abs=1e-9)
    values, ids = reference.topk(3)
    assert [token_id for token_id, _ in entry.top] == ids.tolist()
    assert [logprob for _, logprob in entry.top] == pytest.approx(values.tolist(), abs=1e-9)


def test_none_is_filled_from_the_generation_config():
    file = {"do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.95}
    params = SamplingParams(top_k=3).resolve(file)
    assert (params.temperature, params.top_k, params.top_p) == (0.6, 3, 0.95)
    assert (params.min_p, params.repetition_penalty) == (0.0, 1.0)
    assert SamplingParams().resolve({"temperature": 0.6}).temperature == 0.0
    assert SamplingParams(temperature=0.5).resolve(file).top_p == 0.95


@pytest.mark.parametrize("options, name", [
    (dict(temperature=-0.1), "temperature"), (dict(temperature=float("nan")), "temperature"),
    (dict(temperature="hot"), "temperature"), (dict(top_k=-1), "top_k"), (dict(top_k=1.5), "top_k"),
    (dict(top_p=0.0), "top_p"), (dict(top_p=1.1), "top_p"), (dict(min_p=2), "min_p"),
    (dict(repetition_penalty=0), "repetition_penalty"), (dict(presence_penalty=1e9), "presence"),
    (dict(seed=-1), "seed"), (dict(seed=2**64), "seed"), (dict(max_new_tokens=0), "max_new_tokens"),
    (dict(max_new_tokens=True), "max_new_tokens"), (dict(min_new_tokens=-1), "min_new_tokens"),
    (dict(max_new_tokens=2, min_new_tokens=3), "min_new_tokens"), (dict(stop=[""]), "stop"),
    (dict(stop=5), "stop"), (dict(stop=["a", 1]), "stop"), (dict(logprobs=-1), "logprobs"),
    (dict(ignore_eos="yes"), "ignore_eos")])
def test_values_out_of_range_are_refused_by_name(options, name):
    with pytest.raises(OptionError, match=name):
        SamplingParams(**options)


@pytest.mark.parametrize("kind", [SamplingParams, EngineConfig])
def test_an_unknown_option_is_refused_by_name(kind):
    with pytest.raises(OptionError, match="got 'temprature'"):
        kind(temprature=1.0)
    assert "max_" in str(inspect.signature(kind))
