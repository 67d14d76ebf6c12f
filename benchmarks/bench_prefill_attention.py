"""How fast is attention over a prompt or a picture: pydstp's op, torch's, and a plain GEMM.

    python -m benchmarks.bench_prefill_attention [--dtype bfloat16] [--threads 2]

All three take turns in one process on the same tensors. The prediction is the number of
multiplications and additions that visible pairs need, over the rate of the GEMM in the same turn.
The result lands in benchmarks/results/.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks import common

GEMM = 1024, 1024, 4096  # rows, in_features, out_features of the product
Row = dict[str, Any]


@dataclass(frozen=True)
class Shape:
    """One case; causal rows stand behind `num_past` keys, others are whole segments."""

    name: str
    segments: tuple[int, ...]
    num_heads: int
    num_kv_heads: int
    head_dim: int
    is_causal: bool = False
    num_past: int = 0

    def flops(self) -> float:
        """Two products, two operations per element and visible pair of a row and a key."""
        n = sum(self.segments)
        pairs = n * self.num_past + n * (n + 1) / 2 if self.is_causal else sum(
            rows**2 for rows in self.segments)
        return 4.0 * pairs * self.num_heads * self.head_dim


SHAPES = [
    Shape("Qwen3-VL tower, a picture of 4,096 patches", (4096,), 16, 16, 64),
    Shape("Qwen3-VL tower, a picture of 1,024 patches", (1024,), 16, 16, 64),
    Shape("Qwen3-VL-8B tower, a picture of 2,048 patches", (2048,), 16, 16, 72),
    Shape("InternVL tower, four tiles", (1025,) * 4, 16, 16, 64),
    Shape("Qwen3-VL-2B decoder, a prompt of 1,100 tokens", (1100,), 16, 8, 128, is_causal=True),
    Shape("the same, 256 tokens behind 2,048", (256,), 16, 8, 128, is_causal=True, num_past=2048),
]


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--threads", type=int, default=common.num_processors())
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--shrink", type=int, default=1, help="divides all numbers of rows")
    parser.add_argument("--name", help="of the result files")
    return parser.parse_args(arguments)


def shrunk(shape: Shape, factor: int) -> Shape:
    """With fewer rows, to try the benchmark out."""
    fields = {**shape.__dict__, "segments": tuple(-(-n // factor) for n in shape.segments)}
    return Shape(**{**fields, "num_past": shape.num_past // factor})


def settings(shape: Shape, options: argparse.Namespace) -> dict[str, Callable[[], Any]]:
    """The calls that are compared, on the same random tensors; their results agree."""
    import torch

    from pydstp import ops
    from pydstp.models.attention import attend, masked_attention, prefix_mask
    from pydstp.models.gemm import gemm

    dtype, pool = getattr(torch, options.dtype), ops.ThreadPool(options.threads)
    rows, past = sum(shape.segments), shape.num_past
    q = torch.randn(rows, shape.num_heads, shape.head_dim, dtype=dtype)
    k, v = torch.randn(2, past + rows, shape.num_kv_heads, shape.head_dim, dtype=dtype).unbind()
    seen = torch.arange(past + 1, past + rows + 1, dtype=torch.int32) if shape.is_causal else None
    segments = None if shape.is_causal else list(shape.segments)
    mask = None if seen is None or not past else prefix_mask(seen, past + rows)
    x, weight = torch.randn(GEMM[0], GEMM[1], dtype=dtype), torch.randn(*GEMM[:0:-1], dtype=dtype)

    def library() -> torch.Tensor:
        if shape.is_causal:
            return library_causal(q, k, v) if mask is None else masked_attention(q, k, v, mask)
        parts = zip(*(t.split(segments) for t in (q, k, v)), strict=True)
        return torch.cat([masked_attention(*part, None) for part in parts])

    def own() -> torch.Tensor:
        return attend(q, k, v, pool=pool, segments=segments, visible_len=seen)

    if (own().float() - library().float()).abs().max() > (0.05 if q.itemsize == 2 else 1e-4):
        raise RuntimeError(f"{shape.name}: the results differ")
    return {"pydstp": own, "torch": library, "gemm": lambda: gemm(x, weight)}


def library_causal(q: Any, k: Any, v: Any) -> Any:
    """torch's attention as it is fastest for a prompt: with its causal flag and no mask."""
    import torch.nn.functional as F

    heads_first = [t.transpose(0, 1).unsqueeze(0) for t in (q, k, v)]
    out = F.scaled_dot_product_attention(*heads_first, is_causal=True, enable_gqa=True)
    return out.squeeze(0).transpose(0, 1)


def measure(shape: Shape, options: argparse.Namespace) -> Row:
    """Milliseconds of every setting, turn by turn; the first turn is there to warm up."""
    calls = settings(shape, options)
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(1 + options.repeats):
        for name, function in calls.items():
            started = time.perf_counter()
            function()
            times[name].append(1e3 * (time.perf_counter() - started))
    turns = list(zip(*(values[1:] for values in times.values()), strict=True))
    flops, gemm_flops = shape.flops(), 2.0 * GEMM[0] * GEMM[1] * GEMM[2]
    return {
        "shape": asdict(shape), "flops": flops,
        **{f"{name}_ms": common.spread(values[1:]) for name, values in times.items()},
        "predicted_ms": common.spread([flops / gemm_flops * product for _, _, product in turns]),
        "gemm_gflop_s": common.spread([gemm_flops / product / 1e6 for _, _, product in turns]),
        "gflop_s": common.spread([flops / own / 1e6 for own, _, _ in turns]),
        "torch_gflop_s": common.spread([flops / theirs / 1e6 for _, theirs, _ in turns]),
        "of_gemm_rate": common.spread(
            [flops / own / (gemm_flops / product) for own, _, product in turns]),
        "torch_over_pydstp": common.spread([theirs / own for own, theirs, _ in turns])}


def to_markdown(record: Row) -> str:
    """The record as a page that can be read."""
    setup, place = record["setup"], record["environment"]
    packages = ", ".join(f"{k} {v}" for k, v in place["packages"].items() if v)
    header = ["case", "GFLOP", "predicted ms", "pydstp ms", "torch ms", "GEMM GFLOP/s",
              "pydstp GFLOP/s", "torch GFLOP/s", "of the GEMM rate", "torch / pydstp"]
    rows = [[row["shape"]["name"], f"{row['flops'] / 1e9:,.1f}",
             *(common.show(row[key], 1) for key in ("predicted_ms", "pydstp_ms", "torch_ms")),
             *(common.show(row[key]) for key in ("gemm_gflop_s", "gflop_s", "torch_gflop_s")),
             *(common.show(row[key], 2) for key in ("of_gemm_rate", "torch_over_pydstp"))]
            for row in record["rows"]]
    return "\n".join([
        f"# Attention over prompts and pictures: {setup['dtype']}, {setup['threads']} threads", "",
        f"{place['cpu']} ({', '.join(place['cpu_flags'])}), {place['memory_gib']} GiB; instruction "
        f"set {record['isa']}; commit {place['commit']}, {place['date']}.",
        f"Python {place['python']}; {packages}. Load: {place['load_average'][0]}.", "",
        f"Medians of {setup['repeats']} turns, smallest and largest in brackets; ratios are taken "
        f"turn by turn. The GEMM is [{GEMM[0]}, {GEMM[1]}] x [{GEMM[1]}, {GEMM[2]}]. *Predicted*: "
        f"four operations per visible pair, head and column, at the GEMM's rate.", "",
        common.markdown_table(header, rows), ""])


def run(options: argparse.Namespace) -> Path:
    """Measure and write the result."""
    import torch

    from pydstp import ops

    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    environment = common.environment()
    with torch.inference_mode():
        rows = [measure(shrunk(shape, options.shrink), options) for shape in SHAPES]
    setup = {key: value for key, value in vars(options).items() if key != "name"}
    record = {"environment": environment, "setup": setup, "isa": ops.current_isa(), "rows": rows}
    name = options.name or f"prefill-attention-{options.dtype}-{options.threads}t"
    return common.write_result(name, record, to_markdown(record))


def main() -> None:
    options = parse_arguments()
    wanted = common.thread_environment(options.threads)
    if any(os.environ.get(key) != value for key, value in wanted.items()):  # before torch is there
        os.execve(sys.executable, [sys.executable, "-m", "benchmarks.bench_prefill_attention",
                                   *sys.argv[1:]], wanted)
    print(run(options).read_text())


if __name__ == "__main__":
    main()
