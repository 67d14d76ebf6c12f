"""Weights end where they belong, bit for bit, and nothing is left over, missing or doubled."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pydstp.errors import CheckpointError, OptionError, UnsupportedModelError
from pydstp.weights import load_model, open_checkpoint, resolve_dtype
from pydstp.weights import loading as loading_module
from tests.checkpoints import TinyOptions, build_model, describe, save_shards, tiny_qwen3_vl
from tests.loader.raw_files import config_of, edit_json, edit_tensors, load

LAYER = "model.language_model.layers.1."
SPELLINGS = [
    {},
    {"tied": False, "wide_queries": True},
    {"num_shards": 3, "prefix": "doubled"},
    {"prefix": "old", "old_config": True, "dtype": "bfloat16"},
    {"dtype": "float16", "tied": False, "prefix": "old"},
    {"moe": True},
    {"moe": True, "experts": "hub", "num_shards": 4},
    {"moe": True, "experts": "separate", "prefix": "old"},
    {"moe": True, "experts": "hub", "moe_intermediate_size": 32},  # 2I = H
    {"moe": True, "experts": "hub", "moe_intermediate_size": 64},  # I = H
]


def expected_parameters(options: TinyOptions) -> dict[str, Tensor]:
    """Our parameters, made from transformers' by rules that know nothing of the name map."""
    oracle = dict(build_model(options).named_parameters())
    expected = {}
    for name, tensor in oracle.items():
        name = name.removeprefix("model.").replace("lm_head", "language_model.lm_head")
        for parts, fused in ((("q_proj", "k_proj", "v_proj"), "qkv_proj"),
                             (("gate_proj", "up_proj"), "gate_up_proj")):
            if f".{parts[0]}." in name:
                tensors = [oracle["model." + name.replace(parts[0], part)] for part in parts]
                name, tensor = name.replace(parts[0], fused), torch.cat(tensors)
        expected[name] = tensor.to(getattr(torch, options.dtype))
    skipped = (".k_proj.", ".v_proj.", ".up_proj.")
    return {name: t for name, t in expected.items() if not any(s in name for s in skipped)}


@pytest.mark.parametrize("options", [TinyOptions(**s) for s in SPELLINGS], ids=describe)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_spelling_gives_the_same_model(options: TinyOptions, dtype: str) -> None:
    model = load(tiny_qwen3_vl(**vars(options)), dtype)
    expected = expected_parameters(options)
    found = dict(model.named_parameters())
    assert found.keys() == expected.keys()
    for name, parameter in found.items():
        assert parameter.dtype == getattr(torch, dtype)
        assert parameter.data_ptr() % 64 == 0
        assert not parameter.requires_grad
        assert torch.equal(parameter, expected[name].to(parameter.dtype)), name


def test_small_blocks_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = load(tiny_qwen3_vl(moe=True, experts="hub"))
    monkeypatch.setattr(loading_module, "BLOCK_BYTES", 4096)
    found = dict(load(tiny_qwen3_vl(moe=True, experts="hub")).named_parameters())
    assert all(torch.equal(found[name], p) for name, p in expected.named_parameters())


def test_progress_counts_every_tensor() -> None:
    checkpoint, calls = open_checkpoint(tiny_qwen3_vl(num_shards=3)), []
    load_model(checkpoint, config_of(checkpoint), torch.float32, lambda *call: calls.append(call))
    assert calls == [(done, 121) for done in range(1, 122)]


def test_dtype_auto_keeps_half_precision_for_large_models(monkeypatch: pytest.MonkeyPatch) -> None:
    half = open_checkpoint(tiny_qwen3_vl(dtype="float16"))
    full = open_checkpoint(tiny_qwen3_vl())
    assert resolve_dtype(half) == resolve_dtype(full) == torch.float32
    monkeypatch.setattr(loading_module, "LARGE_MODEL", 100_000)
    assert resolve_dtype(half) == torch.bfloat16
    assert resolve_dtype(full) == torch.float32
    assert resolve_dtype(full, "bfloat16") == torch.bfloat16
    with pytest.raises(OptionError, match="dtype: expected 'auto', 'bfloat16' or 'float32'"):
        resolve_dtype(half, "float16")


def test_buffers_of_old_files_are_ignored(tmp_path: Path) -> None:
    folder = tiny_qwen3_vl(tmp_path)
    edit_tensors(folder, {"model.visual.rotary_pos_emb.inv_freq": torch.zeros(3).double(),
                          "model.position_ids": torch.arange(5)})
    load(folder)


def test_a_head_in_the_file_counts_whatever_the_config_says(tmp_path: Path) -> None:
    folder = tiny_qwen3_vl(tmp_path, tied=False)
    edit_json(folder / "config.json", tie_word_embeddings=True)
    assert load(folder).language_model.lm_head is not None
    edit_tensors(folder, {"lm_head.weight": None})
    edit_json(folder / "config.json", tie_word_embeddings=False)
    assert load(folder).language_model.lm_head is None


def refused(folder: Path, *fragments: str, error: type = CheckpointError) -> None:
    with pytest.raises(error) as caught:
        load(folder)
    for fragment in fragments:
        assert fragment in str(caught.value)


def test_lists_names_on_both_sides(tmp_path: Path) -> None:
    folder = tiny_qwen3_vl(tmp_path)
    weight = load_file(folder / "model.safetensors")[LAYER + "self_attn.q_norm.weight"]
    edit_tensors(folder, {LAYER + "self_attn.q_norm.weight": None,
                          LAYER + "self_attn.query_norm.weight": weight})
    refused(folder, "2 problems", f"1 tensors are missing: {LAYER}self_attn.q_norm.weight",
            f"no place in the model: {LAYER}self_attn.query_norm.weight")


def test_long_lists_are_cut_with_a_count(tmp_path: Path) -> None:
    folder = tiny_qwen3_vl(tmp_path)
    names = [n for n in load_file(folder / "model.safetensors") if ".blocks." in n]
    edit_tensors(folder, dict.fromkeys(names))
    refused(folder, "48 tensors are missing: model.visual.blocks.0.attn.proj.bias, ", "and 40 more")


def test_two_names_for_one_place(tmp_path: Path) -> None:
    folder = tiny_qwen3_vl(tmp_path)
    edit_tensors(folder, {"model.norm.weight": torch.ones(64)})
    refused(folder, "two tensors for one place", "model.norm.weight",
            "model.language_model.norm.weight")


def test_wrong_shapes_say_expected_and_got(tmp_path: Path) -> None:
    folder = tiny_qwen3_vl(tmp_path)
    edit_tensors(folder, {LAYER + "self_attn.k_proj.weight": torch.ones(64, 32),
                          "model.visual.patch_embed.proj.weight": torch.ones(48, 1536)})
    refused(folder, "2 tensors have a wrong shape",
            f"{LAYER}self_attn.k_proj.weight: expected [32, 64], got [64, 32]",
            "patch_embed.proj.weight: expected [48, 3, 2, 16, 16], got [48, 1536]")


def test_experts_in_two_layouts_at_once(tmp_path: Path) -> None:
    folder = tiny_qwen3_vl(tmp_path, moe=True)
    name = LAYER + "mlp.experts.gate_up_proj"
    edit_tensors(folder, {name: torch.ones(8, 64, 48)})
    refused(folder, f"{name}: expected [8, 48, 64], got [8, 64, 48]")


def test_one_expert_is_missing(tmp_path: Path) -> None:
    folder = tiny_qwen3_vl(tmp_path, moe=True, experts="separate")
    edit_tensors(folder, {LAYER + "mlp.experts.3.up_proj.weight": None})
    refused(folder, f"1 tensors are missing: {LAYER}mlp.experts.3.up_proj.weight")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_weights_that_are_no_numbers_are_named(tmp_path: Path, dtype: str, value: float) -> None:
    folder = tiny_qwen3_vl(tmp_path, dtype=dtype)
    name = LAYER + "mlp.down_proj.weight"
    weight = load_file(folder / "model.safetensors")[name]
    weight[63, 95] = value
    edit_tensors(folder, {name: weight})
    refused(folder, f"tensor {name} holds NaN or infinite values")


def test_overflow_by_conversion_is_named(tmp_path: Path) -> None:
    folder = tiny_qwen3_vl(tmp_path)
    edit_tensors(folder, {"model.language_model.norm.weight": torch.full((64,), 3.4e38)})
    load(folder, "float32")
    with pytest.raises(CheckpointError, match=r"norm.weight holds .*F32, read as torch.bfloat16"):
        load(folder, "bfloat16")


@pytest.mark.parametrize(("name", "tensor", "what"), [
    (LAYER + "mlp.down_proj.weight_scale_inv", torch.ones(1, 1), "FP8 weights are not supported"),
    (LAYER + "mlp.down_proj.weight", torch.ones(64, 96).to(torch.float8_e4m3fn), "F8_E4M3 weights"),
    (LAYER + "mlp.down_proj.weight", torch.ones(64, 96, dtype=torch.int8), "I8 weights"),
    (LAYER + "mlp.down_proj.weight", torch.ones(64, 96).double(), "F64 weights"),
    (LAYER + "mlp.down_proj.qweight", torch.ones(4, dtype=torch.int32), "quantised weights"),
])  # fmt: skip
def test_refuses_by_name(tmp_path: Path, name: str, tensor: Tensor, what: str) -> None:
    folder = tiny_qwen3_vl(tmp_path)
    edit_tensors(folder, {name: tensor})
    refused(folder, what, name, error=UnsupportedModelError)


@pytest.mark.parametrize("changes", [
    {"quantization_config": {"quant_method": "fp8"}},
    {"model_type": "qwen2_5_vl"},
    {"model_type": "llava"},
])
def test_refuses_by_config(tmp_path: Path, changes: dict[str, object]) -> None:
    folder = tiny_qwen3_vl(tmp_path)
    edit_json(folder / "config.json", **changes)
    refused(folder, *changes, error=UnsupportedModelError)


@pytest.mark.parametrize(("section", "key", "value"), [
    ("text_config", "num_hidden_layers", 10**9),
    ("vision_config", "depth", 10**9),
    ("text_config", "intermediate_size", 10**18),
    ("text_config", "vocab_size", 10**30),
    ("text_config", "num_hidden_layers", 3),
    ("text_config", "num_hidden_layers", 5),
])  # fmt: skip
def test_a_config_of_other_size_is_refused_quickly(
    tmp_path: Path, section: str, key: str, value: int
) -> None:
    folder = tiny_qwen3_vl(tmp_path)
    sizes = open_checkpoint(folder).config[section] | {key: value}
    edit_json(folder / "config.json", **{section: sizes})
    refused(folder)


def test_absurd_numbers_of_experts_are_refused_quickly(tmp_path: Path) -> None:
    folder = tiny_qwen3_vl(tmp_path, moe=True, experts="separate")
    text = open_checkpoint(folder).config["text_config"] | {"num_experts": 10**9}
    edit_json(folder / "config.json", text_config=text)
    refused(folder, "missing")


def test_a_whole_other_model_is_a_short_message(tmp_path: Path) -> None:
    folder = tiny_qwen3_vl(tmp_path)
    save_file({f"transformer.h.{i}.attn.weight": torch.ones(2) for i in range(500)},
              folder / "model.safetensors")
    with pytest.raises(CheckpointError) as caught:
        load(folder)
    assert "500 tensors have no place" in str(caught.value)
    assert len(str(caught.value)) < 2000


def test_shards_of_two_checkpoints_do_not_mix(tmp_path: Path) -> None:
    folder = tiny_qwen3_vl(tmp_path, num_shards=3)
    other = tmp_path / "other"
    other.mkdir()
    save_shards(load_file(tiny_qwen3_vl(num_layers=3) / "model.safetensors"), other, 3)
    name = "model-00001-of-00003.safetensors"
    (folder / name).write_bytes((other / name).read_bytes())
    refused(folder, name)
