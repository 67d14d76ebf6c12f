"""LOOK-M from end to end, on both families: transformers' layers read the prompt, loops over plain
numbers make the keys and values of each layer and head fewer, and its layers go on from there."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

from pydstp import Engine, EngineConfig, PruningConfig, SamplingParams
from tests.checkpoints import reference_model, tiny_qwen3_vl
from tests.engine import internvl_oracle, oracle
from tests.engine.layer_oracle import Request
from tests.engine.selection import same
from tests.internvl_checkpoints import internvl_reference, tiny_internvl
from tests.pruning.plain_staged_methods import look_m

TEXT = "Which of the two is larger, and why?"
PICTURES = {"qwen3_vl": [oracle.picture(130, 100, 1), oracle.picture(97, 161, 2)],
            "internvl": [oracle.picture(300, 100, 3), oracle.picture(84, 84, 4)]}
GREEDY = SamplingParams(temperature=0.0, repetition_penalty=1.0, max_new_tokens=8,
                        ignore_eos=True, logprobs=5)
every_family = pytest.mark.parametrize("family", PICTURES)
every_merge = pytest.mark.parametrize("merge", ["pivot", "average", "weighted", "none"])


@pytest.fixture(scope="module")
def engines() -> Iterator[dict[str, Engine]]:
    config = EngineConfig(max_batch=4, max_visual_tokens=160, max_text_tokens=256, num_threads=1)
    opened = {"qwen3_vl": Engine(tiny_qwen3_vl(), dtype="float32", config=config),
              "internvl": Engine(tiny_internvl(), dtype="float32", config=config)}
    yield opened
    for engine in opened.values():
        engine.close()


class Told:
    """A conversation: the cache of each prompt is made smaller, and later rows read what is left.

    turns: (first row, end) of each prompt; rows between two of them were generated.
    """

    def __init__(self, family: str, inputs: dict, turns: list[tuple[int, int]], *, ratio: float,
                 merge: str, by_picture: bool) -> None:
        model = reference_model(tiny_qwen3_vl()) if family == "qwen3_vl" else internvl_reference(
            tiny_internvl())
        self.request, self.merge, self.ratio = Request(model, inputs, 0), merge, ratio
        self.by_picture = by_picture
        num_layers = len(self.request.text.layers)
        self.past: list[tuple[list[Tensor], list[Tensor]]] = [([], []) for _ in range(num_layers)]
        rows, start = self.request.prompt, 0
        for first, end in turns:
            for row in range(start, first):  # one by one, as they were written
                self.run(rows.x[row:row + 1], rows.positions[..., row:row + 1], [])
            maps = [values[first:end] for values in rows.maps]
            self.x = self.run(rows.x[first:end], rows.positions[..., first:end], maps)
            self.compact(first, end)
            start = end

    def run(self, x: Tensor, positions: Tensor, maps: list[Tensor]) -> Tensor:
        """Rows that see the whole cache, and each other causally; they enter the cache."""
        text = self.request.text
        module = sys.modules[type(text).__module__]
        attend, n = module.eager_attention_forward, len(x)
        tables = text.rotary_emb(x[None], positions.unsqueeze(-2))
        self.seen: list[Tensor] = []  # attention of each layer, [num_heads, n, num_seen]
        for i, layer in enumerate(text.layers):
            keys, values = self.past[i]

            def joined(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor,
                       *args: Any, keys: list = keys, values: list = values,
                       **kwargs: Any) -> Any:
                keys.append(key[0])
                values.append(value[0])
                out, weights = attend(module, query, torch.cat(keys, 1)[None],
                                      torch.cat(values, 1)[None], mask, *args, **kwargs)
                self.seen.append(weights[0])
                return out, weights
            old = sum(part.shape[1] for part in keys)
            mask = torch.cat([torch.zeros(n, old), torch.full((n, n), -torch.inf).triu(1)], dim=1)
            with mock.patch.object(module, "eager_attention_forward", joined):
                out = layer(x[None], attention_mask=mask[None, None], position_embeddings=tables)
            x = out[0] + maps[i] if i < len(maps) else out[0]
        return x

    def compact(self, first: int, end: int) -> None:
        """The last run was a prompt: what is left of it."""
        visual = [row - first for row in self.request.visual.tolist() if first <= row < end]
        if not visual:
            return
        start, parts = 0, []
        for rows, cols in self.request.grids:
            row = int(self.request.visual[start])
            start += rows * cols
            if first <= row < end:
                parts.append(rows * cols)
        if not self.by_picture:
            parts = [sum(parts)]
        spans = [(sum(parts[:i]), size, max(1, int(self.ratio * size + 0.5)))
                 for i, size in enumerate(parts)]
        for (keys, values), weights in zip(self.past, self.seen, strict=True):
            key, value = keys.pop(), values.pop()
            heads = key.shape[0]
            sums = weights[:, :, -(end - first):].double().sum(dim=1)
            sums = sums.view(heads, -1, end - first).mean(dim=1)
            left = [look_m(key[h].double().tolist(), value[h].double().tolist(),
                           sums[h].tolist(), visual, spans, self.merge) for h in range(heads)]
            keys.append(torch.tensor([table for _, table, _ in left]))
            values.append(torch.tensor([table for _, _, table in left]))

    def greedy(self, num_tokens: int) -> list[int]:
        """Tokens that follow the last prompt."""
        model, ids = self.request.model, []
        place = int(self.request.prompt.positions.max())
        x = self.x
        while True:
            ids.append(int(model.lm_head(self.request.text.norm(x[-1:])).argmax()))
            if len(ids) == num_tokens:
                return ids
            positions = torch.full_like(self.request.prompt.positions[..., :1], place + len(ids))
            x = self.run(model.get_input_embeddings()(torch.tensor([ids[-1]])), positions, [])


def inputs_of(family: str, messages: list[dict], pictures: list) -> dict:
    if family == "qwen3_vl":
        return oracle.prompt_inputs(tiny_qwen3_vl(), messages, pictures)
    return internvl_oracle.prompt_inputs(tiny_internvl(), messages, pictures)


@every_family
@every_merge
@pytest.mark.parametrize("quota", ["global", "span"])
@torch.inference_mode()
def test_answers_are_those_of_the_definition(engines, family, merge, quota) -> None:
    pictures = PICTURES[family]
    config = PruningConfig("look_m", 0.3, merge=merge, quota=quota)
    engine = engines[family]
    run = engine.generate(pictures, TEXT, GREEDY, pruning=config)
    inputs = inputs_of(family, [oracle.user(TEXT, len(pictures))], pictures)
    told = Told(family, inputs, [(0, inputs["input_ids"].shape[1])], ratio=0.3, merge=merge,
                by_picture=quota == "span")
    assert run.token_ids == told.greedy(8)
    _, quotas = config.quotas(told.request.grids)
    assert run.shift.kept == run.resident_tokens == sum(quotas) < run.visual_tokens
    assert run.shift.mean_visible == run.shift.mean_visible_all_layers == pytest.approx(
        sum(quotas) / run.visual_tokens)
    assert run.shift.reserve is None and run.shift.policy == "none"


@every_family
def test_the_prompt_sees_everything(engines, family) -> None:
    """So the first token is that of no pruning; the second is not."""
    whole = engines[family].generate(PICTURES[family], TEXT, GREEDY)
    run = engines[family].generate(PICTURES[family], TEXT, GREEDY,
                                   pruning=PruningConfig("look_m", 0.1))
    assert run.logprobs[0].logprob == pytest.approx(whole.logprobs[0].logprob, abs=1e-5)
    assert run.token_ids[0] == whole.token_ids[0] and run.logprobs[1] != whole.logprobs[1]


@every_family
@torch.inference_mode()
def test_a_second_turn_with_a_second_picture(engines, family) -> None:
    """Rows of the turn before are read as they were left, and not written to."""
    first, second = PICTURES[family]
    with engines[family].chat(pruning=PruningConfig("look_m", 0.3)) as chat:
        before = chat.send("What is it?", [first], replace(GREEDY, max_new_tokens=4))
        run = chat.send(TEXT, [second], GREEDY)
        inputs = inputs_of(family, chat.messages[:3], [first, second])
        assert before.prompt_tokens <= run.cached_tokens
        turns = [(0, before.prompt_tokens), (run.cached_tokens, inputs["input_ids"].shape[1])]
        told = Told(family, inputs, turns, ratio=0.3, merge="pivot", by_picture=False)
        assert run.token_ids == told.greedy(8)


@every_family
def test_a_batch_of_four_is_each_alone(engines, family) -> None:
    pictures, engine = PICTURES[family], engines[family]
    methods = [PruningConfig("look_m", 0.3), None, PruningConfig("fastv", 0.3, layer=1),
               PruningConfig("look_m", 0.5, merge="average")]
    alone = [engine.generate(pictures, TEXT, GREEDY, pruning=pruning) for pruning in methods]
    batch = engine.generate([pictures] * 4, [TEXT] * 4, GREEDY, pruning=methods)
    assert all(same(one, row) for one, row in zip(alone, batch, strict=True))
