"""The tables of bench_shift: what was measured, and beside it what the cost model expects."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from benchmarks import common
from benchmarks.shift_replay import LONGEST_WINDOW

if TYPE_CHECKING:
    from benchmarks.shift_harness import Rates

REFERENCES = {"against_pruned": "pruned", "against_full": "all tokens"}
Row = dict[str, Any]


def with_predictions(rows: list[Row], rates: Rates) -> list[Row]:
    """The rows of one case, each `cost` held against the rates that were measured meanwhile."""
    by_setting = {row["setting"]: row["cost"] for row in reversed(rows)}
    return [{**row, **_prediction(row, by_setting, rates), "rates": rates.to_dict()}
            for row in rows]


def _prediction(row: Row, costs: Row, rates: Rates) -> Row:
    predicted = rates.predict_ms(row["cost"])
    found = {"cost": asdict(row["cost"]), "predicted_ms": predicted,
             "measured_over_predicted": row["ms"]["median"] / predicted}
    for key, setting in REFERENCES.items():
        if key in row:
            found["predicted_" + key] = predicted / rates.predict_ms(costs[setting])
    if "second_cost" in row:
        second = rates.predict_ms(row["second_cost"])
        found |= {"second_cost": asdict(row["second_cost"]), "predicted_second_ms": second,
                  "second_measured_over_predicted": row["second_ms"]["median"] / second}
    return found


def to_markdown(record: Row) -> str:
    """The record as a page that can be read."""
    setup, place = record["setup"], record["environment"]
    packages = ", ".join(f"{k} {v}" for k, v in place["packages"].items() if v)
    loads = (" ".join(map(str, record_loads)) for record_loads in
             (place["load_average"], record["load_average_at_the_end"]))
    lines = [
        f"# Visual tokens that go and come back: {setup['checkpoint']}", "",
        f"{place['cpu']} ({', '.join(place['cpu_flags'])}), {setup['threads']} threads, "
        f"{place['memory_gib']} GiB; {setup['dtype']}; commit {place['commit']}, {place['date']}.",
        f"Python {place['python']}; {packages}. Load before and after: {', '.join(loads)}; "
        f"{record['seconds']} s in all, peak RSS {record['peak_rss_bytes'] / 2**30:.1f} GiB.", "",
        "Medians, smallest and largest in brackets. Settings of a table took turns in one process; "
        "ratios are taken turn by turn. *Predicted*: bytes read over the plain read bandwidth and "
        "operations over the rate of a GEMM, both measured between the turns.", ""]
    for part, page in (("decode", _decode), ("ttft", _first_token), ("replay", _replay)):
        if part in record:
            lines += page(record)
    return "\n".join(lines)


def _decode(record: Row) -> list[str]:
    setup, rows = record["setup"], record["decode"]
    table = [[f"{row['num_visual']:,}", row["setting"], row["kind"], f"{row['visible']:,}",
              common.show(row["ms"], 1), common.show(row["against_pruned"], 3),
              f"{row['predicted_against_pruned']:.3f}", f"{row['cost']['num_bytes'] / 1e9:.2f}",
              *_predicted(row)] for row in rows]
    header = ["visual tokens", "setting", "step", "visible", "ms per step", "against pruned",
              "predicted", "GB read", "predicted ms", "measured / predicted"]
    return ["## Decode steps", "",
            f"One sequence on random keys and values, {setup['retention']:.1%} kept. *watched*: a "
            f"policy that never triggers, on the middle layer or on all; *swaps*: one that swaps "
            f"whenever it can (cpts, from the next step on). A *swap* step reads the base set, "
            f"then detects, scores the reserve and selects; an *expanded* one reads the selection. "
            f"(Random attention is flat: over all layers it selects little beyond the base set.) "
            f"{setup['repeats']} turns. The first step's logits are the same, bit for bit, for all "
            f"settings that prune.", "", common.markdown_table(header, table), *_rates(rows), ""]


def _first_token(record: Row) -> list[str]:
    setup, rows = record["setup"], record["ttft"]
    phases = ("vision_ms", "prefill_ms", "selection_ms", "reserve_ms")
    table = [[f"{row['num_visual']:,} ({row['source']})", row["setting"], f"{row['kept']:,}",
              common.show(row["ms"]), *(f"{row[key]['median']:,.0f}" for key in phases),
              common.show(row["against_full"], 3), f"{row['predicted_against_full']:.3f}",
              *_predicted(row), common.show(row["second_ms"]),
              f"{row['second_measured_over_predicted']:.2f}"] for row in rows]
    header = ["visual tokens", "setting", "kept", "first token ms", "vision ms", "prefill ms",
              "selection ms", "reserve ms", "against all tokens", "predicted", "predicted ms",
              "measured / predicted", "second token ms", "measured / predicted"]
    return ["## The first token", "",
            f"{setup['method']} at {setup['retention']:.1%} with the policy set to trigger at the "
            f"first step: a lazy reserve is computed then, so *second token* holds the latency of "
            f"its first trigger. *picture*: the whole path, but the vision tower runs once per "
            f"turn and its time counts for all; *rows*: random rows in place of the tower's. "
            f"{setup['ttft_repeats']} turns; {' and '.join(setup['reserve'])}: the same tokens.",
            "", common.markdown_table(header, table), *_rates(rows), ""]


def _replay(record: Row) -> list[str]:
    trace, rows = record["trace"], record["replay"]
    table = [[f"{row['num_visual']:,}", row["setting"], f"{row['shares'].get('swap', 0.0):.3f}",
              common.show(row["ms"], 1), common.show(row["against_pruned"], 3),
              f"{row['predicted_against_pruned']:.3f}", common.show(row["against_full"], 3),
              f"{row['predicted_against_full']:.3f}", *_predicted(row),
              f"{row['swaps_as_run']:.3f}", common.show(row["ms_as_run"], 1)] for row in rows]
    header = ["visual tokens", "setting", "swaps per token", "ms per token", "against pruned",
              "predicted", "against all tokens", "predicted", "predicted ms",
              "measured / predicted", "swaps in the runs", "ms in the runs"]
    policy = trace["policy"]
    return ["## A trace in milliseconds", "",
            f"From {trace['source']}: {trace['triggers']:.3f} triggers and {trace['forwards']:.3f} "
            f"forwards per token. Replayed with random triggers at {trace['retention']:.1%}: swap "
            f"{policy['swap']}, {policy['expand_steps']} steps, layers {policy['monitor_layers']}. "
            f"Short runs, with windows of at most {LONGEST_WINDOW} steps, swap more or less often "
            f"than the trace (right); *ms per token* weighs their steps as often as the trace has "
            f"them. The reserve is there already; a lazy one adds its first trigger, once.", "",
            common.markdown_table(header, table), *_rates(rows), ""]


def _predicted(row: Row) -> list[str]:
    return [f"{row['predicted_ms']:,.1f}", f"{row['measured_over_predicted']:.2f}"]


def _rates(rows: list[Row]) -> list[str]:
    """The rates of each case."""
    cases = {f"{row['num_visual']:,}" + (f" ({row['source']})" if "source" in row else ""):
             row["rates"] for row in rows}
    parts = [f"{case}: {common.show(rates['read_gb_s'], 1)} GB/s, "
             f"{common.show(rates['gemm_gflop_s'])} GFLOP/s" for case, rates in cases.items()]
    return ["Rates by visual tokens: " + "; ".join(parts) + "."]
