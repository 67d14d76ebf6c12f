"""From the tensors of a checkpoint to the parameters of a model, one block at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor, nn

from pydstp import ops
from pydstp.errors import CapacityError, CheckpointError, OptionError, UnsupportedModelError, show
from pydstp.models import name_map
from pydstp.models.config import VLMConfig
from pydstp.models.name_map import NAME_MAPS, NameMap, Placement
from pydstp.models.quantised import quantise
from pydstp.models.registry import build_model
from pydstp.weights.checkpoint import Checkpoint, join, some
from pydstp.weights.safetensors_file import WEIGHT_DTYPES, MappedFile, TensorInfo

BLOCK_BYTES = 8 << 20  # of one copy; what a block used of the file is given back after it
LARGE_MODEL = 1_000_000_000  # parameters; from here on "auto" keeps half precision
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}

Progress = Callable[[int, int], None]


def load_model(checkpoint: Checkpoint, config: VLMConfig, dtype: torch.dtype,
               progress: Progress | None = None, *, int8_pool: ops.ThreadPool | None = None,
               device: torch.device | str = "cpu") -> nn.Module:
    """The model with its weights.

    The head is a tensor of its own where the checkpoint has one, otherwise the embedding table.
    Beside the weights, memory holds one block (`BLOCK_BYTES`, or one row where that is more).

    Args:
        dtype: bfloat16 or float32; every parameter has it, whatever the file holds.
        progress: called as `progress(tensors_done, tensors_total)`.
        int8_pool: None, or hold the matrices of `models/quantised.py` in 8 bits; they are quantised
            from the numbers of the file, block by block, on this pool.
        device: where the weights lie. Matrices in 8 bits are made on the CPU and then moved.

    Raises:
        UnsupportedModelError: the tensors are quantised, or of something else than this family.
        CheckpointError: tensors are missing, left over, doubled, of a wrong shape, or hold NaN or
            infinite values; the message names them.
    """
    plan = plan_loading(checkpoint, config)
    if plan.problems:
        error = UnsupportedModelError if plan.is_refused else CheckpointError
        raise error(f"{checkpoint.path}: {join(plan.problems)}")
    places = _materialise(plan, dtype, int8_pool is not None, torch.device(device))
    done, total = 0, len(plan.tensors)
    in_file_order = sorted(plan.tensors, key=lambda pair: (pair[0].file, pair[0].offset))
    for path, tensors in groupby(in_file_order, key=lambda pair: pair[0].file):
        file = MappedFile(path)
        for info, place in tensors:
            target = places[place.target]
            if isinstance(target, ops.QuantisedMatrix):
                _quantise(file, info, target, place, int8_pool)
            else:
                _copy(file, info, target[place.index], place.transposed)
            done += 1
            if progress is not None:
                progress(done, total)
    _move(plan.model, places, torch.device(device))
    return plan.model


def resolve_dtype(checkpoint: Checkpoint, dtype: str = "auto") -> torch.dtype:
    """The dtype that weights are held in.

    "auto" keeps half precision for models of a billion parameters and more, as bfloat16 also where
    the file is float16 (the vision tower overflows float16), and is float32 otherwise.
    """
    if not isinstance(dtype, str) or dtype not in ("auto", *DTYPES):
        raise OptionError(f"dtype: expected 'auto', 'bfloat16' or 'float32', got {show(dtype)}")
    if dtype != "auto":
        return DTYPES[dtype]
    half = sum(info.numel for info in checkpoint.tensors.values() if info.dtype in ("BF16", "F16"))
    total = num_parameters(checkpoint)
    return torch.bfloat16 if total >= LARGE_MODEL and 2 * half > total else torch.float32


def num_parameters(checkpoint: Checkpoint) -> int:
    """Numbers in all tensors that a model keeps."""
    tensors = checkpoint.tensors.items()
    return sum(info.numel for name, info in tensors if not name_map.is_ignored(name))


@dataclass(frozen=True)
class LoadingPlan:
    """Which tensor fills which place, and what is wrong with that.

    model: on the meta device. is_refused: the problems are of kinds that are not supported.
    """

    model: nn.Module
    tensors: list[tuple[TensorInfo, Placement]]
    problems: list[str]
    is_refused: bool
    is_tied: bool


def plan_loading(checkpoint: Checkpoint, config: VLMConfig) -> LoadingPlan:
    """Match the tensors of a checkpoint with the parameters of its model; reads no weights."""
    names = NAME_MAPS[config.model_type]
    refused = _refusals(checkpoint.tensors.values())
    found, problems = _normalise(checkpoint, names)
    is_tied = names.head not in found
    model = _build(config, is_tied, len(found))
    parameters = {name: tuple(p.shape) for name, p in model.named_parameters()}
    shapes = {name: info.shape for name, info in found.items()}
    places = {p.name: p for p in name_map.placements(config, names, parameters, shapes)}
    tensors = [(found[name], place) for name, place in places.items() if name in found]
    if not refused:
        differences = _differences(places, found, names)
        mixed = differences and _mixed_formats(config, set(places), parameters, found)
        problems += (mixed or differences) + _wrong_shapes(tensors)
    return LoadingPlan(model, tensors, refused or problems, bool(refused), is_tied)


def _build(config: VLMConfig, is_tied: bool, num_tensors: int) -> nn.Module:
    """The model on the meta device, unless config.json asks for one of absurd size."""
    layers = config.text.num_layers + config.vision.depth
    if layers > num_tensors:
        raise CheckpointError(f"config.json: expected fewer layers than there are tensors "
                              f"({num_tensors}), got {layers}")
    try:
        return build_model(config, tied=is_tied)
    except (RuntimeError, OverflowError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"config.json: no tensors of these sizes ({reason})") from None


def _refusals(tensors: Iterable[TensorInfo]) -> list[str]:
    reasons: dict[str, list[str]] = {}
    for info in tensors:
        reason = name_map.refusal(info.name)
        if reason is None and info.dtype not in WEIGHT_DTYPES:
            is_ignored = name_map.is_ignored(info.name)
            reason = None if is_ignored else f"{info.dtype} weights"
        if reason is not None:
            reasons.setdefault(reason, []).append(info.name)
    return [f"{reason} are not supported; tensors: {some(names)}"
            for reason, names in reasons.items()]


def _normalise(checkpoint: Checkpoint,
               names: NameMap) -> tuple[dict[str, TensorInfo], list[str]]:
    found: dict[str, TensorInfo] = {}
    problems = []
    for name, info in checkpoint.tensors.items():
        if name_map.is_ignored(name):
            continue
        ours = name_map.normalise(name, names)
        if ours in found:
            problems.append(f"two tensors for one place: {found[ours].name} and {name}")
        found[ours] = info
    return found, problems


def _differences(places: Iterable[str], found: dict[str, TensorInfo],
                 names: NameMap) -> list[str]:
    problems = []
    if missing := set(places) - found.keys():
        published = (name_map.published(name, names) for name in missing)
        problems.append(f"{len(missing)} tensors are missing: {some(published)}")
    if extra := found.keys() - set(places):
        left_over = (found[name].name for name in extra)
        problems.append(f"{len(extra)} tensors have no place in the model: {some(left_over)}")
    return problems


def _mixed_formats(config: VLMConfig, own: set[str], parameters: dict[str, tuple[int, ...]],
                   found: dict[str, TensorInfo]) -> list[str]:
    """Whether tensors have names of another format, as where shards of two were mixed."""
    for kind, other in NAME_MAPS.items():
        known = {place.name for place in name_map.placements(config, other, parameters, {})}
        foreign = {info.name for name, info in found.items()
                   if name not in own and name_map.normalise(info.name, other) in known}
        if foreign:
            return [f"{len(foreign)} tensors have the names of {kind!r} files, and config.json "
                    f"says {config.model_type!r}; expected the files of one checkpoint, got "
                    f"{some(foreign)}"]
    return []


def _wrong_shapes(tensors: list[tuple[TensorInfo, Placement]]) -> list[str]:
    wrong = [f"{info.name}: expected {list(place.shape)}, got {list(info.shape)}"
             for info, place in tensors if info.shape != place.shape]
    return [f"{len(wrong)} tensors have a wrong shape: {some(wrong)}"] if wrong else []


def _materialise(plan: LoadingPlan, dtype: torch.dtype,
                 is_quantised: bool,
                 device: torch.device) -> dict[str, Tensor | ops.QuantisedMatrix]:
    """Give every parameter memory of its own, which is taken up as it is written to."""
    try:
        matrices = quantise(plan.model, plan.is_tied) if is_quantised else {}
        for module in plan.model.modules():
            for name, meta in list(module.named_parameters(recurse=False)):
                data = ops.empty_in_huge_pages(*meta.shape, dtype=dtype, device=device)
                module.register_parameter(name, nn.Parameter(data, requires_grad=False))
    except RuntimeError as error:
        raise CapacityError(f"memory: no room for the weights ({error})") from None
    return dict(plan.model.named_parameters()) | matrices


def _move(model: nn.Module, places: dict[str, Tensor | ops.QuantisedMatrix],
          device: torch.device) -> None:
    """Matrices in 8 bits go where they are read, one after the other."""
    for name in [name for name, place in places.items() if isinstance(place, ops.QuantisedMatrix)]:
        owner, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(owner), leaf, places.pop(name).to(device))


def _copy(file: MappedFile, info: TensorInfo, place: Tensor, transposed: bool) -> None:
    """Convert a tensor into its place, of equal or (transposed) turned shape."""
    for start, rows in _blocks(file, info):
        target = place[start:start + len(rows)]
        target.copy_(rows.transpose(-1, -2) if transposed else rows)
        _require_finite(info, target)  # in cache still


def _quantise(file: MappedFile, info: TensorInfo, matrix: ops.QuantisedMatrix, place: Placement,
              pool: ops.ThreadPool) -> None:
    """Quantise a tensor into its rows of a matrix, or (three dimensions) into several matrices."""
    *expert, part = place.index or (slice(0, None),)
    matrix = matrix[expert[0]] if expert else matrix
    for start, rows in _blocks(file, info):
        numbers = rows.float() if rows.dtype == torch.float16 else rows
        _require_finite(info, numbers)
        if numbers.ndim == 2:
            ops.quantise_rows(numbers, matrix, part.start + start, pool=pool)
            continue
        for i, numbers_of_expert in enumerate(numbers, start):
            turned = numbers_of_expert.T if place.transposed else numbers_of_expert
            ops.quantise_rows(turned.contiguous(), matrix[i], pool=pool)


def _blocks(file: MappedFile, info: TensorInfo) -> Iterator[tuple[int, Tensor]]:
    """The rows of a tensor, some at a time, each with the number of its first row."""
    num_rows = info.shape[0]
    step = max(1, BLOCK_BYTES * num_rows // max(1, info.num_bytes))
    for start in range(0, num_rows, step):
        stop = min(start + step, num_rows)
        yield start, file.rows(info, start, stop)
        file.release(info, start, stop)


def _require_finite(info: TensorInfo, numbers: Tensor) -> None:
    lowest, highest = torch.aminmax(numbers)  # NaN wins, infinity shows
    if not torch.isfinite(lowest) or not torch.isfinite(highest):
        raise CheckpointError(f"{info.file}: tensor {info.name} holds NaN or infinite values "
                              f"({info.dtype}, read as {numbers.dtype})")
