"""Tiny InternVL checkpoints for tests, saved by transformers and optionally respelled afterwards.

    path = tiny_internvl()                                     # "300M" tower, names of transformers
    path = tiny_internvl(tower="6B", moe=True, names="original")
    oracle = internvl_reference(path_with_names_of_transformers)

Everything is random, as in `tests.checkpoints`. A tile has 84 x 84 pixels: 6 x 6 patches, 3 x 3
tokens.
"""

import atexit
import json
import shutil
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer
from torch import Tensor
from transformers import InternVLConfig, InternVLForConditionalGeneration, PreTrainedModel

from pydstp.bench.random_checkpoint import INTERNVL_TEMPLATE
from tests.checkpoints import randomise, save_shards
from tests.tokenizer_files import VOCAB_SIZE, token_id, write_tokenizer_files

IMAGE_SIZE, PATCH_SIZE = 84, 14
TILE_SIDE = IMAGE_SIZE // PATCH_SIZE
TOKENS_PER_TILE = (TILE_SIDE // 2) ** 2
FIRST_ADDED = token_id("</think>") + 1
IMAGE_MARKS = ("<img>", "</img>", "<IMG_CONTEXT>")
ADDED = (*IMAGE_MARKS, "<quad>", "</quad>", "<ref>", "</ref>", "<box>", "</box>", "<video>")
IMAGE_TOKEN_ID = FIRST_ADDED + 2

# What the releases' templates render, in our own words; the original ones write <image>.
CHAT_TEMPLATE = INTERNVL_TEMPLATE
ORIGINAL_TEMPLATE = CHAT_TEMPLATE.replace("<IMG_CONTEXT>", "<image>")


@dataclass(frozen=True)
class InternOptions:
    """What a tiny checkpoint is like. Keyword arguments of `tiny_internvl` are these fields."""

    seed: int = 0
    tower: str = "300M"  # "6B": RMSNorm, no qkv bias, q and k norm over all channels
    moe: bool = False
    tied: bool = False
    names: str = "hf"  # "model": a leading `model.`; "original": InternVLChatModel
    experts: str = "separate"  # "fused": as other savers write them
    dtype: str = "float32"
    num_shards: int = 1


def tiny_internvl(folder: Path | None = None, **options: object) -> Path:
    """A complete checkpoint directory, shared, or a private copy in `folder / "checkpoint"`."""
    shared = _shared(InternOptions(**options))
    return shared if folder is None else shutil.copytree(shared, Path(folder) / "checkpoint")


@cache
def _shared(options: InternOptions) -> Path:
    folder = Path(tempfile.mkdtemp(prefix="pydstp_internvl_"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    build_internvl(options).to(getattr(torch, options.dtype)).save_pretrained(folder)
    tensors = respell(load_file(folder / "model.safetensors"), options)
    (folder / "model.safetensors").unlink()
    if options.num_shards == 1:
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    else:
        save_shards(tensors, folder, options.num_shards)
    if options.names == "original":
        write_original_config(folder)
    write_files(folder, original=options.names == "original")
    return folder


@cache
def internvl_reference(path: Path, dtype: str = "float32") -> PreTrainedModel:
    """transformers' own model of a directory with its own names, in eval mode; cached."""
    load = InternVLForConditionalGeneration.from_pretrained
    return load(path, dtype=getattr(torch, dtype), attn_implementation="eager").eval()


def internvl_config(options: InternOptions) -> InternVLConfig:
    """The transformers configuration of a tiny checkpoint."""
    text = {
        "model_type": "qwen3_moe" if options.moe else "qwen3", "vocab_size": VOCAB_SIZE,
        "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "rms_norm_eps": 1e-6,
        "max_position_embeddings": 4096, "attention_bias": False, "hidden_act": "silu",
        "eos_token_id": token_id("<|im_end|>"), "tie_word_embeddings": options.tied,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}, "sliding_window": None,
    }  # fmt: skip
    if options.moe:
        text |= {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 24,
                 "decoder_sparse_step": 1, "mlp_only_layers": [], "norm_topk_prob": True}
    is_large = options.tower == "6B"
    vision = {
        "hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
        "intermediate_size": 80, "image_size": [IMAGE_SIZE] * 2, "patch_size": [PATCH_SIZE] * 2,
        "attention_bias": not is_large, "use_qk_norm": is_large,
        "norm_type": "rms_norm" if is_large else "layer_norm",
    }  # fmt: skip
    return InternVLConfig(text_config=text, vision_config=vision, image_token_id=IMAGE_TOKEN_ID,
                          image_seq_length=TOKENS_PER_TILE, tie_word_embeddings=options.tied)


def build_internvl(options: InternOptions) -> PreTrainedModel:
    """transformers' model with random weights of `options.seed`, float32."""
    model = InternVLForConditionalGeneration(internvl_config(options)).eval()
    generator = torch.Generator().manual_seed(2000 + options.seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            randomise(name, parameter, generator)
    return model


TO_ORIGINAL = (
    ("vision_tower.embeddings.cls_token", "vision_model.embeddings.class_embedding"),
    ("vision_tower.embeddings.position_embeddings", "vision_model.embeddings.position_embedding"),
    ("vision_tower.embeddings.patch_embeddings.projection",
     "vision_model.embeddings.patch_embedding"),
    ("vision_tower.encoder.layer", "vision_model.encoder.layers"),
    (".layernorm_before", ".norm1"), (".layernorm_after", ".norm2"),
    (".attention.projection_layer", ".attn.proj"), (".attention.", ".attn."),
    (".lambda_1", ".ls1"), (".lambda_2", ".ls2"),
    ("multi_modal_projector.layer_norm", "mlp1.0"), ("multi_modal_projector.linear_1", "mlp1.1"),
    ("multi_modal_projector.linear_2", "mlp1.3"),
)  # fmt: skip


def respell(tensors: dict[str, Tensor], options: InternOptions) -> dict[str, Tensor]:
    """The same weights under the names that `options` ask for."""
    if options.moe and options.experts == "fused":
        tensors = _fuse_experts(tensors)
    if options.names == "model":
        return {f"model.{name.replace('language_model.model.', 'language_model.')}"
                .replace("model.language_model.lm_head", "lm_head"): tensor
                for name, tensor in tensors.items()}
    return _to_original(tensors) if options.names == "original" else tensors


def _to_original(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    renamed = {}
    for name, tensor in tensors.items():
        if name.startswith("vision") or "projector" in name:
            for old, new in TO_ORIGINAL:
                name = name.replace(old, new)
        renamed[name] = tensor
    for name in [name for name in renamed if ".attn.q_proj." in name]:
        parts = [renamed.pop(name.replace("q_proj", f"{part}_proj")) for part in "qkv"]
        renamed[name.replace("q_proj", "qkv")] = torch.cat(parts)
    return renamed


def _fuse_experts(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    fused = {name: tensor for name, tensor in tensors.items() if ".experts." not in name}
    for name in tensors:
        stem, is_first, _ = name.partition(".experts.0.gate_proj.weight")
        if is_first:
            def all_of(part: str, stem: str = stem) -> Tensor:
                return torch.stack([tensors[f"{stem}.experts.{e}.{part}.weight"] for e in range(8)])
            fused[f"{stem}.experts.gate_up_proj"] = torch.cat(
                [all_of("gate_proj"), all_of("up_proj")], dim=1)
            fused[f"{stem}.experts.down_proj"] = all_of("down_proj")
    return fused


def write_original_config(folder: Path) -> None:
    """config.json as the original repositories write it."""
    path = folder / "config.json"
    old = json.loads(path.read_text())
    text, vision = old["text_config"], old["vision_config"]
    theta = text.pop("rope_parameters")["rope_theta"]
    is_sparse = text["model_type"] == "qwen3_moe"
    text |= {"rope_theta": theta, "rope_scaling": None, "use_sliding_window": False,
             "architectures": ["Qwen3MoeForCausalLM" if is_sparse else "Qwen3ForCausalLM"]}
    text.pop("tie_word_embeddings", None)
    small = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size",
             "norm_type", "layer_norm_eps", "hidden_act", "num_channels")
    path.write_text(json.dumps({
        "architectures": ["InternVLChatModel"], "model_type": "internvl_chat",
        "downsample_ratio": 0.5, "dynamic_image_size": True, "force_image_size": IMAGE_SIZE,
        "min_dynamic_patch": 1, "max_dynamic_patch": 12, "ps_version": "v2", "select_layer": -1,
        "template": "internvl2_5", "use_thumbnail": True, "pad2square": False,
        "torch_dtype": old["dtype"], "llm_config": text,
        "vision_config": {
            **{key: vision[key] for key in small}, "image_size": IMAGE_SIZE,
            "patch_size": PATCH_SIZE, "qkv_bias": vision["attention_bias"],
            "qk_normalization": vision["use_qk_norm"], "model_type": "intern_vit_6b"},
    }, indent=2))  # fmt: skip


def write_files(folder: Path, *, original: bool) -> None:
    """Tokenizer, template, preprocessor and generation files."""
    write_tokenizer_files(
        folder, chat_template=ORIGINAL_TEMPLATE if original else CHAT_TEMPLATE)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False)
                                  for name in ADDED])
    tokenizer.save(str(folder / "tokenizer.json"))
    config_path = folder / "tokenizer_config.json"
    config = json.loads(config_path.read_text())
    for index, name in enumerate(ADDED):
        config["added_tokens_decoder"][str(FIRST_ADDED + index)] = {
            "content": name, "lstrip": False, "normalized": False, "rstrip": False,
            "single_word": False, "special": True}
    config_path.write_text(json.dumps(config))
    processor = {"image_processor_type": "CLIPImageProcessor", "crop_size": 448, "size": 448}
    if not original:
        processor = {
            "image_processor_type": "GotOcr2ImageProcessorFast", "crop_to_patches": False,
            "size": {"height": IMAGE_SIZE, "width": IMAGE_SIZE}, "resample": 3, "min_patches": 1,
            "max_patches": 12, "image_mean": [0.485, 0.456, 0.406],
            "image_std": [0.229, 0.224, 0.225]}  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    (folder / "generation_config.json").write_text('{"transformers_version": "4.55.0"}')
