"""How fast is decode attention: pydstp's op with and without a monitor, torch's, and plain reads.

    python -m benchmarks.bench_decode_attention [--threads 1 2] [--batches 1 8]

32 query heads over 8 KV heads of 128 columns. Every call finds its keys and values in memory, not
in a cache: calls rotate over far more of them than the last cache holds. All settings of a case
take turns in one process. torch gets the visible tokens side by side, heads first, so that it never
gathers. The result lands in benchmarks/results/.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import common

if TYPE_CHECKING:
    from torch import Tensor

NUM_HEADS, NUM_KV_HEADS, HEAD_DIM = 32, 8, 128
READ, OWN, WATCHED = "read", "pydstp", "watched"
DEFAULT, FOLDED, PRODUCTS = "enable_gqa", "folded", "folded products"
Row = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """So many sequences that see some of their visual tokens; a list of all is contiguous."""

    dtype: str
    threads: int
    batch: int
    visible: int
    held: int

    def row_bytes(self) -> int:
        """Of keys and values of a token."""
        return 2 * NUM_KV_HEADS * HEAD_DIM * (2 if self.dtype == "bfloat16" else 4)

    def num_bytes(self) -> int:
        """That a call has to read."""
        return self.batch * self.visible * self.row_bytes()


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dtypes", nargs="+", choices=("bfloat16", "float32"),
                        default=["bfloat16", "float32"])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, common.num_processors()])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--tokens", type=int, default=4096, help="visible per sequence")
    parser.add_argument("--pool-mib", type=int, default=128, help="of visible rows, in rotation")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--name", default="decode-attention", help="of the result files")
    return parser.parse_args(arguments)


def cases_of(options: argparse.Namespace) -> list[Case]:
    """All tokens; one third of as many; as many as all, out of three times as many."""
    n = options.tokens
    lists = [(n, n), (n // 3, n), (n, 3 * n)]
    return [Case(dtype, threads, batch, visible, held) for dtype in options.dtypes
            for batch in options.batches for visible, held in lists for threads in options.threads]


class Caches:
    """Arenas in rotation, and the same visible tokens heads first.

    Attributes:
        q: [batch, NUM_HEADS, HEAD_DIM].
        arenas: [batch, held, 2, NUM_KV_HEADS, HEAD_DIM] each.
        plain: (k, v), [batch, NUM_KV_HEADS, visible, HEAD_DIM] each, beside every arena.
    """

    def __init__(self, case: Case, pool_bytes: int) -> None:
        import torch

        from pydstp import ops

        dtype = getattr(torch, case.dtype)
        row = 2, NUM_KV_HEADS, HEAD_DIM
        kept = torch.randperm(case.held)[:case.visible].sort().values
        self.q = torch.randn(case.batch, NUM_HEADS, HEAD_DIM).to(dtype)
        self.arenas, self.plain = [], []
        for _ in range(max(2, -(-pool_bytes // case.num_bytes()))):
            arena = ops.empty_in_huge_pages(case.batch, case.held, *row, dtype=dtype)
            if self.arenas:
                arena.copy_(self.arenas[0])
            else:
                arena.normal_()
            heads_first = ops.empty_in_huge_pages(2, case.batch, NUM_KV_HEADS, case.visible,
                                                  HEAD_DIM, dtype=dtype)
            heads_first.copy_(arena[:, kept].permute(2, 0, 3, 1, 4))
            self.arenas.append(arena)
            self.plain.append(heads_first.unbind())
        self._lists(case, kept.int())

    def _lists(self, case: Case, kept: Tensor) -> None:
        import torch

        from pydstp import ops

        def int32(*shape: int) -> Tensor:
            return torch.zeros(*shape, dtype=torch.int32)

        batch, indices = case.batch, kept.expand(case.batch, 1, -1).contiguous()
        text = torch.zeros(batch, 1, 2, NUM_KV_HEADS, HEAD_DIM, dtype=self.q.dtype)
        workspace = ops.attention_workspace(batch, NUM_HEADS, indices, text)
        self.arguments = {
            "text": text, "seq_idx": torch.arange(batch, dtype=torch.int32),
            "visible_indices": indices, "visible_len": int32(batch, 1) + case.visible,
            "layer_to_group": int32(batch, 1), "layer_idx": 0, "text_len": int32(batch),
            "scale": HEAD_DIM**-0.5, "pool": ops.ThreadPool(case.threads), "workspace": workspace,
            "out": torch.empty_like(self.q)}
        self.monitor = ops.Monitor(
            probs=torch.zeros(batch, case.held), base_mask=None, norm=int32(batch),
            head_weights=torch.full((batch, NUM_HEADS), 1 / NUM_HEADS),
            layer_weights=torch.ones(batch, 1),
            logits=ops.monitor_workspace(batch, NUM_HEADS, indices))


def own(caches: Caches, index: int, *, watched: bool = False) -> Tensor:
    """pydstp's op on one cache; [batch, NUM_HEADS, HEAD_DIM]."""
    from pydstp import ops

    return ops.decode_attention(caches.q, caches.arenas[index], **caches.arguments,
                                monitor=caches.monitor if watched else None)


def default_form(caches: Caches, index: int) -> Tensor:
    """torch's attention with its own grouping of heads, as models call it."""
    import torch.nn.functional as F

    out = F.scaled_dot_product_attention(caches.q.unsqueeze(2), *caches.plain[index],
                                         enable_gqa=True)
    return out.squeeze(2)


def folded(caches: Caches, index: int) -> Tensor:
    """torch's attention with the query heads of a group as rows of its KV head."""
    import torch.nn.functional as F

    q = caches.q.view(len(caches.q), NUM_KV_HEADS, -1, HEAD_DIM)
    return F.scaled_dot_product_attention(q, *caches.plain[index]).view_as(caches.q)


def folded_products(caches: Caches, index: int) -> Tensor:
    """The same by hand: two batched products and a softmax."""
    k, v = caches.plain[index]
    q = caches.q.view(len(caches.q), NUM_KV_HEADS, -1, HEAD_DIM) * HEAD_DIM**-0.5
    return ((q @ k.transpose(2, 3)).softmax(-1) @ v).view_as(caches.q)


FORMS: dict[str, Callable[[Caches, int], Any]] = {
    OWN: own, WATCHED: partial(own, watched=True), DEFAULT: default_form, FOLDED: folded,
    PRODUCTS: folded_products}


def check(case: Case, caches: Caches) -> None:
    """All forms compute the same."""
    expected = own(caches, 0).float().clone()
    for name, form in FORMS.items():
        error = float((form(caches, 0).float() - expected).abs().max())
        if not error <= (0.02 if case.dtype == "bfloat16" else 1e-4):
            raise RuntimeError(f"{case}: {name} differs by {error}")


def measure(case: Case, options: argparse.Namespace) -> Row:
    """GB/s of plain reads and milliseconds per call of every form, turn by turn.

    A turn of pydstp goes over all caches, one of torch, which is slower, over two.
    """
    import torch

    torch.set_num_threads(case.threads)
    caches, probe = Caches(case, options.pool_mib << 20), common.read_probe(options.pool_mib << 20)
    check(case, caches)
    number = len(caches.arenas)
    turns = {name: cycle(range(number)) for name in FORMS}
    found: dict[str, list[float]] = {READ: [], **{name: [] for name in FORMS}}
    names = list(found)
    for repeat in range(1 + options.repeats):
        first = repeat % len(names)
        for name in names[first:] + names[:first]:
            if name == READ:
                value = common.read_gb_s(probe, case.threads)
            else:
                count = number if name in (OWN, WATCHED) else 2
                value = call_ms(partial(FORMS[name], caches), turns[name], count)
            if repeat:
                found[name].append(value)
    return row_of(case, found)


def call_ms(call: Callable[[int], Any], indices: Any, count: int) -> float:
    """Milliseconds of a call, mean of so many."""
    started = time.perf_counter()
    for _ in range(count):
        call(next(indices))
    return 1e3 * (time.perf_counter() - started) / count


def row_of(case: Case, found: dict[str, list[float]]) -> Row:
    """What a case came to; ratios are taken turn by turn."""
    reads, ours = found[READ], found[OWN]
    speeds = [case.num_bytes() / ms / 1e6 for ms in ours]
    best = [min(pair) for pair in zip(found[FOLDED], found[PRODUCTS], strict=True)]
    return {**asdict(case), "num_bytes": case.num_bytes(), "read_gb_s": common.spread(reads),
            "ms": {name: common.spread(found[name]) for name in FORMS},
            "of_the_read_bandwidth": common.ratios(speeds, reads),
            "default_over_pydstp": common.ratios(found[DEFAULT], ours),
            "folded_over_pydstp": common.ratios(best, ours),
            "watched_over_pydstp": common.ratios(found[WATCHED], ours)}


def to_markdown(record: Row) -> str:
    """The record as a page that can be read."""
    setup, place = record["setup"], record["environment"]
    header = ["dtype", "threads", "sequences", "visible", "MB", "read GB/s", "pydstp ms",
              "of reads", "watched / not", f"torch {DEFAULT} / pydstp", "torch folded / pydstp"]
    rows = [[row["dtype"], str(row["threads"]), str(row["batch"]),
             f"{row['visible']:,} of {row['held']:,}", f"{row['num_bytes'] / 1e6:.0f}",
             common.show(row["read_gb_s"], 1), common.show(row["ms"][OWN], 2),
             common.show(row["of_the_read_bandwidth"], 2),
             common.show(row["watched_over_pydstp"], 3), common.show(row["default_over_pydstp"], 1),
             common.show(row["folded_over_pydstp"], 2)] for row in record["rows"]]
    return "\n".join([
        "# Decode attention", "",
        f"{place['cpu']} ({', '.join(place['cpu_flags'])}), {place['processors']} processors; "
        f"instruction set {record['isa']}; torch {place['packages']['torch']}; commit "
        f"{place['commit']}, {place['date']}. Load before and after: {place['load_average'][0]}, "
        f"{record['load_average_at_the_end'][0]}.", "",
        f"{NUM_HEADS} query heads, {NUM_KV_HEADS} KV heads, {HEAD_DIM} columns. Medians, smallest "
        f"and largest in brackets, of {setup['repeats']} turns; ratios are taken turn by turn. "
        f"Calls rotate over at least {setup['pool_mib']} MiB of visible rows. *Of reads*: bytes of "
        "the visible rows per second against plain reads of as many threads. *Watched*: a monitor "
        "on this layer, all heads. *torch* reads tokens that lie side by side already; *folded* is "
        "the faster of its attention and two products with a softmax.", "",
        common.markdown_table(header, rows), ""])


def run(options: argparse.Namespace) -> Path:
    """Measure and write the result."""
    import torch

    from pydstp import ops

    environment = common.environment()
    torch.manual_seed(0)
    with torch.inference_mode():
        rows = [measure(case, options) for case in cases_of(options)]
    record = {"environment": environment, "isa": ops.current_isa(), "setup": vars(options),
              "load_average_at_the_end": [round(load, 2) for load in os.getloadavg()],
              "rows": rows}
    return common.write_result(options.name, record, to_markdown(record))


def main() -> None:
    options = parse_arguments()
    common.start_again("benchmarks.bench_decode_attention", max(options.threads))
    print(run(options).read_text())


if __name__ == "__main__":
    main()
