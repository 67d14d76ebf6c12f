"""Model configuration: frozen, built once from config.json, refused by name where unsupported.

Key names are those of the releases and of the files that transformers 4.57 to 5.23 write.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydstp.models.config_reader import Section
from pydstp.models.internvl_config import (
    InternVisionConfig,
    check_internvl,
    read_intern_vision,
    read_internvl_text,
)
from pydstp.models.qwen3_vl_config import VisionConfig, read_vision_config
from pydstp.models.text_config import MoEConfig, TextConfig, read_text_config, read_token_id

__all__ = ["InternVisionConfig", "MoEConfig", "TextConfig", "VLMConfig", "VisionConfig"]

DENSE = "qwen3_vl"
MOE = "qwen3_vl_moe"
INTERNVL = "internvl"  # files of transformers, the "-HF" releases
INTERNVL_CHAT = "internvl_chat"  # original files
MODEL_TYPES = (DENSE, MOE, INTERNVL, INTERNVL_CHAT)
DTYPES = ("bfloat16", "float16", "float32")


@dataclass(frozen=True)
class VLMConfig:
    """A vision-language model. `dtype` is the file's own statement, None when it makes none.

    image_token_id: None where the file does not say; the tokenizer then does, by name.
    """

    model_type: str
    text: TextConfig
    vision: VisionConfig | InternVisionConfig
    image_token_id: int | None
    dtype: str | None
    video_token_id: int | None = None
    vision_start_token_id: int | None = None
    vision_end_token_id: int | None = None

    @classmethod
    def from_dict(cls, config: Mapping[str, Any], source: str = "config.json") -> "VLMConfig":
        """Read the content of a config.json.

        source: the file's path, for messages.
        Raises CheckpointError for a missing or malformed key and UnsupportedModelError for a value
        that is understood but not supported; both name file, key and value.
        """
        top = Section(config, source)
        model_type = top.choice("model_type", MODEL_TYPES)
        text_key = "llm_config" if model_type == INTERNVL_CHAT else "text_config"
        text_section, vision_section = top.section(text_key), top.section("vision_config")
        for section in (top, text_section, vision_section):
            section.refuse("quantization_config", unless=(), reason="weights: bf16, fp16 or fp32")
        read = _read_qwen3_vl if model_type in (DENSE, MOE) else _read_internvl
        parts = read(model_type, top, text_section, vision_section)
        return cls(model_type=model_type, dtype=_dtype(top) or _dtype(text_section), **parts)


def _read_qwen3_vl(
    model_type: str, top: Section, text_section: Section, vision_section: Section
) -> dict[str, Any]:
    text = read_text_config(text_section, sparse=model_type == MOE, has_mrope=True)
    vision = read_vision_config(vision_section, text, text_section)
    names = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    return {"text": text, "vision": vision, **{key: read_token_id(top, key, text) for key in names}}


def _read_internvl(
    model_type: str, top: Section, text_section: Section, vision_section: Section
) -> dict[str, Any]:
    original = model_type == INTERNVL_CHAT
    check_internvl(top, original=original)
    text = read_internvl_text(text_section)
    vision = read_intern_vision(vision_section, text, original=original)
    if top.has("force_image_size") and top.integer("force_image_size") != vision.image_size:
        raise top.unsupported("force_image_size", f"the tower's tiles have {vision.image_size}")
    keys = [key for key in ("image_token_id", "image_token_index") if top.has(key)]
    image_token_id = read_token_id(top, keys[0], text) if keys else None
    return {"text": text, "vision": vision, "image_token_id": image_token_id}


def _dtype(section: Section) -> str | None:
    for key in ("dtype", "torch_dtype"):
        if section.has(key):
            return section.choice(key, DTYPES)
    return None
