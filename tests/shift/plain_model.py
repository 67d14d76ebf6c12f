"""DSTP from end to end, by computing the whole sequence again for every token.

    prompt = encode_prompt(model, prompt_inputs(path, messages, images))
    pruning = fastv(model, prompt, ratio=0.33, layer=2)
    result = decode(model, prompt, pruning, PlainDSTP(threshold=0.7, expand_steps=4),
                    reserve="side", num_tokens=12)

Reserve modes "lazy" and "deferred" give the numbers of "side". Without pruning pass None.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tests.shift.plain_decoder import LayerTrace, PlainDecoder
from tests.shift.plain_policy import PlainDSTP, PlainPolicy, PolicyStep, View
from tests.shift.plain_prompt import Prompt
from tests.shift.plain_pruning import PlainPruning
from tests.shift.plain_sequence import PlainSequence, RowViews

NEVER = PlainDSTP(trigger="never")


@dataclass(frozen=True)
class DecodeStep:
    """Decode step l >= 1, which feeds the l-th generated token.

    Attributes:
        policy: similarity, outcome, views before, during and after the step.
        vector: slot -> monitored attention over S0, of the first pass.
        scores: slot -> attention over R (S0 and R when joint), of the first pass; as they would be
            scored, whether or not the step triggers.
        views: per layer, what the committed row sees.
        logits: [vocab_size] of the committed row.
    """

    policy: PolicyStep
    vector: dict[int, float]
    scores: dict[int, float]
    views: tuple[View, ...]
    logits: Tensor


@dataclass(frozen=True)
class PlainResult:
    """A greedy answer.

    Attributes:
        tokens: generated; end tokens are not looked at. logits: [len(tokens), vocab_size].
        steps: one less than tokens; decode step l is steps[l - 1].
        anchor: slot -> attention over S0.
        layer: the pruning point.
        kept: originals kept as they are; base: S0; reserve: R; merge_slot: see PlainSequence.
    """

    tokens: list[int]
    logits: Tensor
    steps: list[DecodeStep]
    anchor: dict[int, float]
    layer: int
    kept: tuple[int, ...]
    base: tuple[int, ...]
    reserve: tuple[int, ...]
    merge_slot: int

    @property
    def similarities(self) -> list[float]:
        return [step.policy.similarity for step in self.steps]

    @property
    def trigger_steps(self) -> list[int]:
        return [i for i, step in enumerate(self.steps, 1) if step.policy.fired]

    @property
    def redone_steps(self) -> list[int]:
        return [i for i, step in enumerate(self.steps, 1) if step.policy.outcome == "redo"]

    @property
    def visible(self) -> list[tuple[int, ...]]:
        """The slots each committed row saw above the last monitored layer."""
        return [step.policy.used.slots for step in self.steps]

    @property
    def mean_visible(self) -> float:
        """Slots that committed rows saw, averaged over decode steps and over the layers from the
        pruning point on (a count; pseudo tokens and the merge slot count as one each)."""
        counts = [len(view.slots) for step in self.steps for view in step.views[self.layer :]]
        return sum(counts) / len(counts)

    @property
    def forwards_per_step(self) -> float:
        return 1 + len(self.redone_steps) / len(self.steps)

    def smallest_logit_gap(self) -> float:
        """Between the token taken and the next best one."""
        best = self.logits.topk(2, dim=-1).values
        return float((best[:, 0] - best[:, 1]).min())


class PlainModel:
    """One prompt under one pruning decision and one set of options."""

    def __init__(self, model: PreTrainedModel, prompt: Prompt, pruning: PlainPruning | None,
                 dstp: PlainDSTP | None, reserve: str) -> None:
        if pruning is None:
            pruning = PlainPruning(tuple(range(len(prompt.visual_rows))))
        self.decoder, self.dstp = PlainDecoder(model), dstp or NEVER
        self.sequence = PlainSequence(prompt, pruning, reserve)
        self.num_layers = self.decoder.num_layers
        self.monitored = self.dstp.layers(self.num_layers, pruning.layer)
        heads = range(self.decoder.config.num_attention_heads)
        self.heads = list(heads if self.dstp.heads == "all" else self.dstp.heads)

    def forward(self, tokens: list[int], views: list[RowViews]) -> list[LayerTrace]:
        """All rows through all layers; `tokens` were generated and see `views`."""
        sequence, prompt = self.sequence, self.sequence.prompt
        x = torch.cat([prompt.x, torch.zeros(sequence.num_pseudo, prompt.x.shape[1]),
                       self.decoder.embed(tokens)])

        def enter(layer: int, x: Tensor) -> Tensor:
            if layer != sequence.pruning.layer:
                return x
            x = x.clone()
            x[sequence.num_prompt : sequence.num_fixed] = sequence.merged(x[prompt.visual_rows])
            return x

        return self.decoder.run(
            x, sequence.positions(len(tokens)), lambda layer: sequence.visible(layer, views),
            deepstack=sequence.deepstack(len(tokens)), enter=enter,
            averages=[sequence.rows(slots) for slots in sequence.averages(views)])

    def monitored_vector(self, traces: list[LayerTrace], row: int,
                         views: RowViews) -> dict[int, float]:
        """slot of S0 -> attention of the row: mean over heads, then over monitored layers."""
        total = dict.fromkeys(self.sequence.base, 0.0)
        for layer in self.monitored:
            counted = self._listed(layer, views[layer])
            counted = [slot for slot in self.sequence.base if slot in counted]
            columns = self.sequence.rows(counted)
            if self.dstp.norm == "per_head_subset":
                probs = traces[layer].logits[:, row, columns].softmax(-1)
            else:
                probs = traces[layer].probs[:, row, columns]
            for slot, value in zip(counted, probs[self.heads].mean(0).tolist(), strict=True):
                total[slot] += value / len(self.monitored)
        return total

    def scores(self, traces: list[LayerTrace], row: int) -> dict[int, float]:
        """slot of R (of S0 and R when joint) -> attention restricted to these, averaged alike."""
        sequence = self.sequence
        slots = sorted([*sequence.reserve, *(sequence.base if self.dstp.scores == "joint" else [])])
        columns, total = sequence.rows(slots), dict.fromkeys(slots, 0.0)
        for layer in self.monitored:
            probs = traces[layer].logits[:, row, columns].softmax(-1)
            for slot, value in zip(slots, probs[self.heads].mean(0).tolist(), strict=True):
                total[slot] += value / len(self.monitored)
        return total

    def _listed(self, layer: int, view: View) -> Iterable[int]:
        pruned = layer >= self.sequence.pruning.layer
        return view.slots if pruned else range(self.sequence.num_originals)

    def every_layer(self, view: View) -> RowViews:
        return (view,) * self.num_layers

    def committed(self, step: PolicyStep) -> RowViews:
        """What the row of a step sees in each layer."""
        if self.dstp.applies != "early":
            return self.every_layer(step.used)
        last = max(self.monitored)
        return tuple(step.before if layer <= last else step.used
                     for layer in range(self.num_layers))

    def anchor_row(self) -> int:
        prompt = self.sequence.prompt
        return prompt.content_end if self.dstp.anchor == "instruction_end" else len(prompt.ids) - 1

    def policy(self, anchor: dict[int, float]) -> PlainPolicy:
        sequence = self.sequence
        return PlainPolicy(self.dstp, sequence.base, sequence.reserve, anchor,
                           pseudo=sequence.pseudo, merge_slot=sequence.merge_slot)


@torch.inference_mode()
def decode(model: PreTrainedModel, prompt: Prompt, pruning: PlainPruning | None,
           dstp: PlainDSTP | None, *, reserve: str = "side", num_tokens: int) -> PlainResult:
    """`num_tokens` greedy tokens."""
    plain = PlainModel(model, prompt, pruning, dstp, reserve)
    sequence, head = plain.sequence, plain.decoder.logits
    traces = plain.forward([], [])
    base_view = plain.every_layer(View(tuple(sequence.base)))
    anchor = plain.monitored_vector(traces, plain.anchor_row(), base_view)
    policy = plain.policy(anchor)
    logits = [head(traces[-1].output[sequence.num_prompt - 1])]
    tokens, views, steps = [int(logits[0].argmax())], [], []
    while len(tokens) < num_tokens:
        step = _step(plain, policy, tokens, views)
        steps.append(step)
        views.append(step.views)
        logits.append(step.logits)
        tokens.append(int(step.logits.argmax()))
    return PlainResult(
        tokens, torch.stack(logits), steps, anchor, layer=sequence.pruning.layer,
        kept=sequence.pruning.kept, base=tuple(sequence.base), reserve=tuple(sequence.reserve),
        merge_slot=sequence.merge_slot)


def _step(plain: PlainModel, policy: PlainPolicy, tokens: list[int],
          views: list[RowViews]) -> DecodeStep:
    """The last of `tokens` is fed; `views` are those of the tokens before it."""
    first_views = plain.every_layer(policy.view)
    traces = plain.forward(tokens, [*views, first_views])
    row = traces[0].output.shape[0] - 1
    vector = plain.monitored_vector(traces, row, first_views)
    scores = plain.scores(traces, row)
    step = policy.step(vector, scores)
    committed = plain.committed(step)
    if committed != first_views:  # redone, or its upper layers already see more
        traces = plain.forward(tokens, [*views, committed])
    return DecodeStep(step, vector, scores, committed,
                      plain.decoder.logits(traces[-1].output[row]))


def never(dstp: PlainDSTP | None) -> PlainDSTP:
    """The same options without a trigger: what the base method alone would do."""
    return replace(dstp or NEVER, trigger="never")
