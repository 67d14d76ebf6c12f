"""The engine against the plain DSTP of this folder: same tokens, lists, triggers, similarities."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import pytest
import torch

from pydstp import (
    DSTP,
    Engine,
    EngineConfig,
    Generation,
    Pruner,
    PruningConfig,
    SamplingParams,
    VisualTokens,
    ops,
    register_pruner,
)
from pydstp.kv_cache import SELECTED
from tests.shift.cases import Solved, solve

CAPACITY = 96
NUM_CASES, NUM_EMULATED = 50, 20


@register_pruner("given")
@dataclass(frozen=True)
class Given(Pruner):
    """Keeps the slots it is told to keep."""

    slots: tuple[int, ...] = ()
    layer: int = 0
    default_quota = "global"

    @property
    def act_before(self) -> int:
        return self.layer

    def select(self, tokens: VisualTokens) -> torch.Tensor:
        return torch.tensor(self.slots)


@contextmanager
def on_tier(tier: str | None) -> Iterator[None]:
    ops.set_isa(tier)
    try:
        yield
    finally:
        ops.set_isa(None)


def run(solved: Solved) -> tuple[Generation, list[int]]:
    """The engine's answer, and the base set it left behind."""
    case = solved.case
    config = EngineConfig(max_batch=1, max_visual_tokens=CAPACITY, max_text_tokens=256,
                          num_threads=1)
    with Engine(case.path(), dtype="float32", config=config) as engine:
        sampling = replace(SamplingParams(**case.sampling_options()), logprobs=5)
        generation = engine.generate(
            case.images(), case.prompt, sampling, pruning=PruningConfig(**case.pruning_options()),
            shift=DSTP(**case.shift_options()), reserve=case.reserve, log_steps="attention")
        cache = engine._cache
        cache.show_base(0)
        return generation, cache.visible_slots(0, SELECTED).tolist()


def lists_read(generation: Generation, base: list[int], merge_slot: int) -> list[list[int]]:
    """The list that every step read, put together from what came and went."""
    shown, lists = set(base), []
    for step in generation.shift.steps:
        shown = shown - set(step.went) | set(step.came)
        lists.append(sorted(merge_slot if slot == CAPACITY - 1 else slot for slot in shown))
    return lists


def acts_after_the_last_layer(solved: Solved) -> bool:
    """Then nothing is left of the step that could read a list which applies early."""
    num_layers = json.loads((solved.case.path() / "config.json").read_text())["text_config"][
        "num_hidden_layers"]
    shift = DSTP(**solved.case.shift_options())
    layers = shift.watched_layers(num_layers, solved.case.layer)
    return shift.applies == "early" and layers[-1] == num_layers - 1


def check(solved: Solved) -> None:
    generation, base = run(solved)
    result, shift = solved.result, generation.shift
    assert base == list(result.base)
    assert generation.token_ids == list(result.tokens)
    assert list(shift.trigger_steps) == list(result.trigger_steps)
    read = "before" if acts_after_the_last_layer(solved) else "used"
    expected = [list(getattr(step.policy, read).slots) for step in result.steps]
    assert lists_read(generation, base, result.merge_slot) == expected
    redone = [step.policy.outcome == "redo" for step in result.steps]
    assert [step.redone for step in shift.steps] == redone
    for step, expected in zip(shift.steps, result.similarities, strict=True):
        assert step.similarity == pytest.approx(expected, abs=1e-5)
    assert shift.mean_visible * shift.num_visual == pytest.approx(result.mean_visible, rel=1e-6)
    for entry, logits in zip(generation.logprobs, result.logits, strict=True):
        truth = torch.as_tensor(logits).double().log_softmax(-1)
        scale = max(1.0, float(torch.as_tensor(logits).abs().max()))
        for token_id, logprob in entry.top:
            assert logprob == pytest.approx(float(truth[token_id]), abs=2e-5 * scale)


@pytest.mark.parametrize("index", range(NUM_CASES))
def test_the_engine_does_what_the_plain_method_does(index):
    check(solve(index))


@pytest.mark.skipif("simt" not in ops.available_isas(), reason="built without the simt twins")
@pytest.mark.parametrize("index", range(NUM_CASES, NUM_CASES + NUM_EMULATED))
def test_so_do_the_gpu_kernels_on_the_host(index):
    with on_tier("simt"):
        check(solve(index))
