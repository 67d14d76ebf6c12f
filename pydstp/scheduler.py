"""Who runs when: cache sequences are handed out, forward passes take turns.

Several threads may call at once, and streams may lie half-read: each holds its own cache
sequences, and the model is taken for one forward pass at a time, first come, first served.
"""

from __future__ import annotations

import sys
import threading
from collections import deque
from collections.abc import Iterator

from pydstp.errors import CancelledError, CapacityError, PydstpError
from pydstp.generation import CancelToken
from pydstp.kv_cache import KVCache
from pydstp.runner import Runner
from pydstp.sequence import Sequence

_POLL_S = 0.05


class FairLock:
    """A lock that is granted in the order in which it was asked for.

    Its holder may not ask again: a signal handler runs in the middle of whatever its thread does,
    and would wait for itself.
    """

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._waiting: deque[threading.Lock] = deque()
        self._is_taken = False
        self._owner: int | None = None

    def __enter__(self) -> None:
        if self._owner == threading.get_ident():
            raise PydstpError("engine: expected no call from within a forward pass of the same "
                              "thread, as from a signal handler; cancel the request instead")
        self._wait_for_turn()
        self._owner = threading.get_ident()

    def _wait_for_turn(self) -> None:
        with self._mutex:
            if not self._is_taken:
                self._is_taken = True
                return
            gate = threading.Lock()
            gate.acquire()
            self._waiting.append(gate)
        try:
            gate.acquire()
        except BaseException:
            self._abandon(gate)
            raise

    def __exit__(self, *exc_info: object) -> None:
        with self._mutex:
            self._owner = None
            if self._waiting:
                self._waiting.popleft().release()
            else:
                self._is_taken = False

    def _abandon(self, gate: threading.Lock) -> None:
        """An interrupt came while waiting; pass the turn on if it had been granted already."""
        with self._mutex:
            if gate in self._waiting:
                self._waiting.remove(gate)
                return
        self.__exit__()


class Scheduler:
    """Runs requests to their end on one runner and one cache."""

    def __init__(self, runner: Runner, cache: KVCache) -> None:
        self._runner = runner
        self._cache = cache
        self._turn = FairLock()
        self._seats = threading.Condition()
        self._holders: dict[int, int | None] = {}
        self._waiting: set[int] = set()
        self._is_closed = False

    def close(self) -> None:
        """Refuse further work; requests under way end with `PydstpError` at their next step.

        Returns when no forward pass runs any more.
        """
        with self._seats:
            self._is_closed = True
            self._seats.notify_all()
        with self._turn:
            pass

    def acquire(self, cancel: CancelToken, *, is_chat: bool = False) -> int:
        """A cache sequence; waits for one while another thread's request holds it.

        Raises:
            CapacityError: all are held by open chats, by this thread's own open streams, or by
                threads that wait themselves or have ended, so that waiting would never end.
            CancelledError: cancelled while waiting.
        """
        me = threading.get_ident()
        with self._seats:
            try:
                while (seq_idx := self._take(None if is_chat else me)) is None:
                    self._waiting.add(me)
                    self._check_wait_ends()
                    cancel.check()
                    self._seats.wait(_POLL_S)
            finally:
                self._waiting.discard(me)
            return seq_idx

    def _check_wait_ends(self) -> None:
        """Some thread must be at work on a request, and so about to give its place back."""
        at_work = sys._current_frames().keys() - self._waiting
        if at_work.isdisjoint(self._holders.values()):
            raise CapacityError(
                f"sequences: all max_batch = {self._cache.geometry.max_batch} are held by "
                f"open chats and streams; close one, or raise EngineConfig.max_batch")

    def release(self, seq_idx: int) -> None:
        """Give a cache sequence back and wake who waits for one."""
        with self._seats:
            del self._holders[seq_idx]
            self._cache.release(seq_idx)
            self._seats.notify_all()

    def run(self, sequences: list[Sequence]) -> Iterator[tuple[int, str]]:
        """Run requests to their end; finished ones make room for waiting ones.

        Yields:
            (index into `sequences`, text that is now certain), in the order it is written.
        """
        with self._turn:
            self._check_open()
            self._runner.expect(sequences)
        waiting = deque(enumerate(sequences))
        active: dict[int, Sequence] = {}
        guests = {index for index, seq in enumerate(sequences) if seq.seq_idx is None}
        try:
            while waiting or active:
                while waiting and self._admit(waiting[0][1], wait=not active):
                    index, seq = waiting.popleft()
                    active[index] = seq
                    yield index, self._start(seq)
                    self._retire(active, guests)
                yield from self._step(active)
                self._retire(active, guests)
        finally:
            self._leave(active, guests)

    def _admit(self, seq: Sequence, *, wait: bool) -> bool:
        """Give the request a cache sequence; False if none is free and it may not wait."""
        if seq.seq_idx is not None:
            return True
        try:
            if wait:
                seq.seq_idx = self.acquire(seq.cancel)
            else:
                with self._seats:
                    seq.seq_idx = self._take(threading.get_ident())
        except CancelledError:
            seq.finish_cancelled()
        return seq.seq_idx is not None or seq.finish_reason is not None

    def _take(self, holder: int | None) -> int | None:
        """A free cache sequence noted as held by a thread (None: by a chat), or None."""
        self._check_open()
        if not self._cache.num_free:
            return None
        seq_idx = self._cache.acquire()
        self._holders[seq_idx] = holder
        return seq_idx

    def _start(self, seq: Sequence) -> str:
        if seq.finish_reason:
            return ""
        try:
            seq.cancel.check()
            with self._turn:
                self._check_open()
                return seq.choose(self._runner.prefill(seq))
        except CancelledError:
            seq.finish_cancelled()
            return ""

    def _step(self, active: dict[int, Sequence]) -> Iterator[tuple[int, str]]:
        for seq in active.values():
            if seq.cancel.is_cancelled:
                seq.finish_cancelled()
        rows = {index: seq for index, seq in active.items() if not seq.finish_reason}
        if not rows:
            return
        try:
            with self._turn:
                self._check_open()
                logits = self._runner.decode(list(rows.values()))
        except CancelledError:
            for seq in rows.values():
                seq.finish_cancelled()
            return
        for row, (index, seq) in enumerate(rows.items()):
            yield index, seq.choose(logits[row])

    def _retire(self, active: dict[int, Sequence], guests: set[int]) -> None:
        done = {index: seq for index, seq in active.items() if seq.finish_reason}
        self._leave(done, guests)
        for index in done:
            del active[index]

    def _leave(self, rows: dict[int, Sequence], guests: set[int]) -> None:
        """Give back the cache sequences that were taken for this run (a chat keeps its own)."""
        for index, seq in rows.items():
            if index in guests and seq.seq_idx is not None:
                self.release(seq.seq_idx)
                seq.seq_idx = None

    def _check_open(self) -> None:
        if self._is_closed:
            raise PydstpError("engine: expected an open engine, got one that was closed")
