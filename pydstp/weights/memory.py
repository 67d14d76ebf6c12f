"""How much memory a checkpoint needs, against what this process can get."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from pydstp import ops
from pydstp.config import FLOAT, INT8
from pydstp.errors import CapacityError
from pydstp.models import name_map
from pydstp.models.config import VLMConfig
from pydstp.models.quantised import is_quantised
from pydstp.weights.checkpoint import Checkpoint

GIB = 1 << 30
LIBRARY_BYTES = 64 << 20  # what torch and the libraries below it keep for themselves
MAX_BYTES = 1 << 62  # stands for anything larger: numbers of a config.json have any length
PROC, CGROUP = Path("/proc"), Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes that an engine takes.

    workspace: activations of the longest prompt, at their peak, and what pruned tokens of all
    sequences leave behind so that they can come back.
    """

    weights_bytes: int
    cache_bytes: int
    workspace_bytes: int

    @property
    def total_bytes(self) -> int:
        return self.weights_bytes + self.cache_bytes + self.workspace_bytes


def estimate_memory(checkpoint: Checkpoint, config: VLMConfig, dtype: torch.dtype,
                    cache_bytes: int, *, max_batch: int = 4, max_visual_tokens: int = 4096,
                    max_text_tokens: int = 4096, weights: str = FLOAT) -> MemoryEstimate:
    """Memory of one engine, from headers and sizes alone.

    cache_bytes: keys and values of all sequences. The token limits are those of one sequence.
    weights: as in `EngineConfig`.
    """
    reserve = _reserve_row_bytes(config, dtype) * max_batch * max_visual_tokens
    decoder = _decoder_row_bytes(config, dtype) * (max_visual_tokens + max_text_tokens)
    tower = _tower_row_bytes(config) * max_visual_tokens * config.vision.merge_unit
    workspace = max(decoder, tower) + reserve + 4 * config.text.vocab_size + LIBRARY_BYTES
    held = _weights_bytes(checkpoint, config, dtype, weights == INT8)
    return MemoryEstimate(held, min(cache_bytes, MAX_BYTES), min(workspace, MAX_BYTES))


def check_memory(checkpoint: Checkpoint, config: VLMConfig, dtype: torch.dtype,
                 cache_bytes: int, *, device: torch.device | None = None,
                 **options: int | str) -> MemoryEstimate:
    """The estimate, if it fits; arguments as for `estimate_memory`.

    device: the GPU whose memory counts, or None: the machine's.

    Raises:
        CapacityError: more is needed than is available; the message gives the numbers.
    """
    estimate = estimate_memory(checkpoint, config, dtype, cache_bytes, **options)
    available = available_memory() if device is None else available_on_gpu(device)
    if available is not None and estimate.total_bytes > available:
        raise CapacityError(too_large(estimate, available))
    return estimate


def too_large(estimate: MemoryEstimate, available: int) -> str:
    """The message for an engine that does not fit."""
    sizes = (estimate.total_bytes, estimate.weights_bytes, estimate.cache_bytes,
             estimate.workspace_bytes, available)
    return ("memory: {:.2f} GiB are needed (weights {:.2f}, cache {:.2f}, workspace {:.2f}), "
            "{:.2f} GiB are available; lower max_batch, max_visual_tokens or max_text_tokens, or "
            "take dtype='bfloat16' or weights='int8'".format(*(size / GIB for size in sizes)))


def _weights_bytes(checkpoint: Checkpoint, config: VLMConfig, dtype: torch.dtype,
                   in_int8: bool) -> int:
    """Bytes of all tensors that a model keeps. Padding is counted tensor by tensor, where a model
    that stacks some of them may need less."""
    names = name_map.NAME_MAPS[config.model_type]
    shapes = {name_map.normalise(name, names): info.shape
              for name, info in checkpoint.tensors.items() if not name_map.is_ignored(name)}
    is_tied = names.head not in shapes
    return sum(ops.QuantisedMatrix.bytes_of(*shape)
               if in_int8 and len(shape) > 1 and is_quantised(name, is_tied)
               else math.prod(shape) * dtype.itemsize for name, shape in shapes.items())


# The two formulas follow the widest place of a block. They were checked against measured peaks of a
# model of 12 + 12 layers, 1024 and 768 wide, with 700 and 1400 tokens of text and 256 and 576 of a
# picture, in both dtypes: the peaks scatter by tens of megabytes, the estimate lies above them all.
def _decoder_row_bytes(config: VLMConfig, dtype: torch.dtype) -> int:
    """Bytes that a decoder layer holds per token, in its MLP or its attention."""
    text = config.text
    mlp = 3 * (text.moe.moe_intermediate_size if text.moe else text.intermediate_size)
    attention = (5 * text.num_heads + 2 * text.num_kv_heads) * text.head_dim
    features = len(config.vision.deepstack_visual_indexes)
    row = (3 + features) * text.hidden_size + max(mlp, attention)
    in_float32 = 0 if dtype == torch.float32 else 2 * text.num_heads * text.head_dim
    return row * dtype.itemsize + 4 * (in_float32 + text.hidden_size)


def _reserve_row_bytes(config: VLMConfig, dtype: torch.dtype) -> int:
    """Bytes beside its keys and values of a visual token that may come back: its hidden state and
    DeepStack features while it waits, its scores, its places in lists (at most 16 words)."""
    rows = 1 + len(config.vision.deepstack_visual_indexes)
    return rows * config.text.hidden_size * dtype.itemsize + 4 * (config.text.num_heads + 16)


def _tower_row_bytes(config: VLMConfig) -> int:
    """Bytes that a vision block holds per patch; half precision saves nothing at the peak."""
    vision = config.vision
    features = len(vision.deepstack_visual_indexes) * vision.out_hidden_size // vision.merge_unit
    block = 4 * vision.hidden_size + max(2 * vision.intermediate_size, 8 * vision.hidden_size)
    return 4 * (vision.patch_dim + features + block)


def available_memory() -> int | None:
    """Bytes that can still be allocated here: the machine's, and those of every control group.

    None where the system does not say.
    """
    limits = [*_free_on_machine(), *_free_in_groups()]
    return min(limits) if limits else None


def available_on_gpu(device: torch.device) -> int:
    """Bytes that torch can still allocate on a GPU: free ones, and those it holds without use."""
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def _free_on_machine() -> Iterator[int]:
    for line in _lines(PROC / "meminfo"):
        if line.startswith("MemAvailable:"):
            yield 1024 * int(line.split()[1])


def _free_in_groups() -> Iterator[int]:
    """Limit minus use of this process's group and of the groups around it, for both versions."""
    for line in _lines(PROC / "self" / "cgroup"):
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        root = CGROUP / controllers
        names = ("memory.max", "memory.current") if not controllers else (
            "memory.limit_in_bytes", "memory.usage_in_bytes")
        group = root / path.strip("/")
        for folder in [group, *group.parents]:
            if folder.is_relative_to(root):
                limit, used = (_number(folder / name) for name in names)
                if limit is not None and used is not None:
                    yield max(0, limit - used + _reclaimable(folder))


def _reclaimable(folder: Path) -> int:
    """Cached file pages of a group: they count as used and are given up on demand."""
    lines = (line.split() for line in _lines(folder / "memory.stat"))
    return sum(int(fields[1]) for fields in lines if fields[0] in ("inactive_file", "active_file"))


def _number(path: Path) -> int | None:
    text = "".join(_lines(path)).strip()
    return int(text) if text.isdigit() else None


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []
