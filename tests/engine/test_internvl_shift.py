"""Pruning and DSTP on InternVL: tiles as spans, the class token's scores, all methods, batches."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from pydstp import DSTP, Engine, EngineConfig, PruningConfig, SamplingParams, register_pruner
from pydstp.pruning import Pruner, VisualTokens
from tests.engine.internvl_oracle import prompt_inputs
from tests.engine.oracle import picture, user
from tests.engine.selection import (
    ALL_METHODS,
    METHODS,
    dstp,
    method,
    reserve_rows,
    same,
    selecting,
)
from tests.internvl_checkpoints import (
    IMAGE_TOKEN_ID,
    TOKENS_PER_TILE,
    internvl_reference,
    tiny_internvl,
)
from tests.models.internvl_inputs import in_blocks

TEXT = "Read the words on the sign, please."
WIDE = picture(300, 100)  # 3 tiles and a thumbnail
MANY = picture(400, 300)  # 12 tiles and a thumbnail
GREEDY = SamplingParams(temperature=0.0, max_new_tokens=16, ignore_eos=True, logprobs=4)
SEEN: list[VisualTokens] = []


@register_pruner("every_third_of_internvl")
@dataclass(frozen=True)
class EveryThird(Pruner):
    """Keeps tokens 0, 3, 6 ... of a span and notes what it was shown."""

    needs = frozenset({"vision_attention", "vision_keys"})

    def select(self, tokens: VisualTokens) -> torch.Tensor:
        SEEN.append(tokens)
        return torch.cat([torch.arange(span.start, span.stop)[::3][:quota]
                          for span, quota in tokens.each_span()])


def open_engine(**options: object) -> Engine:
    config = EngineConfig(max_batch=4, max_visual_tokens=256, max_text_tokens=256, num_threads=1)
    return Engine(tiny_internvl(**options), dtype="float32", config=config)


@pytest.fixture(scope="module")
def engine():
    with open_engine() as engine:
        yield engine


def third(ratio: float = 1 / 3) -> PruningConfig:
    return PruningConfig("every_third_of_internvl", retention_ratio=ratio)


def test_every_tile_and_the_thumbnail_are_spans(engine):
    SEEN.clear()
    engine.generate([WIDE, picture(40, 40)], TEXT, GREEDY, pruning=third())
    tokens = SEEN[-1]
    assert tokens.grids == ((3, 3),) * 5
    assert tokens.spans == tuple((9 * tile, 9) for tile in range(5))
    assert tokens.quotas == (3,) * 5


def test_scores_come_from_the_class_token_of_each_tile(engine):
    SEEN.clear()
    engine.generate(WIDE, TEXT, GREEDY, pruning=third())
    path = tiny_internvl()
    pixels = prompt_inputs(path, [user(TEXT, 1)], [WIDE])["pixel_values"]
    with torch.inference_mode():
        tower = internvl_reference(path).model.vision_tower
        attention = tower(pixels, output_attentions=True).attentions[-2]
    expected = in_blocks(attention[:, :, 0, 1:].mean(dim=1)).reshape(-1, 4).mean(dim=1)
    assert torch.allclose(SEEN[-1].vision_attention, expected, atol=1e-6)
    visionzip = PruningConfig("visionzip", retention_ratio=1 / 3, prune_only=True)
    chosen = visionzip.pruner.select(SEEN[-1]).kept
    best = [9 * tile + torch.sort(scores.topk(3).indices).values
            for tile, scores in enumerate(expected.split(TOKENS_PER_TILE))]
    assert torch.equal(chosen, torch.cat(best))


@torch.inference_mode()
def pruned_oracle(path, image, num_tokens: int) -> list[int]:
    """transformers on the tokens that are left, at the positions they had; no cache."""
    model = internvl_reference(path)
    inputs = prompt_inputs(path, [user(TEXT, 1)], [image])
    ids = inputs["input_ids"]
    x = model.get_input_embeddings()(ids)
    features = model.get_image_features(inputs["pixel_values"]).pooler_output
    features = torch.cat(list(features)).reshape(-1, x.shape[-1])
    is_visual = ids[0] == IMAGE_TOKEN_ID
    x[0, is_visual] = features
    visual = is_visual.nonzero().squeeze(1)
    left = ~is_visual
    left[visual.view(-1, TOKENS_PER_TILE)[:, ::3].flatten()] = True
    positions = left.nonzero().T
    x, answer = x[:, left], []
    for step in range(num_tokens):
        hidden = model.model.language_model(inputs_embeds=x, position_ids=positions)
        answer.append(int(model.lm_head(hidden.last_hidden_state[0, -1]).argmax()))
        token = model.get_input_embeddings()(torch.tensor([[answer[-1]]]))
        x = torch.cat([x, token], dim=1)
        positions = torch.cat([positions, torch.tensor([[ids.shape[1] + step]])], dim=1)
    return answer


@pytest.mark.parametrize("image", [WIDE, MANY], ids=["4 tiles", "13 tiles"])
@pytest.mark.parametrize("options", [{}, {"tower": "6B", "moe": True}], ids=str)
def test_kept_tokens_keep_their_positions(options, image):
    path = tiny_internvl(**options)
    with open_engine(**options) as engine:
        run = engine.generate(image, TEXT, GREEDY, pruning=third())
    assert run.shift.kept == run.visual_tokens // 3
    assert run.token_ids == pruned_oracle(path, image, 16)


@pytest.mark.parametrize("name", ALL_METHODS)
def test_retention_one_is_no_pruning_bit_for_bit(engine, name):
    plain = engine.generate(WIDE, TEXT, GREEDY)
    kept = engine.generate(WIDE, TEXT, GREEDY, pruning=method(name, 1.0), shift=dstp(threshold=2.0))
    assert same(plain, kept)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("applies", ["next", "redo"])
def test_lazy_deferred_and_side_agree(engine, name, applies):
    runs, rows = [], []
    for reserve in ("side", "lazy", "deferred"):
        policy = dstp(threshold=1.1, expand_steps=2, applies=applies)
        runs.append(engine.generate(WIDE, TEXT, GREEDY, pruning=method(name), shift=policy,
                                    reserve=reserve, log_steps=True))
        rows.append(reserve_rows(engine._cache))
        assert runs[-1].shift.triggers > 0
    assert same(runs[0], runs[1]) and same(runs[0], runs[2])
    assert torch.equal(rows[0], rows[1]) and torch.equal(rows[0], rows[2])


@pytest.mark.parametrize("name", METHODS)
def test_showing_everything_at_once_is_no_pruning(engine, name):
    """From the second step on a swap that shows all, over a reserve of an unpruned prompt."""
    base = selecting(name)
    policy = DSTP(trigger="every", swap="full", applies="redo", monitor_layers="post_prune")
    shown = engine.generate(WIDE, TEXT, GREEDY, pruning=base, shift=policy, reserve="full")
    assert shown.token_ids == engine.generate(WIDE, TEXT, GREEDY).token_ids
    assert shown.shift.kept < shown.shift.num_visual


@pytest.mark.parametrize("first", range(0, len(ALL_METHODS), 4))
@pytest.mark.parametrize("options", [{}, {"tower": "6B", "moe": True, "tied": True}], ids=str)
def test_a_batch_of_many_tiles_is_each_alone(options, first):
    images = [MANY, [WIDE, picture(40, 40)], None, WIDE]
    methods = [method(name) for name in (2 * list(ALL_METHODS))[first:first + 4]]
    policies = [dstp(threshold=1.1, expand_steps=2), None, dstp(threshold=0.9, applies="redo"),
                dstp(trigger="random", trigger_rate=0.5, seed=3)]
    with open_engine(**options) as engine:
        alone = [engine.generate(image, TEXT, GREEDY, pruning=one, shift=policy)
                 for image, one, policy in zip(images, methods, policies, strict=True)]
        batch = engine.generate(images, [TEXT] * 4, GREEDY, pruning=methods, shift=policies)
    assert all(same(*pair) for pair in zip(alone, batch, strict=True))
    assert [run.visual_tokens for run in batch] == [117, 45, 0, 36]
    assert [one.shift.trigger_steps for one in alone] == [one.shift.trigger_steps for one in batch]


def test_a_chat_prunes_the_tiles_of_every_turn(engine):
    with engine.chat(pruning=third(), shift=dstp(threshold=1.1)) as chat:
        first = chat.send(TEXT, WIDE, GREEDY)
        second = chat.send("And here?", MANY, GREEDY)
    assert first.shift.kept == 12
    assert second.cached_tokens > 0 and second.shift.num_visual == 36 + 117
