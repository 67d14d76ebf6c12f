"""The cost columns against counts with loops, and against what the engine read."""

from __future__ import annotations

import pytest
import torch

from pydstp import DSTP, Engine, EngineConfig, PruningConfig, SamplingParams, demo_checkpoint
from pydstp.accounting import weight_bytes
from pydstp.experiments.costs import cost_model, count, reductions
from pydstp.tasks import make_example
from tests.experiments.fakes import FakeEngine

LAYER = 1  # before which FastV prunes here


@pytest.fixture(scope="module")
def engine():
    config = EngineConfig(max_batch=1, max_visual_tokens=256, max_text_tokens=256)
    with Engine(demo_checkpoint(), dtype="float32", config=config) as engine:
        yield engine


def ask(engine, pruning=None, shift=None, reserve="auto"):
    example = make_example("trail", 5)
    return engine.generate(example.images, example.prompt,
                           SamplingParams(temperature=0, max_new_tokens=17), pruning=pruning,
                           shift=shift, reserve=reserve)


def row_flops(text, num_seen: int) -> int:
    """One row in one layer: projections, scores and sums over what it sees, MLP."""
    width, head = text.hidden_size, text.head_dim
    flops = 2 * width * (text.num_heads + 2 * text.num_kv_heads) * head  # q, k, v
    for _ in range(text.num_heads):
        flops += num_seen * 2 * head + num_seen * 2 * head
    return flops + 2 * text.num_heads * head * width + 3 * 2 * width * text.intermediate_size


def prompt_flops(text, num_rows: int) -> int:
    return sum(row_flops(text, row + 1) for row in range(num_rows))


def test_an_answer_with_all_tokens(engine) -> None:
    answer, text = ask(engine), engine.model_config.text
    costs = count(answer, None, cost_model(engine))
    head = 2 * text.vocab_size * text.hidden_size
    num_rows, steps = answer.prompt_tokens, len(answer.token_ids) - 1
    expected = text.num_layers * prompt_flops(text, num_rows) + head
    assert costs["prefill_gflops"] * 1e9 == pytest.approx(expected)
    decode = [text.num_layers * row_flops(text, num_rows + step) + head
              for step in range(1, steps + 1)]
    assert costs["decode_gflops_per_token"] * 1e9 == pytest.approx(sum(decode) / steps)
    total = expected + sum(decode) + costs["vision_gflops"] * 1e9
    assert costs["answer_gflops"] * 1e9 == pytest.approx(total)
    assert costs["reserve_gflops"] == 0
    row = 2 * text.num_kv_heads * text.head_dim * 4
    assert costs["kv_bytes"] == text.num_layers * row * (num_rows + steps)
    assert costs["visible_tokens"] == costs["resident_all_layers"] == answer.visual_tokens


@pytest.mark.parametrize("pruning", [
    None, PruningConfig("fastv", 1 / 3, layer=LAYER), PruningConfig("divprune", 0.2),
    PruningConfig("resize", 0.5), PruningConfig("visionzip", 0.4)])
def test_what_a_step_reads_is_what_the_engine_counted(engine, pruning) -> None:
    answer, model = ask(engine, pruning), cost_model(engine)
    costs, text = count(answer, pruning, model), model.config.text
    seen = costs["visible_tokens"] + costs["text_tokens"] + len(answer.token_ids) / 2
    read = answer.shift.bytes_per_token - weight_bytes(engine._runner.model.language_model)
    assert read == pytest.approx(text.num_layers * model.kv_bytes * seen)


def test_a_pruned_prompt_runs_fewer_rows_from_the_pruning_point_on(engine) -> None:
    pruning = PruningConfig("fastv", 1 / 3, layer=LAYER)
    answer, text = ask(engine, pruning), engine.model_config.text
    costs = count(answer, pruning, cost_model(engine))
    rows = answer.prompt_tokens - answer.visual_tokens + answer.shift.kept
    head = 2 * text.vocab_size * text.hidden_size
    expected = (LAYER * prompt_flops(text, answer.prompt_tokens)
                + (text.num_layers - LAYER) * prompt_flops(text, rows) + head)
    assert costs["prefill_gflops"] * 1e9 == pytest.approx(expected)
    assert costs["reserve_gflops"] == 0
    mean = (LAYER * answer.visual_tokens + (text.num_layers - LAYER) * answer.shift.kept)
    assert costs["resident_all_layers"] == pytest.approx(mean / text.num_layers)


@pytest.mark.parametrize("pruning, ran, stays", [
    (PruningConfig("pyramiddrop", 0.25, layers=(1, 2, 3)), None, None),
    (PruningConfig("look_m", 0.5), "all", "kept")])
def test_methods_at_several_layers_and_in_the_cache(engine, pruning, ran, stays) -> None:
    answer, text = ask(engine, pruning), engine.model_config.text
    costs, rows = count(answer, pruning, cost_model(engine)), answer.shift.visual_rows
    assert len(rows) == text.num_layers and rows[0] == answer.visual_tokens
    if ran == "all":
        assert set(rows) == {answer.visual_tokens} and answer.shift.kept < rows[0]
    else:
        assert len(set(rows)) == 4 and list(rows) == sorted(rows, reverse=True)
    num_text = answer.prompt_tokens - answer.visual_tokens
    expected = sum(prompt_flops(text, num_text + count) for count in rows)
    expected += 2 * text.vocab_size * text.hidden_size
    assert costs["prefill_gflops"] * 1e9 == pytest.approx(expected)
    resident = answer.shift.kept if stays == "kept" else sum(rows) / len(rows)
    assert costs["resident_all_layers"] == pytest.approx(resident)


def test_a_late_reserve_and_steps_run_again_are_counted(engine) -> None:
    pruning, model = PruningConfig("fastv", 1 / 3, layer=LAYER), cost_model(engine)
    alone = count(ask(engine, pruning), pruning, model)
    answer = ask(engine, pruning, DSTP.recommended())
    costs, text = count(answer, pruning, model), model.config.text
    assert answer.shift.forwards_per_token == 2
    num_rows = answer.shift.num_visual - answer.shift.kept
    row = row_flops(text, 0) + 4 * text.num_heads * text.head_dim * answer.prompt_tokens / 2
    expected = (text.num_layers - LAYER) * num_rows * row
    assert costs["reserve_gflops"] * 1e9 == pytest.approx(expected)
    assert costs["prefill_gflops"] == alone["prefill_gflops"]
    assert costs["decode_gflops_per_token"] > 2 * alone["decode_gflops_per_token"]
    assert costs["resident_all_layers"] == answer.shift.num_visual > alone["resident_all_layers"]


def test_a_full_reserve_runs_the_whole_prompt(engine) -> None:
    pruning, model = PruningConfig("fastv", 1 / 3, layer=LAYER), cost_model(engine)
    answer = ask(engine, pruning, DSTP(), "full")
    costs = count(answer, pruning, model)
    assert costs["prefill_gflops"] == count(ask(engine), None, model)["prefill_gflops"]
    assert costs["reserve_gflops"] == 0


def test_the_total_reduction_of_a_row(engine) -> None:
    row = {"num_visual": 40.0, "kept": 10.0, "mean_visible_all_layers": 0.5}
    found = reductions(row, cost_model(engine))
    assert found == {"tacr": 4.0, "trr": 16.0, "trr_read": 8.0, "r_llm": 0.25, "r_total": 1 / 16}


def test_the_size_of_an_element_follows_the_precision(engine) -> None:
    assert engine.dtype == torch.float32 and cost_model(engine).element_bytes == 4
    assert cost_model(FakeEngine([])) is None
