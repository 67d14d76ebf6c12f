"""The decoder by itself: ranges of layers, what it leaves alone, one-dimensional rope."""

from __future__ import annotations

import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from pydstp.errors import CancelledError
from pydstp.models.config import TextConfig
from pydstp.models.plans import Context
from pydstp.models.qwen3 import Decoder, DeepStack
from pydstp.models.qwen3_vl import Qwen3VL
from tests.checkpoints import reference_model, tiny_qwen3_vl
from tests.models.helpers import (
    TOLERANCE,
    Runner,
    TinyCache,
    copy_weights,
    gap,
    make_inputs,
    our_model,
)


@pytest.fixture
def model() -> Qwen3VL:
    path = tiny_qwen3_vl()
    return our_model(path, reference_model(path))


def test_layers_may_run_in_parts(model: Qwen3VL, ctx: Context) -> None:
    decoder, inputs = model.language_model, make_inputs(model.config, ((4, 6),))
    vision = model.encode_images(inputs.pixel_values, inputs.grids, ctx)
    x, deepstack = model.embed(inputs.input_ids, vision)
    before = x.clone()
    cos_sin = decoder.rotary(model.positions(inputs.input_ids, inputs.grids)[0])
    results = []
    for parts in [(range(0, 4),), (range(0, 1), range(1, 3), range(3, 3), range(3, 4))]:
        cache, h = TinyCache(decoder), x
        plan = cache.prefill_plan(0, inputs.input_ids == model.config.image_token_id)
        for layers in parts:
            kwargs = {"cos_sin": cos_sin, "cache": cache, "plan": plan, "deepstack": deepstack}
            h = decoder.forward_layers(h, layers=layers, ctx=ctx, **kwargs)
        results.append(h)
    assert torch.equal(*results)
    assert torch.equal(x, before), "forward_layers must leave its input as it was"


def test_a_prompt_may_be_cut_inside_an_image(model: Qwen3VL, ctx: Context) -> None:
    decoder, inputs = model.language_model, make_inputs(model.config, ((4, 6),))
    vision = model.encode_images(inputs.pixel_values, inputs.grids, ctx)
    x, deepstack = model.embed(inputs.input_ids, vision)
    cos_sin = decoder.rotary(model.positions(inputs.input_ids, inputs.grids)[0])
    is_visual = inputs.input_ids == model.config.image_token_id
    results = []
    for cuts in ([0, len(x)], [0, 8, 10, len(x)]):  # the image is at 6 to 12
        cache, parts = TinyCache(decoder), []
        for rows in (slice(*ends) for ends in zip(cuts, cuts[1:])):
            here = (deepstack.positions >= rows.start) & (deepstack.positions < rows.stop)
            features = [feature[here] for feature in deepstack.features]
            kwargs = {
                "cos_sin": cos_sin[rows],
                "plan": cache.prefill_plan(0, is_visual[rows]),
                "deepstack": DeepStack(features, deepstack.positions[here] - rows.start),
            }
            parts.append(
                decoder.forward_layers(x[rows], layers=range(4), cache=cache, ctx=ctx, **kwargs)
            )
        results.append(torch.cat(parts))
    assert gap(results[1], results[0]) <= TOLERANCE


def test_cached_keys_and_values_equal_transformers(ctx: Context) -> None:
    path = tiny_qwen3_vl()
    oracle = reference_model(path)
    model = our_model(path, oracle)
    inputs = make_inputs(model.config, ((4, 6),))
    runner = Runner(model, ctx)
    runner.prefill(inputs)
    with torch.inference_mode():
        theirs = oracle(**inputs.for_oracle(model.config), use_cache=True).past_key_values.layers
    arenas = torch.cat((runner.cache.visual[:, 0], runner.cache.text[:, 0]), dim=1)
    for layer_idx, layer in enumerate(theirs):
        keys, values = arenas[layer_idx, runner.cache.slots[0]].unbind(1)
        assert gap(keys, layer.keys[0].transpose(0, 1)) <= TOLERANCE
        assert gap(values, layer.values[0].transpose(0, 1)) <= TOLERANCE
    written = arenas.isfinite().all(-1).all(-1).all(-1).sum(dim=1)
    assert written.unique().tolist() == [len(inputs.input_ids)], "rows behind the prompt stay as is"


def test_check_is_called_per_layer_and_block_and_can_stop(model: Qwen3VL, ctx: Context) -> None:
    calls = 0

    def check() -> None:
        nonlocal calls
        calls += 1
        if calls == limit:
            raise CancelledError("cancelled")

    prompt = make_inputs(model.config, ((4, 4),))
    limit = 0
    Runner(model, Context(ctx.pool, check)).prefill(prompt)
    assert calls == model.config.vision.depth + model.config.text.num_layers
    for limit in (1, 3, 7):
        calls = 0
        with pytest.raises(CancelledError):
            Runner(model, Context(ctx.pool, check)).prefill(prompt)
        assert calls == limit


def test_deepstack_adds_to_its_own_rows_behind_its_own_layers() -> None:
    deepstack = DeepStack([torch.ones(2, 3), 2 * torch.ones(2, 3)], torch.tensor([1, 3]))
    x = torch.zeros(5, 3)
    assert deepstack.add(x, 1)[:, 0].tolist() == [0, 2, 0, 2, 0]
    assert deepstack.add(x, 0)[:, 0].tolist() == [0, 1, 0, 1, 0]
    assert deepstack.add(x, 2) is x
    assert not x.any()


def test_one_dimensional_rope_equals_qwen3(ctx: Context) -> None:
    torch.manual_seed(0)
    sizes = {"vocab_size": 99, "hidden_size": 64, "intermediate_size": 96, "head_dim": 32}
    oracle_config = Qwen3Config(
        **sizes, num_hidden_layers=2, num_attention_heads=3, num_key_value_heads=1,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6}, tie_word_embeddings=False,
    )  # fmt: skip
    oracle = Qwen3ForCausalLM(oracle_config).eval()
    for parameter in oracle.parameters():
        parameter.data.uniform_(0.5 if parameter.ndim == 1 else -0.3, 0.3 + (parameter.ndim == 1))
    config = TextConfig(
        **sizes, num_layers=2, num_heads=3, num_kv_heads=1, rms_norm_eps=1e-6,
        max_position_embeddings=512, rope_theta=1e6, mrope_section=None,
    )  # fmt: skip
    with torch.device("meta"):
        decoder = Decoder(config, tied=False)
    tensors = {name.removeprefix("model."): t for name, t in oracle.state_dict().items()}
    copy_weights(decoder, tensors, torch.float32)
    input_ids = torch.randint(0, 99, (40,))
    cache = TinyCache(decoder)
    x = decoder.forward_layers(
        decoder.embed(input_ids),
        layers=range(2),
        cos_sin=decoder.rotary(torch.arange(40)),
        cache=cache,
        plan=cache.prefill_plan(0, torch.zeros(40, dtype=torch.bool)),
        ctx=ctx,
    )
    with torch.inference_mode():
        assert gap(decoder.logits(x, ctx), oracle(input_ids[None]).logits) <= TOLERANCE
