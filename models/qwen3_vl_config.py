"""The vision tower's part of a Qwen3-VL config.json."""

import math
from dataclasses import dataclass

from pydstp.models.config_reader import Section
from pydstp.models.text_config import TextConfig


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


def read_vision_config(section: Section, text: TextConfig, text_section: Section) -> VisionConfig:
    """Read and check the section, also against the decoder that it feeds."""
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
    _check_join(text, config, text_section, section)
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
