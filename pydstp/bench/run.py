"""One whole run: needs are checked, engines are opened, turns are taken, a record is made."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from pydstp.bench import server as servers
from pydstp.bench import turns
from pydstp.bench.random_checkpoint import GIB, check_disk, planned_checkpoint, write_checkpoint
from pydstp.bench.rates import Probe
from pydstp.bench.settings import INT8, BenchSettings, most_visual_tokens
from pydstp.cost_model import CostModel
from pydstp.errors import CapacityError, CheckpointError, OptionError, UnsupportedModelError
from pydstp.experiments.record import environment
from pydstp.kv_cache import CacheGeometry
from pydstp.models.config import DENSE, VLMConfig
from pydstp.weights import (
    Checkpoint,
    MemoryEstimate,
    available_memory,
    estimate_memory,
    open_checkpoint,
)
from pydstp.weights.checkpoint import join
from pydstp.weights.loading import plan_loading

BUDGET = 1.15  # peak memory, as a multiple of weights, keys and values
PROBE_BYTES = 1 << 30  # what the rates are measured on
# Largest resident size: a multiple of the files and so many GiB, from runs on 0.97 and 4.3 GB.
PEER_MEMORY = {"transformers": (1.05, 0.7), "transformers-packed": (1.8, 0.7),
               "openvino": (2.1, 0.9)}
EXPORT_MEMORY = 2.3, 2.1  # of the export, which runs before anything else
SAMPLES_ALONE = 3  # of the rates of a single thread


@dataclass(frozen=True)
class Request:
    """Where everything is.

    Attributes:
        checkpoint: a folder, or the one that a random checkpoint of `shape` is written to.
        shape: one of `shapes.SHAPES`, or None where the checkpoint is there.
        folder: for exports.
        embedded: the embedded checkpoint, whose tokenizer random ones take.
        openvino_python: of the environment with OpenVINO GenAI.
    """

    checkpoint: Path
    shape: str | None
    folder: Path
    embedded: Path
    openvino_python: str | None = None


@dataclass(frozen=True)
class Reports:
    """How a run says what it does: a line, tensors done of all, one step of a number of steps."""

    say: Callable[[str], object] = lambda text: None
    progress: Callable[[int, int], object] | None = None
    steps: Callable[[int], Callable[[], object]] = lambda total: lambda: None


def find(request: Request) -> Checkpoint:
    """The checkpoint, or what will be one.

    Raises:
        CheckpointError, UnsupportedModelError: it cannot be used. CapacityError: no room on disk.
    """
    if request.shape is None:
        return open_checkpoint(request.checkpoint)
    if (request.checkpoint / "config.json").exists():
        found, plan = open_checkpoint(request.checkpoint), planned_checkpoint(
            request.shape, request.checkpoint)
        if found.config != plan.config:
            raise CheckpointError(f"{request.checkpoint}: expected the shape {request.shape!r}, "
                                  "got another checkpoint; name another --folder")
        return found
    plan = planned_checkpoint(request.shape, request.checkpoint)
    check_disk(plan)
    return plan


def check_memory(settings: BenchSettings, checkpoint: Checkpoint, config: VLMConfig,
                 peers: list[str]) -> MemoryEstimate:
    """What pydstp takes, if it fits together with the peers and the probe.

    Raises:
        CapacityError: more is needed than is available; the message gives the numbers.
    """
    dtype, text = getattr(torch, settings.dtype), config.text
    options = settings.engine_options(most_visual_tokens(settings.image_size, config))
    limits = {key: options[key] for key in ("max_batch", "max_visual_tokens", "max_text_tokens",
                                            "weights")}
    geometry = CacheGeometry(text.num_layers, text.num_kv_heads, text.head_dim,
                             limits["max_batch"], limits["max_visual_tokens"],
                             limits["max_text_tokens"])
    own = estimate_memory(checkpoint, config, dtype, geometry.kv_bytes(dtype), **limits)
    files = sum(info.num_bytes for info in checkpoint.tensors.values())
    parts = {"weights": own.weights_bytes, "cache": own.cache_bytes,
             "workspace": own.workspace_bytes, "probe": PROBE_BYTES,
             **{peer: _peer_bytes(PEER_MEMORY[peer], files) for peer in peers}}
    _require_memory(parts)
    if "openvino" in peers:
        _require_memory({"probe": PROBE_BYTES, "export": _peer_bytes(EXPORT_MEMORY, files)})
    return own


def _peer_bytes(factors: tuple[float, float], files: int) -> int:
    return int(factors[0] * files + factors[1] * GIB)


def _require_memory(parts: dict[str, int]) -> None:
    needed, available = sum(parts.values()), available_memory()
    if available is not None and needed > available:
        listed = ", ".join(f"{name} {size / GIB:.2f}" for name, size in parts.items())
        raise CapacityError(f"memory: {needed / GIB:.2f} GiB are needed ({listed}), "
                            f"{available / GIB:.2f} GiB are available; take a smaller shape, "
                            "fewer --batch or peers, or --weights int8")


def check_peers(settings: BenchSettings, config: VLMConfig, request: Request) -> list[str]:
    """The servers that the peers need.

    Raises:
        OptionError: a peer is not there, or does not know the model.
    """
    if settings.against and config.model_type != DENSE:
        raise OptionError(f"against: expected a model of type {DENSE!r}, got "
                          f"{config.model_type!r}")
    peers = []
    if "transformers" in settings.against:
        servers.require_transformers()
        peers += ["transformers", "transformers-packed"]
    if "openvino" in settings.against:
        servers.require_openvino(request.openvino_python)
        peers.append("openvino")
    return peers


def commands(settings: BenchSettings, checkpoint: Path, config: VLMConfig, request: Request,
             peers: list[str]) -> dict[str, list[str]]:
    """How every engine is started; what OpenVINO needs is exported."""
    options = {**asdict(settings),
               "max_visual_tokens": most_visual_tokens(settings.image_size, config)}
    found = {turns.OWN: servers.own_command(checkpoint.resolve(), options)}
    for peer in peers:
        python, folder = sys.executable, checkpoint
        if peer == "openvino":
            kind = "int8" if settings.weights == INT8 else "fp16"
            python = request.openvino_python
            folder = request.folder / f"{checkpoint.name}-openvino-{kind}"
            servers.export_openvino(python, checkpoint, folder, kind)
        found[peer] = servers.peer_command(python, peer, folder.resolve(), settings.threads)
    return found


def run(settings: BenchSettings, request: Request, reports: Reports) -> dict[str, Any]:
    """Measure and return the record; see `report.py` for how it reads.

    Raises:
        PydstpError: of the class that says what is wrong.
    """
    found = find(request)
    config = VLMConfig.from_dict(found.config, str(found.config_path))
    peers = check_peers(settings, config, request)
    estimate = check_memory(settings, found, config, peers)
    if not (request.checkpoint / "config.json").exists():
        reports.say(f"writing random weights into {request.checkpoint}")
        write_checkpoint(request.checkpoint, request.shape, request.embedded,
                         progress=reports.progress)
    _check_tensors(found, config)
    record = {"environment": environment(), "setup": turns.setup(settings, request.checkpoint)}
    probe = Probe.of(config.text, getattr(torch, settings.dtype), settings.threads)
    alone = _alone(probe)
    reports.say("starting " + ", ".join([turns.OWN, *peers]))
    started = commands(settings, request.checkpoint, config, request, peers)
    with turns.open_servers(started) as engines, TemporaryDirectory() as pictures:
        record |= _measure(settings, config, engines, probe, Path(pictures), reports)
    record["memory"]["estimated_bytes"] = estimate.total_bytes
    return record | {"rates": probe.to_dict(), "rates_alone": alone}


def _check_tensors(checkpoint: Checkpoint, config: VLMConfig) -> None:
    """Refuse what the engine would refuse, before time goes into rates and exports."""
    plan = plan_loading(checkpoint, config)
    if plan.problems:
        error = UnsupportedModelError if plan.is_refused else CheckpointError
        raise error(f"{checkpoint.path}: {join(plan.problems)}")


def _alone(probe: Probe) -> dict[str, Any]:
    """The rates of a single thread, before anything else runs."""
    alone = probe.at(1)
    for _ in range(SAMPLES_ALONE):
        alone.sample()
    return alone.to_dict()


def _measure(settings: BenchSettings, config: VLMConfig, engines: dict[str, servers.Server],
             probe: Probe, folder: Path, reports: Reports) -> dict[str, Any]:
    """Rows of answers, ratios to peers, and the sweep."""
    own = engines[turns.OWN]
    about = own.call("describe")
    model = CostModel(config, about["element_bytes"], about["step_weight_bytes"])
    cases = turns.cases_of(settings, list(engines))
    cells = len(settings.batch) * len(settings.retention) if settings.sweeps else 0
    tick = reports.steps((settings.repeats + 1) * (len(cases) + cells))
    found = turns.answers(settings, engines, cases, probe, folder, tick)
    memory = {name: engine.call("memory") for name, engine in engines.items()}
    full = found.get(turns.Case(turns.OWN), [None])[0]
    rows = [turns.row(case, found, memory[case.engine], full) for case in cases]
    for row in rows:
        if row["engine"] == turns.OWN:
            row["predicted"] = turns.predict(row, settings, model, probe)
    num_visual = rows[0]["visual_tokens"]
    result = {"model": about, "rows": rows, "ratios": turns.peer_ratios(found),
              "memory": _budget(about, model, rows[0], settings),
              "versions": {name: engine.call("versions") for name, engine in engines.items()}}
    if settings.sweeps:
        result["sweep"] = turns.sweep(settings, own, model, num_visual, probe, tick)
    return result


def _budget(about: dict[str, Any], model: CostModel, row: dict[str, Any],
            settings: BenchSettings) -> dict[str, Any]:
    """Peak memory beside weights, keys and values."""
    cache = model.cache_bytes(row["prompt_tokens"] + settings.new_tokens)
    needed = about["weights_bytes"] + cache
    return {"peak_rss_bytes": row["peak_rss_bytes"], "imported_bytes": row["imported_bytes"],
            "weights_bytes": about["weights_bytes"], "cache_bytes": cache,
            "budget_bytes": int(BUDGET * needed),
            "of_weights_and_cache": row["peak_rss_bytes"] / needed}


