"""Batches in which every row prunes and swaps in its own way, or not at all."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest

from pydstp import (
    Engine,
    EngineConfig,
    Generation,
    PruningConfig,
    SamplingParams,
    VisionPulse,
)
from tests.checkpoints import tiny_qwen3_vl
from tests.engine.oracle import picture
from tests.engine.selection import dstp, method

ONE_TOKEN = picture(32, 32, 7)
# (pictures, pruning, shift, new tokens): grids of odd sizes, single tokens, no pictures at all.
ROWS: list[tuple[list[Any], PruningConfig | None, Any, int]] = [
    ([picture(130, 100, 1)], method("fastv", layer=1), dstp(threshold=2.0, expand_steps=2), 14),
    ([], method("random"), dstp(threshold=2.0), 5),
    ([picture(97, 161, 2), ONE_TOKEN, picture(33, 200, 3)], method("fastv", 0.2, layer=3),
     dstp(threshold=2.0, applies="redo", expand_steps=1, swap="add", max_returned=2), 9),
    ([picture(64, 97, 4)], None, None, 12),
    ([picture(224, 160, 5)], method("visionzip"), dstp(
        trigger="random", trigger_rate=0.4, swap="merge", applies="redo", expand_steps=3), 14),
    ([picture(200, 33, 6), picture(97, 97, 7)], method("divprune"), dstp(
        monitor_layers=[0, 1], threshold=2.0, applies="early", expand_steps=2), 10),
    ([ONE_TOKEN], method("fastv"), dstp(threshold=2.0), 6),
    ([picture(100, 97, 8)], PruningConfig("random", num_kept=1), dstp(
        trigger="every", swap="hard", retrigger="reselect", scores="joint"), 1),
    ([picture(100, 97, 8)], PruningConfig("divprune", num_kept=1), dstp(trigger="every"), 11),
    ([picture(130, 100, 1)], method("fastv", layer=4), dstp(
        trigger="every", monitor_layers="mid"), 7),
    ([picture(97, 130, 9)], method("random", 0.5), dstp(
        trigger="avg", monitor_layers=[3], expand_steps=1), 8),
    ([picture(97, 130, 9)], method("random", 0.5), dstp(
        threshold=0.97, norm="global_then_mean", anchor="instruction_end", heads=[0],
        retrigger="extend", applies="early", expand_steps=4, monitor_layers=[1]), 13),
    ([picture(64, 97, 4)], method("visionzip", 0.7, merge_only=True), None, 8),
    ([picture(130, 100, 1)], None, VisionPulse(anchor_layer=1, max_share=0.9), 12),
    ([picture(97, 161, 2), ONE_TOKEN], method("fastv", 0.5, layer=1), VisionPulse(
        temperature=0.1, importance="tempered", max_share=0.5), 9),
    ([], None, VisionPulse(), 4),
    ([picture(224, 160, 5)], method("visionzip"), VisionPulse(
        budget="random", min_share=0.1, max_share=0.9, seed=5, anchor_layer=0), 10),
]
PROMPTS = [f"Describe picture {i}, please." for i in range(len(ROWS))]


def sampling(row: int) -> SamplingParams:
    return SamplingParams(temperature=0.7, seed=row, max_new_tokens=ROWS[row][3], ignore_eos=True,
                          logprobs=3)


def open_engine(dtype: str, *, moe: bool, **config: int) -> Engine:
    options = dict(max_visual_tokens=160, max_text_tokens=256, min_pixels=1024)
    return Engine(tiny_qwen3_vl(moe=moe), dtype=dtype, config=EngineConfig(**options, **config))


@cache
def alone(dtype: str, moe: bool) -> list[Generation]:
    """Every request in an engine of its own, on one thread."""
    answers = []
    for row, (pictures, pruning, shift, _) in enumerate(ROWS):
        with open_engine(dtype, moe=moe, max_batch=1, num_threads=1) as engine:
            answers.append(engine.generate(pictures, PROMPTS[row], sampling(row), pruning=pruning,
                                           shift=shift, log_steps="attention"))
    return answers


def facts(generation: Generation) -> dict[str, Any]:
    """Everything that does not depend on the clock."""
    shift = vars(generation.shift).copy()
    for name in ("selection_ms", "reserve_ms", "longest_gap_ms"):
        del shift[name]
    return {"tokens": generation.token_ids, "logprobs": generation.logprobs,
            "resident": generation.resident_tokens, **shift}


@pytest.mark.parametrize("dtype, moe, max_batch, num_threads", [
    ("float32", False, 8, 2), ("float32", False, 3, 1), ("float32", True, 5, 2),
    ("bfloat16", False, 4, 2), ("bfloat16", True, 2, 1)])
def test_every_row_is_what_it_is_alone(dtype, moe, max_batch, num_threads):
    """To the last bit: tokens, similarities, lists, triggers and what is reported."""
    with open_engine(dtype, moe=moe, max_batch=max_batch, num_threads=num_threads) as engine:
        pictures, pruning, shift, _ = (list(column) for column in zip(*ROWS, strict=True))
        batch = engine.generate(pictures, PROMPTS, [sampling(row) for row in range(len(ROWS))],
                                pruning=pruning, shift=shift, log_steps="attention")
        assert engine._cache.num_free == max_batch
    for row, (found, truth) in enumerate(zip(batch, alone(dtype, moe), strict=True)):
        assert facts(found) == facts(truth), f"row {row}"


def test_the_rows_are_worth_the_comparison():
    """Those that can swap do, in more than one way; the others say why not."""
    shifts = [generation.shift for generation in alone("float32", False)]
    assert [shift.reason for shift in shifts] == [
        None, "no_image", None, "no_method", None, None, "retention_is_one", *6 * [None],
        "no_method", None, "no_image", None]
    assert [row for row, shift in enumerate(shifts) if shift.triggers] == [
        0, 2, 4, 5, 8, 9, 10, 11]
    assert {row for row, shift in enumerate(shifts) if shift.forwards_per_token > 1} == {2, 4}
    assert shifts[7].kept == shifts[8].kept == 1
    assert all(step.similarity == 1 for step in shifts[8].steps)  # one token has one direction
    for row in (13, 14, 16):
        assert len({step.visible for step in shifts[row].steps}) > 1


def test_the_first_answer_does_not_wait_for_a_reserve_nobody_needs():
    """`lazy`: rows that never trigger run no side pass, whatever their neighbours do."""
    with open_engine("float32", moe=False, max_batch=2) as engine:
        quiet, loud = engine.generate(
            [[picture(130, 100, 1)]] * 2, ["Look."] * 2,
            SamplingParams(temperature=0.0, max_new_tokens=6, ignore_eos=True),
            pruning=method("random"), shift=[dstp(trigger="never"), dstp(trigger="every")])
    assert (quiet.shift.side_passes, loud.shift.side_passes) == (0, 1)
    assert quiet.resident_tokens == quiet.shift.kept < loud.resident_tokens
