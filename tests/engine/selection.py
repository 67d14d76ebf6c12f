"""What the tests of pruning and shifting share: a tiny engine, a picture, and its answers."""

from __future__ import annotations

import torch

from pydstp import (
    DSTP,
    CancelledError,
    CancelToken,
    Engine,
    EngineConfig,
    Generation,
    PruningConfig,
    SamplingParams,
)
from pydstp.kv_cache import KVCache
from tests.checkpoints import tiny_qwen3_vl
from tests.engine.oracle import picture

# A method of each kind: what follows pruning does not depend on more. The others run once each.
METHODS = {"random": {}, "fastv": {"layer": 1}, "divprune": {}, "visionzip": {},
           "pooling": {"layer": 1}}
MORE_METHODS = {"window_fastv": {"layer": 1, "window": 2}, "reverse_fastv": {"layer": 1},
                "fastv_vis": {"layer": 1}, "alpha": {"layer": 1}, "dart": {"layer": 1},
                "fastervlm": {}, "vispruner": {}, "cdpruner": {}, "prumerge": {"neighbours": 4},
                "pyramiddrop": {}, "sparsevlm": {},
                "mustdrop": {"similarity": 0.1, "window": 2, "global_threshold": 0.1,
                             "individual_threshold": 0.05}}
ALL_METHODS = {**METHODS, **MORE_METHODS}
PROMPT = "Describe the second row of the picture, please."
IMAGE = picture(224, 160)  # 7 x 5 visual tokens
ALWAYS = {"threshold": 2.0, "monitor_layers": "post_prune"}


def open_engine(**config: int) -> Engine:
    """A tiny random model in fp32."""
    options = dict(max_batch=4, max_visual_tokens=128, max_text_tokens=256, num_threads=1)
    return Engine(tiny_qwen3_vl(), dtype="float32", config=EngineConfig(**{**options, **config}))


def method(name: str, ratio: float = 1 / 3, **options: object) -> PruningConfig:
    """A method with what it needs on a tiny model."""
    return PruningConfig(name, retention_ratio=ratio, **{**ALL_METHODS.get(name, {}), **options})


def selecting(name: str) -> PruningConfig:
    """The same, with options under which it merges no tokens."""
    return method(name, **{"sparsevlm": {"recycle": 0.0}, "mustdrop": {"similarity": 2.0},
                           "visionzip": {"prune_only": True}, "prumerge": {"prune_only": True},
                           "pooling": {"pool": "argmax_l1"}}.get(name, {}))


def answer(engine: Engine, num_tokens: int = 16, **options: object) -> Generation:
    """`num_tokens` greedy tokens about the picture, with their log-probabilities."""
    sampling = SamplingParams(temperature=0.0, max_new_tokens=num_tokens, ignore_eos=True,
                              logprobs=4)
    return engine.generate(IMAGE, PROMPT, sampling, **options)


def same(first: Generation, second: Generation) -> bool:
    """Equal tokens, and log-probabilities equal to the last bit."""
    return first.token_ids == second.token_ids and first.logprobs == second.logprobs


def reserve_rows(cache: KVCache, seq_idx: int = 0) -> torch.Tensor:
    """[num_layers, num_reserve, 2, num_kv_heads, head_dim] of a sequence, from its last request."""
    count = int(cache.shift.reserve_len[seq_idx])
    slots = cache.shift.reserve_indices[seq_idx, :count].long()
    return cache.visual[:, seq_idx, slots][cache.first_layer[seq_idx]:].clone()


def dstp(**options: object) -> DSTP:
    """DSTP that watches all pruned layers unless told otherwise."""
    return DSTP(**{"monitor_layers": "post_prune", **options})


class Countdown(CancelToken):
    """Cancelled when it is looked at for the `count`-th time; 0: never."""

    def __init__(self, count: int = 0) -> None:
        super().__init__()
        self.looks, self.count = 0, count

    @property
    def is_cancelled(self) -> bool:
        self.looks += 1
        if self.looks == self.count:
            self.cancel()
        return super().is_cancelled

    def check(self) -> None:
        if self.is_cancelled:
            raise CancelledError("the request was cancelled")
