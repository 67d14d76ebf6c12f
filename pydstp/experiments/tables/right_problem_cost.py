"""The efficiency table of arXiv 2502.11501: tokens, time, operations, keys and values.

Operations and bytes come from the cost model; times are medians over answers written alone.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from pydstp.cost_model import CostModel
from pydstp.experiments.statistics import mean
from pydstp.experiments.tables import published as paper
from pydstp.experiments.tables.bench import FULL, Bench, Column
from pydstp.experiments.tables.layout import (
    Cell,
    Table,
    absent,
    accuracy,
    name,
    number,
    published,
    reasons,
)
from pydstp.pruning.registry import pruner_class

RATIO = 1 / 9
METHODS = ("fastv", "sparsevlm", "mustdrop", "random", "pooling", "divprune", "visionzip",
           "pyramiddrop", "look_m", "resize")
COLUMN = Column("locate", "locate", (("rows", 9), ("cols", 8)))
NUM_TIMED = 24
FLOAT32 = 4
HEADER = ["method", "right %", "tokens read", "of all %", "first token ms", "ms/token",
          "prefill MFLOP", "vision MFLOP", "visual KV KiB", "tokens written",
          "paper: min", "paper: KV MB", "paper: F1"]


def table(bench: Bench) -> Table:
    """A ninth of the tokens, `locate` on pictures of 72 tokens."""
    model = CostModel(bench.config, FLOAT32)
    text, rows = _text_tokens(bench), []
    for method in ("none", *METHODS):
        setting = FULL if method == "none" else bench.setting(method, RATIO)
        run = bench.run(setting, COLUMN, NUM_TIMED)
        rows.append([name(method), accuracy(run), *_cells(run, model, text),
                     *map(published, paper.RIGHT_PROBLEM_COST.get(method, (None,) * 3),
                          ("{:.2f}", "{:g}", "{:g}"))])
    return Table(
        "What a ninth of the tokens costs",
        "arXiv 2502.11501, table 5 (LLaVA-NeXT-7B on POPE; hardware not stated)", HEADER, rows,
        [f"Times are medians of {NUM_TIMED} answers written alone, on a machine that does other "
         "work too; in a model of this size they are dominated by what does not depend on the "
         "tokens. *tokens read*: visual tokens per layer, mean over layers and steps. *prefill "
         "MFLOP*: the prompt in the decoder, from the cost model, at that mean number in every "
         "layer (attention is a little more where layers differ). *visual KV*: keys and values "
         "of those tokens in fp32, all layers.", *reasons(rows)])


def _text_tokens(bench: Bench) -> float:
    """Tokens of a prompt that are not visual, mean over the questions."""
    def measure() -> dict[str, Any]:
        asker = replace(bench.asker, max_new_tokens=1)
        answers = [answer for _, answer in asker.ask(bench.evaluation(COLUMN).questions)]
        return {"tokens": mean(one.prompt_tokens - one.visual_tokens for one in answers)}

    asked = {"text_tokens": COLUMN, "n": bench.n, "seed": bench.seed,
             "checkpoint": bench.checkpoint_sha256}
    return bench.once(asked, measure, lambda found: f"{found['tokens']:.1f} text tokens")["tokens"]


def _cells(run: dict[str, Any], model: CostModel, text: float) -> list[Cell]:
    if "absent" in run:
        return [absent(run)] * 8
    cost = costs(run, model, text)
    return [number({**run, **cost}, key, pattern) for key, pattern in (
        ("visual_rows", "{:.1f}"), ("visual_percent", "{:.1f}"),
        ("time_to_first_token_ms", "{:.2f}"), ("ms_per_token", "{:.2f}"),
        ("prefill_mflop", "{:.1f}"), ("vision_mflop", "{:.1f}"), ("visual_kv_kib", "{:.1f}"),
        ("new_tokens", "{:.1f}"))]


def costs(run: dict[str, Any], model: CostModel, text: float) -> dict[str, float]:
    """What a prompt costs by the cost model.

    Args:
        run: a row of `Evaluation`. Where the method makes the picture smaller, the vision tower
            sees what was kept; where it prunes the cache, the prompt reads all tokens.
        text: tokens of the prompt that are not visual.

    Returns:
        visual_rows and visual_percent (mean over layers), prefill_mflop, vision_mflop,
        visual_kv_kib.
    """
    rows = run["mean_visible_all_layers"] * run["num_visual"]
    method = pruner_class(run["method"])
    seen = run["kept"] if method.acts_on_picture else run["num_visual"]
    prompt = run["num_visual"] if method.acts_on_cache else rows
    return {"visual_rows": rows, "visual_percent": 100 * rows / run["num_visual"],
            "prefill_mflop": model.prefill(text + prompt).flops / 1e6,
            "vision_mflop": model.vision(seen).flops / 1e6,
            "visual_kv_kib": model.kv_bytes * model.config.text.num_layers * rows / 1024}
