"""The plain model itself: against transformers, and against what DSTP promises."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import Tensor

from tests.checkpoints import reference_model, tiny_qwen3_vl
from tests.engine.oracle import greedy, picture, prompt_inputs, user
from tests.shift.plain_model import PlainModel, PlainResult, decode
from tests.shift.plain_policy import PlainDSTP, View
from tests.shift.plain_prompt import encode_prompt, vision_statistics
from tests.shift.plain_pruning import PlainPruning, divprune, fastv, visionzip

OPTIONS = [(), (("tied", False), ("wide_queries", True)), (("moe", True),)]
TEXT = "What is in the picture?"
SIZES = ((97, 64, 1), (130, 90, 2))
STEPS = 14
TOLERANCE = 1e-5  # times max(1, largest value)


@cache
def setting(options: tuple = (), sizes: tuple = SIZES):
    path = tiny_qwen3_vl(**dict(options))
    images = [picture(*size) for size in sizes]
    inputs = prompt_inputs(path, [user(TEXT, len(images))], images)
    model = reference_model(path)
    with torch.inference_mode():
        return model, inputs, encode_prompt(model, inputs)


@cache
def prunings(options: tuple = ()) -> dict[str, PlainPruning]:
    model, inputs, prompt = setting(options)
    with torch.inference_mode():
        statistics = vision_statistics(model, inputs)
        zipped = visionzip(prompt, statistics, 0.4)
        return {"fastv1": fastv(model, prompt, 0.33, 1), "fastv2": fastv(model, prompt, 0.5, 2),
                "fastv3": fastv(model, prompt, 0.2, 3), "divprune": divprune(prompt, 0.33),
                "visionzip": zipped, "merged1": replace(zipped, layer=1)}


NAMES = ("fastv1", "fastv2", "fastv3", "divprune", "visionzip", "merged1")


def run(name: str | None, dstp: PlainDSTP | None = None, reserve: str = "side",
        options: tuple = ()) -> PlainResult:
    model, _, prompt = setting(options)
    pruning = None if name is None else prunings(options)[name]
    return decode(model, prompt, pruning, dstp, reserve=reserve, num_tokens=STEPS)


def near(actual: Tensor, expected: Tensor) -> bool:
    return float((actual - expected).abs().max() / expected.abs().max().clamp(min=1)) < TOLERANCE


# transformers' own layers, with additive masks and rows taken away

@torch.inference_mode()
def their_layers(model, x: Tensor, positions: Tensor, mask: Tensor, layers: range,
                 deepstack: list[Tensor]) -> Tensor:
    """mask: bool [n, n] or one such per layer."""
    text = model.model.language_model
    tables = text.rotary_emb(x.unsqueeze(0), positions.unsqueeze(1))
    x = x.unsqueeze(0)
    for layer in layers:
        seen = mask[layer] if mask.ndim == 3 else mask
        additive = torch.zeros(seen.shape).masked_fill(~seen, -torch.inf)[None, None]
        x = text.layers[layer](x, attention_mask=additive, position_embeddings=tables)
        if layer < len(deepstack):
            x = x + deepstack[layer]
    return x[0]


@torch.inference_mode()
def their_logits(model, x: Tensor) -> Tensor:
    return model.lm_head(model.model.language_model.norm(x))


@torch.inference_mode()
def dropped_form(name: str, tokens: list[int], options: tuple) -> Tensor:
    """Logits of the last prompt row and of the generated ones when the reserve is really gone from
    the pruning point on: rows are taken out, pseudo tokens take the places of their targets."""
    model, _, prompt = setting(options)
    pruning = prunings(options)[name]
    embedded = model.model.language_model.embed_tokens(torch.tensor(tokens))
    end = prompt.next_position
    positions = torch.cat([prompt.positions, torch.arange(end, end + len(tokens)).expand(3, -1)], 1)
    x, n = torch.cat([prompt.x, embedded]), len(prompt.ids) + len(tokens)
    maps = []
    for values in prompt.deepstack:
        maps.append(torch.zeros(n, x.shape[1]))
        maps[-1][prompt.visual_rows] = values
    causal = torch.ones(n, n, dtype=torch.bool).tril()
    x = their_layers(model, x, positions, causal, range(pruning.layer), maps)

    def compact(rows: Tensor) -> Tensor:
        visual, rows = rows[prompt.visual_rows], rows.clone()
        for p, target in enumerate(pruning.targets):
            rows[prompt.visual_rows[target]] = visual[target] + pruning.weights[p] @ visual
        return rows[left]

    gone = {prompt.visual_rows[slot] for slot in range(len(prompt.visual_rows))
            if slot not in (*pruning.kept, *pruning.targets)}
    left = [row for row in range(n) if row not in gone]
    x = their_layers(model, compact(x), positions[:, left], causal[: len(left), : len(left)],
                     range(pruning.layer, len(model.model.language_model.layers)),
                     [compact(rows) for rows in maps])
    return their_logits(model, x[-len(tokens) - 1:])


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("sizes", [(), SIZES[:1], SIZES], ids=len)
def test_without_pruning_it_is_transformers(options, sizes):
    model, inputs, prompt = setting(options, sizes)
    result = decode(model, prompt, None, None, num_tokens=STEPS)
    images = [picture(*size) for size in sizes]
    assert result.tokens == greedy(tiny_qwen3_vl(**dict(options)), [user(TEXT, len(images))],
                                   images, STEPS)
    ids = torch.cat([inputs["input_ids"], torch.tensor([result.tokens[:-1]])], dim=1)
    whole = {**inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids),
             "mm_token_type_ids": (ids == model.config.image_token_id).int()}
    with torch.inference_mode():
        assert near(result.logits, model(**whole).logits[0, -STEPS:])


def test_positions_are_those_of_transformers():
    model, inputs, prompt = setting((), (*SIZES, (64, 170, 3)))
    positions, delta = model.model.get_rope_index(
        inputs["input_ids"], inputs["mm_token_type_ids"], inputs["image_grid_thw"])
    assert torch.equal(prompt.positions, positions[:, 0])
    assert prompt.next_position == len(prompt.ids) + int(delta)


def test_the_end_of_the_content_is_the_last_word_of_the_question():
    _, _, prompt = setting()
    assert prompt.ids[prompt.content_end + 1] == setting()[0].config.text_config.eos_token_id
    assert prompt.visual_rows[-1] < prompt.content_end < len(prompt.ids) - 2


# Property 29, and 3 to 5: what is masked may as well be gone. It covers pseudo tokens too.

@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_without_swaps_the_reserve_may_as_well_be_gone(name, options):
    result = run(name, options=options)
    assert near(result.logits, dropped_form(name, result.tokens[:-1], options))


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@torch.inference_mode()
def test_side_rows_in_transformers_with_the_mask_of_the_definition(options):
    """Before the language model: every row of the prompt, the reserve's too."""
    model, _, prompt = setting(options)
    pruning = prunings(options)["divprune"]
    n, rows = len(prompt.ids), prompt.visual_rows
    reserve = {row for slot, row in enumerate(rows) if slot not in pruning.kept}
    mask = torch.zeros(1, 1, n, n)
    for i in range(n):
        for j in range(n):
            if not (j <= i and (j not in reserve or i in reserve)):
                mask[0, 0, i, j] = -torch.inf
    theirs = model.model.language_model(
        inputs_embeds=prompt.x.unsqueeze(0), attention_mask=mask,
        position_ids=prompt.positions.unsqueeze(1), use_cache=False,
        visual_pos_masks=(torch.tensor(prompt.ids) == model.config.image_token_id)[None],
        deepstack_visual_embeds=prompt.deepstack).last_hidden_state[0]
    ours = PlainModel(model, prompt, pruning, None, "side").forward([], [])[-1].output
    assert near(model.model.language_model.norm(ours), theirs)


@pytest.mark.parametrize("applies", ["next", "redo", "early"])
@pytest.mark.parametrize("name", ["fastv2", "divprune"])
@pytest.mark.parametrize("reserve", ["side", "full"])
def test_swaps_in_transformers_with_a_mask_per_layer(name, applies, reserve):
    """All logits of an answer with swaps, from one pass over its committed lists."""
    model, _, prompt = setting()
    result = run(name, PlainDSTP(threshold=2.0, expand_steps=3, applies=applies,
                                 monitor_layers=(1, 2)), reserve)
    assert len({step.views for step in result.steps}) > 1
    n, fed = len(prompt.ids), result.tokens[:-1]
    masks = torch.ones(4, n + len(fed), n + len(fed), dtype=torch.bool).tril()
    hidden = [prompt.visual_rows[slot] for slot in result.reserve]
    for layer in range(result.layer, 4):
        if reserve == "side":
            mains = [row for row in range(n) if row not in hidden]
            masks[layer][torch.tensor(mains).unsqueeze(1), torch.tensor(hidden)] = False
        for i, step in enumerate(result.steps):
            for slot, row in enumerate(prompt.visual_rows):
                masks[layer, n + i, row] = slot in step.views[layer].slots
    x = torch.cat([prompt.x, model.model.language_model.embed_tokens(torch.tensor(fed))])
    maps = [torch.zeros_like(x) for _ in prompt.deepstack]
    for rows, values in zip(maps, prompt.deepstack, strict=True):
        rows[prompt.visual_rows] = values
    end = prompt.next_position
    positions = torch.cat([prompt.positions, torch.arange(end, end + len(fed)).expand(3, -1)], 1)
    output = their_layers(model, x, positions, masks, range(4), maps)
    assert near(result.logits, their_logits(model, output[n - 1:]))


# Averages of rows

def test_the_average_of_one_row_is_that_row_and_order_does_not_matter():
    model, _, prompt = setting()
    plain = PlainModel(model, prompt, prunings()["divprune"], None, "side")
    slots, merge = plain.sequence.base, plain.sequence.merge_slot
    views = [View(tuple(slots)), View((*slots[1:], merge), (slots[0],)),
             View((merge, *slots[:0:-1]), (slots[0],))]
    with torch.inference_mode():
        first, *others = (plain.forward([9], [plain.every_layer(view)])[-1].output[-1]
                          for view in views)
    for other in others:
        assert near(other, first)


@torch.inference_mode()
def test_an_average_is_of_keys_and_of_values():
    model, _, prompt = setting()
    plain = PlainModel(model, prompt, prunings()["divprune"], None, "side")
    pair = tuple(plain.sequence.base[:2])
    view = View((*plain.sequence.base[2:], plain.sequence.merge_slot), pair)
    traces, rows = plain.forward([9], [plain.every_layer(view)]), plain.sequence.rows(pair)
    for trace in traces:
        assert near(trace.logits[:, -1, -1], trace.logits[:, -1, rows].mean(-1))
        assert (trace.probs[:, -1, rows] == 0).all() and (trace.probs[:, -1, -1] > 0).all()
    block = model.model.language_model.layers[0]
    x = torch.cat([prompt.x, plain.decoder.embed([9])])
    values = block.self_attn.v_proj(block.input_layernorm(x)).unflatten(-1, (-1, 32))
    values = torch.cat([values, values[rows].mean(0, keepdim=True)]).repeat_interleave(2, dim=1)
    attended = torch.einsum("hj,jhd->hd", traces[0].probs[:, -1], values).flatten()
    last = x[-1] + block.self_attn.o_proj(attended)
    last = last + block.mlp(block.post_attention_layernorm(last))
    assert near(traces[0].output[-1], last)
