"""Methods that act before a decoder layer, from end to end, on both families.

Statistics, choices and answers are those of transformers' own layers; with DSTP, on Qwen3-VL, those
of the plain model of tests/shift.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from pydstp import DSTP, Engine, EngineConfig, OptionError, PruningConfig, SamplingParams
from pydstp.kv_cache import BASE
from pydstp.pruning import MergePlan, Pruner, VisualTokens, register_pruner
from pydstp.pruning.base import STATISTICS
from pydstp.pruning.merging import merged_rows
from pydstp.pruning.registry import _PRUNERS
from tests.checkpoints import reference_model, tiny_qwen3_vl
from tests.compare import assert_matches
from tests.engine import internvl_oracle, oracle
from tests.engine.layer_oracle import Request
from tests.engine.plain_chat import Conversation, assert_same_answer
from tests.engine.selection import dstp
from tests.internvl_checkpoints import internvl_reference, tiny_internvl
from tests.pruning.plain_layer_methods import Answer, Facts, plain
from tests.shift.cases import is_clear
from tests.shift.plain_model import PlainResult, decode
from tests.shift.plain_policy import PlainDSTP
from tests.shift.plain_prompt import encode_prompt
from tests.shift.plain_pruning import PlainPruning

TEXT = "Which of the two is larger, and why?"
PICTURES = {"qwen3_vl": [oracle.picture(130, 100, 1), oracle.picture(97, 161, 2)],
            "internvl": [oracle.picture(300, 100, 3), oracle.picture(84, 84, 4)]}
GREEDY = SamplingParams(temperature=0.0, max_new_tokens=12, ignore_eos=True, logprobs=5)
NEEDED = frozenset(STATISTICS) - {"vision_attention", "vision_keys", "text_embeddings",
                                  "upcoming_row"}  # its layer may be the one behind the last
METHODS = [
    ("fastv", {"rows": "all"}), ("reverse_fastv", {}), ("window_fastv", {"window": (2, 3)}),
    ("fastv_vis", {}), ("fastv_vis", {"quota": "global"}), ("alpha", {"alpha": 0.4}),
    ("pooling", {}), ("pooling", {"pool": "max", "window": (1, 3)}),
    ("pooling", {"pool": "argmax_l1"}), ("dart", {"visual_pivots": 3}),
    ("dart", {"quota": "span", "text_pivots": 2})]
every_family = pytest.mark.parametrize("family", PICTURES)
every_method = pytest.mark.parametrize(("name", "options"), METHODS, ids=str)
SEEN: list[VisualTokens] = []


@pytest.fixture(scope="module", autouse=True)
def _looking() -> Iterator[None]:
    @register_pruner("looking")
    @dataclass(frozen=True)
    class Looking(Pruner):
        """Notes what it was shown and keeps the first tokens of each span."""

        layer: int = 1
        needs = NEEDED

        @property
        def act_before(self) -> int:
            return self.layer

        def select(self, tokens: VisualTokens) -> Tensor:
            SEEN.append(tokens)
            return tokens.top(torch.arange(len(tokens), 0, -1))
    yield
    _PRUNERS.pop("looking")


def open_engine(family: str, dtype: str = "float32") -> Engine:
    path = tiny_qwen3_vl() if family == "qwen3_vl" else tiny_internvl()
    config = EngineConfig(max_batch=2, max_visual_tokens=160, max_text_tokens=256, num_threads=1)
    return Engine(path, dtype=dtype, config=config)


@pytest.fixture(scope="module")
def engines() -> Iterator[dict[str, Engine]]:
    opened = {family: open_engine(family) for family in PICTURES}
    yield opened
    for engine in opened.values():
        engine.close()


def prompt_inputs(family: str, messages: list[dict], pictures: list[Image.Image]) -> dict:
    if family == "qwen3_vl":
        return oracle.prompt_inputs(tiny_qwen3_vl(), messages, pictures)
    return internvl_oracle.prompt_inputs(tiny_internvl(), messages, pictures)


@cache
def request(family: str, layer: int) -> Request:
    pictures = PICTURES[family]
    inputs = prompt_inputs(family, [oracle.user(TEXT, len(pictures))], pictures)
    with torch.inference_mode():
        model = reference_model(tiny_qwen3_vl()) if family == "qwen3_vl" else internvl_reference(
            tiny_internvl())
        return Request(model, inputs, layer)


@torch.inference_mode()
def choice(family: str, config: PruningConfig, **options: Any) -> tuple[Request, Answer]:
    """What the definition keeps, from what transformers computes."""
    asked = request(family, config.pruner.act_before)
    spans, quotas = config.quotas(asked.grids)
    return asked, plain(config.name, asked.facts(list(spans), list(quotas)), **options)


def own(options: dict[str, Any]) -> dict[str, Any]:
    """Options of the method itself."""
    return {name: value for name, value in options.items() if name != "quota"}


def assert_facts(tokens: VisualTokens, facts: Facts, first: int = 0) -> None:
    """`tokens` are those from number `first` on."""
    for found, expected in (
            (tokens.features, facts.hidden[first:]), (tokens.attention_row, facts.row[first:]),
            (tokens.received_attention, facts.received[first:]),
            (tokens.picture_row, facts.of_picture[first:]),
            (tokens.key_norms, facts.norms[first:]), (tokens.text_key_norms, facts.text_norms),
            (tokens.text_states, facts.text_hidden)):
        assert found.dtype == torch.float32
        assert_matches(found, torch.tensor(expected).float())


@every_family
@pytest.mark.parametrize("layer", [1, 2, 3, 4])
@torch.inference_mode()
def test_statistics_are_those_of_transformers(engines, family, layer) -> None:
    SEEN.clear()
    looking = PruningConfig("looking", 0.4, layer=layer)
    engines[family].generate(PICTURES[family], TEXT, GREEDY, pruning=looking)
    facts = request(family, layer).facts([], [])
    assert len(SEEN[-1]) == len(facts.row) > 20 and len(facts.text_norms) > 5
    assert_facts(SEEN[-1], facts)


@pytest.mark.parametrize("layer", [1, 3])
@torch.inference_mode()
def test_statistics_of_a_later_turn(engines, layer) -> None:
    """Rows of earlier turns are seen below the pruning point as if nothing had been pruned."""
    SEEN.clear()
    looking = PruningConfig("looking", 0.4, layer=layer)
    first, *more = PICTURES["qwen3_vl"]
    told = Conversation(engines["qwen3_vl"], tiny_qwen3_vl(), pruning=looking, reserve="lazy",
                        shift=dstp(threshold=2.0, expand_steps=2))
    with told.chat:
        told.send("What is it?", [first], 5)
        told.send(TEXT, more, 3)
        _, inputs = told.prompt(2)
    facts = Request(reference_model(tiny_qwen3_vl()), inputs, layer).facts([], [])
    assert_facts(SEEN[-1], facts, first=len(SEEN[0]))


@every_family
@every_method
@pytest.mark.parametrize("layer", [1, 2])
@torch.inference_mode()
def test_answers_are_those_of_transformers(engines, family, name, options, layer) -> None:
    config = PruningConfig(name, 0.3, layer=layer, **options)
    asked, answer = choice(family, config, **own(options))
    engine = engines[family]
    run = engine.generate(PICTURES[family], TEXT, GREEDY, pruning=config)
    assert run.shift.kept == len(answer.kept) + len(answer.merged) < run.visual_tokens
    base = engine._cache.shift.base_mask[0, :run.visual_tokens] == BASE
    assert base.nonzero().squeeze(1).tolist() == answer.kept
    assert run.token_ids == asked.greedy(answer, 12, options.get("pool", "mean"))


@every_method
@pytest.mark.parametrize("applies", ["next", "redo"])
@torch.inference_mode()
def test_answers_with_dstp_are_those_of_the_plain_model(engines, name, options, applies) -> None:
    """At the first ratio at which no decision is a close call."""
    if options.get("pool") == "max":
        options = {**options, "pool": "mean"}  # the plain model merges by weights
    policy = DSTP(trigger="every", expand_steps=3, monitor_layers="post_prune", applies=applies)
    for ratio in (0.3, 0.35, 0.4, 0.45, 0.25):
        config = PruningConfig(name, ratio, layer=1, **options)
        truth = plain_answer(config, policy, own(options))
        if is_clear(truth):
            break
    else:
        pytest.fail("only close calls: choose other pictures")
    run = engines["qwen3_vl"].generate(PICTURES["qwen3_vl"], TEXT, GREEDY, pruning=config,
                                       shift=policy, log_steps=True)
    assert_same_answer(run, truth)
    assert run.shift.triggers > 1


def plain_answer(config: PruningConfig, policy: DSTP, options: dict[str, Any]) -> PlainResult:
    asked, answer = choice("qwen3_vl", config, **options)
    pictures = PICTURES["qwen3_vl"]
    inputs = prompt_inputs("qwen3_vl", [oracle.user(TEXT, len(pictures))], pictures)
    prompt = encode_prompt(asked.model, inputs)
    return decode(asked.model, prompt, plain_pruning(answer, len(prompt.visual_rows)),
                  PlainDSTP(**policy.to_dict()), reserve="side", num_tokens=12)


def plain_pruning(answer: Answer, num_tokens: int) -> PlainPruning:
    """The same in the words of the plain model: the mean of each group, in place of its target."""
    weights = torch.zeros(len(answer.merged), num_tokens)
    for row, (target, part) in zip(weights, answer.merged, strict=True):
        row[part] = 1 / len(part)
        row[target] -= 1
    return PlainPruning(tuple(answer.kept), 1, tuple(target for target, _ in answer.merged),
                        weights if answer.merged else None)


def test_the_largest_number_may_be_that_of_the_target() -> None:
    rows = torch.tensor([[1.0, 9.0], [5.0, 2.0], [3.0, 4.0], [7.0, 8.0]], dtype=torch.bfloat16)
    plan = MergePlan(torch.tensor([1, 3]), torch.tensor([[-2.0, 0, 0, 0], [0, 0, 0.5, 0]]), "max")
    assert merged_rows(rows, plan).tolist() == [[5.0, 9.0], [7.0, 8.0]]
    assert merged_rows(rows, replace(plan, reduce="sum")).tolist() == [[3.0, -16.0], [8.5, 10.0]]


@every_family
def test_layers_below_the_merged_tokens_cannot_be_watched(engines, family) -> None:
    """They hold no keys of a token that begins above them."""
    engine, options = engines[family], {"pruning": PruningConfig("pooling", 0.25, layer=2)}
    with pytest.raises(OptionError, match="monitor_layers: expected layers >= 2 with pooling"):
        engine.generate(PICTURES[family], TEXT, GREEDY, shift=DSTP(monitor_layers=[1, 3]),
                        **options)
    with pytest.raises(OptionError, match="reserve: .* with pooling, got 'full'"):
        engine.generate(PICTURES[family], TEXT, GREEDY, reserve="full", **options)
    kept = PruningConfig("pooling", 0.25, layer=2, pool="argmax_l1")
    for some in (options, {"pruning": kept, "reserve": "full"}):
        layers = [2, 3] if some is options else [1, 3]
        run = engine.generate(PICTURES[family], TEXT, GREEDY, shift=DSTP(
            monitor_layers=layers, trigger="every"), **some)
        assert run.shift.triggers > 0


@every_family
def test_a_batch_in_half_precision_is_each_alone(family) -> None:
    methods = [PruningConfig(name, 0.3, layer=1 + i % 3, **options)
               for i, (name, options) in enumerate(METHODS)]
    policies = [dstp(trigger="every", expand_steps=2), None] * 6
    count, pictures = len(methods), PICTURES[family]
    with open_engine(family, "bfloat16") as engine:
        alone = [engine.generate(pictures, TEXT, GREEDY, pruning=pruning, shift=shift)
                 for pruning, shift in zip(methods, policies, strict=False)]
        batch = engine.generate([pictures] * count, [TEXT] * count, GREEDY, pruning=methods,
                                shift=policies[:count])
    for one, row in zip(alone, batch, strict=True):
        assert one.token_ids == row.token_ids and one.logprobs == row.logprobs
        assert one.shift.trigger_steps == row.shift.trigger_steps
        assert one.shift.kept < one.visual_tokens


@every_family
@every_method
def test_behind_the_last_layer_nothing_changes(engines, family, name, options) -> None:
    """K = num_layers: there is no layer that a dropped token could be missed by."""
    engine = engines[family]
    whole = engine.generate(PICTURES[family], TEXT, GREEDY)
    pruned = engine.generate(PICTURES[family], TEXT, GREEDY,
                             pruning=PruningConfig(name, 0.3, layer=4, **options))
    assert pruned.token_ids == whole.token_ids and pruned.logprobs == whole.logprobs


@every_family
@pytest.mark.parametrize("name", ["fastv", "pooling", "dart"])
def test_without_pictures_nothing_is_asked(engines, family, name) -> None:
    sampling = replace(GREEDY, max_new_tokens=3)
    plain_run = engines[family].generate(None, "Hello.", sampling)
    run = engines[family].generate(None, "Hello.", sampling, pruning=PruningConfig(name, 0.3))
    assert run.token_ids == plain_run.token_ids and run.shift.reason == "no_image"
