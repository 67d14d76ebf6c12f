"""VisionPulse and DyCoke step by step, by computing the whole sequence again for every token.

Written from the method's definition: at a decode step the layers up to the anchor layer see the
base set; there, over all that the row sees,

    S_i = mean over heads of A_h(i)                     the importance of visual token i
    m_h = sum over visual tokens of A_h at temperature  the visual mass of head h
    K   = ceil(max over heads of m_h * N), from ceil(lo N) to floor(hi N), at least 1

and the layers above see the K tokens of the largest S, the lowest of those that are equal.

DyCoke, as docs/dynamic_budget.md says it: K is a fixed share of N, and a step whose S has a cosine
of at least the threshold with the S of the step before sees what that step saw.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from fractions import Fraction

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tests.shift.plain_model import PlainModel
from tests.shift.plain_policy import View
from tests.shift.plain_prompt import Prompt, without_last_row
from tests.shift.plain_pruning import PlainPruning
from tests.shift.plain_sequence import RowViews


@dataclass(frozen=True)
class PlainPulse:
    """Options; shares are decimals such as "0.05"."""

    anchor_layer: int
    temperature: float = 0.4
    min_share: str = "0.05"
    max_share: str = "0.1"
    fixed_share: str | None = None
    importance: str = "plain"
    apply_to_last_prefill_row: bool = False

    def bounds(self, num_base: int) -> tuple[int, int]:
        """The fewest and the most tokens of a step."""
        if self.fixed_share is not None:
            count = max(1, math.floor(Fraction(self.fixed_share) * num_base + Fraction(1, 2)))
            return count, count
        high = max(1, math.floor(Fraction(self.max_share) * num_base))
        return min(max(1, math.ceil(Fraction(self.min_share) * num_base)), high), high


@dataclass(frozen=True)
class PlainDyCoke:
    """Options of DyCoke; share is a decimal."""

    anchor_layer: int
    threshold: float = 0.9
    share: str = "0.3"
    temperature: float = 1.0


@dataclass(frozen=True)
class PulseStep:
    """One decode step.

    Attributes:
        slots: what the layers above the anchor saw. mass: of the neediest head.
        importance: by slot of the base set, whatever the budget.
        budget_margin: how far mass * N is from the next whole number that would change K.
        selection_gap: between the last importance that was taken and the next.
        similarity: DyCoke, with the step before, None for the first. selects: whether it chose.
    """

    slots: tuple[int, ...]
    mass: float
    importance: dict[int, float]
    budget_margin: float
    selection_gap: float
    logits: Tensor
    similarity: float | None = None
    selects: bool = True


def softmax(numbers: list[float]) -> list[float]:
    largest = max(numbers)
    powers = [math.exp(number - largest) for number in numbers]
    return [power / sum(powers) for power in powers]


def heads_over_base(logits: Tensor, seen: list[int], base_rows: list[int],
                    temperature: float) -> list[list[float]]:
    """Per head the shares of the base set's rows among all columns that are seen.

    logits: [num_heads, columns].
    """
    shares = []
    for head in logits.tolist():
        by_column = dict(zip(seen, softmax([head[j] / temperature for j in seen]), strict=True))
        shares.append([by_column[row] for row in base_rows])
    return shares


def choose(pulse: PlainPulse, base: list[int], plain: list[list[float]],
           tempered: list[list[float]]) -> tuple[list[int], float, dict[int, float], float, float]:
    """(slots, mass, importance, budget margin, selection gap) from the shares of every head."""
    ranked = tempered if pulse.importance == "tempered" else plain
    importance = {slot: sum(head[i] for head in ranked) / len(ranked)
                  for i, slot in enumerate(base)}
    mass = max(sum(head) for head in tempered)
    low, high = pulse.bounds(len(base))
    wanted = mass * len(base)
    count = min(max(math.ceil(wanted), low), high)
    is_open = low < high and low - 0.01 < wanted < high + 0.01
    margin = abs(wanted - round(wanted)) if is_open else math.inf
    order = sorted(base, key=lambda slot: (-importance[slot], slot))
    gap = math.inf if count == len(base) else (
        importance[order[count - 1]] - importance[order[count]])
    return sorted(order[:count]), mass, importance, margin, gap


def cosine(a: dict[int, float], b: dict[int, float]) -> float:
    dot = sum(a[slot] * b[slot] for slot in a)
    return dot / math.sqrt(sum(x * x for x in a.values()) * sum(x * x for x in b.values()))


class PlainPulseModel:
    """One prompt under one pruning decision and one set of options."""

    def __init__(self, model: PreTrainedModel, prompt: Prompt, pruning: PlainPruning | None,
                 pulse: PlainPulse | PlainDyCoke, reserve: str = "side") -> None:
        self.plain, self.pulse = PlainModel(model, prompt, pruning, None, reserve), pulse
        self.base = self.plain.sequence.base

    def views(self, slots: tuple[int, ...]) -> RowViews:
        """What a row sees in each layer when the layers above the anchor see `slots`."""
        anchor = self.pulse.anchor_layer
        return tuple(View(tuple(self.base) if layer <= anchor else slots)
                     for layer in range(self.plain.num_layers))

    def step(self, tokens: list[int], views: list[RowViews],
             before: PulseStep | None) -> tuple[PulseStep, RowViews]:
        """The last of `tokens` is fed; `views` are those of the tokens before it."""
        plain, anchor = self.plain, self.pulse.anchor_layer
        first = [*views, self.views(tuple(self.base))]
        traces = plain.forward(tokens, first)
        row = traces[0].output.shape[0] - 1
        seen = plain.sequence.visible(anchor, first)[row].nonzero().squeeze(1).tolist()
        shares = [heads_over_base(traces[anchor].logits[:, row], seen,
                                  plain.sequence.rows(self.base), temperature)
                  for temperature in (1.0, self.pulse.temperature)]
        slots, *rest = self._choice(before, *shares)
        shown = self.views(tuple(slots))
        output = plain.forward(tokens, [*views, shown])[-1].output[row]
        return PulseStep(tuple(slots), *rest[:4], plain.decoder.logits(output), *rest[4:]), shown

    def _choice(self, before: PulseStep | None, *shares: list[list[float]]) -> tuple:
        """The fields of a step but its logits."""
        if isinstance(self.pulse, PlainPulse):
            return (*choose(self.pulse, self.base, *shares), None, True)
        fixed = PlainPulse(self.pulse.anchor_layer, fixed_share=self.pulse.share)
        slots, mass, importance, margin, gap = choose(fixed, self.base, *shares)
        if before is None:
            return slots, mass, importance, margin, gap, None, True
        similarity = cosine(importance, before.importance)
        if similarity < self.pulse.threshold:
            return slots, mass, importance, margin, gap, similarity, True
        return before.slots, mass, importance, margin, math.inf, similarity, False


@dataclass(frozen=True)
class PulseResult:
    """A greedy answer; decode step l is steps[l - 1]. base: what the policy selects from.
    on_prompt: what the last row of the prompt selected."""

    tokens: list[int]
    logits: Tensor
    steps: list[PulseStep]
    base: list[int]
    on_prompt: tuple[PulseStep, ...] = ()

    def is_clear(self) -> bool:
        """Whether other arithmetic must come to the same decisions."""
        best, steps = self.logits.topk(2, dim=-1).values, (*self.on_prompt, *self.steps)
        return (float((best[:, 0] - best[:, 1]).min()) > 1e-3
                and min(step.budget_margin for step in steps) > 1e-2
                and min(step.selection_gap for step in steps) > 2e-5)

    @property
    def selecting_steps(self) -> list[int]:
        """Decode steps that chose, counted from 1."""
        return [number for number, step in enumerate(self.steps, 1) if step.selects]


@torch.inference_mode()
def pulse_answer(model: PreTrainedModel, prompt: Prompt, pruning: PlainPruning | None,
                 pulse: PlainPulse | PlainDyCoke, *, num_tokens: int,
                 reserve: str = "side") -> PulseResult:
    """`num_tokens` greedy tokens; the first comes from the prompt as it is, or, with
    `apply_to_last_prefill_row`, from its last token as if that were the first of the answer."""
    fed = prompt.ids[-1:] if getattr(pulse, "apply_to_last_prefill_row", False) else []
    pulsed = PlainPulseModel(model, without_last_row(prompt) if fed else prompt, pruning, pulse,
                             reserve)
    plain, logits, tokens, views, steps = pulsed.plain, [], [*fed], [], []
    if not fed:
        last = plain.forward([], [])[-1].output[plain.sequence.num_prompt - 1]
        logits.append(plain.decoder.logits(last))
        tokens.append(int(logits[0].argmax()))
    while len(logits) < num_tokens:
        step, shown = pulsed.step(tokens, views, steps[-1] if steps else None)
        steps.append(step)
        views.append(shown)
        logits.append(step.logits)
        tokens.append(int(step.logits.argmax()))
    return PulseResult(tokens[len(fed):], torch.stack(logits), steps[len(fed):], list(pulsed.base),
                       tuple(steps[:len(fed)]))


def everything(pulse: PlainPulse) -> PlainPulse:
    """The same options where every step reads the whole base set."""
    return replace(pulse, fixed_share="1")
