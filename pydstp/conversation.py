"""A chat that keeps its keys and values between turns."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import Any

from pydstp.config import SamplingParams
from pydstp.errors import CancelledError, PydstpError
from pydstp.generation import CancelToken, Generation
from pydstp.kv_cache import KVCache
from pydstp.preparation import Preparation
from pydstp.scheduler import Scheduler
from pydstp.sequence import Sequence


class Chat:
    """Turns of one conversation; made by `Engine.chat`.

    Each turn renders the whole history with the chat template and runs only what the cache does
    not hold already, so its answer is that of a fresh run of the same history. A turn that fails
    or is cancelled leaves the conversation as it was before.

    Attributes:
        messages: the history, as chat messages (reasoning of earlier turns is left out).
    """

    def __init__(self, preparation: Preparation, scheduler: Scheduler, cache: KVCache,
                 system: str | None) -> None:
        self._preparation = preparation
        self._scheduler = scheduler
        self._cache = cache
        self._seq_idx: int | None = scheduler.acquire(CancelToken(), is_chat=True)
        self._cached_ids: list[int] = []
        self._images: list[Any] = []
        self._turn = 0
        self.messages: list[dict[str, Any]] = []
        if system is not None:
            self.messages.append({"role": "system", "content": system})

    def send(self, prompt: str, image: Any = None, sampling: SamplingParams | None = None, *,
             cancel: CancelToken | None = None) -> Generation:
        """Say something, with pictures if wanted, and get the answer.

        Arguments and errors are those of `Engine.generate` for a single prompt.
        """
        turn = self.stream(prompt, image, sampling, cancel=cancel)
        for _ in turn:
            pass
        return turn.generation

    def stream(self, prompt: str, image: Any = None, sampling: SamplingParams | None = None, *,
               cancel: CancelToken | None = None) -> Turn:
        """As `send`, piece by piece; `generation` on the result holds the answer at the end."""
        if self._seq_idx is None:
            raise PydstpError("chat: expected an open chat, got one that was closed")
        return Turn(self, prompt, image, sampling, cancel)

    def close(self) -> None:
        """Give the cache sequence back; calling it again changes nothing."""
        if self._seq_idx is not None:
            self._scheduler.release(self._seq_idx)
            self._seq_idx = None

    def __enter__(self) -> Chat:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _prepare(self, message: dict[str, Any], images: list[Any],
                 sampling: SamplingParams | None, cancel: CancelToken | None) -> Sequence:
        seq = self._preparation.request([*self.messages, message], self._images + images,
                                        sampling, cancel, self._turn)
        seq.seq_idx = self._seq_idx
        seq.num_cached = _shared_len(self._cached_ids, seq)
        self._rewind(seq.num_cached)
        return seq

    def _rewind(self, num_tokens: int) -> None:
        self._cache.rewind(self._seq_idx, self._cache.mark_at(self._seq_idx, num_tokens))
        self._cached_ids = self._cached_ids[:num_tokens]

    def _run(self, message: dict[str, Any], images: list[Any], sampling: SamplingParams | None,
             cancel: CancelToken | None) -> Iterator[str | Generation]:
        """Yield the pieces of one turn, then its `Generation`; keep the turn if it ends well."""
        seq = self._prepare(message, images, sampling, cancel)
        try:
            with closing(self._scheduler.run([seq])) as pieces:
                for _, piece in pieces:
                    yield piece
            generation = seq.result()
            if generation.finish_reason == "cancelled":
                raise CancelledError("the turn was cancelled", generation)
        except BaseException:
            self._rewind(seq.num_cached)
            raise
        # The last token was written but never fed back, so it has no row in the cache.
        self._cached_ids = seq.prompt.input_ids + seq.new_ids[:-1]
        self._images += images
        self._turn += 1
        self.messages += [message, {"role": "assistant", "content": generation.text}]
        yield generation


class Turn:
    """Pieces of one answer of a chat as they become certain."""

    def __init__(self, chat: Chat, prompt: str, image: Any, sampling: SamplingParams | None,
                 cancel: CancelToken | None) -> None:
        images = [] if image is None else image
        images = list(images) if isinstance(images, list | tuple) else [images]
        content = [{"type": "image"} for _ in images] + [{"type": "text", "text": prompt}]
        message = {"role": "user", "content": content if images else prompt}
        self._pieces = chat._run(message, images, sampling, cancel)
        self.generation: Generation | None = None

    def __iter__(self) -> Turn:
        return self

    def __next__(self) -> str:
        for piece in self._pieces:
            if isinstance(piece, Generation):
                self.generation = piece
            elif piece:
                return piece
        raise StopIteration

    def close(self) -> None:
        """Stop the turn where it stands; the conversation is as before it."""
        self._pieces.close()


def _shared_len(cached_ids: list[int], seq: Sequence) -> int:
    """Leading tokens of the prompt that are cached; at least one is left to run.

    A picture counts only as a whole, so that its features are encoded once or not at all.
    """
    new_ids = seq.prompt.input_ids
    limit = min(len(cached_ids), len(new_ids) - 1)
    shared = next((i for i in range(limit) if cached_ids[i] != new_ids[i]), limit)
    for start, length in seq.prompt.image_spans:
        if start < shared < start + length:
            return start
    return shared
