"""What 8 bits cost in accuracy: python -m benchmarks.int8_error [--checkpoint build/small].

First logits of the embedded checkpoint, and logits of a prompt of a random checkpoint in which some
channels of every norm are made large and the weights behind them small, which changes nothing in
exact arithmetic. Errors are root mean squares of the distance from fp32, beside that of bfloat16:
with rows of prompts left as they are (W8A16), and with rows in 8 bits too (W8A8), our way.
"""

from __future__ import annotations

import argparse
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import common
from benchmarks.bench_gemm_int8 import weights_as_numbers
from benchmarks.parity import our_logits
from pydstp import Engine, EngineConfig, demo_checkpoint, ops
from pydstp.models.plans import Context
from pydstp.models.quantised import quantise
from pydstp.tasks import TASKS, make_example
from tests.loader.raw_files import load
from tests.models.helpers import Inputs, Runner

LARGE_CHANNELS, FACTORS, NUM_TOKENS = 2, (1, 10, 50), 128


def how(kind: str) -> Any:
    """The context in which prompts are multiplied as this kind says."""
    return weights_as_numbers() if kind == "W8A16" else nullcontext()


def error(found: Tensor, exact: Tensor) -> float:
    """Root mean square of the difference over that of the exact logits."""
    return float((found.double() - exact.double()).norm() / exact.double().norm())


def trained_rows(count: int) -> list[dict[str, Any]]:
    """The embedded checkpoint: first logits of `count` held-out pictures of each task."""

    def logits(dtype: str, weights: str) -> dict[str, Tensor]:
        config = EngineConfig(max_batch=1, max_visual_tokens=512, max_text_tokens=512,
                              num_threads=1, weights=weights)
        with Engine(demo_checkpoint(), dtype=dtype, config=config) as engine:
            return {task: torch.stack([torch.from_numpy(our_logits(engine, make_example(task, i)))
                                       for i in range(count)]) for task in TASKS}

    exact, rounded = logits("float32", "float"), logits("bfloat16", "float")
    rows = []
    for kind in ("W8A16", "W8A8"):
        with how(kind):
            found = logits("float32", "int8")
        rows += [_row(f"embedded, {task}", kind, found[task], exact[task], rounded[task])
                 for task in TASKS]
    return rows


def random_rows(path: Path, factor: int) -> list[dict[str, Any]]:
    """A random checkpoint with some channels `factor` times as large: logits of every token."""
    exact = with_large_channels(load(path, "float32"), factor)
    numbers = {name: parameter.detach().clone() for name, parameter in exact.named_parameters()}
    ids = torch.randint(0, 50000, (NUM_TOKENS,), generator=torch.Generator().manual_seed(1))
    inputs = Inputs(ids, torch.empty(0, exact.config.vision.patch_dim), ())
    ctx = Context(pool=ops.ThreadPool(1), check=lambda: None)

    def run(model: Any) -> Tensor:
        return Runner(model, ctx, capacity=400).prefill(inputs)

    expected, rounded = run(exact), run(exact.bfloat16())
    model = load(path, "float32")
    matrices = quantise(model, model.language_model.lm_head is None)
    for name, parameter in model.named_parameters():
        parameter.data.copy_(numbers[name])
    for name, matrix in matrices.items():
        ops.quantise_rows(numbers[name], matrix, pool=ctx.pool)
    rows = []
    for kind in ("W8A16", "W8A8"):
        with how(kind):
            rows.append(_row(f"{path.name}, {LARGE_CHANNELS} channels x {factor}", kind,
                             run(model), expected, rounded))
    return rows


def with_large_channels(model: Any, factor: int) -> Any:
    """The same function, with a few channels between norms and products `factor` times as large."""
    generator = torch.Generator().manual_seed(2)
    for layer in model.language_model.layers:
        for norm, linear in ((layer.input_layernorm, layer.self_attn.qkv_proj),
                             (layer.post_attention_layernorm, layer.mlp.gate_up_proj)):
            order = torch.randperm(len(norm.weight), generator=generator)
            channels = order[:LARGE_CHANNELS]
            norm.weight.data[channels] *= factor
            linear.weight.data[:, channels] /= factor
    return model


def _row(name: str, kind: str, found: Tensor, exact: Tensor, rounded: Tensor) -> dict[str, Any]:
    same = (found.argmax(-1) == exact.argmax(-1)).double().mean()
    return {"case": name, "kind": kind, "error": error(found, exact),
            "error_of_bfloat16": error(rounded, exact), "same_first_choice": float(same)}


def to_markdown(record: dict[str, Any]) -> str:
    """The record as a page that can be read."""
    place = record["environment"]
    rows = [[row["case"], row["kind"], f"{row['error']:.4f}", f"{row['error_of_bfloat16']:.4f}",
             f"{row['error'] / row['error_of_bfloat16']:.1f}",
             f"{100 * row['same_first_choice']:.1f} %"] for row in record["rows"]]
    table = common.markdown_table(["logits of", "prompts as", "error", "error of bfloat16", "ratio",
                                   "same largest logit"], rows)
    return (f"# What 8 bits cost in accuracy\n\nWeights in 8 bits, all else in fp32; errors are "
            f"relative root mean squares against fp32.\n{record['pictures']} pictures per task; "
            f"{NUM_TOKENS} random tokens.\n\n{table}\nCommit {place['commit']}, {place['date']}, "
            f"{place['cpu']}.\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=50, help="pictures per task")
    parser.add_argument("--checkpoint", type=Path, help="a folder of random weights")
    parser.add_argument("--name", default="int8-error", help="of the result files")
    options = parser.parse_args()
    with torch.inference_mode():
        rows = trained_rows(options.n)
        for factor in FACTORS if options.checkpoint else ():
            rows += random_rows(options.checkpoint, factor)
    record = {"environment": common.environment(), "pictures": options.n, "rows": rows}
    print(common.write_result(options.name, record, to_markdown(record)).read_text())


if __name__ == "__main__":
    main()
