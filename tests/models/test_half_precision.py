"""bf16: no exact comparison is possible, so the oracle's own rounding is the measure."""

from __future__ import annotations

import pytest
import torch

from pydstp.models.plans import Context
from tests.checkpoints import reference_model, tiny_qwen3_vl
from tests.models.helpers import Inputs, Runner, make_inputs, our_model


@pytest.mark.parametrize("options", [{}, {"moe": True, "tied": False}], ids=str)
def test_bf16_is_as_close_to_fp32_as_transformers_is(options: dict, ctx: Context) -> None:
    path = tiny_qwen3_vl(**options)
    exact, rounded = reference_model(path), reference_model(path, dtype="bfloat16")
    model = our_model(path, exact, torch.bfloat16)
    for seed, grids in enumerate([((4, 6), (6, 2)), (), ((8, 8),)]):
        inputs = make_inputs(model.config, grids, seed)
        kwargs = inputs.for_oracle(model.config)
        with torch.inference_mode():
            expected, theirs = exact(**kwargs).logits[0], rounded(**kwargs).logits[0].float()
        ours = Runner(model, ctx).prefill(inputs)
        assert ours.dtype == torch.float32
        their_error, our_error = theirs - expected, ours - expected
        print(f"{our_error.abs().max():.2e} against {their_error.abs().max():.2e}")
        # Rounding may send a token to another expert, which is no small difference any more.
        typical = torch.median if options.get("moe") else torch.max
        assert typical(our_error.abs()) <= 2 * typical(their_error.abs())


def test_bf16_decode_agrees_with_bf16_prefill(ctx: Context) -> None:
    path = tiny_qwen3_vl()
    exact = reference_model(path)
    model = our_model(path, exact, torch.bfloat16)
    inputs = make_inputs(model.config, ((4, 6),))
    with torch.inference_mode():
        expected = exact(**inputs.for_oracle(model.config)).logits[0]
    prefilled = Runner(model, ctx).prefill(inputs)
    runner, text_start = Runner(model, ctx), int((inputs.input_ids == 0).numel()) - 4
    runner.prefill(Inputs(inputs.input_ids[:text_start], inputs.pixel_values, inputs.grids))
    for i in range(text_start, len(inputs.input_ids)):
        decoded = runner.decode({0: int(inputs.input_ids[i])})[0]
        rounding = (prefilled[i] - expected[i]).abs().max()
        assert (decoded - expected[i]).abs().max() <= 2 * rounding
