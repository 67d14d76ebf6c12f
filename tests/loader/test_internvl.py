"""InternVL checkpoints: what both formats may hold, and what is refused by name."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pydstp.errors import CheckpointError, PydstpError, UnsupportedModelError
from pydstp.models.name_map import INTERNVL_HF, INTERNVL_ORIGINAL, normalise, published
from pydstp.preparation import READERS
from pydstp.weights import inspect, load_model, open_checkpoint
from tests.checkpoints import save_shards
from tests.internvl_checkpoints import InternOptions, respell, tiny_internvl
from tests.loader.raw_files import config_of


def load(folder: Path) -> torch.nn.Module:
    checkpoint = open_checkpoint(folder)
    return load_model(checkpoint, config_of(checkpoint), torch.float32)


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def rewrite(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def change(folder: Path, path: str, value: object) -> None:
    """Set one key of config.json; None removes it."""
    config = json.loads((folder / "config.json").read_text())
    *parents, key = path.split(".")
    section = config
    for parent in parents:
        section = section[parent]
    section.pop(key, None)
    if value is not None:
        section[key] = value
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(("names", "spelled", "ours"), [
    (INTERNVL_HF, "model.vision_tower.encoder.layer.3.attention.q_proj.bias",
     "visual.blocks.3.attn.q_proj.bias"),
    (INTERNVL_HF, "vision_tower.encoder.layer.3.attention.projection_layer.weight",
     "visual.blocks.3.attn.proj.weight"),
    (INTERNVL_HF, "vision_tower.encoder.layer.0.attention.k_norm.weight",
     "visual.blocks.0.attn.k_norm.weight"),
    (INTERNVL_HF, "vision_tower.embeddings.cls_token", "visual.cls_token"),
    (INTERNVL_HF, "language_model.model.layers.1.mlp.gate.weight",
     "language_model.layers.1.mlp.gate.weight"),
    (INTERNVL_HF, "multi_modal_projector.linear_2.bias", "projector.fc2.bias"),
    (INTERNVL_ORIGINAL, "vision_model.embeddings.class_embedding", "visual.cls_token"),
    (INTERNVL_ORIGINAL, "vision_model.encoder.layers.2.ls1", "visual.blocks.2.ls1"),
    (INTERNVL_ORIGINAL, "mlp1.0.weight", "projector.norm.weight"),
    (INTERNVL_ORIGINAL, "language_model.lm_head.weight", "language_model.lm_head.weight"),
])  # fmt: skip
def test_names_there_and_back(names: object, spelled: str, ours: str) -> None:
    assert normalise(spelled, names) == ours
    assert published(ours, names) == spelled.removeprefix("model.")


@pytest.mark.parametrize("spelling", ["hf", "model", "original"])
def test_every_tensor_is_used_once(spelling: str) -> None:
    folder = tiny_internvl(names=spelling, tower="6B", moe=True)
    report = inspect(folder, READERS)
    assert report.problems == [] and report.is_tied is False
    assert "vision   3 blocks, hidden 48, 4 heads, patch 14" in report.to_text()
    held = sum(p.numel() for p in load(folder).parameters())
    assert held == report.parameters


def test_a_tied_checkpoint_that_holds_a_head_is_not_tied(tmp_path: Path) -> None:
    folder = tiny_internvl(tmp_path, tied=True)
    tensors = tensors_of(folder)
    head = torch.randn_like(tensors["language_model.model.embed_tokens.weight"])
    rewrite(folder, tensors | {"language_model.lm_head.weight": head})
    assert torch.equal(load(folder).language_model.lm_head.weight, head)


@pytest.mark.parametrize("names", ["hf", "original"])
def test_shards_of_two_formats_are_refused(names: str, tmp_path: Path) -> None:
    folder = tiny_internvl(tmp_path, names=names, num_shards=2)
    other = tiny_internvl(names="original" if names == "hf" else "hf", num_shards=2)
    own, foreign = ([load_file(path) for path in sorted(part.glob("*.safetensors"))]
                    for part in (folder, other))
    for path in folder.glob("*.safetensors*"):
        path.unlink()
    save_shards(own[0] | foreign[1], folder, 2)
    kind = "internvl_chat" if names == "hf" else "internvl"
    with pytest.raises(CheckpointError, match=rf"\d+ tensors have the names of '{kind}' files"):
        load(folder)
    assert inspect(folder).problems


def test_names_of_one_format_under_the_config_of_the_other(tmp_path: Path) -> None:
    folder = tiny_internvl(tmp_path)
    rewrite(folder, respell(tensors_of(folder), InternOptions(names="original")))
    with pytest.raises(CheckpointError, match="names of 'internvl_chat' files, and config.json "
                                              "says 'internvl'"):
        load(folder)


@pytest.mark.parametrize("name", ["mlp2.1.weight", "gating.0.weight",
                                  "pooling_before_gating.query_token"])
def test_flash_weights_are_refused_by_name(name: str, tmp_path: Path) -> None:
    folder = tiny_internvl(tmp_path, names="original")
    rewrite(folder, tensors_of(folder) | {name: torch.zeros(4, 4)})
    with pytest.raises(UnsupportedModelError, match=f"Flash.*{name}"):
        load(folder)


SECTIONS = {"hf": "text_config", "original": "llm_config"}


@pytest.mark.parametrize("names", ["hf", "original"])
@pytest.mark.parametrize(("key", "value", "message"), [
    ("flash_mode", True, "flash_mode = true .*Flash"),
    ("downsample_ratio", 0.25, "downsample_ratio = 0.25 .*0.5"),
    ("{text}.model_type", "gpt_oss", 'model_type = "gpt_oss" .*qwen3, qwen3_moe'),
    ("{text}.architectures", ["GptOssForCausalLM"], "GptOssForCausalLM.*Qwen3ForCausalLM"),
    ("{text}.architectures", ["Qwen2ForCausalLM"], "Qwen2ForCausalLM"),
    ("{text}.rope_scaling", {"rope_type": "dynamic", "factor": 2.0}, "dynamic"),
    ("{text}.attention_bias", True, "attention_bias"),
    ("vision_config.norm_type", "batch_norm", "norm_type"),
    ("vision_config.hidden_act", "gelu_pytorch_tanh", "hidden_act"),
    ("vision_config.image_size", [84, 98], "image_size"),
    ("quantization_config", {"quant_method": "awq"}, "quantization_config"),
])  # fmt: skip
def test_variants_are_refused_by_name(
    names: str, key: str, value: object, message: str, tmp_path: Path
) -> None:
    folder = tiny_internvl(tmp_path, names=names)
    if key.endswith("rope_scaling"):
        change(folder, f"{SECTIONS[names]}.rope_parameters", None)
    change(folder, key.format(text=SECTIONS[names]), value)
    with pytest.raises(UnsupportedModelError, match=message):
        load(folder)
    assert any(re.search(message, problem) for problem in inspect(folder).problems)


@pytest.mark.parametrize(("key", "value", "message"), [
    ("select_layer", -4, "select_layer"), ("ps_version", "v1", "ps_version"),
    ("pad2square", True, "pad2square"), ("force_image_size", 448, "force_image_size"),
])  # fmt: skip
def test_settings_of_original_files_are_refused_by_name(
    key: str, value: object, message: str, tmp_path: Path
) -> None:
    folder = tiny_internvl(tmp_path, names="original")
    change(folder, key, value)
    with pytest.raises(UnsupportedModelError, match=message):
        load(folder)


def test_a_missing_key_means_something_else_in_each_format(tmp_path: Path) -> None:
    folder = tiny_internvl(tmp_path, names="original", tower="6B")
    for key in ("qkv_bias", "qk_normalization", "norm_type"):
        change(folder, f"vision_config.{key}", None)
    vision = config_of(open_checkpoint(folder)).vision
    assert (vision.qkv_bias, vision.qk_norm, vision.norm) == (False, True, "rms_norm")
    (tmp_path / "hf").mkdir()
    folder = tiny_internvl(tmp_path / "hf")
    for key in ("attention_bias", "use_qk_norm", "norm_type"):
        change(folder, f"vision_config.{key}", None)
    vision = config_of(open_checkpoint(folder)).vision
    assert (vision.qkv_bias, vision.qk_norm, vision.norm) == (False, False, "layer_norm")


def test_experts_that_are_not_renormalised_are_refused(tmp_path: Path) -> None:
    folder = tiny_internvl(tmp_path, moe=True)
    change(folder, "text_config.norm_topk_prob", None)
    with pytest.raises(UnsupportedModelError, match="norm_topk_prob"):
        load(folder)


@pytest.mark.parametrize(("names", "tensor"), [
    ("hf", "multi_modal_projector.linear_1.weight"), ("original", "mlp1.1.weight")])
def test_a_projector_of_the_wrong_width_is_refused(
    names: str, tensor: str, tmp_path: Path
) -> None:
    folder = tiny_internvl(tmp_path, names=names)
    rewrite(folder, tensors_of(folder) | {tensor: torch.zeros(64, 96)})
    expected = rf"{tensor}: expected \[64, 192\], got \[64, 96\]"
    with pytest.raises(CheckpointError, match=expected):
        load(folder)


@pytest.mark.parametrize(("names", "tensor"), [
    ("hf", "vision_tower.encoder.layer.2.attention.k_proj.bias"),
    ("original", "vision_model.encoder.layers.2.attn.qkv.bias"),
    ("original", "vision_model.embeddings.position_embedding"),
    ("hf", "language_model.model.layers.3.self_attn.o_proj.weight")])
def test_a_missing_tensor_is_named_as_files_name_it(
    names: str, tensor: str, tmp_path: Path
) -> None:
    folder = tiny_internvl(tmp_path, names=names)
    tensors = tensors_of(folder)
    del tensors[tensor]
    rewrite(folder, tensors)
    with pytest.raises(CheckpointError, match=f"1 tensors are missing: {tensor}"):
        load(folder)


@pytest.mark.parametrize("names", ["hf", "original"])
@pytest.mark.parametrize(("key", "value"), [
    ("vision_config", None), ("vision_config.hidden_size", 47), ("vision_config.image_size", 70),
    ("vision_config.patch_size", 0), ("vision_config.num_hidden_layers", 4),
    ("{text}", []), ("{text}.hidden_size", "64"), ("{text}.head_dim", 31),
    ("{text}.rope_theta", -1),
    ("vision_config.hidden_size", 10**9), ("{text}.vocab_size", 449),
])  # fmt: skip
def test_bad_settings_are_errors_of_ours(
    names: str, key: str, value: object, tmp_path: Path
) -> None:
    folder = tiny_internvl(tmp_path, names=names)
    if key.endswith("rope_theta"):
        change(folder, f"{SECTIONS[names]}.rope_parameters", None)
    change(folder, key.format(text=SECTIONS[names]), value)
    with pytest.raises(PydstpError):
        load(folder)
    assert inspect(folder, READERS).problems
