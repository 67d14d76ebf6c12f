"""What one answer cost, counted from the model's shape and from what the answer reports.

Counts, not times: operations of matrix products and of attention, two per multiply-add, and bytes
of keys and values. Norms, activations, sampling and the selection itself are left out (its time is
`selection_ms`). Fewer operations do not mean a shorter wait, so rows hold measured times beside
them.
"""

from __future__ import annotations

from typing import Any

from pydstp.cost_model import CostModel
from pydstp.experiments.reduction import total_reduction_rate
from pydstp.generation import Generation
from pydstp.pruning import PruningConfig

GIGA = 1e9
# The columns, by the name they have in a row; all are means over answers.
COUNTED = ("visible_tokens", "resident_all_layers", "text_tokens", "kv_bytes", "vision_gflops",
           "prefill_gflops", "reserve_gflops", "decode_gflops_per_token", "answer_gflops")


def cost_model(engine: Any) -> CostModel | None:
    """The cost model of an engine's checkpoint; None of an object that has no model."""
    config = getattr(engine, "model_config", None)
    if config is None:
        return None
    return CostModel(config, engine.dtype.itemsize)


def count(answer: Generation, pruning: PruningConfig | None, model: CostModel) -> dict[str, float]:
    """The columns of `COUNTED` for one answer.

    Args:
        answer: of a request with one turn.
        pruning: the method it was asked with.
        model: shapes of the checkpoint.

    Returns:
        visible_tokens: visual tokens that a decode step reads, mean over steps and layers.
        resident_all_layers: visual tokens with keys and values in memory, mean over layers; those
            below the pruning point hold all.
        text_tokens: prompt tokens that are not visual.
        kv_bytes: keys and values that the answer held at its end, visual and text, pruned tokens
            with keys included.
        vision_gflops, prefill_gflops: the vision tower, and the prompt in the decoder with the
            head of its last row.
        reserve_gflops: pruned tokens that got their keys and values beside the prompt or later.
        decode_gflops_per_token: one decode step, repeated passes included.
        answer_gflops: all of it together, so a longer answer costs more.
    """
    report, num_layers = answer.shift, model.config.text.num_layers
    text, steps = answer.prompt_tokens - answer.visual_tokens, max(0, len(answer.token_ids) - 1)
    visible = report.mean_visible_all_layers * report.num_visual
    head = 2 * model.config.text.vocab_size * model.config.text.hidden_size
    vision = model.vision(answer.visual_tokens, sum(image.num_tiles for image in answer.images))
    rows, side = report.visual_rows, _side_rows(answer)
    prefill = head + sum(model.prefill(text + count, num_layers=1).flops for count in rows)
    seen = (text + answer.visual_tokens) / 2
    reserve = sum(model.prefill(count, seen, num_layers=1).flops for count in side)
    step = model.prefill(1, text + visible + (steps + 1) / 2).flops + head
    decode = step * report.forwards_per_token
    resident = (sum(rows) + sum(side)) / num_layers
    if pruning is not None and pruning.pruner.acts_on_cache:
        resident = answer.resident_tokens
    return {"visible_tokens": visible, "resident_all_layers": resident, "text_tokens": text,
            "kv_bytes": num_layers * (resident + text + steps) * model.kv_bytes,
            "vision_gflops": vision.flops / GIGA, "prefill_gflops": prefill / GIGA,
            "reserve_gflops": reserve / GIGA, "decode_gflops_per_token": decode / GIGA,
            "answer_gflops": (vision.flops + prefill + reserve + steps * decode) / GIGA}


def reductions(row: dict[str, Any], model: CostModel) -> dict[str, float]:
    """TRR and its parts, from the means of a row; see `reduction`.

    Returns:
        tacr: patches per visual token of the model.
        trr: patches per token kept at prefill.
        trr_read: patches per visual token that a decode step reads, so what returns is counted.
        r_llm, r_total: shares of the visual tokens and of the patches that were kept.
    """
    tacr = float(model.config.vision.merge_unit)
    trr = total_reduction_rate(tacr, row["num_visual"], row["kept"])
    read = max(row["mean_visible_all_layers"], 1e-9) * row["num_visual"]
    return {"tacr": tacr, "trr": trr,
            "trr_read": total_reduction_rate(tacr, row["num_visual"], read),
            "r_llm": tacr / trr, "r_total": 1 / trr}


def _side_rows(answer: Generation) -> list[float]:
    """Pruned tokens that went through each layer by themselves, from where they left on.

    All of them together are known; where tokens leave at several layers and not all of them ran,
    those that did are spread evenly.
    """
    report, rows = answer.shift, answer.shift.visual_rows
    gone = answer.visual_tokens - rows[-1]
    if report.reserve in (None, "full") or gone <= 0:
        return [0.0] * len(rows)
    ran = max(0, answer.resident_tokens - report.kept)
    return [ran * (answer.visual_tokens - count) / gone for count in rows]
