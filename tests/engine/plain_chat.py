"""A chat of the engine, and the same conversation told to the plain model of tests/shift.

    talk = Conversation(engine, path, pruning=..., shift=..., reserve="lazy")
    talk.send("What is it?", [picture], 3)
    answer = talk.send("And now?", [], 10)
    truth = talk.plain_answer(plain_pruning, monkeypatch)     # of the last turn

The plain model computes every row of the conversation again. Rows of an earlier answer that the
engine still holds are told apart by what was listed when they were written.
"""

from __future__ import annotations

import math
from dataclasses import asdict
from functools import partial
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from pydstp import DSTP, Engine, Generation, PruningConfig, SamplingParams
from pydstp.kv_cache import PSEUDO
from tests.checkpoints import reference_model
from tests.engine.oracle import prompt_inputs
from tests.shift import plain_model
from tests.shift.plain_model import PlainResult
from tests.shift.plain_policy import PlainDSTP
from tests.shift.plain_prompt import Prompt, encode_prompt, vision_statistics
from tests.shift.plain_pruning import PlainPruning, budget, divprune, fastv_row, top, visionzip
from tests.shift.plain_sequence import PlainSequence

Pictures = list[Image.Image]


def sampling(num_tokens: int) -> SamplingParams:
    return SamplingParams(temperature=0.0, repetition_penalty=1.0, max_new_tokens=num_tokens,
                          ignore_eos=True, logprobs=5)


class Retained(PlainSequence):
    """A conversation in which some rows of earlier answers saw other slots than the base set."""

    def __init__(self, *arguments: object, listed: dict[int, list[int]]) -> None:
        super().__init__(*arguments)
        self.listed = listed

    def _among_prompt_rows(self, pruned: bool) -> Tensor:
        seen = super()._among_prompt_rows(pruned)
        everything = self.rows([*range(self.num_originals), *self.pseudo])
        for row, slots in self.listed.items() if pruned else ():
            seen[row, everything] = False
            seen[row, self.rows(slots)] = True
        return seen


class Conversation:
    """Turns of a chat whose steps are logged."""

    def __init__(self, engine: Engine, path: Path, *, pruning: PruningConfig, shift: DSTP,
                 reserve: str) -> None:
        self.path, self.pruning, self.shift, self.reserve = path, pruning, shift, reserve
        self.chat, self._cache = engine.chat(pruning=pruning, shift=shift,
                                             reserve=reserve), engine._cache
        self.chat._selection = self.chat._selection.with_changes(log_steps=True)
        self.pictures: list[Pictures] = []
        self.answers: list[Generation] = []
        self._lists: dict[int, list[int]] = {}  # row of an answer -> the slots it read

    def send(self, prompt: str, pictures: Pictures, num_tokens: int) -> Generation:
        answer = self.chat.send(prompt, pictures, sampling(num_tokens))
        self.pictures.append(pictures)
        self.answers.append(answer)
        shift, s = self._cache.shift, self.chat._seq_idx
        shown = set(shift.base_indices[s, :int(shift.base_len[s])].tolist())
        self._lists = {row: slots for row, slots in self._lists.items()
                       if row < answer.cached_tokens}  # the others were run again, as a prompt
        for step, row in zip(answer.shift.steps, range(answer.prompt_tokens, 1 << 20),
                             strict=False):
            shown = shown - set(step.went) | set(step.came)
            self._lists[row] = sorted(shown)
        return answer

    def prompt(self, num_turns: int) -> tuple[Prompt, dict]:
        """What the model was asked in turn `num_turns`, as transformers' own files tell it."""
        messages = self.chat.messages[:2 * num_turns - 1]
        pictures = [picture for some in self.pictures[:num_turns] for picture in some]
        inputs = prompt_inputs(self.path, messages, pictures)
        return encode_prompt(reference_model(self.path), inputs), inputs

    def plain_pruning(self, ratio: float) -> PlainPruning:
        """What the method keeps of all pictures so far: those of a turn when the turn came."""
        prompt, inputs = self.prompt(len(self.answers))
        if self.pruning.name == "divprune":
            return divprune(prompt, ratio)
        if self.pruning.name == "visionzip":
            return visionzip(prompt, vision_statistics(reference_model(self.path), inputs), ratio)
        layer, kept, margin, start = self.pruning.pruner.layer, [], math.inf, 0
        for turn in range(1, len(self.answers) + 1):
            prompt, _ = self.prompt(turn)
            row = fastv_row(reference_model(self.path), prompt, layer)[start:]
            if len(row):
                chosen, gap = top(row, budget(ratio, len(row)))
                kept += [start + index for index in chosen]
                start, margin = start + len(row), min(margin, gap)
        return PlainPruning(tuple(kept), layer, margin=margin)

    def plain_answer(self, pruning: PlainPruning, monkeypatch: pytest.MonkeyPatch) -> PlainResult:
        """The last answer."""
        prompt, _ = self.prompt(len(self.answers))
        listed = {row: self._plain_slots(slots) for row, slots in self._lists.items()
                  if row < len(prompt.ids)}
        monkeypatch.setattr(plain_model, "PlainSequence", partial(Retained, listed=listed))
        options = asdict(self.shift)
        return plain_model.decode(
            reference_model(self.path), prompt, pruning, PlainDSTP(**options),
            reserve="full" if self.reserve == "full" else "side",
            num_tokens=len(self.answers[-1].token_ids))

    def _plain_slots(self, slots: list[int]) -> list[int]:
        """There, merged tokens come behind all originals; here, behind those of their turn."""
        s = self.chat._seq_idx
        is_pseudo = self._cache.shift.base_mask[s, :int(self._cache.visual_len[s])] == PSEUDO
        names = torch.empty(len(is_pseudo), dtype=torch.int64)
        names[~is_pseudo] = torch.arange(int((~is_pseudo).sum()))
        names[is_pseudo] = torch.arange(int(is_pseudo.sum())) + int((~is_pseudo).sum())
        return names[slots].tolist()


def assert_same_answer(answer: Generation, truth: PlainResult) -> None:
    """Tokens and decisions equal, numbers within the tolerance of the arithmetic."""
    shift = answer.shift
    assert shift.kept == len(truth.base)
    assert answer.token_ids == truth.tokens
    assert list(shift.trigger_steps) == truth.trigger_steps
    assert [step.similarity for step in shift.steps] == pytest.approx(
        truth.similarities, abs=1e-5)
    assert shift.mean_visible * shift.num_visual == pytest.approx(truth.mean_visible, rel=1e-6)
    for entry, logits in zip(answer.logprobs, truth.logits, strict=True):
        expected = logits.double().log_softmax(-1)
        scale = max(1.0, float(logits.abs().max()))
        for token_id, logprob in entry.top:
            assert logprob == pytest.approx(float(expected[token_id]), abs=2e-5 * scale)
