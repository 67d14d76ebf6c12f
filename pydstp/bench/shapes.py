"""Named shapes of models: config.json of checkpoints that are filled with random weights.

Sizes of the released models are from their config.json files; the others are our own.
"""

from __future__ import annotations

from typing import Any

from pydstp.errors import OptionError, show

HEAD_DIM = 128
VOCAB_SIZE = 151936
FIRST_SPECIAL_ID = 151643  # of Qwen's added tokens; the embedded tokenizer has them in this order
NUM_SPECIAL = 14  # added tokens of the embedded tokenizer
IMAGE_MARKS = ("<img>", "</img>", "<IMG_CONTEXT>")  # InternVL's, which come after them
TILE_PIXELS = 448

# hidden, MLP, layers, query heads, KV heads of the text model; width, MLP, depth, heads, taps of
# the vision tower.
QWEN3_VL = {
    "qwen3-vl-4b": ((2560, 9728, 36, 32, 8), (1024, 4096, 24, 16, [5, 11, 17])),
    "qwen3-vl-2b": ((2048, 6144, 28, 16, 8), (1024, 4096, 24, 16, [5, 11, 17])),
    "small": ((1024, 3072, 12, 16, 8), (768, 3072, 12, 12, [3, 6, 9])),
    "tiny": ((128, 256, 2, 4, 2), (64, 128, 2, 2, [0])),
}
# hidden, MLP, layers, query heads, KV heads; width, MLP, depth, heads. Their heads are untied.
INTERNVL = {
    "internvl3.5-2b": ((2048, 6144, 28, 16, 8), (1024, 4096, 24, 16)),
    "internvl3.5-1b": ((1024, 3072, 28, 16, 8), (1024, 4096, 24, 16)),
    "tiny-internvl": ((128, 256, 2, 4, 2), (64, 128, 2, 2)),
}
SHAPES = (*QWEN3_VL, *INTERNVL)


def model_config(shape: str) -> dict[str, Any]:
    """config.json of a shape, in the spelling of the released checkpoints.

    Raises:
        OptionError: no shape of this name.
    """
    if shape not in SHAPES:
        raise OptionError(f"shape: expected one of {', '.join(SHAPES)}, got {show(shape)}")
    return _qwen3_vl(*QWEN3_VL[shape]) if shape in QWEN3_VL else _internvl(*INTERNVL[shape])


def _decoder(sizes: tuple[int, ...]) -> dict[str, Any]:
    hidden, mlp, layers, heads, kv_heads = sizes
    return {
        "vocab_size": VOCAB_SIZE, "hidden_size": hidden, "intermediate_size": mlp,
        "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": kv_heads, "head_dim": HEAD_DIM, "rms_norm_eps": 1e-6,
        "hidden_act": "silu", "attention_bias": False, "attention_dropout": 0.0,
        "bos_token_id": 151643, "eos_token_id": 151645, "use_cache": True, "dtype": "bfloat16",
    }


def _qwen3_vl(decoder: tuple[int, ...], tower: tuple[Any, ...]) -> dict[str, Any]:
    width, mlp, depth, heads, taps = tower
    text = {
        "model_type": "qwen3_vl_text", **_decoder(decoder), "max_position_embeddings": 262144,
        "rope_theta": 5000000, "tie_word_embeddings": True, "rope_scaling": {
            "rope_type": "default", "mrope_interleaved": True, "mrope_section": [24, 20, 20]},
    }
    vision = {
        "model_type": "qwen3_vl", "depth": depth, "hidden_size": width, "in_channels": 3,
        "intermediate_size": mlp, "num_heads": heads, "out_hidden_size": decoder[0],
        "patch_size": 16, "spatial_merge_size": 2, "temporal_patch_size": 2,
        "num_position_embeddings": 2304, "hidden_act": "gelu_pytorch_tanh",
        "deepstack_visual_indexes": taps,
    }
    return {
        "architectures": ["Qwen3VLForConditionalGeneration"], "model_type": "qwen3_vl",
        "image_token_id": 151655, "video_token_id": 151656, "vision_start_token_id": 151652,
        "vision_end_token_id": 151653, "tie_word_embeddings": True, "dtype": "bfloat16",
        "text_config": text, "vision_config": vision,
    }


def _internvl(decoder: tuple[int, ...], tower: tuple[int, ...]) -> dict[str, Any]:
    width, mlp, depth, heads = tower
    text = {
        "model_type": "qwen3", **_decoder(decoder), "max_position_embeddings": 40960,
        "rope_theta": 1000000, "rope_scaling": None, "sliding_window": None,
        "tie_word_embeddings": False,
    }
    vision = {
        "model_type": "internvl_vision", "num_hidden_layers": depth, "hidden_size": width,
        "intermediate_size": mlp, "num_attention_heads": heads, "num_channels": 3,
        "image_size": [TILE_PIXELS, TILE_PIXELS], "patch_size": [14, 14], "attention_bias": True,
        "use_qk_norm": False, "norm_type": "layer_norm", "layer_norm_eps": 1e-6,
        "hidden_act": "gelu", "use_mask_token": False, "use_mean_pooling": True,
        "use_absolute_position_embeddings": True, "layer_scale_init_value": 0.1,
    }
    return {
        "architectures": ["InternVLForConditionalGeneration"], "model_type": "internvl",
        "image_token_id": FIRST_SPECIAL_ID + NUM_SPECIAL + 2, "image_seq_length": 256,
        "downsample_ratio": 0.5, "projector_hidden_act": "gelu", "vision_feature_layer": -1,
        "vision_feature_select_strategy": "default", "tie_word_embeddings": False,
        "dtype": "bfloat16", "text_config": text, "vision_config": vision,
    }
