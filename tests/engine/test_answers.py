"""How an answer ends, what it carries, and how it is streamed."""

import json
import random

import pytest

from pydstp.config import EngineConfig, SamplingParams
from pydstp.engine import Engine
from pydstp.sequence import AnswerText, split_reasoning
from tests.checkpoints import tiny_qwen3_vl
from tests.engine.oracle import picture


@pytest.fixture(scope="module")
def engine():
    with Engine(tiny_qwen3_vl(), config=EngineConfig(max_batch=2)) as engine:
        yield engine


def sampled(**options) -> SamplingParams:
    return SamplingParams(**{**dict(temperature=1.5, seed=5, max_new_tokens=24), **options})


def test_pieces_of_a_stream_make_up_the_text(engine):
    for seed in range(2):
        params = sampled(seed=seed, ignore_eos=True)
        whole = engine.generate(picture(64, 64), "Look.", params)
        stream = engine.stream(picture(64, 64), "Look.", params)
        pieces = list(stream)
        assert stream.generation.token_ids == whole.token_ids
        assert "".join(pieces) == stream.generation.text == whole.text
        assert all(pieces) and len(pieces) > 3
        "".join(pieces).encode("utf-8")


def test_the_callback_gets_the_same_pieces(engine):
    texts = {0: "", 1: ""}

    def collect(piece, index):
        texts[index] += piece

    batch = engine.generate(None, ["One.", "Two."], sampled(), callback=collect)
    assert [texts[0], texts[1]] == [generation.text for generation in batch]


def test_every_end_token_ends_the_answer(engine):
    reasons = set()
    for seed in range(12):
        if len(reasons) == 2:
            break
        generation = engine.generate(None, "Go on.", sampled(temperature=3.0, seed=seed,
                                                             max_new_tokens=200))
        if generation.finish_reason == "stop":
            reasons.add(generation.stop_reason)
            assert generation.token_ids[-1] == generation.stop_reason
            assert generation.stop_reason not in generation.token_ids[:-1]
    assert len(reasons) == 2, f"both end tokens should come up, got {reasons}"
    ignored = engine.generate(None, "Go on.", sampled(temperature=3.0, ignore_eos=True,
                                                      max_new_tokens=200))
    assert ignored.finish_reason == "length" and len(ignored.token_ids) == 200


def test_min_new_tokens_holds_the_end_back(engine):
    for seed in range(3):
        generation = engine.generate(None, "Go on.", sampled(
            temperature=3.0, seed=seed, max_new_tokens=200, min_new_tokens=150))
        assert len(generation.token_ids) >= 150


def test_a_stop_string_ends_the_answer_before_itself(engine):
    params = sampled(ignore_eos=True, max_new_tokens=60)
    text = engine.generate(None, "Go on.", params).text
    middle = len(text) // 2
    stop = text[middle:middle + 4]
    first = text.index(stop)
    stream = engine.stream(None, "Go on.", sampled(ignore_eos=True, max_new_tokens=60,
                                                   stop=["never said", stop]))
    assert "".join(stream) == text[:first]
    assert stream.generation.text == text[:first]
    assert (stream.generation.finish_reason, stream.generation.stop_reason) == ("stop", stop)


class Characters:
    """A stream decoder whose tokens are single characters."""

    def push(self, token_id):
        return chr(token_id)

    def finish(self):
        return ""


@pytest.mark.parametrize("seed", range(50))
def test_stop_strings_are_found_wherever_they_are_cut(seed):
    rng = random.Random(seed)
    text = "".join(rng.choice("ab") for _ in range(40))
    stop = tuple("".join(rng.choice("ab") for _ in range(rng.randint(1, 6))) for _ in range(2))
    answer, shown = AnswerText(Characters(), stop), ""
    for character in text:
        shown += answer.push(ord(character))
        if answer.stop_string:
            break
    shown += answer.finish()
    ends = [text.find(s) + len(s) for s in stop if s in text]
    if not ends:
        assert shown == answer.text == text
    else:
        # The stop string that is complete first ends the answer, before its first character.
        done = text[:min(ends)]
        assert shown == answer.text == done[:min(done.find(s) for s in stop if s in done)]


def test_logprobs_come_on_request(engine):
    params = SamplingParams(temperature=0, max_new_tokens=5, logprobs=3)
    generation = engine.generate(None, "Hello.", params)
    assert len(generation.logprobs) == len(generation.token_ids)
    for entry, token_id in zip(generation.logprobs, generation.token_ids, strict=True):
        assert entry.token_id == token_id == entry.top[0][0]  # greedy takes the best one
        assert len(entry.top) == 3 and entry.logprob <= 0
    assert engine.generate(None, "Hello.", SamplingParams(max_new_tokens=5)).logprobs is None


@pytest.mark.parametrize("prompt, answer, expected", [
    ("assistant\n", "A cat.", (None, "A cat.")),
    ("assistant\n", "odd </think> text", (None, "odd </think> text")),
    ("assistant\n<think>\n", "I see.\n</think>\n\nA cat.", ("I see.", "A cat.")),
    ("assistant\n<think>\n", "I see", ("I see", "")),
    ("assistant\n", "<think>\nI see.\n</think>\n\nA cat.", ("I see.", "A cat.")),
    ("assistant\n", "<think>\nI see", ("I see", ""))])
def test_reasoning_is_split_off(prompt, answer, expected):
    assert split_reasoning(prompt, answer) == expected


def test_an_answer_cut_off_while_thinking_is_all_reasoning():
    with Engine(tiny_qwen3_vl(thinking=True)) as engine:
        generation = engine.generate(None, "Think.", sampled(max_new_tokens=3, ignore_eos=True))
    assert generation.text == "" and generation.reasoning is not None


def test_a_result_is_plain_data(engine):
    generation = engine.generate(picture(64, 64), "Hello.", sampled(logprobs=1))
    data = json.loads(json.dumps(generation.to_dict()))
    assert data["token_ids"] == generation.token_ids
    assert data["timings"]["total_ms"] >= data["timings"]["time_to_first_token_ms"] > 0
    timings = generation.timings
    phases = timings.preprocess_ms + timings.vision_ms + timings.prefill_ms
    assert phases <= timings.time_to_first_token_ms
    assert generation.seed == 5
    greedy = SamplingParams(temperature=0, max_new_tokens=1)
    assert engine.generate(None, "Hello.", greedy).seed is None
