"""Model configuration: frozen, built once from config.json, refused by name where unsupported.

Key names are those of the Qwen3-VL releases and of the files that transformers 4.57 to 5.23 write.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydstp.models.config_reader import Section

DENSE = "qwen3_vl"
MOE = "qwen3_vl_moe"
MODEL_TYPES = (DENSE, MOE)
DTYPES = ("bfloat16", "float16", "float32")


@dataclass(frozen=True)
class MoEConfig:
    """Sparse MLP: `num_experts_per_tok` of `num_experts` gated MLPs per token, in every layer."""

    num_experts: int
    num_experts_per_tok: int
    moe_intermediate_size: int


@dataclass(frozen=True)
class TextConfig:
    """The decoder. `mrope_section` is None where rope is 1-D, `moe` where the MLPs are dense."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    max_position_embeddings: int
    rope_theta: float
    mrope_section: tuple[int, int, int] | None
    moe: MoEConfig | None = None


@dataclass(frozen=True)
class VisionConfig:
    """The vision tower with its mergers."""

    depth: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    in_channels: int
    patch_size: int
    temporal_patch_size: int
    spatial_merge_size: int
    num_position_embeddings: int
    out_hidden_size: int
    deepstack_visual_indexes: tuple[int, ...]
    rope_theta: float = 10000.0

    @property
    def head_dim(self) -> int:
        """Channels of one head, as they are: 72 is not padded to 80."""
        return self.hidden_size // self.num_heads

    @property
    def patch_dim(self) -> int:
        """Numbers in one row of pixel_values: channels x frames x patch x patch."""
        return self.in_channels * self.temporal_patch_size * self.patch_size**2

    @property
    def merge_unit(self) -> int:
        """Patches that become one visual token."""
        return self.spatial_merge_size**2


@dataclass(frozen=True)
class VLMConfig:
    """A vision-language model. `dtype` is the file's own statement, None when it makes none."""

    model_type: str
    text: TextConfig
    vision: VisionConfig
    image_token_id: int
    video_token_id: int
    vision_start_token_id: int
    vision_end_token_id: int
    dtype: str | None

    @classmethod
    def from_dict(cls, config: Mapping[str, Any], source: str = "config.json") -> "VLMConfig":
        """Read the content of a config.json.

        source: the file's path, for messages.
        Raises CheckpointError for a missing or malformed key and UnsupportedModelError for a value
        that is understood but not supported; both name file, key and value.
        """
        top = Section(config, source)
        model_type = top.choice("model_type", MODEL_TYPES)
        text_section, vision_section = top.section("text_config"), top.section("vision_config")
        for section in (top, text_section, vision_section):
            section.refuse("quantization_config", unless=(), reason="weights: bf16, fp16 or fp32")
        text = _text_config(text_section, sparse=model_type == MOE)
        vision = _vision_config(vision_section)
        _check_join(text, vision, text_section, vision_section)
        return cls(
            model_type=model_type,
            text=text,
            vision=vision,
            image_token_id=_token_id(top, "image_token_id", text),
            video_token_id=_token_id(top, "video_token_id", text),
            vision_start_token_id=_token_id(top, "vision_start_token_id", text),
            vision_end_token_id=_token_id(top, "vision_end_token_id", text),
            dtype=_dtype(top) or _dtype(text_section),
        )


def _text_config(section: Section, sparse: bool) -> TextConfig:
    section.choice("hidden_act", ("silu",))
    section.refuse("attention_bias", unless=(False,), reason="q, k, v and o have no bias")
    if section.values.get("use_sliding_window") is not False:
        section.refuse("sliding_window", unless=(), reason="every layer attends to all tokens")
    theta, mrope_section = _rope(section)
    config = TextConfig(
        vocab_size=section.integer("vocab_size"),
        hidden_size=section.integer("hidden_size"),
        intermediate_size=section.integer("intermediate_size"),
        num_layers=section.integer("num_hidden_layers"),
        num_heads=section.integer("num_attention_heads"),
        num_kv_heads=section.integer("num_key_value_heads"),
        head_dim=section.integer("head_dim", minimum=2),
        rms_norm_eps=section.positive("rms_norm_eps"),
        max_position_embeddings=section.integer("max_position_embeddings"),
        rope_theta=theta,
        mrope_section=mrope_section,
        moe=_moe_config(section) if sparse else None,
    )
    if config.num_heads % config.num_kv_heads:
        raise section.wrong("num_key_value_heads", f"a divisor of {config.num_heads} query heads")
    if config.head_dim % 2 or sum(mrope_section) != config.head_dim // 2:
        expected = f"twice the sum of mrope_section {list(mrope_section)}"
        raise section.wrong("head_dim", expected)
    return config


def _rope(section: Section) -> tuple[float, tuple[int, int, int]]:
    """Both spellings: rope_theta beside rope_scaling, or rope_parameters that holds everything."""
    key = "rope_parameters" if section.has("rope_parameters") else "rope_scaling"
    rope = section.section(key) if section.has(key) else Section({}, section.source)
    for name in ("rope_type", "type"):
        if rope.has(name):
            rope.choice(name, ("default",))
    theta = (rope if rope.has("rope_theta") else section).positive("rope_theta")
    # The reference falls back to these sections too (modeling_qwen3_vl.py, text rotary embedding).
    sections = rope.integers("mrope_section") if rope.has("mrope_section") else (24, 20, 20)
    if len(sections) != 3:
        raise rope.wrong("mrope_section", "three integers (time, height, width)")
    _, height, width = sections
    if 3 * max(height, width) > sum(sections):
        raise rope.wrong("mrope_section", "height and width of at most a third of the frequencies")
    return theta, sections


def _moe_config(section: Section) -> MoEConfig:
    section.refuse("decoder_sparse_step", unless=(1,), reason="every layer is sparse")
    section.refuse("mlp_only_layers", unless=([], ()), reason="every layer is sparse")
    section.refuse("norm_topk_prob", unless=(True,), reason="expert weights are renormalised")
    experts_key = "num_experts" if section.has("num_experts") else "num_local_experts"
    config = MoEConfig(
        num_experts=section.integer(experts_key),
        num_experts_per_tok=section.integer("num_experts_per_tok"),
        moe_intermediate_size=section.integer("moe_intermediate_size"),
    )
    if config.num_experts_per_tok > config.num_experts:
        raise section.wrong("num_experts_per_tok", f"at most {config.num_experts} experts")
    return config


def _vision_config(section: Section) -> VisionConfig:
    section.choice("hidden_act", ("gelu_pytorch_tanh",))
    rope = section.section("rope_parameters") if section.has("rope_parameters") else None
    if rope and rope.has("rope_type"):
        rope.choice("rope_type", ("axial", "default"))
    config = VisionConfig(
        depth=section.integer("depth"),
        hidden_size=section.integer("hidden_size"),
        intermediate_size=section.integer("intermediate_size"),
        num_heads=section.integer("num_heads"),
        in_channels=section.integer("in_channels"),
        patch_size=section.integer("patch_size"),
        temporal_patch_size=section.integer("temporal_patch_size"),
        spatial_merge_size=section.integer("spatial_merge_size"),
        num_position_embeddings=section.integer("num_position_embeddings"),
        out_hidden_size=section.integer("out_hidden_size"),
        deepstack_visual_indexes=section.integers("deepstack_visual_indexes"),
        rope_theta=rope.positive("rope_theta") if rope else 10000.0,
    )
    _check_vision(config, section)
    return config


def _check_vision(config: VisionConfig, section: Section) -> None:
    if config.hidden_size % (4 * config.num_heads):
        raise section.wrong("hidden_size", f"a multiple of 4 x num_heads = {4 * config.num_heads}")
    if math.isqrt(config.num_position_embeddings) ** 2 != config.num_position_embeddings:
        raise section.wrong("num_position_embeddings", "a square number")
    taps = config.deepstack_visual_indexes
    if any(a >= b for a, b in zip(taps, taps[1:])) or any(tap >= config.depth for tap in taps):
        raise section.wrong("deepstack_visual_indexes", f"ascending blocks below {config.depth}")


def _check_join(
    text: TextConfig, vision: VisionConfig, text_section: Section, vision_section: Section
) -> None:
    if vision.out_hidden_size != text.hidden_size:
        raise vision_section.wrong("out_hidden_size", f"the text hidden_size {text.hidden_size}")
    if len(vision.deepstack_visual_indexes) > text.num_layers:
        expected = f"at least {len(vision.deepstack_visual_indexes)}, one per DeepStack feature"
        raise text_section.wrong("num_hidden_layers", expected)


def _token_id(section: Section, key: str, text: TextConfig) -> int:
    token_id = section.integer(key, minimum=0)
    if token_id >= text.vocab_size:
        raise section.wrong(key, f"an id below vocab_size {text.vocab_size}")
    return token_id


def _dtype(section: Section) -> str | None:
    for key in ("dtype", "torch_dtype"):
        if section.has(key):
            return section.choice(key, DTYPES)
    return None
