"""The engine itself in a process of its own, so that its memory is its own.

    python -m pydstp.bench.own_server CHECKPOINT SETTINGS

SETTINGS is JSON: the fields of `BenchSettings` and "max_visual_tokens". It speaks as the peers do,
see `peer_server.py`.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

from pydstp import ops
from pydstp.bench.filled_cache import PROMPT_TEXT_TOKENS, FilledCache
from pydstp.bench.peer_server import Answer, Peer, memory_bytes, serve
from pydstp.bench.settings import BenchSettings
from pydstp.config import EngineConfig, SamplingParams
from pydstp.engine import Engine
from pydstp.models.config import INTERNVL, INTERNVL_CHAT
from pydstp.models.quantised import num_bytes
from pydstp.pruning import PruningConfig
from pydstp.selection import SelectionParams


class Own(Peer):
    """pydstp."""

    packages = ("torch",)

    def __init__(self, path: str, settings: BenchSettings, max_visual_tokens: int) -> None:
        import torch

        torch.set_num_threads(settings.threads)
        self._settings, self._imported_bytes = settings, memory_bytes("VmRSS")
        options = settings.engine_options(max_visual_tokens)
        if not _has_tiles(path):
            options["max_pixels"] = "checkpoint"
        self._engine = Engine(path, dtype=settings.dtype, config=EngineConfig(**options))
        self._filled: FilledCache | None = None

    def describe(self) -> dict[str, Any]:
        """What was loaded: bytes of all weights, of those that a decode step reads, and of an
        element of keys and values; the instruction set."""
        return {"weights_bytes": num_bytes(self._engine._runner.model),
                "step_weight_bytes": self._engine._runner._weight_bytes,
                "element_bytes": self._engine.dtype.itemsize, "isa": ops.current_isa()}

    def memory(self) -> dict[str, int]:
        """Also what was resident before anything was loaded: Python and its libraries."""
        return {**super().memory(), "imported_bytes": self._imported_bytes}

    def answer(self, image: str, prompt: str, new_tokens: int, retention: int = 100) -> Answer:
        """One measured answer of exactly `new_tokens` tokens."""
        sampling = SamplingParams(temperature=0.0, max_new_tokens=new_tokens, ignore_eos=True)
        found = self._engine.generate(image, prompt, sampling,
                                      pruning=self._settings.pruning(retention))
        timings, shift = found.timings, found.shift
        return {"preprocess_ms": timings.preprocess_ms, "vision_ms": timings.vision_ms,
                "prefill_ms": timings.prefill_ms, "first_token_ms": timings.time_to_first_token_ms,
                "decode_ms": found.ms_per_token, "prompt_tokens": found.prompt_tokens,
                "visual_tokens": found.visual_tokens, "kept": shift.kept,
                "num_tiles": sum(picture.num_tiles for picture in found.images),
                "selection_ms": shift.selection_ms, "visual_rows": shift.visual_rows,
                "visible_share": shift.mean_visible_all_layers, "token_ids": found.token_ids}

    def decode(self, batch: int, retention: int, num_visual: int, steps: int) -> dict[str, Any]:
        """Milliseconds of decode steps of a batch on random keys and values, the first left out."""
        self._filled = self._filled or FilledCache(self._engine)
        pruning = None if retention == 100 else PruningConfig("random", retention / 100)
        rows = [self._filled.start(num_visual, SelectionParams(pruning)) for _ in range(batch)]
        times = []
        try:
            for _ in range(steps + 1):
                started = time.perf_counter()
                self._filled.decode(rows)
                times.append(1e3 * (time.perf_counter() - started))
        finally:
            for row in rows:
                self._filled.release(row)
        kept = num_visual if pruning is None else pruning.budget(num_visual)
        return {"ms": times[1:], "tokens": PROMPT_TEXT_TOKENS + kept + 1 + steps / 2}


def _has_tiles(path: str) -> bool:
    from pydstp.weights import open_checkpoint

    return open_checkpoint(path).config["model_type"] in (INTERNVL, INTERNVL_CHAT)


def main() -> None:
    """Serve until the input ends."""
    path, text = sys.argv[1:]
    options = json.loads(text)
    max_visual_tokens = options.pop("max_visual_tokens")
    lists = ("image_size", "retention", "batch", "against")
    settings = BenchSettings(**options | {name: tuple(options[name]) for name in lists})
    serve(lambda: Own(path, settings, max_visual_tokens))


if __name__ == "__main__":
    main()
