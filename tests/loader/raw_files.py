"""Safetensors files and checkpoints made by hand, so that they can break any rule."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from pydstp import ops
from pydstp.models.config import VLMConfig
from pydstp.weights import Checkpoint, load_model, open_checkpoint, resolve_dtype

HEADER = {
    "__metadata__": {"format": "pt"},
    "a.weight": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
    "b.bias": {"dtype": "BF16", "shape": [5], "data_offsets": [24, 34]},
    "c.empty": {"dtype": "F16", "shape": [0, 7], "data_offsets": [34, 34]},
    "d.scalar": {"dtype": "I64", "shape": [], "data_offsets": [34, 42]},
}
DATA = bytes(range(42))


def encode(header: str | bytes | dict[str, Any], data: bytes = DATA,
           length: int | None = None) -> bytes:
    """A file with this header; `length` is what the file says about the header's length."""
    if isinstance(header, dict):
        header = json.dumps(header)
    if isinstance(header, str):
        header = header.encode("utf-8")
    length = len(header) if length is None else length
    return length.to_bytes(8, "little") + header + data


def changed(tensor: str, **fields: Any) -> dict[str, Any]:
    """HEADER with some fields of one tensor replaced."""
    return HEADER | {tensor: HEADER[tensor] | fields}


def load(path: Path, dtype: str = "auto", weights: str = "float") -> torch.nn.Module:
    """The model of a folder, as the engine loads it."""
    checkpoint = open_checkpoint(path)
    return load_model(checkpoint, config_of(checkpoint), resolve_dtype(checkpoint, dtype),
                      int8_pool=ops.ThreadPool(1) if weights == "int8" else None)


def config_of(checkpoint: Checkpoint) -> VLMConfig:
    return VLMConfig.from_dict(checkpoint.config, str(checkpoint.config_path))


def edit_tensors(folder: Path, changes: dict[str, torch.Tensor | None]) -> None:
    """Replace, add or (None) remove tensors of a single-file checkpoint."""
    tensors = load_file(folder / "model.safetensors") | changes
    kept = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    save_file(kept, folder / "model.safetensors", {"format": "pt"})


def edit_json(path: Path, **fields: Any) -> None:
    """Replace or (None) remove fields of a JSON file."""
    content = json.loads(path.read_text()) | fields
    path.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))
