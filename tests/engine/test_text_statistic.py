"""The words that a method sees: those of the last user message, as the model embeds them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
from transformers import AutoTokenizer

from pydstp import Engine, EngineConfig, PruningConfig, SamplingParams, VisualTokens
from pydstp.pruning import Pruner, register_pruner
from tests.checkpoints import reference_model, tiny_qwen3_vl
from tests.compare import assert_bitwise
from tests.engine.oracle import picture
from tests.internvl_checkpoints import internvl_reference, tiny_internvl

GREEDY = SamplingParams(temperature=0.0, max_new_tokens=3, ignore_eos=True)
MODELS = {"Qwen3-VL": (tiny_qwen3_vl, reference_model), "InternVL": (tiny_internvl,
                                                                    internvl_reference)}
SEEN: list[VisualTokens] = []


@register_pruner("reader")
@dataclass(frozen=True)
class Reader(Pruner):
    """Keeps the first tokens of each span and notes what it was shown."""

    reads: bool = True
    layer: int = 0

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"text_embeddings"} if self.reads else {})

    @property
    def act_before(self) -> int:
        return self.layer

    def select(self, tokens: VisualTokens) -> torch.Tensor:
        SEEN.append(tokens)
        return tokens.top(torch.zeros(len(tokens)))


@pytest.fixture(scope="module", params=MODELS)
def told(request) -> Iterator[tuple[Engine, object]]:
    """An engine, and what transformers' own files and weights make of a text."""
    make, reference = MODELS[request.param]
    path = make()
    tokenizer, table = AutoTokenizer.from_pretrained(path), reference(path).get_input_embeddings()

    def embedded(text: str) -> torch.Tensor:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        with torch.inference_mode():
            return table(torch.tensor(ids, dtype=torch.int64))
    config = EngineConfig(max_batch=2, max_visual_tokens=256, max_text_tokens=256, num_threads=1)
    with Engine(path, dtype="float32", config=config) as engine:
        yield engine, embedded


@pytest.fixture(autouse=True)
def _nothing_seen() -> None:
    SEEN.clear()


def reader(**options: object) -> PruningConfig:
    return PruningConfig("reader", retention_ratio=0.5, **options)


def test_a_prompt_of_one_text(told) -> None:
    engine, embedded = told
    for text in ("What is in row 2?", "Look", " a  b\n\nc "):
        for layer in (0, 2):
            engine.generate(picture(96, 96), text, GREEDY, pruning=reader(layer=layer))
            assert_bitwise(SEEN[-1].text_embeddings, embedded(text))


def test_messages_and_turns(told) -> None:
    engine, embedded = told
    messages = [{"role": "system", "content": "Be brief."},
                {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Here?"}]},
                {"role": "assistant", "content": "Yes."},
                {"role": "user", "content": [
                    {"type": "text", "text": "And"}, {"type": "image"},
                    {"type": "text", "text": "this one?"}]}]
    engine.generate([picture(96, 96), picture(64, 64)], messages, GREEDY, pruning=reader())
    words = torch.cat([embedded("And"), embedded("this one?")])
    assert_bitwise(SEEN[-1].text_embeddings, words)
    with engine.chat(pruning=reader()) as chat:
        chat.send("What is it?", picture(96, 96), GREEDY)
        chat.send("And that?", picture(64, 64), GREEDY)
    for tokens, text in zip(SEEN[-2:], ("What is it?", "And that?"), strict=True):
        assert_bitwise(tokens.text_embeddings, embedded(text))


def test_names_of_control_tokens_are_words(told) -> None:
    engine, _ = told
    engine.generate(picture(96, 96), "<|im_end|>", GREEDY, pruning=reader())
    assert len(SEEN[-1].text_embeddings) > 1


def test_a_message_without_words_and_a_method_that_does_not_read(told) -> None:
    engine, _ = told
    only = [{"role": "user", "content": [{"type": "image"}]}]
    engine.generate(picture(96, 96), only, GREEDY, pruning=reader())
    assert SEEN[-1].text_embeddings.shape == (0, SEEN[-1].features.shape[1])
    answer = engine.generate(picture(96, 96), only, GREEDY, pruning=PruningConfig("cdpruner", 0.5))
    assert answer.shift.kept < answer.visual_tokens
    engine.generate(picture(96, 96), "Look.", GREEDY, pruning=reader(reads=False))
    assert SEEN[-1].text_embeddings is None


def test_every_request_of_a_batch_has_its_own_words(told) -> None:
    engine, embedded = told
    texts = ["What is it?", "Where is the red one, if there is any?"]
    pruning = [PruningConfig("cdpruner", 0.3)] * 2
    images = [picture(160, 128, 1)] * 2
    alone = [engine.generate(images[0], text, GREEDY, pruning=pruning[0]) for text in texts]
    batch = engine.generate(images, texts, GREEDY, pruning=pruning)
    assert [row.token_ids for row in batch] == [row.token_ids for row in alone]
    engine.generate(images, texts, GREEDY, pruning=[reader()] * 2)
    found = {len(tokens.text_embeddings): tokens.text_embeddings for tokens in SEEN}
    for text in texts:
        assert_bitwise(found[len(embedded(text))], embedded(text))
