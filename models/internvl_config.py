"""The parts of an InternVL3.5 config.json, in its two formats.

Original files (model_type internvl_chat) and those of transformers (internvl, the "-HF" releases)
name the same things differently, and a missing key means something else in each.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from pydstp.models.config_reader import Section
from pydstp.models.text_config import TextConfig, read_text_config

DECODERS = {"qwen3": False, "qwen3_moe": True}  # model_type -> whether it is sparse
ARCHITECTURES = {"Qwen3ForCausalLM": "qwen3", "Qwen3MoeForCausalLM": "qwen3_moe"}


@dataclass(frozen=True)
class InternVisionConfig:
    """InternViT with the projector. Every picture comes as square tiles of `image_size` pixels.

    norm: "layer_norm" (300M) or "rms_norm" (6B). qk_norm: q and k pass an RMSNorm over all their
    channels, before they are split into heads (6B). out_hidden_size: the decoder's width.
    """

    depth: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    in_channels: int
    image_size: int
    patch_size: int
    norm: str
    norm_eps: float
    qkv_bias: bool
    qk_norm: bool
    out_hidden_size: int
    spatial_merge_size: int = 2
    deepstack_visual_indexes: ClassVar[tuple[int, ...]] = ()

    @property
    def head_dim(self) -> int:
        """Channels of one head."""
        return self.hidden_size // self.num_heads

    @property
    def patch_dim(self) -> int:
        """Numbers in one row of pixel_values: channels x patch x patch."""
        return self.in_channels * self.patch_size**2

    @property
    def merge_unit(self) -> int:
        """Patches that become one visual token."""
        return self.spatial_merge_size**2

    @property
    def tile_side(self) -> int:
        """Patches along one side of a tile."""
        return self.image_size // self.patch_size


@dataclass(frozen=True)
class VisionKeys:
    """How one format spells the tower's options, and what a missing one means."""

    qkv_bias: str
    qk_norm: str
    default_qk_norm: bool
    default_norm: str


HF_KEYS = VisionKeys("attention_bias", "use_qk_norm", False, "layer_norm")
ORIGINAL_KEYS = VisionKeys("qkv_bias", "qk_normalization", True, "rms_norm")
# Settings that change what is computed: key -> the values that are supported.
HF_FIXED: Mapping[str, tuple[Any, ...]] = {
    "downsample_ratio": (0.5,), "projector_hidden_act": ("gelu",), "vision_feature_layer": (-1,),
    "vision_feature_select_strategy": ("default",),
}  # fmt: skip
ORIGINAL_FIXED: Mapping[str, tuple[Any, ...]] = {
    "downsample_ratio": (0.5,), "ps_version": ("v2",), "select_layer": (-1,), "pad2square": (False,)
}  # fmt: skip
VISION_FIXED: Mapping[str, tuple[Any, ...]] = {
    "hidden_act": ("gelu",), "use_mask_token": (False,), "use_mean_pooling": (True,),
    "use_absolute_position_embeddings": (True,),
}  # fmt: skip


def check_internvl(top: Section, *, original: bool) -> None:
    """Refuse variants that compute something else, by their settings at the top of the file."""
    top.refuse("flash_mode", unless=(False,), reason="InternVL3.5-Flash, visual resolution router")
    for key, supported in (ORIGINAL_FIXED if original else HF_FIXED).items():
        top.refuse(key, unless=supported, reason=f"supported: {supported[0]}")


def read_internvl_text(section: Section) -> TextConfig:
    """The decoder: Qwen3 with rope over one axis, dense or sparse; others are refused by name."""
    kind = section.choice("model_type", tuple(DECODERS)) if section.has("model_type") else None
    if section.has("architectures"):
        names = section.values["architectures"]
        name = names[0] if isinstance(names, list) and len(names) == 1 else None
        kind = ARCHITECTURES.get(name) if isinstance(name, str) else None
        if kind is None:
            raise section.unsupported("architectures", f"supported: {', '.join(ARCHITECTURES)}")
    if kind is None:
        section.choice("model_type", tuple(DECODERS))  # says that it is missing
    sparse = DECODERS[kind]
    if sparse and not section.has("norm_topk_prob"):
        raise section.unsupported("norm_topk_prob", "missing means false; supported: true")
    return read_text_config(section, sparse=sparse, has_mrope=False)


def read_intern_vision(section: Section, text: TextConfig, *, original: bool) -> InternVisionConfig:
    """The tower and its projector."""
    keys = ORIGINAL_KEYS if original else HF_KEYS
    for key, supported in VISION_FIXED.items():
        section.refuse(key, unless=supported, reason=f"supported: {supported[0]}")
    norms = ("layer_norm", "rms_norm")
    config = InternVisionConfig(
        depth=section.integer("num_hidden_layers"),
        hidden_size=section.integer("hidden_size"),
        intermediate_size=section.integer("intermediate_size"),
        num_heads=section.integer("num_attention_heads"),
        in_channels=section.integer("num_channels") if section.has("num_channels") else 3,
        image_size=_side(section, "image_size"),
        patch_size=_side(section, "patch_size"),
        norm=section.choice("norm_type", norms) if section.has("norm_type") else keys.default_norm,
        norm_eps=section.positive("layer_norm_eps") if section.has("layer_norm_eps") else 1e-6,
        qkv_bias=_flag(section, keys.qkv_bias, False),
        qk_norm=_flag(section, keys.qk_norm, keys.default_qk_norm),
        out_hidden_size=text.hidden_size,
    )
    if config.hidden_size % config.num_heads:
        raise section.wrong("hidden_size", f"a multiple of {config.num_heads} heads")
    if config.image_size % (config.patch_size * config.spatial_merge_size):
        expected = f"a multiple of {config.spatial_merge_size} patches of {config.patch_size}"
        raise section.wrong("image_size", expected)
    return config


def _side(section: Section, key: str) -> int:
    """Pixels of a square, written as one number or as two equal ones."""
    if not isinstance(section.values.get(key), list):
        return section.integer(key)
    sides = section.integers(key, minimum=1)
    if len(sides) != 2 or sides[0] != sides[1]:
        raise section.unsupported(key, "tiles and patches are squares")
    return sides[0]


def _flag(section: Section, key: str, default: bool) -> bool:
    if not section.has(key):
        return default
    if not isinstance(section.values[key], bool):
        raise section.wrong(key, "true or false")
    return section.values[key]
