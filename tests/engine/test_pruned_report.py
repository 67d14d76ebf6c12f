"""What a pruned request says of itself: counts, bytes, memory; and that looking changes nothing."""

from __future__ import annotations

import json

import pytest
import torch

from pydstp import CancelledError, PruningConfig, SamplingParams
from pydstp.models.config import VLMConfig
from pydstp.weights import estimate_memory, open_checkpoint
from tests.checkpoints import tiny_qwen3_vl
from tests.engine.selection import (
    IMAGE,
    METHODS,
    PROMPT,
    Countdown,
    answer,
    dstp,
    method,
    open_engine,
    same,
)

CLOCK = ("selection_ms", "reserve_ms", "longest_gap_ms")
LOGS = ("steps", "anchor")


@pytest.fixture(scope="module")
def engine():
    with open_engine() as engine:
        yield engine


@pytest.mark.parametrize("pruning", [None, method("fastv", 1.0), method("divprune")])
@pytest.mark.parametrize("applies", ["next", "redo", "early"])
@pytest.mark.parametrize("swap", ["cpts", "merge"])
def test_looking_changes_nothing(engine, pruning, applies, swap):
    """A log of attention watches also where nothing is pruned, and where nothing can come back."""
    policy = dstp(trigger="every", applies=applies, swap=swap, expand_steps=2,
                  monitor_layers=[1, 2])
    runs = [answer(engine, 8, pruning=pruning, shift=policy, log_steps=log)
            for log in (False, True, "attention")]
    reports = [{key: value for key, value in vars(run.shift).items() if key not in CLOCK + LOGS}
               for run in runs]
    assert same(runs[0], runs[1]) and same(runs[0], runs[2])
    assert reports[0] == reports[1] == reports[2]
    assert len(runs[2].shift.steps) == 7 and len(runs[2].shift.anchor) == 35
    assert json.loads(json.dumps(runs[2].to_dict()))["shift"]["anchor"] == list(
        runs[2].shift.anchor)


def test_a_step_that_was_cancelled_does_not_count(engine):
    """Without swaps every step reads the base set, so the mean is that, wherever it ended."""
    sampling = SamplingParams(temperature=0.0, max_new_tokens=6, ignore_eos=True)
    never = Countdown()
    engine.generate(IMAGE, PROMPT, sampling, pruning=method("random"), cancel=never)
    for count in range(1, never.looks + 1, 3):
        with pytest.raises(CancelledError) as caught:
            engine.generate(IMAGE, PROMPT, sampling, pruning=method("random"),
                            cancel=Countdown(count))
        generation = caught.value.generation
        if generation.token_ids:
            assert generation.shift.mean_visible == pytest.approx(12 / 35)
            assert generation.shift.forwards_per_token == 1.0


def test_keys_are_scored_when_tokens_are_chosen_and_not_when_a_window_grows(engine):
    """`extend` triggers at every step, and chooses at the first alone; the lists are the same."""
    runs = [answer(engine, 8, pruning=method("random"), shift=dstp(
        trigger="every", expand_steps=100, retrigger=retrigger), reserve="side")
        for retrigger in ("off", "extend", "reselect")]
    off, extend, reselect = (run.shift for run in runs)
    assert same(runs[0], runs[1]) and (off.triggers, extend.triggers) == (1, 7)
    assert extend.bytes_per_token == off.bytes_per_token < reselect.bytes_per_token


def test_bytes_of_a_step_are_those_it_reads(engine):
    """One step of one sequence, counted by hand."""
    geometry, decoder = engine._cache.geometry, engine._runner.model.language_model
    weights = sum(p.numel() for p in decoder.parameters())  # the head is the embedding table
    row = 2 * geometry.num_kv_heads * geometry.head_dim
    pruned = answer(engine, 2, pruning=method("fastv", layer=1)).shift
    num_text = int(engine._cache.text_len[0])
    seen = 35 + 3 * 12 + 4 * num_text  # layer 0 reads all, the others what was kept
    assert pruned.bytes_per_token == 4 * (weights + seen * row)
    assert pruned.mean_visible == 12 / 35
    assert pruned.mean_visible_all_layers == pytest.approx((35 + 3 * 12) / (4 * 35))


@pytest.mark.parametrize("name", METHODS)
def test_a_reserve_that_nobody_computes_is_none(engine, name):
    pruning = method(name)
    assert answer(engine, 2, pruning=pruning).shift.reserve is None
    assert answer(engine, 2, pruning=method(name, 1.0), shift=dstp()).shift.reserve is None
    for reserve in ("side", "lazy", "deferred"):
        told = answer(engine, 2, pruning=pruning, shift=dstp(), reserve=reserve).shift
        assert told.reserve == reserve
    if not pruning.pruner.merges:
        assert answer(engine, 2, pruning=pruning, reserve="full").shift.reserve == "full"


def test_asked_and_achieved(engine):
    counted = answer(engine, 2, pruning=PruningConfig("random", num_kept=7)).shift
    assert counted.retention_asked == counted.retention_achieved == 7 / 35
    more = answer(engine, 2, pruning=PruningConfig("random", num_kept=70)).shift
    assert (more.retention_asked, more.retention_achieved) == (1.0, 1.0)
    assert more.reason == "retention_is_one"


def test_memory_counts_the_rows_that_wait():
    path = tiny_qwen3_vl()
    checkpoint = open_checkpoint(path)
    config = VLMConfig.from_dict(checkpoint.config, str(path))
    with open_engine(max_batch=1, max_visual_tokens=35) as engine:
        stream = engine.stream(IMAGE, PROMPT, pruning=PruningConfig("random", num_kept=1),
                               shift=dstp(trigger="never"))
        next(stream)
        cache = engine._cache
        waiting = [tensor for rows in cache.pending[stream._seq.seq_idx]
                   for tensor in (rows.x, *rows.deepstack)]
        state = [tensor for tensor in vars(cache.shift).values() if torch.is_tensor(tensor)]
        tensors = [*waiting, *state, cache.visible_indices, engine._runner._shift.monitor.logits]
        held = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        stream.close()
    none, one = (estimate_memory(checkpoint, config, torch.float32, 0, max_batch=max_batch,
                                 max_visual_tokens=35) for max_batch in (0, 1))
    assert held < one.workspace_bytes - none.workspace_bytes < 2 * held
