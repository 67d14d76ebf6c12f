"""InternVL3.5 as released: sizes from config.json, parameters as counted by its authors."""

from __future__ import annotations

import pytest

from pydstp.models.config import VLMConfig
from pydstp.models.registry import build_model

SMALL = {
    "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16,
    "intermediate_size": 4096, "qkv_bias": True, "qk_normalization": False,
    "norm_type": "layer_norm",
}  # fmt: skip
LARGE = {
    "hidden_size": 3200, "num_hidden_layers": 45, "num_attention_heads": 25,
    "intermediate_size": 12800, "qkv_bias": False, "qk_normalization": True,
    "norm_type": "rms_norm",
}  # fmt: skip
# hidden, intermediate, layers, heads, kv heads, experts' intermediate, tower, parameters
RELEASES = {
    "1B": (1024, 3072, 28, 16, 8, None, SMALL, 1_060_897_792),
    "2B": (2048, 6144, 28, 16, 8, None, SMALL, 2_348_347_392),
    "4B": (2560, 9728, 36, 32, 8, None, SMALL, 4_732_489_216),
    "8B": (4096, 12288, 36, 32, 8, None, SMALL, 8_528_318_464),
    "14B": (5120, 17408, 40, 40, 8, None, SMALL, 15_119_523_840),
    "38B": (5120, 25600, 64, 64, 8, None, LARGE, 38_390_405_504),
    "30B-A3B": (2048, 6144, 48, 32, 4, 768, SMALL, 30_848_730_112),
    "241B-A28B": (4096, 12288, 94, 64, 4, 1536, LARGE, 240_699_370_368),
}  # fmt: skip


def original_config(size: str) -> dict:
    hidden, inter, layers, heads, kv_heads, experts, tower, _ = RELEASES[size]
    text = {
        "architectures": ["Qwen3MoeForCausalLM" if experts else "Qwen3ForCausalLM"],
        "attention_bias": False, "head_dim": 128, "hidden_act": "silu", "hidden_size": hidden,
        "intermediate_size": inter, "max_position_embeddings": 40960, "num_hidden_layers": layers,
        "model_type": "qwen3_moe" if experts else "qwen3", "num_attention_heads": heads,
        "num_key_value_heads": kv_heads, "rms_norm_eps": 1e-6, "rope_scaling": None,
        "rope_theta": 1000000, "sliding_window": None, "use_sliding_window": False,
        "vocab_size": 151936, "eos_token_id": 151645,
    }  # fmt: skip
    if experts:
        text |= {"num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": experts,
                 "norm_topk_prob": True, "decoder_sparse_step": 1, "mlp_only_layers": []}
    vision = tower | {
        "architectures": ["InternVisionModel"], "hidden_act": "gelu", "image_size": 448,
        "layer_norm_eps": 1e-6, "num_channels": 3, "patch_size": 14, "use_flash_attn": True}
    return {
        "architectures": ["InternVLChatModel"], "model_type": "internvl_chat",
        "downsample_ratio": 0.5, "dynamic_image_size": True, "force_image_size": 448,
        "llm_config": text, "max_dynamic_patch": 12, "min_dynamic_patch": 1, "pad2square": False,
        "ps_version": "v2", "select_layer": -1, "template": "internvl2_5", "use_thumbnail": True,
        "torch_dtype": "bfloat16", "vision_config": vision,
    }  # fmt: skip


@pytest.mark.parametrize("size", RELEASES)
def test_released_sizes_have_the_parameters_their_authors_count(size: str) -> None:
    config = VLMConfig.from_dict(original_config(size))
    model = build_model(config, tied=False)
    assert sum(p.numel() for p in model.parameters()) == RELEASES[size][-1]


def test_a_released_config_is_read_in_full() -> None:
    config = VLMConfig.from_dict(original_config("30B-A3B"))
    assert config.dtype == "bfloat16" and config.image_token_id is None
    assert config.text.mrope_section is None and config.text.rope_theta == 1e6
    assert config.text.moe.num_experts_per_tok == 8
    vision = config.vision
    assert (vision.head_dim, vision.patch_dim, vision.tile_side, vision.merge_unit) == (
        64, 588, 32, 4)
    assert (vision.norm, vision.norm_eps, vision.qkv_bias, vision.qk_norm) == (
        "layer_norm", 1e-6, True, False)
    assert VLMConfig.from_dict(original_config("38B")).vision.head_dim == 128
