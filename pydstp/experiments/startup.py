"""What an experiment runs on: the checkpoint, the engine, and the head of its record."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydstp import demo_checkpoint
from pydstp.config import EngineConfig
from pydstp.engine import Engine
from pydstp.experiments.record import checkpoint_sha256, environment
from pydstp.experiments.settings import ABLATION_RATIO, default_fastv_layer, prune
from pydstp.models.config import VLMConfig
from pydstp.pruning import PruningConfig
from pydstp.weights import open_checkpoint

PROMPT_TOKENS = 512  # room for the text of a question


def checkpoint_folder(path: str | None) -> Path:
    """The folder that `--model` names, or that of the embedded checkpoint."""
    return demo_checkpoint() if path is None else Path(path)


def count_layers(path: str | None) -> int:
    """Decoder layers of a checkpoint; nothing is loaded.

    Raises:
        CheckpointError, UnsupportedModelError: the folder cannot be used.
    """
    checkpoint = open_checkpoint(checkpoint_folder(path))
    return VLMConfig.from_dict(checkpoint.config, str(checkpoint.config_path)).text.num_layers


def open_engine(path: str | None, dtype: str, batch: int, max_new_tokens: int,
                max_visual_tokens: int, progress: Callable[[int, int], None] | None = None,
                weights: str = "float") -> Engine:
    """An engine for batches of questions."""
    config = EngineConfig(max_batch=batch, max_visual_tokens=max_visual_tokens,
                          max_text_tokens=PROMPT_TOKENS + max_new_tokens, weights=weights)
    return Engine(checkpoint_folder(path), dtype=dtype, config=config, progress=progress)


def start_record(path: str | None) -> dict[str, Any]:
    """The head of a record: where it is measured, and on which weights."""
    return {"environment": environment(), "model": checkpoint_folder(path).name,
            "checkpoint_sha256": checkpoint_sha256(checkpoint_folder(path))}


def default_method(num_layers: int) -> PruningConfig:
    """FastV with a third of the tokens, the base method of the paper's ablation."""
    return prune("fastv", ABLATION_RATIO, default_fastv_layer(num_layers))
