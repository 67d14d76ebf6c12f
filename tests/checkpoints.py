"""Tiny Qwen3-VL checkpoints for tests, saved by transformers and optionally respelled afterwards.

Every norm, bias and table is random, and matrices have a gain of 1.4, so that attention is far from
uniform and greedy output varies: default initialisation would hide swapped, missing or doubled
tensors. A gain of 2 would leave no room to compare with: fp32 itself is then 3e-5 from fp64.

    path = tiny_qwen3_vl()                                  # shared by all tests: read only
    path = tiny_qwen3_vl(tmp_path, moe=True, num_shards=3)  # a private copy that may be damaged
    oracle = reference_model(path)                          # transformers, float32, eval mode
"""

import atexit
import json
import math
import shutil
import tempfile
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    PreTrainedModel,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLMoeConfig,
    Qwen3VLMoeForConditionalGeneration,
)
from transformers.utils import logging

from tests.tokenizer_files import (
    CHAT_TEMPLATE,
    THINKING_TEMPLATE,
    VOCAB_SIZE,
    token_id,
    write_preprocessor_files,
    write_tokenizer_files,
)

logging.disable_progress_bar()

SPECIAL_IDS = {
    "image_token_id": token_id("<|image_pad|>"),
    "video_token_id": token_id("<|video_pad|>"),
    "vision_start_token_id": token_id("<|vision_start|>"),
    "vision_end_token_id": token_id("<|vision_end|>"),
}


@dataclass(frozen=True)
class TinyOptions:
    """What a tiny checkpoint is like. Keyword arguments of `tiny_qwen3_vl` are these fields."""

    seed: int = 0
    moe: bool = False
    tied: bool = True
    wide_queries: bool = False  # 4 query heads x 32 = 128, twice the hidden size, like 4B and 32B
    num_layers: int = 4
    num_experts: int = 8
    moe_intermediate_size: int = 24
    deepstack: tuple[int, ...] = (0, 1, 2)
    dtype: str = "float32"  # on disk: float32, bfloat16 or float16
    num_shards: int = 1
    prefix: str = "standard"  # "doubled": model.model.*; "old": visual.* and model.layers.*
    experts: str = "fused"  # "fused" [E, 2I, H]; "hub" [E, H, 2I]; "separate": one per expert
    old_config: bool = False  # rope_theta + rope_scaling, torch_dtype: as transformers 4 wrote it
    thinking: bool = False  # the template's generation prompt opens the think tag


@cache
def _shared_root() -> Path:
    root = tempfile.mkdtemp(prefix="pydstp_checkpoints_")
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    return Path(root)


@cache
def _shared(options: TinyOptions) -> Path:
    folder = _shared_root() / f"tiny{len(list(_shared_root().iterdir()))}"
    folder.mkdir()
    _save(build_model(options), folder, options)
    template = THINKING_TEMPLATE if options.thinking else CHAT_TEMPLATE
    write_tokenizer_files(folder, chat_template=template)
    write_preprocessor_files(folder)
    return folder


def tiny_qwen3_vl(folder: Path | None = None, **options: object) -> Path:
    """A complete checkpoint directory; `options` are the fields of TinyOptions.

    Without `folder` the directory is made once per process and shared. With it, a private copy is
    made in `folder / "checkpoint"`.
    """
    shared = _shared(TinyOptions(**options))
    return shared if folder is None else shutil.copytree(shared, Path(folder) / "checkpoint")


@cache
def reference_model(
    path: Path, dtype: str = "float32", attention: str = "eager"
) -> PreTrainedModel:
    """transformers' own model of the directory, in eval mode; cached.

    It needs the standard spelling: respelled checkpoints of one seed hold the same weights.
    """
    config = json.loads((path / "config.json").read_text())
    moe = config["model_type"] == "qwen3_vl_moe"
    family = Qwen3VLMoeForConditionalGeneration if moe else Qwen3VLForConditionalGeneration
    model = family.from_pretrained(path, dtype=getattr(torch, dtype), attn_implementation=attention)
    return model.eval()


def tiny_config(options: TinyOptions) -> Qwen3VLConfig | Qwen3VLMoeConfig:
    """The transformers configuration of a tiny checkpoint."""
    heads = 4 if options.wide_queries else 2
    text = {
        "vocab_size": VOCAB_SIZE, "hidden_size": 64, "intermediate_size": 96,
        "num_hidden_layers": options.num_layers, "num_attention_heads": heads,
        "num_key_value_heads": heads // 2, "head_dim": 32, "rms_norm_eps": 1e-6,
        "max_position_embeddings": 4096, "attention_bias": False, "hidden_act": "silu",
        "bos_token_id": token_id("<|endoftext|>"), "eos_token_id": token_id("<|im_end|>"),
        "tie_word_embeddings": options.tied,
        "rope_parameters": {
            "rope_type": "default", "rope_theta": 5e6,
            "mrope_section": [6, 5, 5], "mrope_interleaved": True,
        },
    }  # fmt: skip
    if options.moe:
        text |= {
            "num_experts": options.num_experts, "num_experts_per_tok": 2, "decoder_sparse_step": 1,
            "moe_intermediate_size": options.moe_intermediate_size, "mlp_only_layers": [],
            "norm_topk_prob": True,
        }  # fmt: skip
    vision = {
        "depth": 4, "hidden_size": 48, "intermediate_size": 80, "num_heads": 4, "in_channels": 3,
        "patch_size": 16, "temporal_patch_size": 2, "spatial_merge_size": 2, "out_hidden_size": 64,
        "num_position_embeddings": 49, "deepstack_visual_indexes": list(options.deepstack),
        "hidden_act": "gelu_pytorch_tanh",
    }  # fmt: skip
    family = Qwen3VLMoeConfig if options.moe else Qwen3VLConfig
    return family(
        text_config=text, vision_config=vision, tie_word_embeddings=options.tied, **SPECIAL_IDS
    )


def build_model(options: TinyOptions) -> PreTrainedModel:
    """transformers' model with random weights of `options.seed`, float32."""
    config = tiny_config(options)
    family = Qwen3VLMoeForConditionalGeneration if options.moe else Qwen3VLForConditionalGeneration
    model = family(config).eval()
    generator = torch.Generator().manual_seed(1000 + options.seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            randomise(name, parameter, generator)
    return model


def randomise(name: str, parameter: Tensor, generator: torch.Generator) -> None:
    """Random values of a scale that keeps activations near 1."""
    if name.endswith("bias"):
        parameter.normal_(0, 0.3, generator=generator)
    elif parameter.ndim == 1:
        parameter.uniform_(0.5, 1.5, generator=generator)
    elif "embed_tokens" in name:
        parameter.normal_(0, 0.1, generator=generator)
    elif name.endswith(("cls_token", "position_embeddings")) or "pos_embed" in name:
        parameter.normal_(0, 0.5, generator=generator)
    else:
        fan_in = parameter[0].numel() if parameter.ndim != 3 else parameter.shape[-1]
        parameter.normal_(0, 1.4 / math.sqrt(fan_in), generator=generator)


def _save(model: PreTrainedModel, folder: Path, options: TinyOptions) -> None:
    model.to(getattr(torch, options.dtype)).save_pretrained(folder)
    if options.old_config:
        _write_old_config(folder)
    tensors = respell(load_file(folder / "model.safetensors"), options)
    if options.num_shards == 1:
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    else:
        (folder / "model.safetensors").unlink()
        save_shards(tensors, folder, options.num_shards)


def respell(tensors: dict[str, Tensor], options: TinyOptions) -> dict[str, Tensor]:
    """The same weights under the names, and with the expert layout, that `options` ask for."""
    renamed = {}
    for name, tensor in tensors.items():
        if options.prefix == "doubled":
            name = name.replace("model.", "model.model.", 1)
        elif options.prefix == "old":
            name = name.removeprefix("model.").replace("language_model.", "model.")
        if options.experts != "fused" and ".experts." in name:
            renamed |= _respell_experts(name, tensor, options.experts)
        else:
            renamed[name] = tensor
    return renamed


def _respell_experts(name: str, tensor: Tensor, layout: str) -> dict[str, Tensor]:
    if layout == "hub":
        return {name: tensor.transpose(1, 2).contiguous()}
    stem, kind = name.rsplit(".", 1)
    if kind == "down_proj":
        return {f"{stem}.{e}.down_proj.weight": w.clone() for e, w in enumerate(tensor)}
    halves = {"gate_proj": tensor.chunk(2, dim=1)[0], "up_proj": tensor.chunk(2, dim=1)[1]}
    return {
        f"{stem}.{e}.{part}.weight": w.clone()
        for part, half in halves.items() for e, w in enumerate(half)
    }  # fmt: skip


def save_shards(tensors: dict[str, Tensor], folder: Path, num_shards: int) -> None:
    """Writes `num_shards` files and their index; tensors are dealt out in order of name."""
    names = sorted(tensors)
    weight_map, size = {}, -(-len(names) // num_shards)
    for i in range(num_shards):
        file = f"model-{i + 1:05d}-of-{num_shards:05d}.safetensors"
        part = {name: tensors[name] for name in names[i * size : (i + 1) * size]}
        save_file(part, folder / file, {"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    total = sum(t.numel() * t.element_size() for t in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))


def _write_old_config(folder: Path) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["torch_dtype"] = config.pop("dtype")
    text = config["text_config"]
    text.pop("dtype", None)
    rope = text.pop("rope_parameters")
    text["rope_theta"] = rope.pop("rope_theta")
    text["rope_scaling"] = rope
    config["vision_config"]["model_type"] = config["model_type"]
    path.write_text(json.dumps(config, indent=2))


def describe(options: TinyOptions) -> str:
    """The options that differ from the defaults, as a test id."""
    changed = {k: v for k, v in asdict(options).items() if v != getattr(TinyOptions(), k)}
    return "-".join(f"{key}={value}" for key, value in changed.items()) or "default"
