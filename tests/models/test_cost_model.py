"""The cost model against what transformers' own models compute, operation by operation."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from pydstp.bench.shapes import model_config
from pydstp.cost import Cost, Rates
from pydstp.cost_model import CostModel
from pydstp.models.config import VLMConfig
from tests.checkpoints import reference_model, tiny_qwen3_vl
from tests.internvl_checkpoints import internvl_reference, tiny_internvl
from tests.models.helpers import make_inputs, our_model, read_config
from tests.models.internvl_inputs import tiled_prompt


def counted(model: torch.nn.Module, kwargs: dict) -> dict[str, int]:
    """Operations of matrix products by the path of the module."""
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        model(**kwargs)
    return {name: sum(by_op.values()) for name, by_op in counter.get_flop_counts().items()}


def of_layers(found: dict[str, int], num_layers: int) -> int:
    """Products in the decoder's layers; transformers' eager attention takes all pairs of rows."""
    names = [name for name in found if name.count(".layers.") == 1
             and name.rpartition(".")[2].isdigit()]
    assert len(names) == num_layers
    return sum(found[name] for name in names)


@pytest.mark.parametrize("options", [{}, {"wide_queries": True, "deepstack": (2,)}], ids=str)
@pytest.mark.parametrize("grids", [((4, 10),), ((6, 6), (6, 6))], ids=str)
def test_qwen3_vl_equals_counted_products(options: dict, grids: tuple) -> None:
    path = tiny_qwen3_vl(**options)
    inputs, config = make_inputs(read_config(path), grids), read_config(path)
    found = counted(reference_model(path), inputs.for_oracle(config))
    model, num_rows = CostModel(config, 4), len(inputs.input_ids)
    num_visual = sum(rows * cols for rows, cols in grids) // 4
    (tower,) = (flops for name, flops in found.items() if name.endswith(".visual"))
    assert model.vision(num_visual, len(grids)).flops == tower
    layers = of_layers(found, config.text.num_layers)
    assert model.prefill(num_rows, num_rows).flops == layers


def test_internvl_equals_counted_products() -> None:
    path, prompt = tiny_internvl(), tiled_prompt((2, 1))
    found = counted(internvl_reference(path), prompt.theirs)
    config = read_config(path)
    num_visual = int((prompt.input_ids == config.image_token_id).sum())
    tower = sum(flops for name, flops in found.items()
                if name.endswith((".vision_tower", ".multi_modal_projector")))
    model, num_rows = CostModel(config, 4), len(prompt.input_ids)
    assert model.vision(num_visual, num_pictures=3).flops == tower
    layers = of_layers(found, config.text.num_layers)
    assert model.prefill(num_rows, num_rows).flops == layers


@pytest.mark.parametrize("options", [{}, {"moe": True}, {"tied": False}], ids=str)
def test_weights_of_a_step_are_those_of_the_modules(options: dict) -> None:
    path = tiny_qwen3_vl(**options)
    decoder = our_model(path, reference_model(path)).language_model
    config = read_config(path)
    expected = config.text.vocab_size * config.text.hidden_size
    for name, parameter in decoder.layers.named_parameters():
        if parameter.dim() == 2:
            expected += parameter.numel()
        elif parameter.dim() == 3:  # experts
            moe = config.text.moe
            expected += parameter.numel() * moe.num_experts_per_tok // moe.num_experts
        else:
            assert parameter.dim() == 1, name
    assert CostModel(config, 2).step_weight_bytes == 2 * expected
    assert CostModel(config, 2, weight_bytes=7).step_weight_bytes == 7


def test_a_step_adds_keys_and_values_of_every_sequence() -> None:
    config = read_config(tiny_qwen3_vl())
    model, text = CostModel(config, 2), config.text
    row = 2 * text.num_kv_heads * text.head_dim * 2 * text.num_layers
    assert model.cache_bytes(10) == 10 * row
    step = model.decode_step(10, batch=3)
    assert step == Cost(model.step_weight_bytes + 30 * row)
    assert model.prefill(5) == model.prefill(5, 3)  # row i sees i rows: 3 on average
    assert model.prefill(5, 3, num_layers=1) * text.num_layers == model.prefill(5, 3)


def test_time_is_bytes_and_operations_over_their_rates() -> None:
    work = Cost(num_bytes=3e9) + Cost(flops=4e9) * 2
    assert Rates(read_gb_s=30, gemm_gflop_s=400).ms(work) == pytest.approx(100 + 20)


def test_the_page_says_what_the_model_predicts() -> None:
    text = (Path(__file__).parents[2] / "docs" / "where_pruning_pays.md").read_text()
    said = [int(share) for share in re.findall(r"\| (\d+) % of the (?:bytes|operations) \|", text)]
    model = CostModel(VLMConfig.from_dict(model_config("qwen3-vl-2b")), 2)

    def saved(batch: int, num_visual: int) -> float:
        full, third = (model.decode_step(rows + 64, batch).num_bytes
                       for rows in (num_visual, num_visual / 3))
        return 1 - third / full

    tower = model.vision(1024).flops
    picture = [tower + model.prefill(rows + 64).flops for rows in (1024, 341)]
    rows = [model.prefill(rows + 64).flops for rows in (4096, 1365)]
    expected = [*(saved(*case) for case in ((1, 1024), (1, 4096), (8, 4096), (8, 6144))),
                1 - picture[1] / picture[0], 1 - rows[1] / rows[0]]
    assert said == [round(100 * share) for share in expected]
    assert f"{tower / picture[0]:.0%}".replace("%", " %") in text
    assert f"{model.step_weight_bytes / 1e9:.2f} GB" in text and f"{model.cache_bytes(1):,}" in text
