"""What stages do to the rows of a prompt and to the cache: fewer rows, the same bits."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from pydstp import Engine, EngineConfig, PruningConfig, SamplingParams
from pydstp.models.qwen3 import Decoder
from tests.checkpoints import tiny_qwen3_vl
from tests.engine.selection import IMAGE, PROMPT, answer, dstp, method, open_engine, same

NAMES = ["pyramiddrop", "sparsevlm", "mustdrop"]
every_name = pytest.mark.parametrize("name", NAMES)


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with open_engine() as engine:
        yield engine


@every_name
def test_layers_behind_a_stage_run_fewer_rows(engine, name, monkeypatch) -> None:
    seen: list[tuple[range, int]] = []
    forward = Decoder.forward_layers

    def noted(self: Decoder, x: Tensor, *, layers: range, **arguments: object) -> Tensor:
        seen.append((layers, len(x)))
        return forward(self, x, layers=layers, **arguments)
    monkeypatch.setattr(Decoder, "forward_layers", noted)
    strict = {"global_threshold": 0.08, "individual_threshold": 0.1}
    config = method(name, **strict if name == "mustdrop" else {})
    run, stages = answer(engine, 1, pruning=config), config.pruner.stages(4)
    bounds = [*stages, 4] if stages[0] == 0 else [0, *stages, 4]
    assert [layers for layers, _ in seen] == [
        range(a, b) for a, b in zip(bounds, bounds[1:], strict=False)]
    rows = [count - (run.prompt_tokens - run.visual_tokens) for _, count in seen]
    assert rows[-1] == run.shift.kept < run.visual_tokens
    assert rows == sorted(rows, reverse=True) and len(set(rows)) > 1 + (name != "mustdrop")
    assert rows[0] == run.visual_tokens or stages[0] == 0
    if name != "mustdrop":  # which reads less behind the prompt than in it
        assert run.shift.mean_visible * run.visual_tokens == pytest.approx(sum(rows[1:]) / 3)


@every_name
def test_swaps_write_no_key_and_move_no_buffer(engine, name) -> None:
    cache, rows = engine._cache, []
    pointers = [cache.visual.data_ptr(), cache.visible_indices.data_ptr()]
    for trigger in ("never", "every"):
        answer(engine, 12, pruning=method(name), reserve="side",
               shift=dstp(trigger=trigger, expand_steps=1))
        rows.append(cache.visual[:, 0, :IMAGE.width * IMAGE.height // 1024].clone())
    assert torch.equal(*rows) and rows[0].isfinite().all()
    assert pointers == [cache.visual.data_ptr(), cache.visible_indices.data_ptr()]


@every_name
def test_when_a_swap_is_over_every_list_is_as_it_was(engine, name) -> None:
    cache = engine._cache
    answer(engine, 2, pruning=method(name))
    before = cache.visible_indices[0].clone(), cache.visible_len[0].clone()
    policy = dstp(trigger="every", expand_steps=2, swap="full")
    for count, is_over in ((2, False), (3, False), (4, True), (5, False), (7, True)):
        answer(engine, count, pruning=method(name), shift=policy)
        lists = [cache.visible_indices[0, g, :n].tolist()
                 for g, n in enumerate(cache.visible_len[0].tolist()) if g != 2]
        expected = [before[0][g, :n].tolist() for g, n in enumerate(before[1].tolist()) if g != 2]
        assert (lists == expected) == is_over, count


@every_name
@pytest.mark.parametrize("reserve", ["lazy", "side"])
def test_nothing_unwritten_is_read(engine, name, reserve) -> None:
    """Merged tokens that left have no keys above: the reserve's rows may not look at them."""
    runs = []
    for value in (torch.nan, 0.0):
        engine._cache.visual.fill_(value)
        engine._cache.text.fill_(value)
        runs.append(answer(engine, 8, pruning=method(name), reserve=reserve,
                           shift=dstp(trigger="every", swap="full")))
    assert same(*runs) and runs[0].shift.triggers > 0


@pytest.mark.parametrize("options", [{"dtype": "bfloat16"}, {"weights": "int8"}], ids=str)
def test_a_batch_is_each_alone(options) -> None:
    config = EngineConfig(max_batch=4, max_visual_tokens=128, max_text_tokens=256, num_threads=1)
    methods = [method(name) for name in NAMES] + [PruningConfig("look_m", 1 / 3)]
    policies = [dstp(trigger="every", expand_steps=2), None, dstp(trigger="every"), None]
    with Engine(tiny_qwen3_vl(), config=config, **options) as engine:
        alone = [answer(engine, 8, pruning=pruning, shift=shift)
                 for pruning, shift in zip(methods, policies, strict=True)]
        sampling = {"temperature": 0.0, "max_new_tokens": 8, "ignore_eos": True, "logprobs": 4}
        batch = engine.generate([IMAGE] * 4, [PROMPT] * 4, SamplingParams(**sampling),
                                pruning=methods, shift=policies)
    assert [same(one, row) for one, row in zip(alone, batch, strict=True)] == [True] * 4
    assert all(one.shift.kept < one.visual_tokens for one in alone)
