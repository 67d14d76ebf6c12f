"""Decode steps of an engine on a GPU, on random weights that are made there.

    python -m benchmarks.gpu_decode --shape 4b                      # or 8b
    python -m benchmarks.gpu_decode --shape tiny --device cpu       # the script itself, anywhere

A case is a batch, visual tokens, and the share of them that is kept; its cache is filled with
random keys, since speed does not depend on what they say. Settings: `plain`; `watched`, with
attention gathered for a policy that never triggers; `swapping`, a swap in every step; `in order`,
the kept tokens side by side, so that the difference to `plain` is what gathering costs. Beside
milliseconds: bytes per step over the bandwidth of a large copy, measured before, and per step how
many graphs are started, how often torch waits for the GPU, and how often its allocator is asked.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import product
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from benchmarks import common
from pydstp import DSTP, PruningConfig, SelectionParams, ops
from pydstp.bench.filled_cache import PROMPT_TEXT_TOKENS, FilledCache
from pydstp.bench.shapes import model_config
from pydstp.errors import DeviceError
from pydstp.kv_cache import CacheGeometry, KVCache
from pydstp.models.config import VLMConfig
from pydstp.models.registry import build_model
from pydstp.runner import Runner

# A shape of `pydstp.bench`, what differs from it in the decoder, and whether the head is the table.
SHAPES: dict[str, tuple[str, dict[str, int], bool]] = {
    "4b": ("qwen3-vl-4b", {}, True),
    "8b": ("qwen3-vl-4b", {"hidden_size": 4096, "intermediate_size": 12288}, False),
    "tiny": ("tiny", {}, True)}
CASES = {"4b": ((1, 8, 32), (1024, 4096, 16384)), "8b": ((1, 8, 32), (1024, 4096, 16384)),
         "tiny": ((1, 3), (64,))}
SHARES = (1.0, 0.33, 0.1)
SETTINGS = ("plain", "watched", "swapping", "in order")
TEXT_TOKENS = 1024
COPY_BYTES = {"cuda": 1 << 30, "cpu": 1 << 24}


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_decode", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="4b")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--steps", type=int, default=20, help="measured in each setting")
    parser.add_argument("--minutes", type=float, default=8.0, help="no case begins after so many")
    return parser.parse_args(arguments)


def random_model(shape: str, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """A model whose decoder has random weights on the device; its vision tower has no memory."""
    name, changes, is_tied = SHAPES[shape]
    config = VLMConfig.from_dict(model_config(name))
    model = build_model(replace(config, text=replace(config.text, **changes)), is_tied)
    for module in model.language_model.modules():
        for key, meta in list(module.named_parameters(recurse=False)):
            data = torch.ones(meta.shape, dtype=dtype, device=device)
            weight = data.normal_(std=0.02) if data.ndim > 1 else data
            module.register_parameter(key, nn.Parameter(weight, requires_grad=False))
    return model


def open_case(model: nn.Module, batch: int, num_visual: int, device: torch.device,
              dtype: torch.dtype, pool: ops.ThreadPool) -> FilledCache:
    """A cache for one batch and number of visual tokens, filled, and what runs on it."""
    text = model.config.text
    geometry = CacheGeometry(text.num_layers, text.num_kv_heads, text.head_dim, batch, num_visual,
                             TEXT_TOKENS, text.num_heads)
    cache = KVCache(geometry, dtype, device)
    return FilledCache(SimpleNamespace(_cache=cache, _runner=Runner(model, cache, pool)))


def selection(setting: str, share: float) -> SelectionParams | None:
    """What the requests of a setting ask for; None where it has no meaning without pruning."""
    pruning = None if share == 1.0 else PruningConfig("random", retention_ratio=share)
    policies = {"watched": {"trigger": "never"},
                "swapping": {"trigger": "every", "expand_steps": 1, "retrigger": "reselect"}}
    if setting == "plain":
        return SelectionParams(pruning)
    if pruning is None:
        return None
    if setting == "in order":
        return SelectionParams()
    return SelectionParams(pruning, DSTP(**policies[setting]), reserve="side")


def start(filled: FilledCache, setting: str, share: float, num_visual: int) -> Any:
    """One sequence of a setting."""
    seq = filled.start(num_visual, selection(setting, share))
    if setting == "in order":
        kept = PruningConfig("random", retention_ratio=share).budget(num_visual)
        filled._cache.prune(seq.seq_idx, torch.arange(kept, num_visual), 0)
    return seq


@contextmanager
def counting(device: torch.device) -> Iterator[dict[str, float]]:
    """Graphs started, waits for the GPU and requests to torch's allocator within the block."""
    found = {"graphs": 0.0, "waits": 0.0, "allocations": 0.0}
    replay = ops.GraphRecording.replay

    def counted(recording: ops.GraphRecording) -> None:
        found["graphs"] += 1
        replay(recording)

    ops.GraphRecording.replay = counted
    on_gpu = device.type == "cuda"
    before = torch.cuda.memory_stats(device)["allocation.all.allocated"] if on_gpu else 0
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            if on_gpu:
                torch.cuda.set_sync_debug_mode("warn")
            yield found
            if on_gpu:
                torch.cuda.set_sync_debug_mode("default")
        found["waits"] = sum("synchroniz" in str(warning.message) for warning in caught)
        if on_gpu:
            after = torch.cuda.memory_stats(device)["allocation.all.allocated"]
            found["allocations"] = after - before
    finally:
        ops.GraphRecording.replay = replay


def seconds(run: Callable[[], object], device: torch.device) -> float:
    """Of one call, until the device has done it."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    wait()
    started = time.perf_counter()
    run()
    wait()
    return time.perf_counter() - started


def copy_gb_s(device: torch.device) -> float:
    """Bytes read and written per second by a copy that is far larger than any cache; a median."""
    source = torch.ones(COPY_BYTES[device.type] // 4, device=device)
    target = torch.empty_like(source)
    times = [seconds(lambda: target.copy_(source), device) for _ in range(6)][1:]
    return 2 * source.nbytes / statistics.median(times) / 1e9


def measure(filled: FilledCache, setting: str, share: float, case: tuple[int, int],
            options: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """One row of the result; the first three steps, captures among them, are not measured."""
    batch, num_visual = case
    sequences = [start(filled, setting, share, num_visual) for _ in range(batch)]
    try:
        for _ in range(3):
            filled.decode(sequences)
        times = [1e3 * seconds(lambda: filled.decode(sequences), device)
                 for _ in range(options.steps)]
        with counting(device) as counts:
            for _ in range(4):
                filled.decode(sequences)
        reports = [seq.progress.report(0.0) for seq in sequences]
    finally:
        for seq in sequences:
            filled.release(seq)
    read = sum(report.bytes_per_token for report in reports) - (batch - 1) * filled.weight_bytes
    return {"batch": batch, "num_visual": num_visual, "share": share, "setting": setting,
            "ms": common.spread(times), "bytes": read,
            **{name: count / 4 for name, count in counts.items()}}


def place_of(options: argparse.Namespace) -> tuple[torch.device, torch.dtype]:
    """Where to measure, and in which numbers."""
    if options.device == "cuda":
        return ops.find_gpu(), torch.bfloat16
    return torch.device("cpu"), torch.float32


def run_cases(options: argparse.Namespace, device: torch.device,
              rows_of: Callable[[tuple[int, int]], list[dict[str, Any]]]) -> dict[str, Any]:
    """Rows of all cases that there is memory and time for, with where they were measured; the
    others are listed with the reason."""
    rows, left_out, began = [], [], time.perf_counter()
    for case in product(*CASES[options.shape]):
        if time.perf_counter() - began > 60 * options.minutes:
            left_out.append({"case": case, "reason": "no time left"})
            continue
        try:
            rows += rows_of(case)
        except torch.OutOfMemoryError as error:
            left_out.append({"case": case, "reason": str(error).splitlines()[0]})
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    return {"shape": options.shape, "device": name, "rows": rows, "left_out": left_out,
            "environment": common.environment()}


def run(options: argparse.Namespace) -> dict[str, Any]:
    """The record of all cases."""
    device, dtype = place_of(options)
    copies, model = copy_gb_s(device), random_model(options.shape, device, dtype)
    pool = ops.ThreadPool(1)

    def rows_of(case: tuple[int, int]) -> list[dict[str, Any]]:
        filled = open_case(model, *case, device, dtype, pool)
        return [measure(filled, setting, share, case, options, device)
                for share, setting in product(SHARES, SETTINGS)
                if selection(setting, share) is not None]

    return {**run_cases(options, device, rows_of), "dtype": str(dtype), "copy_gb_s": copies,
            "text_tokens": PROMPT_TEXT_TOKENS, "steps": options.steps}


def report(record: dict[str, Any]) -> str:
    """The result as Markdown."""
    counts = ("graphs", "waits", "allocations")
    cells = [[str(row["batch"]), str(row["num_visual"]), f"{row['share']:.0%}", row["setting"],
              common.show(row["ms"], 2), f"{row['bytes'] / 1e9:.2f}",
              f"{row['bytes'] / 1e6 / row['ms']['median'] / record['copy_gb_s']:.0%}",
              *(f"{row[name]:g}" for name in counts)] for row in record["rows"]]
    table = common.markdown_table(
        ["batch", "visual", "kept", "setting", "ms", "GB", "of the copy's bandwidth", "graphs",
         "waits", "allocations"], cells)
    return (f"# Decode steps, {record['shape']} on {record['device']}\n\nA copy moves "
            f"{record['copy_gb_s']:.0f} GB/s. Weights in {record['dtype']}, "
            f"{record['text_tokens']} tokens of text.\n\n{table}\n{missing_cases(record)}")


def missing_cases(record: dict[str, Any]) -> str:
    """A line for each case that was left out."""
    return "".join(f"- left out: {entry['case']}: {entry['reason']}\n"
                   for entry in record["left_out"])


def measure_and_write(name: str, options: argparse.Namespace,
                      run: Callable[[argparse.Namespace], dict[str, Any]],
                      report: Callable[[dict[str, Any]], str]) -> int:
    """The status of the process: 2, and a line that says why, where nothing can be measured."""
    try:
        record = run(options)
    except DeviceError as error:
        print(f"{options.shape}: {error}", file=sys.stderr)
        return 2
    print(common.write_result(f"{name}-{options.shape}", record, report(record)))
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    return measure_and_write("gpu-decode", parse(arguments), run, report)


if __name__ == "__main__":
    sys.exit(main())
