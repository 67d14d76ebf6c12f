"""Methods that act before several layers, from end to end, on both families.

Statistics, choices and answers are those of transformers' own layers, told by masks: prompts,
later turns with a second picture, what leaves behind the prompt, and tokens that return.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch

from pydstp import (
    DSTP,
    Engine,
    EngineConfig,
    OptionError,
    PruningConfig,
    SamplingParams,
    SketchReturn,
    VisionPulse,
    VisualTokens,
    prefill,
)
from pydstp.kv_cache import ALL, BASE, SELECTED, STAGED
from pydstp.pruning import run_pruner
from tests.checkpoints import reference_model, tiny_qwen3_vl
from tests.compare import assert_matches
from tests.engine import internvl_oracle, oracle
from tests.engine.selection import dstp, same
from tests.engine.staged_oracle import NEVER, Staged
from tests.internvl_checkpoints import internvl_reference, tiny_internvl
from tests.pruning import plain_staged_methods as plain

TEXT = "Which of the two is larger, and why?"
PICTURES = {"qwen3_vl": [oracle.picture(130, 100, 1), oracle.picture(97, 161, 2)],
            "internvl": [oracle.picture(300, 100, 3), oracle.picture(84, 84, 4)]}
PATHS = {"qwen3_vl": tiny_qwen3_vl, "internvl": tiny_internvl}
MODELS = {"qwen3_vl": lambda: reference_model(tiny_qwen3_vl()),
          "internvl": lambda: internvl_reference(tiny_internvl())}
GREEDY = SamplingParams(temperature=0.0, repetition_penalty=1.0, max_new_tokens=9,
                        ignore_eos=True, logprobs=5)
LOOSE = {"similarity": 0.1, "window": 2, "global_threshold": 0.1, "individual_threshold": 0.05}
METHODS = [
    ("pyramiddrop", {}), ("pyramiddrop", {"layers": [2, 3], "shares": [0.8], "quota": "span"}),
    ("sparsevlm", {}), ("sparsevlm", {"recycle": 0.0, "layers": [1, 3]}),
    ("sparsevlm", {"recycle": 0.9, "quota": "span"}), ("mustdrop", LOOSE),
    ("mustdrop", {"similarity": 2.0, "key_share": 0.0, "global_threshold": 0.05,
                  "individual_threshold": 0.02})]
every_family = pytest.mark.parametrize("family", PICTURES)
every_method = pytest.mark.parametrize(("name", "options"), METHODS, ids=str)
SEEN: list[VisualTokens] = []


@pytest.fixture(scope="module")
def engines() -> Iterator[dict[str, Engine]]:
    config = EngineConfig(max_batch=4, max_visual_tokens=160, max_text_tokens=320, num_threads=1)
    opened = {family: Engine(PATHS[family](), dtype="float32", config=config)
              for family in PICTURES}
    yield opened
    for engine in opened.values():
        engine.close()


@pytest.fixture(autouse=True)
def _looking(monkeypatch) -> None:
    def looked(config: PruningConfig, tokens: VisualTokens) -> object:
        SEEN.append(tokens)
        return run_pruner(config, tokens)
    SEEN.clear()
    monkeypatch.setattr(prefill, "run_pruner", looked)


def inputs_of(family: str, messages: list[dict], pictures: list) -> dict:
    module = oracle if family == "qwen3_vl" else internvl_oracle
    return module.prompt_inputs(PATHS[family](), messages, pictures)


@torch.inference_mode()
def told(family: str, name: str, options: dict, inputs: dict | None = None,
         ratio: float = 0.3, **turns: Any) -> Staged:
    """What the definition makes of a request that the engine has just run."""
    if inputs is None:
        count = len(PICTURES[family])
        inputs = inputs_of(family, [oracle.user(TEXT, count)], PICTURES[family])
    own = {key: value for key, value in options.items() if key not in ("quota", "layers", "shares")}
    stages = PruningConfig(name, ratio, **options).pruner.stages(4)
    vision = [tokens.vision_attention for tokens in SEEN if not tokens.stage]
    return Staged(
        MODELS[family](), inputs, stages, partial(getattr(plain, name), **own), ratio,
        vision=None if vision[0] is None else torch.cat(vision), shares=options.get("shares"),
        shrinks=1 if name == "mustdrop" else None,
        by_picture=options.get("quota") == "span", **turns)


def assert_facts(truth: Staged) -> None:
    """What the engine showed to the method at each stage."""
    assert len(SEEN) == len(truth.facts)
    for tokens, facts in zip(SEEN, truth.facts, strict=True):
        assert tokens.origins.tolist() == facts.origins and tokens.stage == facts.stage
        assert list(tokens.quotas) == facts.quotas
        assert_matches(tokens.features, torch.tensor(facts.hidden).float())
        if tokens.upcoming_row is not None:
            assert_matches(tokens.upcoming_row, torch.tensor(facts.upcoming).float())
        if tokens.text_attention is not None:
            rows = range(len(facts.text))
            if truth.method.func is plain.sparsevlm:
                rows = plain.raters(facts.embedded_visual, facts.embedded_text)
            expected = torch.tensor([facts.text[row] for row in rows]).float()
            assert_matches(tokens.text_attention, expected)


def assert_lists(engine: Engine, truth: Staged, s: int = 0) -> None:
    """The list of every group of layers; and nested, as no token comes in between."""
    cache, visual = engine._cache, truth.base.visual.tolist()
    originals = cache.visible_slots(s, ALL).tolist()
    base = cache.shift.base_mask[s, originals] == BASE
    assert base.nonzero().squeeze(1).tolist() == truth.kept()
    before = set(range(len(visual)))
    for stage, layer in enumerate(truth.stages):
        group = SELECTED if stage == len(truth.stages) - 1 else STAGED + stage
        assert int(cache.layer_to_group[s, layer]) == group
        listed = cache.visible_slots(s, group).tolist()
        found = [i for i, slot in enumerate(originals) if slot in listed]
        assert found == [i for i, row in enumerate(visual) if truth.later[row] > layer]
        num_merged = sum(truth.born[truth.num_base + i] <= layer < truth.later[truth.num_base + i]
                         for i in range(len(truth.merged)))
        assert len(listed) == len(found) + num_merged
        assert set(found) <= before
        before = set(found)


@every_family
@every_method
@torch.inference_mode()
def test_answers_are_those_of_transformers(engines, family, name, options) -> None:
    engine = engines[family]
    run = engine.generate(PICTURES[family], TEXT, GREEDY,
                          pruning=PruningConfig(name, 0.3, **options))
    truth = told(family, name, options)
    assert_facts(truth)
    assert_lists(engine, truth)
    assert run.token_ids == truth.greedy(9)
    num_merged = truth.left[truth.num_base:][:len(truth.merged)].count(NEVER)
    assert run.shift.kept == len(truth.kept()) + num_merged < run.visual_tokens
    lens = [run.visual_tokens] * truth.stages[0] + [
        int(n) for n in engine._cache.visible_len[0][
            engine._cache.layer_to_group[0, truth.stages[0]:].long()]]
    shift, n = run.shift, run.visual_tokens
    pruned = lens[truth.stages[0]:]
    assert shift.mean_visible == pytest.approx(sum(pruned) / len(pruned) / n)
    assert shift.mean_visible_all_layers == pytest.approx(sum(lens) / 4 / n)
    assert run.resident_tokens == int(engine._cache.visual_len[0]) - (n - len(truth.kept()))


@every_family
@every_method
@pytest.mark.parametrize("swap", [{"swap": "full"}, {"swap": "cpts"},
                                  {"swap": "add", "max_returned": 3, "applies": "redo"}], ids=str)
@torch.inference_mode()
def test_tokens_that_return_are_read_by_all_stages(engines, family, name, options, swap) -> None:
    """What returned is taken from the log; what it does to the answer is not."""
    engine = engines[family]
    run = engine.generate(PICTURES[family], TEXT, GREEDY, log_steps=True,
                          pruning=PruningConfig(name, 0.3, **options),
                          shift=dstp(trigger="every", expand_steps=2, **swap))
    truth = told(family, name, options)
    visual, kept = truth.base.visual.tolist(), set(truth.kept())
    now, shown = set(), []
    for step in run.shift.steps:
        now = now - set(step.went) | set(step.came)
        shown.append({visual[slot] for slot in now - kept if slot < len(visual)})
    assert any(shown) or name == "mustdrop" and swap["swap"] == "cpts"  # of few, all stay best
    assert run.token_ids == truth.greedy(9, shown)


@every_method
@torch.inference_mode()
def test_lazy_deferred_and_side_give_the_same_bits(engines, name, options, monkeypatch) -> None:
    """Chunks of a few rows cross stages; rows that left at different layers run together."""
    monkeypatch.setattr("pydstp.reserve.SideRows.chunks.__defaults__", (7,))
    policy = dstp(trigger="every", expand_steps=3)
    config = PruningConfig(name, 0.3, **options)
    runs = [engines["qwen3_vl"].generate(PICTURES["qwen3_vl"], TEXT, GREEDY, pruning=config,
                                         shift=policy, reserve=reserve)
            for reserve in ("side", "lazy", "deferred")]
    assert runs[0].shift.triggers > 1
    assert runs[0].token_ids == runs[1].token_ids and runs[0].logprobs == runs[1].logprobs
    never = [engines["qwen3_vl"].generate(
        PICTURES["qwen3_vl"], TEXT, GREEDY, pruning=config, **shift) for shift in (
        {}, {"shift": dstp(threshold=0.0), "reserve": "side"})]
    assert same(*never)


@every_family
@every_method
def test_a_batch_of_four_is_each_alone(engines, family, name, options) -> None:
    """Batch neighbours have no influence, whatever they prune and bring back."""
    engine, pictures = engines[family], PICTURES[family]
    methods = [PruningConfig(name, 0.3, **options), PruningConfig("fastv", 0.4, layer=1),
               PruningConfig(name, 0.5, **options), None]
    policies = [dstp(trigger="every", expand_steps=2), None, None, None]
    alone = [engine.generate(pictures, TEXT, GREEDY, pruning=pruning, shift=shift)
             for pruning, shift in zip(methods, policies, strict=True)]
    batch = engine.generate([pictures] * 4, [TEXT] * 4, GREEDY, pruning=methods, shift=policies)
    for one, row in zip(alone, batch, strict=True):
        assert same(one, row) and one.shift.trigger_steps == row.shift.trigger_steps
        assert one.shift.mean_visible == row.shift.mean_visible


@every_family
@every_method
@torch.inference_mode()
def test_a_second_turn_with_a_second_picture(engines, family, name, options) -> None:
    """Pictures are pruned as they come; a turn reads what the one before has left."""
    first, second = PICTURES[family]
    config = PruningConfig(name, 0.3, **options)
    with engines[family].chat(pruning=config) as chat:
        told_first = chat.send("What is it?", [first], replace(GREEDY, max_new_tokens=3))
        run = chat.send(TEXT, [second], GREEDY)
        inputs = inputs_of(family, chat.messages[:3], [first, second])
        n = inputs["input_ids"].shape[1]
        turns = [(0, told_first.prompt_tokens), (run.cached_tokens, n)]
        truth = told(family, name, options, inputs, turns=turns)
        assert_facts(truth)
        assert_lists(engines[family], truth, chat._seq_idx)
        assert run.token_ids == truth.greedy(9)


@every_family
@pytest.mark.parametrize("name", ["pyramiddrop", "sparsevlm", "mustdrop", "look_m"])
def test_a_ratio_of_one_changes_nothing(engines, family, name) -> None:
    engine = engines[family]
    whole = engine.generate(PICTURES[family], TEXT, GREEDY)
    run = engine.generate(PICTURES[family], TEXT, GREEDY, pruning=PruningConfig(name, 1.0))
    assert same(run, whole) and run.shift.reason == "retention_is_one"
    if name == "mustdrop":  # its thresholds find nothing to drop
        strict = PruningConfig(name, 0.3, similarity=2.0, global_threshold=0.0)
        run = engine.generate(PICTURES[family], TEXT, GREEDY, pruning=strict)
        assert run.token_ids == whole.token_ids and run.shift.reason == "method_kept_all"
    text = engine.generate(None, "Hi.", GREEDY, pruning=PruningConfig(name, 0.3))
    assert same(text, engine.generate(None, "Hi.", GREEDY)) and text.shift.reason == "no_image"


@every_family
@every_method
def test_policies_that_choose_within_a_step(engines, family, name, options) -> None:
    engine, config = engines[family], PruningConfig(name, 0.3, **{**options, "layers": [1, 2]})
    base = engine.generate(PICTURES[family], TEXT, GREEDY, pruning=config)
    pulse = engine.generate(PICTURES[family], TEXT, GREEDY, pruning=config, shift=VisionPulse(
        min_share=1.0, max_share=1.0))
    assert same(base, pulse)  # everything that is left is chosen
    few = engine.generate(PICTURES[family], TEXT, GREEDY, pruning=config, shift=VisionPulse())
    assert few.shift.mean_visible_all_layers < base.shift.mean_visible_all_layers
    some = engine.generate(PICTURES[family], TEXT, GREEDY, pruning=config,
                           shift=SketchReturn(max_returned=3, bits=16), reserve="side")
    assert some.shift.mean_visible > base.shift.mean_visible
    assert some.logprobs[1:] != base.logprobs[1:]


def test_what_does_not_go_together(engines) -> None:
    engine = engines["qwen3_vl"]

    def refused(match: str, name: str = "pyramiddrop", options: dict | None = None,
                **more: Any) -> None:
        with pytest.raises(OptionError, match=match):
            engine.generate(PICTURES["qwen3_vl"], TEXT, GREEDY,
                            pruning=PruningConfig(name, 0.3, **options or {}), **more)
    refused("swap: expected another than 'merge' with pyramiddrop", shift=dstp(swap="merge"))
    refused("monitor_layers: expected layers >= 3 with sparsevlm", "sparsevlm",
            shift=DSTP(monitor_layers=[1, 3]))
    refused("anchor_layer: expected a layer in", shift=VisionPulse(anchor_layer=1))
    refused("reserve: .* with sparsevlm, got 'full'", "sparsevlm", reserve="full")
    refused("layers: expected layers below num_layers = 4", options={"layers": [2, 4]})
    refused("at most num_layers = 4, got 9", "sparsevlm", {"layers": [2, 9]})
    refused("shares: expected 2 numbers, one for each of the layers", options={"shares": [0.5]})
    for shift in (DSTP(), SketchReturn(), VisionPulse()):
        refused("shift: expected None with look_m", "look_m", shift=shift)
    for reserve in ("full", "side", "lazy", "deferred"):
        refused("reserve: expected 'auto' with look_m", "look_m", reserve=reserve)


@pytest.mark.parametrize("name", ["pyramiddrop", "sparsevlm"])
def test_an_unpruned_prompt_under_stages(engines, name) -> None:
    """reserve="full": the prompt sees everything, and decode steps what each stage has left."""
    engine, options = engines["qwen3_vl"], {} if name == "pyramiddrop" else {"recycle": 0.0}
    run = engine.generate(PICTURES["qwen3_vl"], TEXT, GREEDY, reserve="full",
                          pruning=PruningConfig(name, 0.3, **options))
    whole = engine.generate(PICTURES["qwen3_vl"], TEXT, GREEDY)
    assert run.token_ids[0] == whole.token_ids[0] and run.logprobs[1:] != whole.logprobs[1:]
    assert run.resident_tokens == run.visual_tokens
    shown = engine.generate(PICTURES["qwen3_vl"], TEXT, GREEDY, reserve="full",
                            pruning=PruningConfig(name, 0.3, **options),
                            shift=dstp(trigger="every", swap="full", applies="redo"))
    assert shown.token_ids == whole.token_ids  # all of it returned, before any step was kept
