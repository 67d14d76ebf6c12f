"""How long an answer about one picture takes: pydstp and transformers, side by side in one run.

    python -m benchmarks.bench_generate CHECKPOINT [--size 1024x1024] [--threads 2]

Each engine gets a fresh process, the same checkpoint, picture, prompt, dtype and threads, and runs
one answer to warm up before those that count. The result lands in benchmarks/results/.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks import common
from benchmarks.engines import ENGINES

PROMPT = "Describe this picture in detail: what is shown, where it is, and which colours it has."
PHASES = (("preprocess_ms", 0), ("vision_ms", 0), ("prefill_ms", 0), ("first_token_ms", 0),
          ("decode_ms_per_token", 1))
BYTES_PER_VALUE = {"bfloat16": 2, "float32": 4}


def parse_arguments() -> argparse.Namespace:
    """The options; --worker is how this program starts the measured processes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    parser.add_argument("--size", default="1024x1024", help="of the picture, width x height")
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=common.num_processors())
    parser.add_argument("--dtype", choices=BYTES_PER_VALUE, default="bfloat16")
    parser.add_argument("--name", help="of the result files")
    parser.add_argument("--worker", choices=ENGINES, help=argparse.SUPPRESS)
    parser.add_argument("--image", type=Path, help="a picture of your own instead of a drawn one")
    return parser.parse_args()


def draw_picture(path: Path, size: str) -> None:
    """A picture with structure at every scale, the same each time."""
    width, height = map(int, size.split("x"))
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / 7.0) + np.cos(y / 11.0), np.sin((x + y) / 41.0), np.cos(x * y / 9000.0)]
    noise = np.random.default_rng(0).normal(0.0, 0.2, (height, width, 3))
    pixels = np.stack(waves, axis=-1) * 60 + noise * 60 + 128
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)


def work(options: argparse.Namespace) -> None:
    """In the measured process: load, warm up, measure; the result is the last line of stdout."""
    started = time.perf_counter()
    engine = ENGINES[options.worker](options.checkpoint, options.dtype, options.threads)
    loaded = time.perf_counter()
    first = engine.answer(options.image, PROMPT, 2)
    answers = [engine.answer(options.image, PROMPT, options.new_tokens)
               for _ in range(options.repeats)]
    print(json.dumps({"load_ms": 1e3 * (loaded - started), "warm_up": first, "answers": answers,
                      "peak_rss_bytes": common.peak_rss_bytes()}))


def measure(engine: str, options: argparse.Namespace, image: Path) -> dict[str, Any]:
    """Run one engine in a fresh process and summarise its answers."""
    command = [sys.executable, "-m", "benchmarks.bench_generate", str(options.checkpoint),
               "--worker", engine, "--image", str(image), "--new-tokens", str(options.new_tokens),
               "--repeats", str(options.repeats), "--threads", str(options.threads),
               "--dtype", options.dtype]
    print(f"measuring {engine} ...", file=sys.stderr, flush=True)
    done = subprocess.run(command, cwd=common.ROOT, stdout=subprocess.PIPE, text=True, check=True,
                          env=common.thread_environment(options.threads))
    found = json.loads(done.stdout.splitlines()[-1])
    answers = found["answers"]
    return {**{key: common.spread([answer[key] for answer in answers]) for key, _ in PHASES},
            "load_ms": found["load_ms"], "peak_rss_bytes": found["peak_rss_bytes"],
            "first_call_first_token_ms": found["warm_up"]["first_token_ms"],
            "prompt_tokens": answers[0]["prompt_tokens"],
            "visual_tokens": answers[0]["visual_tokens"], "token_ids": answers[0]["token_ids"]}


def decode_bytes(config: dict[str, Any], num_cached: float, value_bytes: int) -> dict[str, float]:
    """Bytes that one decode step must read: every decoder weight, the head, the cached K and V."""
    text = config["text_config"]
    hidden, layers = text["hidden_size"], text["num_hidden_layers"]
    query = text["num_attention_heads"] * text["head_dim"]
    key = text["num_key_value_heads"] * text["head_dim"]
    layer = hidden * (2 * query + 2 * key + 3 * text["intermediate_size"])
    weights = layers * layer + text["vocab_size"] * hidden
    return {"weights": weights * value_bytes,
            "cache": layers * 2 * key * num_cached * value_bytes}


def floor(options: argparse.Namespace, prompt_tokens: int) -> dict[str, float]:
    """The cost model: bytes per token over the bandwidth this machine reached just now."""
    config = json.loads((options.checkpoint / "config.json").read_text())
    num_cached = prompt_tokens + options.new_tokens / 2
    parts = decode_bytes(config, num_cached, BYTES_PER_VALUE[options.dtype])
    bandwidth = common.read_bandwidth_gb_s(options.threads)
    return {**{f"{name}_bytes": value for name, value in parts.items()},
            "read_bandwidth_gb_s": bandwidth,
            "predicted_ms_per_token": sum(parts.values()) / bandwidth / 1e6}


def agreement(results: dict[str, dict[str, Any]]) -> int:
    """Leading tokens on which all engines agree."""
    rows = [result["token_ids"] for result in results.values()]
    same = [len(set(column)) == 1 for column in zip(*rows, strict=False)]
    return same.index(False) if False in same else len(same)


def table(record: dict[str, Any]) -> str:
    """One row per engine."""
    rows = []
    for name, result in record["engines"].items():
        decode = result["decode_ms_per_token"]["median"]
        share = record["floor"]["predicted_ms_per_token"] / decode
        rows.append([name, f"{result['load_ms'] / 1e3:.1f}",
                     *(common.show(result[key], digits) for key, digits in PHASES),
                     f"{1e3 / decode:.1f}", f"{share:.0%}",
                     f"{result['peak_rss_bytes'] / 2**30:.2f}"])
    header = ["engine", "import and load s", "preprocess ms", "vision ms", "prefill ms",
              "first token ms", "decode ms/token", "tokens/s", "of the read bandwidth",
              "peak RSS GiB"]
    return common.markdown_table(header, rows)


def to_markdown(record: dict[str, Any]) -> str:
    """The record as a page that can be read."""
    setup, place, model = record["setup"], record["environment"], record["floor"]
    some = next(iter(record["engines"].values()))
    packages = ", ".join(f"{k} {v}" for k, v in place["packages"].items() if v)
    return "\n".join([
        f"# One picture, one answer: {setup['checkpoint']}", "",
        f"{place['cpu']} ({', '.join(place['cpu_flags'])}), {setup['threads']} threads, "
        f"{place['memory_gib']} GiB; {setup['dtype']}; commit {place['commit']}, {place['date']}.",
        f"Python {place['python']}; {packages}.", "",
        f"Picture {setup['size']}: {some['visual_tokens']} visual tokens of "
        f"{some['prompt_tokens']} in the prompt; {setup['new_tokens']} greedy tokens out. "
        f"Medians of {setup['repeats']} answers after one to warm up, smallest and largest in "
        f"brackets; a fresh process per engine.", "",
        table(record),
        *ratios(record), "",
        f"Cost model: {model['weights_bytes'] / 1e9:.2f} GB of weights and "
        f"{model['cache_bytes'] / 1e9:.2f} GB of cache per token, read at "
        f"{model['read_bandwidth_gb_s']:.0f} GB/s (measured in this run): "
        f"{model['predicted_ms_per_token']:.0f} ms per token.",
        f"The first {record['same_tokens']} tokens are the same from every engine.", ""])


def ratios(record: dict[str, Any]) -> list[str]:
    """`transformers / pydstp` per phase, when both were measured."""
    if set(record["engines"]) != set(ENGINES):
        return []
    ours, theirs = record["engines"]["pydstp"], record["engines"]["transformers"]
    parts = [f"{name} {theirs[key]['median'] / ours[key]['median']:.2f}x" for name, key in
             (("first token", "first_token_ms"), ("decode", "decode_ms_per_token"))]
    return ["transformers takes, against pydstp: " + ", ".join(parts) + "."]


def main() -> None:
    options = parse_arguments()
    if options.worker:
        work(options)
        return
    for shard in sorted(options.checkpoint.glob("*.safetensors")):
        with shard.open("rb") as file:  # into the page cache, so that no engine pays for the disk
            while file.read(1 << 24):
                pass
    with tempfile.TemporaryDirectory() as folder:
        image = options.image or Path(folder) / "picture.png"
        if options.image is None:
            draw_picture(image, options.size)
        results = {engine: measure(engine, options, image) for engine in options.engines}
        size = "x".join(map(str, Image.open(image).size))
    setup = {"checkpoint": options.checkpoint.name, "size": size, "threads": options.threads,
             "new_tokens": options.new_tokens, "repeats": options.repeats, "dtype": options.dtype}
    prompt_tokens = next(iter(results.values()))["prompt_tokens"]
    record = {"environment": common.environment(), "setup": setup, "engines": results,
              "floor": floor(options, prompt_tokens), "same_tokens": agreement(results)}
    name = options.name or f"generate-{setup['checkpoint']}-{size}-{options.threads}t"
    path = common.write_result(name, record, to_markdown(record))
    print(path.read_text())


if __name__ == "__main__":
    main()
