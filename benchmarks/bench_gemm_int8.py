"""How fast prompts are multiplied with weights in 8 bits, against torch's product in bfloat16.

    python -m benchmarks.bench_gemm_int8 [--checkpoint build/small] [--threads 2]

Products of many rows with the matrices of a decoder layer, and with --checkpoint the decoder's part
of whole prompts. What is compared takes turns in one process: torch's product in bfloat16, the same
with weights in 8 bits that become numbers again block by block (W8A16), and the product of both in
8 bits (W8A8), quantising the rows included. The result lands in benchmarks/results/.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks import common
from benchmarks.bench_gemv import Turn, take_turns

# out_features, in_features of a layer, as the decoder fuses them
MATRICES = {
    "2b qkv": (4096, 2048), "2b o": (2048, 2048), "2b gate_up": (12288, 2048),
    "2b down": (2048, 6144), "small qkv": (4096, 1024), "small o": (1024, 2048),
    "small gate_up": (6144, 1024), "small down": (1024, 3072)}
BF16, W8A16, W8A8 = KINDS = ("bfloat16", "w8a16", "w8a8")
SENTENCE = "What do you see here? "


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--matrices", nargs="*", choices=MATRICES, default=list(MATRICES))
    parser.add_argument("--rows", nargs="+", type=int, default=[16, 128, 512, 1085])
    parser.add_argument("--checkpoint", type=Path, help="a folder, for whole prompts")
    parser.add_argument("--sentences", type=int, default=77, help="of a prompt")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=common.num_processors())
    parser.add_argument("--name", help="of the result files")
    return parser.parse_args(arguments)


def product_row(options: argparse.Namespace, matrix: str, num_rows: int) -> dict[str, Any]:
    """GFLOP/s of the products of one matrix with `num_rows` rows."""
    import torch

    from pydstp import ops
    from pydstp.models.gemm import dequantised_gemm, gemm

    out_features, in_features = MATRICES[matrix]
    pool = ops.ThreadPool(options.threads)
    x, weight = (torch.randn(n, in_features).bfloat16() for n in (num_rows, out_features))
    held = ops.QuantisedMatrix.allocate(out_features, in_features)
    ops.quantise_rows(weight, held, pool=pool)
    gflop = 2e-9 * num_rows * out_features * in_features
    turns = {BF16: lambda: gemm(x, weight),
             W8A16: lambda: dequantised_gemm(x, held, pool),
             W8A8: lambda: ops.quantised_linear(x, held, pool=pool)}
    found = take_turns({kind: _timed(run) for kind, run in turns.items()}, options.repeats)
    return {"matrix": matrix, "rows": num_rows, "gflop": gflop,
            "gflop_s": {kind: common.spread([gflop / s for s in found[kind]]) for kind in found},
            **_ratios(found)}


def _timed(run: Any) -> Turn:
    def seconds() -> float:
        started = time.perf_counter()
        run()
        return time.perf_counter() - started

    return seconds


def _ratios(seconds: dict[str, list[float]]) -> dict[str, Any]:
    """How many times as long the others take, turn by turn."""
    return {f"{kind}_over_w8a8": common.spread(
        [a / b for a, b in zip(seconds[kind], seconds[W8A8], strict=True)])
        for kind in (BF16, W8A16)}


def prompt_row(options: argparse.Namespace) -> dict[str, Any]:
    """The decoder's part of a prompt of text: from the embedded rows to the first logits."""
    from pydstp import Engine, EngineConfig, SamplingParams

    config = EngineConfig(max_batch=1, max_visual_tokens=64, num_threads=options.threads,
                          max_text_tokens=64 + 16 * options.sentences)
    sampling = SamplingParams(temperature=0.0, max_new_tokens=1, ignore_eos=True)
    sizes: set[int] = set()

    def prefill_s(engine: Engine) -> float:
        found = engine.generate(None, SENTENCE * options.sentences, sampling)
        sizes.add(found.prompt_tokens)
        return found.timings.prefill_ms / 1e3

    def as_numbers(engine: Engine) -> float:
        with weights_as_numbers():
            return prefill_s(engine)

    with (Engine(options.checkpoint, dtype=BF16, config=config) as in_bf16,
          Engine(options.checkpoint, dtype=BF16, config=config, weights="int8") as in_int8):
        found = take_turns({BF16: lambda: prefill_s(in_bf16), W8A16: lambda: as_numbers(in_int8),
                            W8A8: lambda: prefill_s(in_int8)}, options.repeats)
    return {"checkpoint": options.checkpoint.name, "prompt_tokens": sizes.pop(),
            "ms": {kind: common.spread([1e3 * s for s in found[kind]]) for kind in found},
            **_ratios(found)}


@contextmanager
def weights_as_numbers() -> Iterator[None]:
    """Prompts are multiplied as W8A16, on the CPU too."""
    from pydstp.models import plans
    from pydstp.models.gemm import dequantised_gemm

    before, plans.quantised_gemm = plans.quantised_gemm, dequantised_gemm
    try:
        yield
    finally:
        plans.quantised_gemm = before


def to_markdown(record: dict[str, Any]) -> str:
    """The record as a page that can be read."""
    setup, place = record["setup"], record["environment"]
    lines = [
        f"# Products of prompts with weights in 8 bits, {setup['threads']} threads", "",
        f"{place['cpu']} ({', '.join(place['cpu_flags'])}), {record['isa']}; torch "
        f"{place['packages']['torch']}; commit {place['commit']}, {place['date']}. Load before and "
        f"after: {place['load_average'][0]}, {record['load_average_at_the_end'][0]}.", "",
        f"Medians, smallest and largest in brackets, of {setup['repeats']} turns; ratios are of "
        "times, turn by turn. *bf16* is torch's product, *W8A16* the same with weights that become "
        "numbers again, *W8A8* the product of integers, quantising the rows included.", ""]
    if record["products"]:
        lines += [common.markdown_table(
            ["matrix", "rows", "bf16 GFLOP/s", "W8A16 GFLOP/s", "W8A8 GFLOP/s", "bf16 / W8A8",
             "W8A16 / W8A8"],
            [[row["matrix"], str(row["rows"]), *(common.show(row["gflop_s"][k]) for k in KINDS),
              *_shares(row)] for row in record["products"]]), ""]
    if row := record["prompt"]:
        lines += [f"The decoder's part of a prompt of {row['prompt_tokens']:,} tokens, "
                  f"{row['checkpoint']}:", "", common.markdown_table(
            ["bf16 ms", "W8A16 ms", "W8A8 ms", "bf16 / W8A8", "W8A16 / W8A8"],
            [[*(common.show(row["ms"][k]) for k in KINDS), *_shares(row)]])]
    return "\n".join(lines)


def _shares(row: dict[str, Any]) -> list[str]:
    return [common.show(row[f"{kind}_over_w8a8"], 2) for kind in (BF16, W8A16)]


def run(options: argparse.Namespace) -> Path:
    """Measure and write the result."""
    import torch

    from pydstp import ops

    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    environment = common.environment()
    with torch.inference_mode():
        products = [product_row(options, matrix, num_rows) for matrix in options.matrices
                    for num_rows in options.rows]
    prompt = prompt_row(options) if options.checkpoint else None
    setup = {key: value.name if isinstance(value, Path) else value
             for key, value in vars(options).items() if key != "name"}
    record = {"environment": environment, "isa": ops.current_isa(), "setup": setup,
              "load_average_at_the_end": [round(load, 2) for load in os.getloadavg()],
              "products": products, "prompt": prompt}
    name = options.name or f"gemm-int8-{options.threads}t"
    return common.write_result(name, record, to_markdown(record))


def main() -> None:
    options = parse_arguments()
    common.start_again("benchmarks.bench_gemm_int8", options.threads)
    print(run(options).read_text())


if __name__ == "__main__":
    main()
