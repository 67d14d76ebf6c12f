"""Decode steps of pydstp beside those of transformers on a GPU, in the same turns.

    python -m benchmarks.gpu_peers --shape 4b                      # or 8b
    python -m benchmarks.gpu_peers --shape tiny --device cpu --eager

transformers runs its decoder with a static cache under torch.compile (`--eager`: without), which is
its fastest way to decode; every step ends with the largest logit. Both have random weights of the
same shape and random keys and values of as many tokens. pydstp runs with all of them and with a
third of the visual ones.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import common
from benchmarks.gpu_decode import (
    SHAPES,
    measure_and_write,
    missing_cases,
    open_case,
    place_of,
    random_model,
    run_cases,
    seconds,
    start,
)
from pydstp import ops
from pydstp.bench.filled_cache import PROMPT_TEXT_TOKENS, FilledCache
from pydstp.bench.shapes import model_config
from pydstp.errors import DeviceError

SHARES = (1.0, 0.33)
WARM_UP = 5  # steps: torch.compile looks at the first ones


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_peers", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="4b")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--eager", action="store_true", help="without torch.compile")
    parser.add_argument("--turns", type=int, default=20, help="a step of each engine in turn")
    parser.add_argument("--minutes", type=float, default=8.0, help="no case begins after so many")
    return parser.parse_args(arguments)


def peer_decoder(shape: str, device: torch.device, dtype: torch.dtype) -> tuple[nn.Module, Tensor]:
    """transformers' decoder of a shape with weights of its own, and its head."""
    try:
        from transformers import Qwen3VLTextConfig, Qwen3VLTextModel
    except ImportError as error:
        raise DeviceError(f"peers: expected transformers to be installed: {error}") from None
    name, changes, is_tied = SHAPES[shape]
    config = Qwen3VLTextConfig(**{**model_config(name)["text_config"], **changes})
    config._attn_implementation = "sdpa"
    with device:
        model = Qwen3VLTextModel(config).to(dtype).eval()
    table = model.embed_tokens.weight
    return model, table if is_tied else torch.randn_like(table)


def peer_step(model: nn.Module, head: Tensor, batch: int, num_cached: int,
              options: argparse.Namespace) -> Callable[[], Tensor]:
    """A call that decodes one token of every sequence behind `num_cached` random ones."""
    from transformers import StaticCache

    config = model.config
    cache = StaticCache(config=config,
                        max_cache_len=num_cached + WARM_UP + options.turns)
    shape = batch, config.num_key_value_heads, num_cached, config.head_dim
    for layer_idx in range(config.num_hidden_layers):
        cache.update(head.new_empty(shape).normal_(), head.new_empty(shape).normal_(), layer_idx)
    ids = torch.zeros(batch, 1, dtype=torch.int64, device=head.device)

    def step() -> Tensor:
        hidden = model(input_ids=ids, past_key_values=cache, use_cache=True).last_hidden_state
        return F.linear(hidden[:, -1], head).argmax(-1)

    return step if options.eager else torch.compile(step, mode="reduce-overhead")


def own_steps(filled: FilledCache, batch: int, num_visual: int,
              share: float) -> tuple[Callable[[], object], list[Any]]:
    """The same call of pydstp with a share of the visual tokens, and its sequences."""
    sequences = [start(filled, "plain", share, num_visual) for _ in range(batch)]
    return lambda: filled.decode(sequences), sequences


def measure(model: nn.Module, peer: tuple[nn.Module, Tensor], case: tuple[int, int],
            options: argparse.Namespace, device: torch.device) -> list[dict[str, Any]]:
    """A row per share of one case."""
    batch, num_visual = case
    filled = open_case(model, *case, device, peer[1].dtype, ops.ThreadPool(1))
    rows = []
    for share in SHARES:
        theirs = peer_step(*peer, batch, num_visual + PROMPT_TEXT_TOKENS, options)
        ours, sequences = own_steps(filled, batch, num_visual, share)
        times: dict[str, list[float]] = {"pydstp": [], "transformers": []}
        for turn in range(WARM_UP + options.turns):
            for name, step in (("pydstp", ours), ("transformers", theirs)):
                ms = 1e3 * seconds(step, device)
                if turn >= WARM_UP:
                    times[name].append(ms)
        for seq in sequences:
            filled.release(seq)
        rows.append({"batch": batch, "num_visual": num_visual, "share": share,
                     **{name: common.spread(found) for name, found in times.items()},
                     "ratio": common.ratios(times["transformers"], times["pydstp"])})
    return rows


@torch.no_grad()
def run(options: argparse.Namespace) -> dict[str, Any]:
    """The record of all cases."""
    device, dtype = place_of(options)
    peer, model = peer_decoder(options.shape, device, dtype), random_model(
        options.shape, device, dtype)
    found = run_cases(options, device, lambda case: measure(model, peer, case, options, device))
    return {**found, "dtype": str(dtype), "eager": options.eager, "turns": options.turns}


def report(record: dict[str, Any]) -> str:
    """The result as Markdown."""
    cells = [[str(row["batch"]), str(row["num_visual"]), f"{row['share']:.0%}",
              common.show(row["pydstp"], 2), common.show(row["transformers"], 2),
              common.show(row["ratio"], 2)] for row in record["rows"]]
    table = common.markdown_table(
        ["batch", "visual", "pydstp reads", "pydstp ms", "transformers ms", "ratio"], cells)
    how = "eager" if record["eager"] else "compiled"
    return (f"# Decode steps beside transformers, {record['shape']} on {record['device']}\n\n"
            f"Weights in {record['dtype']}; transformers {how}, with a static cache of all tokens. "
            f"Medians, smallest and largest in brackets, of {record['turns']} turns; ratios are "
            f"taken turn by turn.\n\n{table}\n{missing_cases(record)}")


def main(arguments: Sequence[str] | None = None) -> int:
    return measure_and_write("gpu-peers", parse(arguments), run, report)


if __name__ == "__main__":
    sys.exit(main())
