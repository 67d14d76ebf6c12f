"""What the methods of the pre-decoder family keep in the engine, against their references."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest
import torch

from pydstp import Engine, EngineConfig, PruningConfig, SamplingParams, VisualTokens
from pydstp.kv_cache import SELECTED
from pydstp.pruning import Pruner, register_pruner
from tests.checkpoints import tiny_qwen3_vl
from tests.engine.oracle import picture
from tests.engine.selection import PROMPT, dstp
from tests.internvl_checkpoints import tiny_internvl
from tests.pruning.test_cdpruner import brute_force, literal_relevance
from tests.pruning.test_tower_methods import literal_prumerge, literal_vispruner, ranked, spans_of

MODELS = {"Qwen3-VL": tiny_qwen3_vl, "InternVL": tiny_internvl}
PICTURES = [picture(130, 100, 1), picture(64, 97, 2), picture(33, 200, 3)]
GREEDY = SamplingParams(temperature=0.0, max_new_tokens=6, ignore_eos=True)
SEEN: list[VisualTokens] = []


@register_pruner("witness")
@dataclass(frozen=True)
class Witness(Pruner):
    """Notes everything that a method before the decoder may be shown."""

    needs = frozenset({"vision_attention", "vision_keys", "text_embeddings"})

    def select(self, tokens: VisualTokens) -> torch.Tensor:
        SEEN.append(tokens)
        return tokens.top(tokens.vision_attention)


@pytest.fixture(scope="module", params=MODELS)
def engine(request) -> Iterator[Engine]:
    config = EngineConfig(max_batch=2, max_visual_tokens=384, max_text_tokens=256, num_threads=1)
    with Engine(MODELS[request.param](), dtype="float32", config=config) as engine:
        yield engine


def literal(name: str, tokens: VisualTokens) -> list[int]:
    """Which tokens stay, or give their places to merged ones."""
    if name == "fastervlm":
        scores = tokens.vision_attention.tolist()
        return sorted(i for span, k in spans_of(tokens) for i in ranked(span, scores)[:k])
    if name == "vispruner":
        return literal_vispruner(tokens, 0.5)
    if name == "prumerge":
        kept, targets, _, _ = literal_prumerge(tokens)
        return sorted(kept + targets)
    kept = []
    for span, k in spans_of(tokens):
        features = tokens.features[span]
        relevance = literal_relevance(features, tokens.text_embeddings)
        kept += [span[0] + i for i in brute_force(features, relevance, k)]
    return sorted(kept)


@pytest.mark.parametrize("ratio", [0.2, 1 / 3, 0.6])
@pytest.mark.parametrize("name", ["fastervlm", "vispruner", "cdpruner", "prumerge"])
def test_the_base_set_is_what_the_reference_chooses(engine, name, ratio) -> None:
    """Several pictures, tiles and thumbnails, with a policy and without."""
    engine.generate(PICTURES, PROMPT, GREEDY, pruning=PruningConfig("witness", ratio))
    tokens = SEEN[-1]
    config, cache = PruningConfig(name, ratio), engine._cache
    spans, quotas = config.quotas(tokens.grids)
    expected = literal(name, replace(tokens, spans=spans, quotas=quotas))
    for shift in (None, dstp(threshold=2.0, expand_steps=2)):
        answer = engine.generate(PICTURES, PROMPT, GREEDY, pruning=config, shift=shift)
        order, base = cache.prompt_order[0], cache.visible_slots(0, SELECTED).long()
        if shift is not None:
            base = cache.shift.base_indices[0, :int(cache.shift.base_len[0])].long()
        assert order[base].sort().values.tolist() == order[torch.tensor(expected)].tolist()
        assert answer.shift.kept == len(expected) == sum(quotas) < len(tokens)
        is_merged = base >= len(tokens)
        assert bool(is_merged.all()) == bool(is_merged.any()) == (name == "prumerge")
        assert (answer.shift.triggers > 0) == (shift is not None)
