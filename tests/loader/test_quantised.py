"""weights="int8": which tensors are held in 8 bits, and that their numbers are the file's."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from pydstp import ops
from pydstp.errors import CheckpointError, OptionError, UnsupportedModelError
from pydstp.models.quantised import num_bytes
from pydstp.weights import estimate_memory, inspect, open_checkpoint
from pydstp.weights import loading as loading_module
from tests import quantised_reference as reference
from tests.checkpoints import TinyOptions, describe, tiny_qwen3_vl
from tests.internvl_checkpoints import tiny_internvl
from tests.loader.raw_files import config_of, edit_tensors, load
from tests.loader.test_loading import LAYER, SPELLINGS, expected_parameters

DENSE = {f"self_attn.{name}.weight" for name in ("qkv_proj", "o_proj")} | {
    f"mlp.{name}.weight" for name in ("gate_up_proj", "down_proj")}
SPARSE = {f"self_attn.{name}.weight" for name in ("qkv_proj", "o_proj")} | {
    f"mlp.experts.{name}" for name in ("gate_up_proj", "down_proj")}


def matrices(model: nn.Module) -> dict[str, ops.QuantisedMatrix]:
    """The matrices in 8 bits, by the names that parameters have."""
    return {f"{path}.{name}": value for path, module in model.named_modules()
            for name, value in vars(module).items() if isinstance(value, ops.QuantisedMatrix)}


def numbers(matrix: ops.QuantisedMatrix) -> torch.Tensor:
    """What a matrix, or several of them, stands for: [..., out_features, in_features]."""
    if matrix.codes.ndim == 6:
        return torch.stack([numbers(matrix[i]) for i in range(len(matrix.codes))])
    return matrix.rows(torch.arange(matrix.out_features))


def in_layers(names: set[str], count: int) -> set[str]:
    return {f"language_model.layers.{i}.{name}" for i in range(count) for name in names}


@pytest.mark.parametrize(("options", "expected"), [
    ({}, in_layers(DENSE, 4) | {"language_model.embed_tokens.weight"}),
    ({"tied": False}, in_layers(DENSE, 4) | {"language_model.lm_head.weight"}),
    ({"moe": True, "tied": False}, in_layers(SPARSE, 4) | {"language_model.lm_head.weight"}),
], ids=["tied", "untied", "experts"])
def test_decoder_matrices_experts_and_the_head(options: dict, expected: set[str]) -> None:
    model = load(tiny_qwen3_vl(**options), "bfloat16", "int8")
    assert matrices(model).keys() == expected
    for name, parameter in model.named_parameters():
        assert name not in expected
        assert parameter.dtype == torch.bfloat16


@pytest.mark.parametrize("options", [TinyOptions(**s) for s in SPELLINGS], ids=describe)
def test_every_spelling_gives_the_same_numbers(options: TinyOptions) -> None:
    model = load(tiny_qwen3_vl(**vars(options)), "float32", "int8")
    expected = expected_parameters(options)
    found = matrices(model)
    assert found.keys() | dict(model.named_parameters()).keys() == expected.keys()
    for name, matrix in found.items():
        rows = expected[name].flatten(0, -2)
        held = reference.numbers(*reference.quantise_matrix(rows))
        assert torch.equal(numbers(matrix), held.view(expected[name].shape)), name
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, expected[name].float()), name


def test_small_blocks_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    for options in ({}, {"moe": True, "experts": "hub"}):
        expected = matrices(load(tiny_qwen3_vl(**options), weights="int8"))
        with monkeypatch.context() as patch:
            patch.setattr(loading_module, "BLOCK_BYTES", 2000)
            found = matrices(load(tiny_qwen3_vl(**options), weights="int8"))
        for name, matrix in found.items():
            assert torch.equal(numbers(matrix), numbers(expected[name])), name


@pytest.mark.parametrize("options", [{}, {"tied": False}, {"moe": True, "tied": False}], ids=str)
def test_the_estimate_is_what_is_kept(options: dict) -> None:
    path = tiny_qwen3_vl(**options)
    checkpoint = open_checkpoint(path)
    for dtype in (torch.bfloat16, torch.float32):
        estimate = estimate_memory(checkpoint, config_of(checkpoint), dtype, 0, weights="int8")
        kept = num_bytes(load(path, str(dtype).removeprefix("torch."), "int8"))
        assert estimate.weights_bytes == kept


def test_the_estimate_of_internvl_is_what_is_kept() -> None:
    path = tiny_internvl()
    checkpoint = open_checkpoint(path)
    model = load(path, "float32", "int8")
    estimate = estimate_memory(checkpoint, config_of(checkpoint), torch.float32, 0, weights="int8")
    assert estimate.weights_bytes == num_bytes(model)
    assert all(name.startswith("language_model.") for name in matrices(model))


def test_a_report_counts_int8(tmp_path: Path) -> None:
    path = tiny_qwen3_vl()
    checkpoint = open_checkpoint(path)
    report = inspect(path, weights="int8")
    estimate = estimate_memory(checkpoint, config_of(checkpoint), torch.float32, 0, weights="int8")
    assert (report.weights, report.problems) == ("int8", [])
    assert report.memory["weights_bytes"] == estimate.weights_bytes
    assert report.memory["weights_bytes"] < inspect(path).memory["weights_bytes"]
    assert " in int8, cache" in report.to_text()
    with pytest.raises(OptionError, match="weights: expected 'float' or 'int8', got 'int4'"):
        inspect(path, weights="int4")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("value", [float("nan"), -float("inf")])
def test_weights_that_are_no_numbers_are_named(tmp_path: Path, dtype: str, value: float) -> None:
    folder = tiny_qwen3_vl(tmp_path, dtype=dtype)
    name = LAYER + "mlp.down_proj.weight"
    weight = load_file(folder / "model.safetensors")[name]
    weight[63, 95] = value
    edit_tensors(folder, {name: weight})
    with pytest.raises(CheckpointError, match=f"tensor {name} holds NaN or infinite values"):
        load(folder, "bfloat16", "int8")


def test_a_quantised_checkpoint_is_refused_as_before(tmp_path: Path) -> None:
    folder = tiny_qwen3_vl(tmp_path)
    edit_tensors(folder, {LAYER + "mlp.down_proj.qweight": torch.ones(4, dtype=torch.int32)})
    with pytest.raises(UnsupportedModelError, match="quantised weights are not supported"):
        load(folder, weights="int8")
