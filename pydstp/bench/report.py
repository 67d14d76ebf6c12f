"""A record as a page that can be read: Markdown, whose tables line up in a terminal too."""

from __future__ import annotations

from typing import Any

from pydstp.bench.spreads import show
from pydstp.bench.turns import OWN
from pydstp.experiments.record import markdown_table

GIB = 2**30
Record = dict[str, Any]
PHASES = (("preprocess_ms", "preprocess ms", 0), ("vision_ms", "vision ms", 0),
          ("prefill_ms", "prefill ms", 0), ("first_token_ms", "first token ms", 0),
          ("decode_ms", "decode ms/token", 1))
PREDICTED = (("vision_ms", "vision"), ("prefill_ms", "prefill"), ("decode_ms", "decode"))


def to_markdown(record: Record) -> str:
    """The whole page."""
    parts = [_head(record), _rates(record), _answers(record), _predictions(record),
             _ratios(record), _sweep(record), _memory(record)]
    return "\n\n".join(part.rstrip("\n") for part in parts if part) + "\n"


def _head(record: Record) -> str:
    setup, place = record["setup"], record["environment"]
    width, height = setup["image_size"]
    first = record["rows"][0]
    packages = {name: version for versions in record["versions"].values()
                for name, version in versions.items()}
    listed = ", ".join(f"{name} {version}" for name, version in packages.items())
    return "\n".join([
        f"# {setup['checkpoint']}, {setup['weights']} weights, {setup['threads']} threads", "",
        f"{place['cpu']} ({', '.join(place['cpu_flags'])}; {record['model']['isa']}), "
        f"{place['processors']} processors, {place['memory_gib']} GiB; commit {place['commit']}, "
        f"{place['date']}; load {place['load_average'][0]}.",
        f"Python {place['python']}; {listed}.", "",
        f"Picture {width}x{height}: {first['visual_tokens']} visual tokens of "
        f"{first['prompt_tokens']} in the prompt; {setup['new_tokens']} greedy tokens out; "
        f"{setup['repeats']} turns after one to warm up. Medians, smallest and largest in "
        f"brackets. Every engine is a process of its own; they take turns, every turn has its own "
        f"picture."])


def _rates(record: Record) -> str:
    probes = [record["rates_alone"], record["rates"]]
    rows = [[str(probe["threads"]), show(probe["read_gb_s"], 1), show(probe["gemm_gflop_s"])]
            for probe in probes]
    return markdown_table(["threads", "plain reads GB/s", "matrix products GFLOP/s"], rows)


def _name(row: dict[str, Any]) -> str:
    return row["engine"] + ("" if row["retention"] == 100 else f", {row['retention']} %")


def _answers(record: Record) -> str:
    rows = [[_name(row), str(row["prompt_tokens"]), str(row.get("kept", "")),
             *(show(row[key], digits) for key, _, digits in PHASES),
             f"{1e3 / row['decode_ms']['median']:.1f}", f"{row['peak_rss_bytes'] / GIB:.2f}",
             str(row.get("same_tokens", ""))] for row in record["rows"]]
    header = ["engine", "prompt tokens", "visual kept", *(title for _, title, _ in PHASES),
              "tokens/s", "peak RSS GiB", "same tokens"]
    return markdown_table(header, rows)


def _predictions(record: Record) -> str:
    """Measured beside predicted, for pydstp."""
    rows = []
    for row in record["rows"]:
        if row["engine"] == OWN:
            cells = []
            for key, _ in PREDICTED:
                measured, predicted = row[key]["median"], row["predicted"][key]
                cells += [f"{measured:,.1f}", f"{predicted:,.1f}", f"{predicted / measured:.0%}"]
            rows.append([_name(row), *cells])
    header = ["row"]
    for _, title in PREDICTED:
        header += [f"{title} ms", "predicted", "share"]
    return ("Measured beside the cost model (operations over the rate of matrix products, bytes "
            "over that of plain reads):\n\n" + markdown_table(header, rows))


def _ratios(record: Record) -> str:
    """Peers against pydstp."""
    if not record["ratios"]:
        return ""
    keys = (("picture_ms", "preprocess + vision"), ("prefill_ms", "prefill"),
            ("first_token_ms", "first token"), ("decode_ms", "decode"))
    rows = [[_name(row), *(show(row.get(key), 2) for key, _ in keys)] for row in record["ratios"]]
    return (f"Time of the peer over that of {OWN} in the same turn; above 1 {OWN} is faster:\n\n"
            + markdown_table(["peer", *(title for _, title in keys)], rows))


def _sweep(record: Record) -> str:
    """Decode steps by batch and retention."""
    if "sweep" not in record:
        return ""
    rows = []
    for row in record["sweep"]:
        step = row["step_ms"]
        rows.append([str(row["batch"]), f"{row['retention']} %", f"{row['tokens']:,.0f}",
                     show(step, 1), f"{row['predicted_ms']:.1f}",
                     f"{row['predicted_ms'] / step['median']:.0%}",
                     f"{1e3 * row['batch'] / step['median']:.1f}", show(row.get("gain"), 2),
                     f"{row['predicted_gain']:.2f}" if "predicted_gain" in row else "-"])
    header = ["batch", "kept", "tokens read per sequence", "step ms", "predicted", "share",
              "tokens/s", "gain over all tokens", "predicted gain"]
    return "Decode steps on random keys and values:\n\n" + markdown_table(header, rows)


def _memory(record: Record) -> str:
    memory = record["memory"]
    size = {key: f"{value / GIB:.2f} GiB" for key, value in memory.items() if key.endswith("bytes")}
    verdict = "within" if memory["peak_rss_bytes"] <= memory["budget_bytes"] else "above"
    return (f"Peak memory of {OWN}: {size['peak_rss_bytes']}, "
            f"{memory['of_weights_and_cache']:.2f} times its weights ({size['weights_bytes']}) and "
            f"the keys and values of the answer ({size['cache_bytes']}); {verdict} these plus 15 % "
            f"({size['budget_bytes']}). Python and its libraries alone are "
            f"{size['imported_bytes']} of it; before loading, the engine expected "
            f"{size['estimated_bytes']} beside these.")
