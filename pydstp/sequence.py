"""One request on its way: what it asks, where its cache rows are, what it has written."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import numpy as np
import torch

from pydstp.chat import EncodedPrompt, split_thinking
from pydstp.config import SamplingParams
from pydstp.generation import CancelToken, Generation, ImageInfo, Timings, TokenLogprob
from pydstp.image import ProcessedImage
from pydstp.sampling import not_finite, sample, token_logprob
from pydstp.selection import Progress
from pydstp.tokenizer import StreamDecoder


class AnswerText:
    """The text of an answer, token by token, up to the first stop string."""

    def __init__(self, decoder: StreamDecoder, stop: tuple[str, ...]) -> None:
        self._decoder = decoder
        self._stop = stop
        self._held = ""
        self.text = ""
        self.stop_string: str | None = None

    def push(self, token_id: int) -> str:
        """Add a token; returns the text that is now certain (it may be empty)."""
        return self._advance(self._decoder.push(token_id), is_last=False)

    def finish(self) -> str:
        """The end of the answer; returns what was held back."""
        if self.stop_string is not None:
            return ""
        return self._advance(self._decoder.finish(), is_last=True)

    def _advance(self, piece: str, *, is_last: bool) -> str:
        self._held += piece
        hits = [(self._held.find(stop), stop) for stop in self._stop if stop in self._held]
        if hits:
            position, self.stop_string = min(hits, key=lambda hit: hit[0])
            ready, self._held = self._held[:position], ""
        else:
            split = len(self._held) - (0 if is_last else self._possible_stop_len())
            ready, self._held = self._held[:split], self._held[split:]
        self.text += ready
        return ready

    def _possible_stop_len(self) -> int:
        """Characters at the end of the held text that could be the beginning of a stop string."""
        longest = max(map(len, self._stop), default=1) - 1
        for length in range(min(longest, len(self._held)), 0, -1):
            if any(stop.startswith(self._held[-length:]) for stop in self._stop):
                return length
        return 0


@dataclass(eq=False)
class Sequence:
    """A prepared request and its progress.

    Attributes:
        prompt: token ids of the whole prompt and where its pictures lie.
        images: one per picture of the prompt, in order.
        sampling: resolved parameters; max_new_tokens is set.
        eos_ids: tokens that end an answer.
        draw_key: (seed, request index) of the draws.
        progress: which visual tokens it asked to read, and what came of it.
        instruction_end: the prompt token that ends the user's words.
        instruction_ids: the words of the last message, where the pruning method looks at them.
        num_cached: leading tokens of the prompt that are in the cache already.
        seq_idx: the cache sequence, None while it waits for one.
        next_position: position of the next token on all axes (not the number of tokens: a
            picture takes fewer positions than tokens).
    """

    prompt: EncodedPrompt
    images: list[ProcessedImage]
    sampling: SamplingParams
    eos_ids: tuple[int, ...]
    draw_key: tuple[int, int]
    answer: AnswerText
    cancel: CancelToken = field(default_factory=CancelToken)
    progress: Progress = field(default_factory=Progress)
    instruction_end: int = 0
    instruction_ids: list[int] = field(default_factory=list)
    num_cached: int = 0
    seq_idx: int | None = None
    next_position: int = 0
    new_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    timings: Timings = field(default_factory=Timings)
    started: float = field(default_factory=time.perf_counter)
    first_token_at: float = 0.0
    last_token_at: float = 0.0

    def is_visual(self) -> torch.Tensor:
        """[num_prompt_tokens] bool on the host: True where a token is a part of a picture."""
        mask = torch.zeros(len(self.prompt.input_ids), dtype=torch.bool, device="cpu")
        for start, length in self.prompt.image_spans:
            mask[start:start + length] = True
        return mask

    @property
    def last_token(self) -> tuple[int, int]:
        """The token that the next decode step takes, and its position; before any of the answer is
        written, the last of the prompt, which is text."""
        if self.new_ids:
            return self.new_ids[-1], self.next_position
        return self.prompt.input_ids[-1], self.next_position - 1

    @property
    def takes_best(self) -> bool:
        """Whether the next token is that of the largest logit and nothing else is asked."""
        params = self.sampling
        return (params.temperature == 0.0 and params.repetition_penalty == 1.0
                and params.presence_penalty == 0.0 and params.logprobs is None
                and len(self.new_ids) >= params.min_new_tokens)

    def choose(self, found: np.ndarray) -> str:
        """Write the next token; returns certain text.

        found: logits [vocab_size] float32, or a number: the token that was chosen from them, -1
            where they are not finite.
        """
        params = self.sampling
        blocked = list(self.eos_ids) if len(self.new_ids) < params.min_new_tokens else []
        token_id = int(found) if found.ndim == 0 else sample(
            found, params, prompt_ids=self.prompt.input_ids, new_ids=self.new_ids,
            blocked_ids=blocked, draw_key=self.draw_key)
        if token_id < 0:
            raise not_finite("NaN or infinity")
        if params.logprobs is not None:
            self.logprobs.append(token_logprob(found, token_id, params.logprobs))
        self.new_ids.append(token_id)
        self._note_time()
        piece = self.answer.push(token_id)
        self._finish_if_done(token_id)
        return piece + self.answer.finish() if self.finish_reason else piece

    def finish_cancelled(self) -> None:
        """End the request where it stands; changes nothing if it has ended."""
        if self.finish_reason is None:
            self.finish_reason = "cancelled"
            self.answer.finish()
            self.timings.total_ms = 1e3 * (time.perf_counter() - self.started)

    def result(self) -> Generation:
        """The finished request as its caller sees it."""
        reasoning, text = split_reasoning(self.prompt.text, self.answer.text)
        num_visual = sum(length for _, length in self.prompt.image_spans)
        return Generation(
            text=text, reasoning=reasoning, token_ids=self.new_ids,
            finish_reason=self.finish_reason, stop_reason=self.stop_reason,
            prompt_tokens=len(self.prompt.input_ids), cached_tokens=self.num_cached,
            visual_tokens=num_visual, visible_tokens=self.progress.kept,
            resident_tokens=self.progress.resident,
            shift=self.progress.report(self.timings.longest_gap_ms),
            images=tuple(ImageInfo(image.original_size, image.resized, image.num_tokens,
                                   image.shrunk, image.num_tiles) for image in self.images),
            logprobs=self.logprobs if self.sampling.logprobs is not None else None,
            seed=self.draw_key[0] if self.sampling.temperature else None, timings=self.timings)

    def _note_time(self) -> None:
        now = time.perf_counter()
        self.timings.total_ms = 1e3 * (now - self.started)
        if len(self.new_ids) == 1:
            self.first_token_at = now
            self.timings.time_to_first_token_ms = 1e3 * (now - self.started)
        else:
            gap_ms = 1e3 * (now - self.last_token_at)
            self.timings.longest_gap_ms = max(self.timings.longest_gap_ms, gap_ms)
            self.timings.decode_ms = 1e3 * (now - self.first_token_at)
        self.last_token_at = now

    def _finish_if_done(self, token_id: int) -> None:
        if self.answer.stop_string is not None:
            self.finish_reason, self.stop_reason = "stop", self.answer.stop_string
        elif token_id in self.eos_ids and not self.sampling.ignore_eos:
            self.finish_reason, self.stop_reason = "stop", token_id
        elif len(self.new_ids) >= self.sampling.max_new_tokens:
            self.finish_reason = "length"


def split_reasoning(prompt: str, answer: str) -> tuple[str | None, str]:
    """(reasoning, answer), where the prompt or the answer itself opens a `<think>` part.

    An answer that ends before the part is closed is all reasoning.
    """
    if prompt.rstrip().endswith("<think>"):
        return split_thinking("<think>" + answer)
    return split_thinking(answer) if answer.lstrip().startswith("<think>") else (None, answer)
