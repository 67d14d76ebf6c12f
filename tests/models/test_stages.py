"""Every stage of a forward against transformers, in fp32."""

from __future__ import annotations

import pytest
import torch

from pydstp.models.plans import Context
from tests.checkpoints import reference_model, tiny_qwen3_vl
from tests.models.helpers import TOLERANCE, Runner, gap, make_inputs, our_model, read_config
from tests.models.stages import record, stage_names

CASES = {
    "text": ({}, ()),
    "one_square_image": ({}, ((8, 8),)),
    "one_wide_image": ({"tied": False, "seed": 1}, ((4, 10),)),
    "one_visual_token": ({"seed": 1}, ((2, 2),)),
    "three_images": ({"wide_queries": True}, ((6, 2), (10, 6), (2, 14))),
    "three_images_untied": ({"wide_queries": True, "tied": False}, ((4, 6), (6, 4), (2, 2))),
    "one_deepstack_tap": ({"deepstack": (2,)}, ((6, 6),)),
    "moe": ({"moe": True}, ((6, 10), (4, 4))),
    "moe_text": ({"moe": True, "tied": False}, ()),
}


@pytest.mark.parametrize(("options", "grids"), CASES.values(), ids=CASES)
def test_every_stage_equals_transformers(options: dict, grids: tuple, ctx: Context) -> None:
    path = tiny_qwen3_vl(**options)
    oracle = reference_model(path)
    model = our_model(path, oracle)
    inputs = make_inputs(model.config, grids)
    names = [n for n in stage_names(model) if grids or not n.startswith("visual")]
    with record(model, names) as ours:
        our_logits = Runner(model, ctx).prefill(inputs)
    with record(oracle.model, names) as theirs, torch.inference_mode():
        their_logits = oracle(**inputs.for_oracle(model.config)).logits
    gaps = {stage: gap(ours[stage], theirs[stage]) for stage in ours}
    gaps["logits"] = gap(our_logits, their_logits)
    print({stage: f"{value:.1e}" for stage, value in gaps.items()})
    assert len(gaps) == 2 * len(names) + 1
    assert not {stage: value for stage, value in gaps.items() if not value <= TOLERANCE}


def test_positions_of_prompts_equal_transformers() -> None:
    path = tiny_qwen3_vl()
    oracle, config = reference_model(path), read_config(path)
    model = our_model(path, oracle)
    for grids in [(), ((2, 2),), ((4, 6), (6, 4)), ((2, 14), (10, 6), (8, 8))]:
        inputs = make_inputs(config, grids)
        kwargs = inputs.for_oracle(config)
        kwargs.pop("pixel_values", None)
        if not grids:
            kwargs["mm_token_type_ids"] = torch.zeros_like(kwargs["input_ids"])
        expected, delta = oracle.model.get_rope_index(**kwargs)
        positions, next_position = model.positions(inputs.input_ids, grids)
        assert torch.equal(positions, expected[:, 0])
        assert next_position == len(inputs.input_ids) + delta.item()
