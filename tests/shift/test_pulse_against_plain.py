"""The engine against the plain VisionPulse and DyCoke of this folder: same tokens and lists."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from pydstp import (
    DyCoke,
    Engine,
    EngineConfig,
    Generation,
    PruningConfig,
    SamplingParams,
    VisionPulse,
    ops,
)
from tests.checkpoints import reference_model, tiny_qwen3_vl
from tests.engine import internvl_oracle
from tests.engine.oracle import picture, prompt_inputs, user
from tests.internvl_checkpoints import internvl_reference, tiny_internvl
from tests.shift.cases import CHECKPOINTS, PROMPTS, draw_pictures
from tests.shift.plain_prompt import (
    Prompt,
    encode_internvl_prompt,
    encode_prompt,
    vision_statistics,
)
from tests.shift.plain_pruning import PlainPruning, divprune, fastv, visionzip
from tests.shift.plain_pulse import PlainDyCoke, PlainPulse, PulseResult, pulse_answer
from tests.shift.test_against_plain import on_tier

METHODS = ("none", "fastv", "divprune", "visionzip")
NUM_CASES, NUM_EMULATED, NUM_INTERNVL, NUM_DYCOKE, NUM_LAST_ROW = 24, 8, 6, 16, 8
SHARES = (("0.05", "0.1"), ("0.01", "0.05"), ("0.2", "0.9"), ("0", "1"), ("0.3", "0.31"))


@dataclass(frozen=True)
class PulseCase:
    """A request; checkpoint: arguments of tiny_qwen3_vl, or of tiny_internvl."""

    checkpoint: tuple[tuple[str, Any], ...]
    pictures: tuple[tuple[int, int, int], ...]
    prompt: str
    num_tokens: int
    method: str
    ratio: float
    layer: int
    reserve: str
    pulse: PlainPulse | PlainDyCoke
    is_internvl: bool = False

    @property
    def is_tempered(self) -> bool:
        return isinstance(self.pulse, PlainPulse) and (
            self.pulse.fixed_share is None or self.pulse.importance == "tempered")

    def path(self) -> Path:
        make = tiny_internvl if self.is_internvl else tiny_qwen3_vl
        return make(**dict(self.checkpoint))

    def images(self) -> list[Image.Image]:
        return [picture(*size_and_seed) for size_and_seed in self.pictures]

    def pruning(self) -> PruningConfig | None:
        if self.method == "none":
            return None
        layer = {"layer": self.layer} if self.method == "fastv" else {}
        return PruningConfig(self.method, self.ratio, **layer)

    def shift(self) -> VisionPulse | DyCoke:
        options = asdict(self.pulse)
        if isinstance(self.pulse, PlainDyCoke):
            return DyCoke(self.pulse.threshold, float(self.pulse.share), self.pulse.anchor_layer)
        for name in ("min_share", "max_share", "fixed_share"):
            options[name] = options[name] and float(options[name])
        return VisionPulse(**options, budget="fixed" if self.pulse.fixed_share else "dynamic")


def draw_pulse(rng: random.Random, first_layer: int, num_layers: int) -> PlainPulse:
    low, high = rng.choice(SHARES)
    return PlainPulse(
        anchor_layer=rng.randint(first_layer, num_layers - 2),
        temperature=rng.choice((0.1, 0.4, 1.0, 3.0)), min_share=low, max_share=high,
        fixed_share=rng.choice((None, None, None, "0.3")),
        importance=rng.choice(("plain", "plain", "tempered")))


def draw(rng: random.Random, index: int) -> PulseCase:
    method = METHODS[index % len(METHODS)]
    checkpoint = CHECKPOINTS[(index + index // len(METHODS)) % len(CHECKPOINTS)]
    num_layers = dict(checkpoint).get("num_layers", 4)
    layer = rng.randint(1, num_layers - 2) if method == "fastv" else 0
    reserve = "auto" if method in ("none", "visionzip") else rng.choice(("auto", "full"))
    return PulseCase(checkpoint, draw_pictures(rng), rng.choice(PROMPTS), rng.randint(8, 14),
                     method, rng.choice((0.33, 0.5, 0.67)), layer, reserve,
                     draw_pulse(rng, layer, num_layers))


@torch.inference_mode()
def prepare(case: PulseCase) -> tuple[Prompt, PlainPruning | None]:
    """The prompt's rows, and what the method decides."""
    messages = [user(case.prompt, len(case.pictures))]
    if case.is_internvl:
        inputs = internvl_oracle.prompt_inputs(case.path(), messages, case.images())
        return encode_internvl_prompt(internvl_reference(case.path()), inputs), None
    model = reference_model(case.path())
    inputs = prompt_inputs(case.path(), messages, case.images())
    prompt = encode_prompt(model, inputs)
    if case.method == "fastv":
        return prompt, fastv(model, prompt, case.ratio, case.layer)
    if case.method == "divprune":
        return prompt, divprune(prompt, case.ratio)
    if case.method == "visionzip":
        return prompt, visionzip(prompt, vision_statistics(model, inputs), case.ratio)
    return prompt, None


def draw_internvl(rng: random.Random, index: int) -> PulseCase:
    checkpoint = ((), (("tower", "6B"), ("moe", True)))[index % 2]
    size = rng.choice(((300, 100), (80, 80), (200, 100)))
    return PulseCase(checkpoint, ((*size, rng.randrange(1000)),), rng.choice(PROMPTS),
                     rng.randint(8, 12), "none", 1.0, 0, "auto", draw_pulse(rng, 0, 4), True)


def draw_last_row(rng: random.Random, index: int) -> PulseCase:
    """The last row of the prompt selects too, of few tokens, so that it makes a difference."""
    case = (draw_internvl if index % 4 == 3 else draw)(rng, index)
    return replace(case, pulse=replace(case.pulse, apply_to_last_prefill_row=True,
                                       max_share="0.31"))


def draw_dycoke(rng: random.Random, index: int) -> PulseCase:
    case = (draw_internvl if index % 5 == 4 else draw)(rng, index)
    return replace(case, pulse=PlainDyCoke(
        case.pulse.anchor_layer, rng.choice((0.8, 0.9, 0.95, 0.98)),
        rng.choice(("0.05", "0.3", "0.7"))))


@cache
def solve(index: int, draw: Callable[..., PulseCase] = draw) -> tuple[PulseCase, PulseResult]:
    """Case `index`: the first of its random draws in which no decision is a close call."""
    for attempt in range(100):
        rng = random.Random(f"pulse {index} {attempt} {draw is draw_internvl}")
        case = draw(rng, index)
        prompt, pruning = prepare(case)
        if pruning is not None and pruning.margin < 1e-5:
            continue
        model = (internvl_reference if case.is_internvl else reference_model)(case.path())
        result = pulse_answer(model, prompt, pruning, case.pulse, num_tokens=case.num_tokens,
                              reserve="full" if case.reserve == "full" else "side")
        if result.is_clear() and not is_close_similarity(case, result):
            return case, result
    raise AssertionError(f"case {index}: no draw is clear")


def is_close_similarity(case: PulseCase, result: PulseResult) -> bool:
    return isinstance(case.pulse, PlainDyCoke) and any(
        abs(step.similarity - case.pulse.threshold) < 1e-4 for step in result.steps[1:])


def run(case: PulseCase) -> Generation:
    config = EngineConfig(max_batch=1, max_visual_tokens=128, max_text_tokens=256, num_threads=1)
    sampling = SamplingParams(temperature=0.0, max_new_tokens=case.num_tokens, ignore_eos=True,
                              repetition_penalty=1.0, logprobs=5)
    with Engine(case.path(), dtype="float32", config=config) as engine:
        return engine.generate(case.images(), case.prompt, sampling, pruning=case.pruning(),
                               shift=case.shift(), reserve=case.reserve, log_steps="attention")


def lists_read(generation: Generation, base: list[int]) -> list[list[int]]:
    """The list of every step, put together from what came and went."""
    shown, lists = set(base), []
    for step in generation.shift.steps:
        shown = shown - set(step.went) | set(step.came)
        lists.append(sorted(shown))
    return lists


def check(case: PulseCase, result: PulseResult) -> None:
    generation = run(case)
    shift = generation.shift
    assert generation.token_ids == result.tokens
    assert (shift.policy, shift.kept) == (type(case.shift()).__name__.lower(), len(result.base))
    assert lists_read(generation, result.base) == [list(step.slots) for step in result.steps]
    mean = sum(len(step.slots) for step in result.steps) / len(result.steps)
    assert shift.mean_visible * shift.num_visual == pytest.approx(mean, rel=1e-9)
    blur = 1e-5 / min(1.0, case.pulse.temperature)  # errors of logits grow likewise
    for step, truth in zip(shift.steps, result.steps, strict=True):
        assert (step.state, step.visible) == ("selected", len(truth.slots))
        assert step.mass == (pytest.approx(truth.mass, abs=blur) if case.is_tempered else None)
        if getattr(case.pulse, "importance", "plain") == "plain":
            assert [step.attention[slot] for slot in result.base] == pytest.approx(
                list(truth.importance.values()), abs=1e-5)
    if isinstance(case.pulse, PlainDyCoke):
        assert list(shift.trigger_steps) == result.selecting_steps
        assert [step.similarity for step in shift.steps[1:]] == pytest.approx(
            [step.similarity for step in result.steps[1:]], abs=1e-5)
    else:
        assert not shift.triggers and all(step.similarity is None for step in shift.steps)
    for entry, logits in zip(generation.logprobs, result.logits, strict=True):
        truth = logits.double().log_softmax(-1)
        scale = max(1.0, float(logits.abs().max()))
        for token_id, logprob in entry.top:
            assert logprob == pytest.approx(float(truth[token_id]), abs=2e-5 * scale)


@pytest.mark.parametrize("index", range(NUM_CASES))
def test_the_engine_does_what_the_plain_method_does(index):
    check(*solve(index))


@pytest.mark.parametrize("index", range(NUM_INTERNVL))
def test_so_it_does_on_internvl(index):
    check(*solve(index, draw_internvl))


@pytest.mark.parametrize("index", range(NUM_LAST_ROW))
def test_so_it_does_from_the_last_row_of_the_prompt_on(index):
    check(*solve(index, draw_last_row))


@pytest.mark.parametrize("index", range(NUM_DYCOKE))
def test_so_does_dycoke(index):
    check(*solve(index, draw_dycoke))


@pytest.mark.skipif("simt" not in ops.available_isas(), reason="built without the simt twins")
@pytest.mark.parametrize("index", range(NUM_CASES, NUM_CASES + NUM_EMULATED))
def test_so_do_the_gpu_kernels_on_the_host(index):
    with on_tier("simt"):
        check(*solve(index))


def test_the_cases_tell_something():
    """Budgets move, selections differ between steps, and all kinds of options occur."""
    solved = [solve(index) for index in range(NUM_CASES)]
    counts = [{len(step.slots) for step in result.steps} for _, result in solved]
    assert sum(len(sizes) > 1 for sizes in counts) >= 4
    assert sum(len({step.slots for step in result.steps}) > 1 for _, result in solved) >= 12
    for name in ("importance", "fixed_share", "anchor_layer"):
        assert len({getattr(case.pulse, name) for case, _ in solved}) > 1
    assert {case.reserve for case, _ in solved} == {"auto", "full"}
    numbers = [len(result.selecting_steps) / len(result.steps) for _, result in (
        solve(index, draw_dycoke) for index in range(NUM_DYCOKE))]
    assert sum(0.2 < share < 1 for share in numbers) >= 4
