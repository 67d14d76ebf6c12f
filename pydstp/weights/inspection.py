"""What a checkpoint is, what it needs, and why it would be refused; no weights are read."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from pydstp.config import FLOAT, EngineConfig
from pydstp.errors import PydstpError
from pydstp.kv_cache import CacheGeometry
from pydstp.models.config import VLMConfig
from pydstp.weights import checkpoint as files
from pydstp.weights.checkpoint import Checkpoint
from pydstp.weights.loading import num_parameters, plan_loading, resolve_dtype
from pydstp.weights.memory import available_memory, estimate_memory, too_large
from pydstp.weights.report import CheckpointReport

T = TypeVar("T")


def inspect(path: str | os.PathLike[str],
            readers: Iterable[Callable[[Path], object]] = (), *,
            weights: str = FLOAT) -> CheckpointReport:
    """Look at a checkpoint as far as it can be read, and collect every reason to refuse it.

    NaN and infinite weights are found by loading only.

    Args:
        path: the checkpoint folder.
        readers: read what else an engine needs from the folder (`pydstp.preparation.READERS`);
            what they raise becomes a problem of the report.
        weights: as in `EngineConfig`; counts for memory.

    Raises:
        OptionError: weights is neither "float" nor "int8".
    """
    limits = EngineConfig(weights=weights)
    report = CheckpointReport(str(path), weights=weights)
    folder = _attempt(report, files.checkpoint_folder, path)
    if folder is None:
        return report
    config = _attempt(report, files.read_config, folder)
    if config is not None:
        report.model_type = str(config.get("model_type"))
    _attempt(report, files.read_generation_config, folder)
    checkpoint = _read_weights(report, folder, config or {})
    parsed = None if config is None else _read_config(report, config, folder)
    if parsed is not None and checkpoint.tensors:
        _match(report, checkpoint, parsed, limits)
    for read in readers:
        _attempt(report, read, folder)
    return report


def _attempt(report: CheckpointReport, read: Callable[..., T], *arguments: Any) -> T | None:
    try:
        return read(*arguments)
    except PydstpError as error:
        report.problems.append(str(error))
        return None


def _read_weights(report: CheckpointReport, folder: Path, config: dict[str, Any]) -> Checkpoint:
    index = _attempt(report, files.weight_files, folder) or {}
    tensors, problems = files.read_headers(folder, index)
    report.problems += problems
    checkpoint = Checkpoint(folder, config, folder / "config.json", {}, tensors)
    dtypes: Counter[str] = Counter()
    for info in tensors.values():
        dtypes[info.dtype] += info.numel
    report.num_files, report.num_tensors = len(index), len(tensors)
    report.parameters, report.dtypes = num_parameters(checkpoint), dict(dtypes)
    report.bytes_on_disk = sum(info.num_bytes for info in tensors.values())
    return checkpoint


def _read_config(report: CheckpointReport, config: dict[str, Any],
                 folder: Path) -> VLMConfig | None:
    parsed = _attempt(report, VLMConfig.from_dict, config, str(folder / "config.json"))
    if parsed is not None:
        report.text, report.vision = asdict(parsed.text), asdict(parsed.vision)
    return parsed


def _match(report: CheckpointReport, checkpoint: Checkpoint, config: VLMConfig,
           limits: EngineConfig) -> None:
    plan = _attempt(report, plan_loading, checkpoint, config)
    if plan is not None:
        report.problems += plan.problems
        report.is_tied = plan.is_tied
    dtype, text = resolve_dtype(checkpoint), config.text
    geometry = CacheGeometry(text.num_layers, text.num_kv_heads, text.head_dim, limits.max_batch,
                             limits.max_visual_tokens, limits.max_text_tokens)
    estimate = estimate_memory(checkpoint, config, dtype, geometry.kv_bytes(dtype),
                               weights=limits.weights)
    available = available_memory()
    report.dtype = str(dtype).removeprefix("torch.")
    report.memory = asdict(estimate) | {"total_bytes": estimate.total_bytes,
                                        "available_bytes": available}
    if available is not None and estimate.total_bytes > available:
        report.problems.append(too_large(estimate, available))
