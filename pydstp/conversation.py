"""A chat that keeps its keys and values between turns."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from contextlib import closing
from typing import Any

from pydstp.config import SamplingParams
from pydstp.errors import CancelledError, PydstpError
from pydstp.generation import CancelToken, Generation, one_reader
from pydstp.image import ProcessedImage
from pydstp.kv_cache import KVCache
from pydstp.preparation import Preparation, require_type
from pydstp.scheduler import Scheduler
from pydstp.selection import SelectionParams
from pydstp.sequence import Sequence


class Chat:
    """Turns of one conversation; made by `Engine.chat`.

    Each turn renders the whole history with the chat template and runs only what the cache does
    not hold already: a greedy answer is that of a fresh run of the same history, up to rounding.
    (Not so where pictures are pruned: each turn prunes its own, and what was written keeps what it
    saw. Then the same turns give the same answers.)
    Draws are keyed by (seed, turn, token index). One turn runs at a time; one that fails or is
    cancelled leaves the conversation as it was before.

    Attributes:
        messages: the history, as chat messages (reasoning of earlier turns is left out).
    """

    def __init__(self, preparation: Preparation, scheduler: Scheduler, cache: KVCache,
                 system: str | None, selection: SelectionParams) -> None:
        require_type("system", system, str)
        self._preparation = preparation
        self._scheduler = scheduler
        self._cache = cache
        self._selection = selection
        self._seq_idx: int | None = scheduler.acquire(CancelToken(), is_chat=True)
        # Also for a chat that is dropped without being closed.
        self._release = weakref.finalize(self, scheduler.release, self._seq_idx)
        self._release.atexit = False
        self._cached_ids: list[int] = []
        self._images: list[ProcessedImage] = []
        self._num_turns = 0
        self._starting = threading.Lock()
        # Not owned: a turn that its reader drops ends there.
        self._running: weakref.ref[Iterator[str | Generation]] | None = None
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
        with self._starting:  # of two threads that ask at once, one is told that a turn is running
            return Turn(self, self._start(prompt, image, sampling, cancel))

    def close(self) -> None:
        """End a turn that is half read and give the cache sequence back; idempotent."""
        if (pieces := self._running_turn()) is not None:
            self._end(pieces)
        self._release()
        self._seq_idx = None

    def __enter__(self) -> Chat:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _start(self, prompt: str, image: Any, sampling: SamplingParams | None,
               cancel: CancelToken | None) -> Iterator[str | Generation]:
        """Check the turn, take the chat, and run it as far as its first piece is asked for."""
        if self._seq_idx is None:
            raise PydstpError("chat: expected an open chat, got one that was closed")
        if self._running_turn() is not None:
            raise PydstpError("chat: a turn is still running; read it to its end or close it")
        images = self._preparation.read_images(image, self._selection.pruning)
        content = [{"type": "image"} for _ in images] + [{"type": "text", "text": prompt}]
        message = {"role": "user", "content": content if images else prompt}
        seq = self._preparation.request([*self.messages, message], self._images + images,
                                        sampling, cancel, self._selection,
                                        self._num_turns)
        pieces = self._run(seq, message, images)
        self._running = weakref.ref(pieces)
        return pieces

    def _run(self, seq: Sequence, message: dict[str, Any],
             images: list[ProcessedImage]) -> Iterator[str | Generation]:
        """Yield the pieces of one turn, then its `Generation`; keep the turn if it ends well."""
        try:
            seq.seq_idx = self._seq_idx
            seq.num_cached = _shared_len(self._cached_ids, seq)
            self._rewind(seq.num_cached)
            with closing(self._scheduler.run([seq])) as pieces:
                for _, piece in pieces:
                    yield piece
            generation = seq.result()
            if generation.finish_reason == "cancelled":
                raise CancelledError("the turn was cancelled", generation)
        except BaseException:
            self._rewind(seq.num_cached)
            raise
        else:
            # The last token was written but never fed back, so it has no row in the cache.
            self._cached_ids = seq.prompt.input_ids + seq.new_ids[:-1]
            self._images += images
            self._num_turns += 1
            self.messages += [message, {"role": "assistant", "content": generation.text}]
        finally:
            self._running = None
        yield generation

    def _end(self, pieces: Iterator[str | Generation]) -> None:
        """End a turn that may be unread, half read or over."""
        with one_reader("chat"):
            pieces.close()
        if self._running_turn() is pieces:
            self._running = None

    def _running_turn(self) -> Iterator[str | Generation] | None:
        return None if self._running is None else self._running()

    def _rewind(self, num_tokens: int) -> None:
        self._cache.rewind(self._seq_idx, self._cache.mark_at(self._seq_idx, num_tokens))
        self._cached_ids = self._cached_ids[:num_tokens]


class Turn:
    """Pieces of one answer of a chat as they become certain."""

    def __init__(self, chat: Chat, pieces: Iterator[str | Generation]) -> None:
        self._chat = chat
        self._pieces = pieces
        self.generation: Generation | None = None

    def __iter__(self) -> Turn:
        return self

    def __next__(self) -> str:
        with one_reader("chat"):
            for piece in self._pieces:
                if isinstance(piece, Generation):
                    self.generation = piece
                elif piece:
                    return piece
        raise StopIteration

    def close(self) -> None:
        """Stop the turn where it stands; unless it was over, the chat is as before it."""
        self._chat._end(self._pieces)


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
