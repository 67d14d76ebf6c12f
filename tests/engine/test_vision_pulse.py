"""VisionPulse in the engine: what every step reads, what it leaves alone, and what it says."""

from __future__ import annotations

import json

import pytest
import torch

from pydstp import (
    Engine,
    EngineConfig,
    Generation,
    OptionError,
    PruningConfig,
    SamplingParams,
    VisionPulse,
)
from pydstp.kv_cache import ALL, PULSED, SELECTED
from tests.checkpoints import tiny_qwen3_vl
from tests.engine.oracle import picture
from tests.engine.plain_chat import sampling
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
from tests.internvl_checkpoints import tiny_internvl

ALL_SHOWN = {"min_share": 1.0, "max_share": 1.0}
WIDE = {"min_share": 0.02, "max_share": 1.0}


@pytest.fixture(scope="module")
def engine():
    with open_engine(max_text_tokens=512) as engine:
        yield engine


@pytest.mark.parametrize("name", [None, *METHODS])
@pytest.mark.parametrize("options", [
    ALL_SHOWN, {"budget": "fixed", "fixed_share": 1.0}, {**ALL_SHOWN, "budget": "random"},
    {**ALL_SHOWN, "importance": "tempered", "temperature": 0.1}], ids=str)
def test_showing_everything_is_the_base_method_bit_for_bit(engine, name, options):
    pruning = None if name is None else method(name)
    base = answer(engine, pruning=pruning)
    shown = answer(engine, pruning=pruning, shift=VisionPulse(**options))
    assert same(base, shown)
    assert shown.shift.mean_visible == base.shift.mean_visible
    assert shown.shift.mean_visible_all_layers == pytest.approx(base.shift.mean_visible_all_layers)


@pytest.mark.parametrize("name", [None, "divprune", "fastv"])
def test_layers_up_to_the_anchor_compute_what_they_would_without_it(engine, name):
    """Keys and values of layer l + 1 come from what leaves layer l: equal up to anchor + 1."""
    anchor, pruning, cache = 1, None if name is None else method(name), engine._cache
    rows = {}
    for shift in (None, VisionPulse(anchor_layer=anchor, max_share=0.06)):
        answer(engine, 2, pruning=pruning, shift=shift)
        rows[shift] = cache.text[:, 0, :int(cache.text_len[0])].clone()
    plain, pulsed = rows.values()
    assert torch.equal(plain[:anchor + 2], pulsed[:anchor + 2])
    assert torch.equal(plain[:, :-1], pulsed[:, :-1])
    assert not torch.equal(plain[anchor + 2:, -1], pulsed[anchor + 2:, -1])


def shown_lists(generation: Generation, base: list[int]) -> list[list[int]]:
    shown, lists = set(base), []
    for step in generation.shift.steps:
        shown = shown - set(step.went) | set(step.came)
        lists.append(sorted(shown))
    return lists


@pytest.mark.parametrize("name", [None, *METHODS])
def test_what_is_shown_is_the_best_of_the_mean_over_heads(engine, name):
    pruning = None if name is None else method(name, 0.7)
    run = answer(engine, pruning=pruning, shift=VisionPulse(**WIDE), log_steps="attention")
    base = engine._cache.visible_slots(0, SELECTED).tolist()
    for step, shown in zip(run.shift.steps, shown_lists(run, base), strict=True):
        order = sorted(base, key=lambda slot, a=step.attention: (-a[slot], slot))
        assert shown == sorted(order[:step.visible])
        asked = -(-step.mass * (1 - 1e-6) * len(base) // 1)
        assert step.visible == max(1, asked) and step.state == "selected"
    assert len({step.visible for step in run.shift.steps}) > 1


@pytest.mark.parametrize("share, count", [(0.01, 1), (0.05, 2), (0.3, 11), (0.5, 18), (1.0, 35)])
def test_a_fixed_budget_is_the_same_number_at_every_step(engine, share, count):
    run = answer(engine, shift=VisionPulse(budget="fixed", fixed_share=share), log_steps=True)
    assert {step.visible for step in run.shift.steps} == {count}
    assert run.shift.mean_visible == pytest.approx(count / 35)
    assert all(step.mass is None for step in run.shift.steps)
    came = {step.came for step in run.shift.steps}
    assert len(came) > 1 or count == 35  # the tokens are not the same


def test_random_budgets_are_those_of_their_seed(engine):
    def sizes(seed: int) -> list[int]:
        shift = VisionPulse(budget="random", min_share=0.1, max_share=0.9, seed=seed)
        return [step.visible for step in answer(engine, shift=shift, log_steps=True).shift.steps]

    first = sizes(1)
    assert first == sizes(1) != sizes(2)
    assert all(4 <= size <= 31 for size in first) and len(set(first)) > 3


@pytest.mark.parametrize("options", [{}, {"temperature": 0.1, "min_share": 0.01,
                                          "max_share": 0.05}, {"temperature": 1e-6, **WIDE},
                                     {"temperature": 1e6, **WIDE}, {**WIDE, "min_share": 0.0}])
@pytest.mark.parametrize("size", [(224, 160), (32, 32), (64, 64)])
def test_every_budget_lies_between_its_bounds(options, size):
    shift = VisionPulse(**options)
    path = tiny_qwen3_vl()
    with Engine(path, config=EngineConfig(max_batch=1, min_pixels=1024)) as engine:
        run = engine.generate(picture(*size), PROMPT, sampling(8), shift=shift, log_steps=True)
    low, high = shift.bounds(run.visual_tokens, 1)
    assert 1 <= low <= high <= run.visual_tokens
    assert all(low <= step.visible <= high for step in run.shift.steps)
    assert all(0 <= step.mass <= 1.00001 for step in run.shift.steps)


def test_nothing_moves_in_the_cache(engine):
    """No key of a visual token is touched, no buffer is replaced, no side pass is run."""
    cache = engine._cache
    buffers = [cache.visual.data_ptr(), cache.visible_indices.data_ptr()]
    base = answer(engine, 2, pruning=method("divprune"))
    kept = cache.visible_slots(0, SELECTED).long()
    rows = cache.visual[:, 0, kept].clone()
    run = answer(engine, pruning=method("divprune"), shift=VisionPulse(max_share=0.5))
    assert torch.equal(cache.visual[:, 0, kept], rows)
    assert buffers == [cache.visual.data_ptr(), cache.visible_indices.data_ptr()]
    assert run.resident_tokens == base.resident_tokens == run.shift.kept
    assert (run.shift.reserve, run.shift.side_passes, run.shift.triggers) == (None, 0, 0)
    assert run.shift.policy == "visionpulse" and run.shift.forwards_per_token == 1


def test_bytes_of_a_step_are_those_it_reads(engine):
    """One step, counted by hand: layers 0 and 1 read all, 2 and 3 two tokens."""
    geometry, decoder = engine._cache.geometry, engine._runner.model.language_model
    weights = sum(p.numel() for p in decoder.parameters())
    row = 2 * geometry.num_kv_heads * geometry.head_dim
    for shift, scored in ((VisionPulse(1, budget="fixed", fixed_share=0.05), 0),
                          (VisionPulse(1, min_share=0.06, max_share=0.06), 1)):
        run = answer(engine, 2, shift=shift)
        num_text = int(engine._cache.text_len[0])
        seen = 2 * 35 + 2 * 2 + 4 * num_text + scored * (35 + num_text) / 2  # keys alone
        assert run.shift.bytes_per_token == 4 * (weights + seen * row)
        assert run.shift.mean_visible == 2 / 35
        assert run.shift.mean_visible_all_layers == pytest.approx((2 * 35 + 2 * 2) / (4 * 35))
    pruned = answer(engine, 2, pruning=method("fastv"), shift=shift).shift  # layer 0 reads all
    assert pruned.mean_visible == 1 / 35
    assert pruned.mean_visible_all_layers == pytest.approx((35 + 12 + 2 * 1) / (4 * 35))


def test_looking_changes_nothing(engine):
    runs = [answer(engine, shift=VisionPulse(**WIDE), log_steps=log)
            for log in (False, True, "attention")]
    assert same(runs[0], runs[1]) and same(runs[0], runs[2])
    assert runs[0].shift.steps is None and runs[1].shift.steps[0].attention is None
    assert len(runs[2].shift.steps[0].attention) == 35
    assert json.loads(json.dumps(runs[2].to_dict()))["shift"]["policy"] == "visionpulse"


@pytest.mark.parametrize("internvl", [False, True], ids=["qwen3vl", "internvl"])
def test_rows_of_other_policies_are_as_if_alone(internvl):
    path = tiny_internvl() if internvl else tiny_qwen3_vl()
    shifts = [VisionPulse(**WIDE), dstp(threshold=1.1, expand_steps=2, monitor_layers=[1, 2]),
              VisionPulse(anchor_layer=1, temperature=0.1, importance="tempered", max_share=0.6),
              dstp(threshold=1.1, applies="early", expand_steps=1, monitor_layers=[1]),
              VisionPulse(budget="random", seed=3, anchor_layer=2, **WIDE), None]
    methods = [None, method("random"), method("fastv"), method("divprune"), method("visionzip"),
               None]
    images = [IMAGE, IMAGE, picture(90, 160), None, IMAGE, picture(64, 64)]
    config = EngineConfig(max_batch=6, max_visual_tokens=256, max_text_tokens=256, num_threads=2)
    options = {"log_steps": "attention"}
    with Engine(path, dtype="float32", config=config) as engine:
        alone = [engine.generate(image, PROMPT, sampling(12), pruning=one, shift=shift, **options)
                 for image, one, shift in zip(images, methods, shifts, strict=True)]
        batch = engine.generate(images, [PROMPT] * 6, sampling(12), pruning=methods, shift=shifts,
                                **options)
    for one, row in zip(alone, batch, strict=True):
        assert same(one, row) and one.shift.steps == row.shift.steps
    assert alone[1].shift.triggers and alone[0].shift.mean_visible < 1


TURNS = (("What?", [picture(130, 100, 1), picture(64, 64, 3)], 6), ("Why?", [], 5),
         ("And this?", [picture(97, 161, 2)], 6))


def talk(engine: Engine, **options: object) -> list[Generation]:
    with engine.chat(**options) as chat:
        return [chat.send(prompt, pictures, sampling(count)) for prompt, pictures, count in TURNS]


@pytest.mark.parametrize("name", [None, *METHODS])
def test_a_chat_that_shows_everything_is_the_plain_chat(engine, name):
    pruning = None if name is None else method(name)
    plain = talk(engine, pruning=pruning)
    assert all(map(same, plain, talk(engine, pruning=pruning, shift=VisionPulse(**ALL_SHOWN))))
    pulsed = talk(engine, pruning=pruning, shift=VisionPulse(max_share=0.2))
    assert [run.shift.num_visual for run in pulsed] == [run.shift.num_visual for run in plain]
    assert all(run.shift.mean_visible < run.shift.kept / run.shift.num_visual for run in pulsed)
    assert not all(map(same, plain, pulsed))


def test_the_next_request_starts_without_it(engine):
    plain = answer(engine)
    answer(engine, shift=VisionPulse())
    assert (engine._cache.layer_to_group[0] == PULSED).sum() == 1
    assert same(plain, answer(engine)) and not engine._cache.layer_to_group.any()
    pruned = answer(engine, pruning=method("fastv"))
    answer(engine, pruning=method("fastv"), shift=VisionPulse())
    assert engine._cache.layer_to_group[0].tolist() == [ALL, SELECTED, SELECTED, PULSED]
    assert same(pruned, answer(engine, pruning=method("fastv")))


def test_a_request_cancelled_anywhere_leaves_nothing_behind(engine):
    expected, never = answer(engine, 4, shift=VisionPulse(**WIDE)), Countdown()
    sampled = SamplingParams(temperature=0.0, max_new_tokens=4, ignore_eos=True, logprobs=4)
    engine.generate(IMAGE, PROMPT, sampled, shift=VisionPulse(**WIDE), cancel=never)
    for count in range(1, never.looks + 1, 3):
        with pytest.raises(Exception, match="cancelled"):
            engine.generate(IMAGE, PROMPT, sampled, shift=VisionPulse(**WIDE),
                            cancel=Countdown(count))
        assert same(expected, answer(engine, 4, shift=VisionPulse(**WIDE)))


def test_without_a_picture_there_is_nothing_to_select(engine):
    plain = engine.generate(None, "Hello.", sampling(6))
    pulsed = engine.generate(None, "Hello.", sampling(6), shift=VisionPulse(), log_steps=True)
    assert same(plain, pulsed) and pulsed.shift.reason == "no_image"
    assert all((step.visible, step.state, step.mass) == (0, "base", None)
               for step in pulsed.shift.steps)


def test_one_token_is_always_shown(engine):
    one = PruningConfig("random", num_kept=1)
    base, pulsed = answer(engine, pruning=one), answer(engine, pruning=one, shift=VisionPulse())
    assert same(base, pulsed) and pulsed.shift.mean_visible == 1 / 35


@pytest.mark.parametrize("options, name", [
    ({"anchor_layer": -1}, "anchor_layer"), ({"anchor_layer": True}, "anchor_layer"),
    ({"anchor_layer": 1.5}, "anchor_layer"), ({"temperature": 0}, "temperature"),
    ({"temperature": float("nan")}, "temperature"), ({"temperature": "cold"}, "temperature"),
    ({"max_share": 0}, "max_share"), ({"max_share": 1.1}, "max_share"),
    ({"min_share": -0.1}, "min_share"), ({"min_share": 0.2}, "min_share"),
    ({"budget": "some"}, "budget"), ({"budget": ["fixed"]}, "budget"),
    ({"budget": "fixed"}, "fixed_share"), ({"fixed_share": 0.1}, "fixed_share"),
    ({"budget": "fixed", "fixed_share": 0}, "fixed_share"),
    ({"budget": "fixed", "fixed_share": "all"}, "fixed_share"),
    ({"importance": "max"}, "importance"), ({"seed": -1}, "seed"), ({"ratio": 1}, "ratio"),
    ({"apply_to_last_prefill_row": 1}, "apply_to_last_prefill_row")])
def test_wrong_options_are_named(options, name):
    with pytest.raises(OptionError, match=name):
        VisionPulse(**options)


@pytest.mark.parametrize("anchor, pruning", [
    (3, None), (4, None), (1 << 20, None), (1, ("fastv", 2)), (0, ("fastv", 1)),
    (None, ("fastv", 3)), (None, ("fastv", 4))], ids=str)
def test_an_anchor_that_no_layer_follows_or_that_reads_pruned_tokens_is_refused(
        engine, anchor, pruning):
    pruning = pruning and method(pruning[0], layer=pruning[1])
    with pytest.raises(OptionError, match="anchor_layer: expected a layer in "):
        answer(engine, pruning=pruning, shift=VisionPulse(anchor))
    assert len(answer(engine).token_ids) == 16


def test_a_policy_of_another_type_is_refused(engine):
    with pytest.raises(OptionError, match="shift: expected DSTP, .*VisionPulse, DyCoke or "):
        answer(engine, shift="visionpulse")


@pytest.mark.parametrize("num_layers, first, anchor", [
    (36, 0, 17), (28, 0, 13), (4, 0, 2), (2, 0, 0), (3, 0, 1), (36, 2, 17), (36, 20, 20),
    (64, 0, 30), (6, 3, 3)])
def test_the_default_anchor_is_layer_17_of_36(num_layers, first, anchor):
    assert VisionPulse().settled_anchor(num_layers, first) == anchor


@pytest.mark.parametrize("num_base, options, bounds", [
    (100, {}, (5, 10)), (1000, {"min_share": 0.01, "max_share": 0.05}, (10, 50)), (7, {}, (1, 1)),
    (15, {"min_share": 0.09}, (1, 1)), (1, {}, (1, 1)), (35, {}, (2, 3)),
    (100, {"min_share": 0.07, "max_share": 0.29}, (7, 29)), (10, ALL_SHOWN, (10, 10)),
    (10, {"budget": "fixed", "fixed_share": 0.25}, (3, 3)),
    (10, {"budget": "fixed", "fixed_share": 0.01}, (1, 1))])
def test_bounds(num_base, options, bounds):
    assert VisionPulse(**options).bounds(num_base, 1) == bounds
