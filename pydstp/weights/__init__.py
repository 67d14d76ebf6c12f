"""Checkpoints: opening, checking, estimating, loading and inspecting them."""

from pydstp.weights.checkpoint import Checkpoint, open_checkpoint
from pydstp.weights.inspection import inspect
from pydstp.weights.loading import load_model, resolve_dtype
from pydstp.weights.memory import MemoryEstimate, available_memory, check_memory, estimate_memory
from pydstp.weights.report import CheckpointReport

__all__ = [
    "Checkpoint",
    "CheckpointReport",
    "MemoryEstimate",
    "available_memory",
    "check_memory",
    "estimate_memory",
    "inspect",
    "load_model",
    "open_checkpoint",
    "resolve_dtype",
]
