"""config.json: both spellings are read alike, everything else is refused by file, key and value."""

from __future__ import annotations

import copy
import json
from functools import reduce

import pytest

from pydstp.errors import CheckpointError, UnsupportedModelError
from pydstp.models.config import VLMConfig
from pydstp.models.registry import build_model
from tests.checkpoints import tiny_qwen3_vl

# The 2B release, in the words of its own config.json (without the keys that nobody reads).
RELEASE = {
    "architectures": ["Qwen3VLForConditionalGeneration"],
    "image_token_id": 151655,
    "model_type": "qwen3_vl",
    "text_config": {
        "attention_bias": False,
        "dtype": "bfloat16",
        "head_dim": 128,
        "hidden_act": "silu",
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "max_position_embeddings": 262144,
        "model_type": "qwen3_vl_text",
        "num_attention_heads": 16,
        "num_hidden_layers": 28,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-06,
        "rope_scaling": {
            "mrope_interleaved": True,
            "mrope_section": [24, 20, 20],
            "rope_type": "default",
        },
        "rope_theta": 5000000,
        "tie_word_embeddings": True,
        "vocab_size": 151936,
    },
    "tie_word_embeddings": True,
    "video_token_id": 151656,
    "vision_config": {
        "deepstack_visual_indexes": [5, 11, 17],
        "depth": 24,
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_size": 1024,
        "in_channels": 3,
        "intermediate_size": 4096,
        "model_type": "qwen3_vl",
        "num_heads": 16,
        "num_position_embeddings": 2304,
        "out_hidden_size": 2048,
        "patch_size": 16,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    },
    "vision_end_token_id": 151653,
    "vision_start_token_id": 151652,
}
MOE = {
    "num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 768,
    "norm_topk_prob": True, "decoder_sparse_step": 1, "mlp_only_layers": [],
}  # fmt: skip
REMOVED = object()


def changed(path: str, value: object, moe: bool = False) -> dict:
    """A release's config with one key set, or REMOVED."""
    config = copy.deepcopy(RELEASE)
    if moe:
        config["model_type"] = "qwen3_vl_moe"
        config["text_config"] |= MOE
    *parents, key = path.split(".")
    section = reduce(dict.__getitem__, parents, config)
    if value is REMOVED:
        del section[key]
    else:
        section[key] = value
    return config


def test_release_config() -> None:
    config = VLMConfig.from_dict(RELEASE)
    assert config.model_type == "qwen3_vl"
    assert config.dtype == "bfloat16"
    assert config.text.rope_theta == 5e6
    assert config.text.mrope_section == (24, 20, 20)
    assert config.text.moe is None
    assert config.vision.head_dim == 64
    assert config.vision.patch_dim == 1536
    assert config.vision.deepstack_visual_indexes == (5, 11, 17)
    assert (config.image_token_id, config.video_token_id) == (151655, 151656)


@pytest.mark.parametrize(("tied", "extra"), [(True, 0), (False, 151936 * 2048)])
def test_the_2b_model_has_its_published_number_of_parameters(tied: bool, extra: int) -> None:
    model = build_model(VLMConfig.from_dict(RELEASE), tied)
    parameters = list(model.parameters())
    assert all(p.is_meta and not p.requires_grad for p in parameters)
    assert sum(p.numel() for p in parameters) == 2_127_532_032 + extra
    assert not list(model.buffers()), "a buffer would stay without memory"


def test_moe_model_of_30b_has_its_published_number_of_parameters() -> None:
    config = changed("model_type", "qwen3_vl_moe", moe=True)
    config["text_config"] |= {
        "num_attention_heads": 32, "num_key_value_heads": 4, "num_hidden_layers": 48,
    }  # fmt: skip
    config["vision_config"] |= {
        "depth": 27, "hidden_size": 1152, "intermediate_size": 4304,
        "deepstack_visual_indexes": [8, 16, 24],
    }  # fmt: skip
    model = build_model(VLMConfig.from_dict(config), tied=False)
    assert sum(p.numel() for p in model.parameters()) == 31_070_754_032


@pytest.mark.parametrize("moe", [False, True])
def test_both_generations_of_files_read_alike(moe: bool) -> None:
    configs = []
    for old in (False, True):
        path = tiny_qwen3_vl(moe=moe, old_config=old) / "config.json"
        configs.append(VLMConfig.from_dict(json.loads(path.read_text()), str(path)))
    assert configs[0] == configs[1]
    assert configs[0].dtype == "float32"


def test_spellings() -> None:
    expected = VLMConfig.from_dict(RELEASE)
    for path, value in {
        "vision_config.model_type": "qwen3_vl_vision",
        "vision_config.rope_parameters": {"rope_type": "axial", "rope_theta": 10000.0},
        "torch_dtype": "bfloat16",
        "text_config.rope_scaling.mrope_section": REMOVED,
        "text_config.rope_scaling": None,
        "tie_word_embeddings": False,
    }.items():
        assert VLMConfig.from_dict(changed(path, value)) == expected, path


def test_spellings_of_the_number_of_experts() -> None:
    moe = VLMConfig.from_dict(changed("text_config.norm_topk_prob", REMOVED, moe=True))
    renamed = changed("text_config.num_local_experts", 128, moe=True)
    del renamed["text_config"]["num_experts"]
    assert VLMConfig.from_dict(renamed) == moe
    assert moe.text.moe.num_experts == 128


UNSUPPORTED = [
    ("model_type", "qwen3_5", "supported: qwen3_vl, qwen3_vl_moe"),
    ("model_type", "qwen2_5_vl", ""),
    ("quantization_config", {"quant_method": "fp8"}, '"fp8"'),
    ("text_config.quantization_config", {"quant_method": "awq"}, '"awq"'),
    ("dtype", "float8_e4m3fn", ""),
    ("text_config.hidden_act", "gelu", "supported: silu"),
    ("vision_config.hidden_act", "quick_gelu", "supported: gelu_pytorch_tanh"),
    ("text_config.attention_bias", True, ""),
    ("text_config.sliding_window", 4096, ""),
    ("text_config.rope_scaling.rope_type", "yarn", "supported: default"),
    ("text_config.rope_scaling.type", "mrope", "supported: default"),
    ("text_config.rope_parameters", {"rope_type": "yarn", "rope_theta": 5e6}, "supported: default"),
    ("vision_config.rope_parameters", {"rope_type": "yarn", "rope_theta": 1e4}, "axial"),
    ("text_config.norm_topk_prob", False, ""),
    ("text_config.decoder_sparse_step", 2, ""),
    ("text_config.mlp_only_layers", [0, 3], ""),
]


@pytest.mark.parametrize(("path", "value", "hint"), UNSUPPORTED)
def test_unsupported_values_are_refused_by_name(path: str, value: object, hint: str) -> None:
    moe = path.rpartition(".")[2] in MOE
    with pytest.raises(UnsupportedModelError) as error:
        VLMConfig.from_dict(changed(path, value, moe), "some/config.json")
    message = str(error.value)
    assert message.startswith(f"some/config.json: {path}")
    assert hint in message
    assert isinstance(value, dict) or json.dumps(value) in message


MALFORMED = [
    ("model_type", 3),
    ("text_config", None),
    ("text_config", [1]),
    ("text_config.hidden_size", "2048"),
    ("text_config.hidden_size", 0),
    ("text_config.num_hidden_layers", 28.0),
    ("text_config.num_hidden_layers", True),
    ("text_config.num_hidden_layers", 2),
    ("text_config.num_key_value_heads", 7),
    ("text_config.head_dim", 96),
    ("text_config.rms_norm_eps", "small"),
    ("text_config.rms_norm_eps", float("nan")),
    ("text_config.rope_theta", -1),
    ("text_config.rope_scaling", "default"),
    ("text_config.rope_scaling.mrope_section", [32, 32]),
    ("text_config.rope_scaling.mrope_section", [16, 24, 24]),
    ("text_config.num_experts_per_tok", 129),
    ("vision_config.hidden_size", 1000),
    ("vision_config.num_position_embeddings", 2305),
    ("vision_config.out_hidden_size", 4096),
    ("vision_config.deepstack_visual_indexes", [5, 11, 24]),
    ("vision_config.deepstack_visual_indexes", [11, 5, 17]),
    ("vision_config.deepstack_visual_indexes", 5),
    ("vision_config.deepstack_visual_indexes", "5"),
    ("vision_config.patch_size", [16, 16]),
    ("image_token_id", 151936),
    ("image_token_id", -1),
]


@pytest.mark.parametrize(("path", "value"), MALFORMED)
def test_malformed_values_are_refused_by_name(path: str, value: object) -> None:
    moe = path.rpartition(".")[2] in MOE
    with pytest.raises(CheckpointError) as error:
        VLMConfig.from_dict(changed(path, value, moe), "some/config.json")
    assert str(error.value).startswith(f"some/config.json: {path}")
    assert not isinstance(error.value, UnsupportedModelError)


OPTIONAL = {
    "architectures", "tie_word_embeddings", "text_config.dtype", "text_config.attention_bias",
    "text_config.model_type", "text_config.rope_scaling", "text_config.tie_word_embeddings",
    "vision_config.model_type",
}  # fmt: skip
REQUIRED = [key for key in RELEASE if key not in OPTIONAL] + [
    f"{section}.{key}"
    for section in ("text_config", "vision_config")
    for key in RELEASE[section]
    if f"{section}.{key}" not in OPTIONAL
]


@pytest.mark.parametrize("path", REQUIRED)
def test_missing_keys_are_named(path: str) -> None:
    for value in (REMOVED, None):
        with pytest.raises(CheckpointError, match=rf"^some/config.json: {path} is missing$"):
            VLMConfig.from_dict(changed(path, value), "some/config.json")


@pytest.mark.parametrize("path", sorted(OPTIONAL))
def test_other_keys_may_be_missing(path: str) -> None:
    VLMConfig.from_dict(changed(path, REMOVED))
