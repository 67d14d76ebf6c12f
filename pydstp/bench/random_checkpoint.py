"""Checkpoints of a named shape with random weights: they say something about speed and memory only.

Names, shards and files are those of a release; every tensor is drawn by itself. The tokenizer is
that of the embedded checkpoint, padded with fillers so that ids run as far as the real vocabulary.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from pydstp.bench.shapes import FIRST_SPECIAL_ID, IMAGE_MARKS, TILE_PIXELS, model_config
from pydstp.errors import CapacityError
from pydstp.models import name_map
from pydstp.models.config import INTERNVL, VLMConfig
from pydstp.models.registry import build_model
from pydstp.weights import Checkpoint
from pydstp.weights.safetensors_file import TensorInfo

SHARD_BYTES = 2 << 30
GIB = 1 << 30
OTHER_FILES_BYTES = 32 << 20  # tokenizer and headers

# What the templates of InternVL's releases render, in our own words.
INTERNVL_TEMPLATE = """\
{%- for message in messages -%}
  {{ '<|im_start|>' ~ message.role ~ '\\n' }}
  {%- if message.content is string -%}{{ message.content }}
  {%- else -%}
    {%- for item in message.content -%}
      {%- if item.type == 'image' -%}{{ '<IMG_CONTEXT>\\n' }}
      {%- elif item.type == 'text' -%}{{ item.text }}
      {%- endif -%}
    {%- endfor -%}
  {%- endif -%}
  {{ '<|im_end|>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}
"""
Progress = Callable[[int, int], None]


def tensor_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor of such a checkpoint, by the name that release files give it."""
    vlm = VLMConfig.from_dict(config)
    names = name_map.NAME_MAPS[vlm.model_type]
    model = build_model(vlm, tied=bool(config["tie_word_embeddings"]))
    parameters = {name: tuple(p.shape) for name, p in model.named_parameters()}
    return {name_map.published(place.name, names): place.shape
            for place in name_map.placements(vlm, names, parameters, {})}


def planned_checkpoint(shape: str, folder: Path) -> Checkpoint:
    """What `open_checkpoint` will find in `folder`; nothing is written."""
    config = model_config(shape)
    tensors = {name: TensorInfo(name, folder, "BF16", dims, 0, 2 * math.prod(dims))
               for name, dims in tensor_shapes(config).items()}
    return Checkpoint(folder, config, folder / "config.json", {}, tensors)


def check_disk(plan: Checkpoint) -> None:
    """Raise `CapacityError` unless there is room for the files of a plan."""
    needed = sum(info.num_bytes for info in plan.tensors.values()) + OTHER_FILES_BYTES
    parent = next(folder for folder in (plan.path, *plan.path.parents) if folder.exists())
    free = shutil.disk_usage(parent).free
    if needed > free:
        raise CapacityError(f"disk: {needed / GIB:.2f} GiB are needed for the random weights, "
                            f"{free / GIB:.2f} GiB are free in {parent}; name another --folder")


def write_checkpoint(folder: Path, shape: str, source: Path, seed: int = 0,
                     progress: Progress | None = None) -> int:
    """Fill `folder`, which is made; returns the bytes of all tensors.

    Args:
        shape: one of `shapes.SHAPES`.
        source: the embedded checkpoint, whose tokenizer is taken.
        progress: called as `progress(tensors_done, tensors_total)`.

    Raises:
        OptionError: no shape of this name. CapacityError: no room on the disk.
    """
    config = model_config(shape)
    check_disk(planned_checkpoint(shape, folder))
    folder.mkdir(parents=True, exist_ok=True)
    is_internvl = config["model_type"] == INTERNVL
    _write_tokenizer(folder, source, IMAGE_MARKS if is_internvl else ())
    template = INTERNVL_TEMPLATE if is_internvl else (source / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").write_text(template)
    total_bytes = _write_weights(folder, tensor_shapes(config), seed, progress)
    _write_json(folder / "preprocessor_config.json", _processor(is_internvl))
    _write_json(folder / "generation_config.json", {
        "do_sample": False, "eos_token_id": [151645, 151643], "pad_token_id": 151643})
    _write_json(folder / "config.json", config)  # last: it says that the rest is complete
    return total_bytes


def _random_tensor(name: str, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """Norms around 1, small biases, everything else scaled so that activations keep their size."""
    values = torch.empty(shape, dtype=torch.bfloat16).normal_(generator=generator)
    if name.endswith(".bias"):
        return values.mul_(0.02)
    if len(shape) == 1:
        return values.mul_(0.05).add_(1.0)
    return values.mul_(1.0 / math.sqrt(math.prod(shape[1:])))


def _write_weights(folder: Path, shapes: dict[str, tuple[int, ...]], seed: int,
                   progress: Progress | None) -> int:
    """Write the shards and their index."""
    generator, done = torch.Generator().manual_seed(seed), 0
    shards = _shards(shapes)
    weight_map = {}
    for number, names in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        tensors = {}
        for name in names:
            tensors[name] = _random_tensor(name, shapes[name], generator)
            done += 1
            if progress is not None:
                progress(done, len(shapes))
        save_file(tensors, folder / file, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(names, file))
    total_bytes = sum(2 * math.prod(shape) for shape in shapes.values())
    _write_json(folder / "model.safetensors.index.json",
                {"metadata": {"total_size": total_bytes}, "weight_map": weight_map})
    return total_bytes


def _shards(shapes: dict[str, tuple[int, ...]]) -> list[list[str]]:
    """Names by file, each file of at most `SHARD_BYTES` or one tensor."""
    shards: list[list[str]] = [[]]
    room = SHARD_BYTES
    for name, shape in shapes.items():
        room -= 2 * math.prod(shape)
        if room < 0 and shards[-1]:
            shards.append([])
            room = SHARD_BYTES - 2 * math.prod(shape)
        shards[-1].append(name)
    return shards


def _write_tokenizer(folder: Path, source: Path, more: tuple[str, ...]) -> None:
    """The tokenizer of `source`, its added tokens moved to Qwen's ids, with fillers before them
    and `more` special tokens after."""
    tokenizer = json.loads((source / "tokenizer.json").read_text(encoding="utf-8"))
    vocab, added = tokenizer["model"]["vocab"], tokenizer["added_tokens"]
    vocab.update({f"filler{i}": i for i in range(len(vocab), FIRST_SPECIAL_ID)})
    added += [{**added[0], "content": name} for name in more]
    for token_id, token in enumerate(added, FIRST_SPECIAL_ID):
        token["id"] = token_id
    _write_json(folder / "tokenizer.json", tokenizer)
    settings = json.loads((source / "tokenizer_config.json").read_text(encoding="utf-8"))
    settings["added_tokens_decoder"] = {
        str(token["id"]): {key: value for key, value in token.items() if key != "id"}
        for token in added}
    _write_json(folder / "tokenizer_config.json", settings)


def _processor(is_internvl: bool) -> dict[str, Any]:
    if is_internvl:
        return {"image_processor_type": "GotOcr2ImageProcessorFast", "crop_to_patches": False,
                "size": {"height": TILE_PIXELS, "width": TILE_PIXELS}, "resample": 3,
                "min_patches": 1, "max_patches": 12, "image_mean": [0.485, 0.456, 0.406],
                "image_std": [0.229, 0.224, 0.225]}
    return {"size": {"shortest_edge": 65536, "longest_edge": 16777216}, "patch_size": 16,
            "temporal_patch_size": 2, "merge_size": 2, "image_mean": [0.5, 0.5, 0.5],
            "image_std": [0.5, 0.5, 0.5], "processor_class": "Qwen3VLProcessor",
            "image_processor_type": "Qwen2VLImageProcessorFast"}


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
