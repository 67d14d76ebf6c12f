"""Seeded random requests with their true answers.

    solved = solve(index)              # the same for the same index; tenths of a second
    solved.case, solved.result         # what to ask, what must come out

Decisions of a solved case are never close calls: no similarity within 1e-4 of its limit, no logit
within 1e-3 of the largest, no score within 1e-5 of the last one chosen. So tokens, lists and
trigger steps must come out equal, and similarities and logits within the tolerance of the
arithmetic. There is always a trigger, and the tokens are not those of the base method alone.

What the case asks for, in public calls:

    with Engine(solved.case.path(), dtype="float32") as engine:
        generation = engine.generate(
            case.images(), case.prompt, SamplingParams(**case.sampling_options()),
            pruning=PruningConfig(**case.pruning_options()),
            shift=DSTP(**case.shift_options()), reserve=case.reserve, log_steps=True)
    generation.token_ids          == result.tokens
    generation.shift.trigger_steps == result.trigger_steps
    generation.shift.kept          == len(result.base)      (pseudo tokens included)
    generation.shift.mean_visible  ~  result.mean_visible   (as a count)
    generation.shift.steps[i].similarity ~  result.similarities[i]
    generation.shift.steps[i].redone     == (result.steps[i].policy.outcome == "redo")
    the list after step i                == result.steps[i].policy.after.slots
    forwards_per_token: passes of the decode steps are len(result.steps) + len(result.redone_steps)

The method "given" keeps slots that the case lists; in public terms a plug-in:

    @register_pruner("given")
    @dataclass(frozen=True)
    class Given(Pruner):
        slots: tuple[int, ...] = ()
        layer: int = 0
        default_quota = "global"

        @property
        def act_before(self) -> int:
            return self.layer

        def select(self, tokens: VisualTokens) -> Tensor:
            return torch.tensor(self.slots)
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from tests.checkpoints import reference_model, tiny_qwen3_vl
from tests.engine.oracle import picture, prompt_inputs, user
from tests.shift.plain_model import PlainResult, decode, never
from tests.shift.plain_policy import PlainDSTP
from tests.shift.plain_prompt import Prompt, encode_prompt, vision_statistics
from tests.shift.plain_pruning import PlainPruning, divprune, fastv, visionzip

CHECKPOINTS = (
    (),
    (("tied", False), ("wide_queries", True)),
    (("num_layers", 6),),
    (("moe", True),),
)
METHODS = ("given", "fastv", "divprune", "visionzip")
APPLIES = ("next", "redo", "early")
SWAPS = ("cpts", "hard", "cpts", "merge", "cpts", "full", "add")
PROMPTS = ("What is in the picture?", "Follow the arrows for 4 steps.", "Look.",
           "Name the third cell of row 2, then say which of the pictures holds the answer.")

SIMILARITY_MARGIN, LOGIT_MARGIN, SCORE_MARGIN = 1e-4, 1e-3, 1e-5
MIN_DISTINCT_TOKENS = 5

# Where the search of each case may begin: draws before it were found wanting. It only saves time.
KNOWN_DRAWS = (
    0, 0, 1, 1, 4, 2, 0, 0, 0, 0, 0, 4, 0, 0, 2, 1, 0, 1, 2, 2,
    2, 1, 0, 2, 2, 1, 2, 1, 0, 0, 0, 5, 1, 1, 0, 1, 0, 0, 0, 1,
    1, 2, 2, 0, 0, 2, 1, 3, 0, 1, 1, 0, 5, 1, 0, 0, 6, 0, 0, 0,
    1, 0, 0, 0, 1, 6, 0, 1, 25, 0, 1, 0, 4, 1, 0, 0, 0, 0, 0, 0,
)


@dataclass(frozen=True)
class Case:
    """A request.

    Attributes:
        checkpoint: keyword arguments of tiny_qwen3_vl, as pairs.
        pictures: (width, height, seed) each. num_tokens: to generate.
        method: one of METHODS. ratio: retention; None for "given", which has `slots`.
        layer: the pruning point.
        reserve: as in the public call.
    """

    checkpoint: tuple[tuple[str, Any], ...]
    pictures: tuple[tuple[int, int, int], ...]
    prompt: str
    num_tokens: int
    method: str
    ratio: float | None
    slots: tuple[int, ...]
    layer: int
    dstp: PlainDSTP
    reserve: str

    def path(self) -> Path:
        return tiny_qwen3_vl(**dict(self.checkpoint))

    def images(self) -> list[Image.Image]:
        return [picture(*size_and_seed) for size_and_seed in self.pictures]

    def sampling_options(self) -> dict[str, Any]:
        """Of SamplingParams."""
        return {"temperature": 0.0, "repetition_penalty": 1.0, "max_new_tokens": self.num_tokens,
                "ignore_eos": True}

    def pruning_options(self) -> dict[str, Any]:
        """Of PruningConfig."""
        options = {"name": self.method}
        if self.method == "given":
            return options | {"num_kept": len(self.slots), "slots": self.slots,
                              "layer": self.layer}
        options["retention_ratio"] = self.ratio
        return options | ({"layer": self.layer} if self.method == "fastv" else {})

    def shift_options(self) -> dict[str, Any]:
        """Of DSTP."""
        options = asdict(self.dstp)
        if not isinstance(self.dstp.monitor_layers, str):
            options["monitor_layers"] = list(self.dstp.monitor_layers)
        return options


@dataclass(frozen=True)
class Solved:
    """A case, what its method decides, and its answer."""

    case: Case
    pruning: PlainPruning
    result: PlainResult


@cache
def solve(index: int) -> Solved:
    """Case number `index`: the first of its random draws that is clear and telling."""
    known = KNOWN_DRAWS[index] if index < len(KNOWN_DRAWS) else 0
    for attempt in range(known, known + 100):
        rng = random.Random(f"{index} {attempt}")
        case = draw(rng, index)
        prompt, pruning = prepare(case)
        solved = settle(case, prompt, pruning, rng)
        if solved is not None:
            return solved
    raise AssertionError(f"case {index}: no draw is telling and clear")


def solved_cases(count: int, start: int = 0) -> Iterator[Solved]:
    return (solve(index) for index in range(start, start + count))


# Drawing

def draw(rng: random.Random, index: int) -> Case:
    """A random request ("given" without slots yet); model, method, swap and `applies` go round."""
    method = METHODS[index % len(METHODS)]
    checkpoint = CHECKPOINTS[(index + index // len(METHODS)) % len(CHECKPOINTS)]
    num_layers = dict(checkpoint).get("num_layers", 4)
    layer = {"given": rng.randrange(num_layers), "fastv": rng.randint(1, 3)}.get(method, 0)
    dstp = draw_dstp(rng, num_layers, index)
    reserves = ["side"] if dstp.applies == "early" else ["side", "side", "lazy", "deferred"]
    reserves += [] if method == "visionzip" else ["full"]  # pseudo tokens need their own stream
    return Case(
        checkpoint=checkpoint, pictures=draw_pictures(rng), prompt=rng.choice(PROMPTS),
        num_tokens=rng.randint(14, 22), method=method, ratio=rng.choice((0.2, 0.33, 0.5, 0.67)),
        slots=(), layer=layer, dstp=dstp, reserve=rng.choice(reserves))


def draw_pictures(rng: random.Random) -> tuple[tuple[int, int, int], ...]:
    sizes = [(rng.randint(60, 170), rng.randint(60, 170)) for _ in range(rng.choice((1, 1, 2, 3)))]
    return tuple((*size, rng.randrange(1000)) for size in sizes)


def draw_dstp(rng: random.Random, num_layers: int, index: int) -> PlainDSTP:
    some_layers = tuple(sorted(rng.sample(range(num_layers), 2)))
    swap = SWAPS[index // len(METHODS) % len(SWAPS)]
    return PlainDSTP(
        expand_steps=rng.randint(1, 6),
        monitor_layers=rng.choice(("mid", "mid", "all", "post_prune", "last", some_layers)),
        norm=rng.choice(("per_head_subset", "per_head_subset", "global_then_mean")),
        anchor=rng.choice(("last", "last", "instruction_end")),
        applies=APPLIES[index % len(APPLIES)],
        retrigger=rng.choice(("off", "off", "extend", "reselect")),
        swap=swap,
        max_returned=rng.randint(1, 4) if swap == "add" else None,
        trigger=rng.choice(("risd", "risd", "risd", "random", "avg", "every")),
        trigger_rate=rng.choice((0.1, 0.3)),
        scores=rng.choice(("separate", "separate", "joint")),
        seed=rng.randrange(2**63))


# Solving

@torch.inference_mode()
def prepare(case: Case) -> tuple[Prompt, PlainPruning]:
    """The prompt's rows, and what the method decides."""
    model = reference_model(case.path())
    images = case.images()
    inputs = prompt_inputs(case.path(), [user(case.prompt, len(images))], images)
    prompt = encode_prompt(model, inputs)
    if case.method == "fastv":
        return prompt, fastv(model, prompt, case.ratio, case.layer)
    if case.method == "divprune":
        return prompt, divprune(prompt, case.ratio)
    if case.method == "visionzip":
        return prompt, visionzip(prompt, vision_statistics(model, inputs), case.ratio)
    rng = random.Random(repr(case))
    originals = range(len(prompt.visual_rows))
    count = max(1, round(case.ratio * len(originals)))
    return prompt, PlainPruning(tuple(sorted(rng.sample(originals, count))), case.layer)


def settle(case: Case, prompt: Prompt, pruning: PlainPruning, rng: random.Random) -> Solved | None:
    """The answer, with a threshold between observed similarities; None if there is none to use."""
    if case.method == "given":
        case = replace(case, slots=pruning.kept, ratio=None)
    if pruning.margin < SCORE_MARGIN:
        return None
    quiet = answer(replace(case, dstp=never(case.dstp)), prompt, pruning)
    for threshold in thresholds(case, quiet, rng):
        with_threshold = replace(case, dstp=replace(case.dstp, threshold=threshold))
        result = answer(with_threshold, prompt, pruning)
        if is_clear(result) and is_telling(result, quiet):
            return Solved(with_threshold, pruning, result)
    return None


def thresholds(case: Case, quiet: PlainResult, rng: random.Random) -> list[float]:
    """Some numbers between neighbours among the similarities of a run without swaps."""
    if case.dstp.trigger != "risd":
        return [case.dstp.threshold]
    values = sorted(quiet.similarities)
    between = [(low + high) / 2 for low, high in zip(values, values[1:], strict=False)
               if high - low > 4 * SIMILARITY_MARGIN]
    return rng.sample(between, min(5, len(between)))


def answer(case: Case, prompt: Prompt, pruning: PlainPruning) -> PlainResult:
    reserve = "full" if case.reserve == "full" else "side"
    return decode(reference_model(case.path()), prompt, pruning, case.dstp, reserve=reserve,
                  num_tokens=case.num_tokens)


def is_clear(result: PlainResult) -> bool:
    """Whether other arithmetic must come to the same decisions."""
    steps = [step.policy for step in result.steps]
    return (result.smallest_logit_gap() > LOGIT_MARGIN
            and min(step.margin for step in steps) > SIMILARITY_MARGIN
            and min(step.selection_gap for step in steps) > SCORE_MARGIN)


def is_telling(result: PlainResult, quiet: PlainResult) -> bool:
    """Whether the tokens show that something was swapped."""
    return result.tokens != quiet.tokens and len(set(result.tokens)) >= MIN_DISTINCT_TOKENS
