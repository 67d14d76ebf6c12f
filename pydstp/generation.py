"""What a request gives back, and the token that stops one."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

from pydstp.errors import CancelledError, PydstpError


class CancelToken:
    """Stops a request from another thread: `cancel()` takes effect within one layer."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def cancel(self) -> None:
        """Ask every request that holds this token to stop; calling it again changes nothing."""
        self._event.set()

    @property
    def is_cancelled(self) -> bool:
        """True from the first call of `cancel` on."""
        return self._event.is_set()

    def check(self) -> None:
        """Raise `CancelledError` if `cancel` was called."""
        if self._event.is_set():
            raise CancelledError("the request was cancelled")


@contextmanager
def one_reader(what: str) -> Iterator[None]:
    """Around a use of an answer's generator: a thread that comes while it runs is told so."""
    try:
        yield
    except ValueError as error:
        if str(error) != "generator already executing":
            raise
        raise PydstpError(f"{what}: expected one reader at a time, but another thread (or this one "
                          f"further up) is reading it; cancel the request instead") from None


@dataclass(frozen=True)
class TokenLogprob:
    """Natural log-probabilities at one written token.

    Attributes:
        token_id: the token that was written.
        logprob: its log-probability under the model.
        top: the most likely tokens and their log-probabilities, best first.
    """

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class ImageInfo:
    """How one picture was read.

    Attributes:
        original_size: (width, height) in pixels, as it came (EXIF orientation applied).
        resized: (width, height) in pixels, as the vision tower saw it.
        num_tokens: visual tokens it became.
        shrunk: True if `max_pixels`, the file's own limit or a lower one, or the pruning method
            "resize" made it smaller.
        num_tiles: tiles it was cut into, a thumbnail among them; 1 where it stayed whole.
    """

    original_size: tuple[int, int]
    resized: tuple[int, int]
    num_tokens: int
    shrunk: bool
    num_tiles: int = 1


@dataclass
class Timings:
    """Wall-clock milliseconds of one request.

    `time_to_first_token_ms` counts from the call to the first token, waiting included;
    `decode_ms` from the first token to the last. Rows of a batch share their decode steps.
    """

    preprocess_ms: float = 0.0
    vision_ms: float = 0.0
    prefill_ms: float = 0.0
    time_to_first_token_ms: float = 0.0
    decode_ms: float = 0.0
    longest_gap_ms: float = 0.0
    total_ms: float = 0.0


@dataclass(frozen=True)
class StepLog:
    """One decode step of a sequence whose visual tokens are pruned.

    Attributes:
        similarity: cosine of the watched attention with the anchor; None when nothing watches.
        state: "base", "expanded", or "selected" in the step itself: what it read.
        visible, resident: visual tokens it read from the pruning point on (with VisionPulse above
            the anchor layer), and those with keys and values in memory.
        came, went: slots that entered and left the visible list before or within this step.
        redone: whether the step was run a second time.
        attention: with log_steps="attention", the watched attention over the base set by slot,
            originals and then merged tokens; 0 outside it.
        mass: VisionPulse: the share of attention, at its temperature, that the neediest head of the
            anchor layer gave to the base set; None where the policy does not look at it.
    """

    similarity: float | None
    state: str
    visible: int
    resident: int
    came: tuple[int, ...]
    went: tuple[int, ...]
    redone: bool
    attention: tuple[float, ...] | None = None
    mass: float | None = None


@dataclass(frozen=True)
class ShiftReport:
    """How the visual tokens of a request were pruned and brought back.

    Attributes:
        method, policy: names, "none" where there was none.
        reason: why the method did not prune, as a code: "no_method", "no_image",
            "retention_is_one" (all tokens would be kept), "method_kept_all" (it may, and did),
            "below_break_even" (bypass="auto" dropped method and policy, which would have made it
            slower); None where it did.
        retention_asked, retention_achieved: shares of the visual tokens; merged tokens count.
        num_visual, kept: visual tokens of the sequence, and those in the base set; with "resize"
            num_visual counts what the pictures would have become.
        mean_visible: visual tokens that a decode step read, as a share of all, from the pruning
            point on, with VisionPulse above the anchor layer; mean_visible_all_layers counts the
            layers below too, which read all, or the base set.
        triggers: how often the policy acted; trigger_steps: at which decode steps (the first
            step, which feeds the first new token, is 1).
        forwards_per_token: decode forwards per step; above 1 where steps were run again.
        bytes_per_token: weights, keys and values that a decode step reads when the sequence is
            alone, steps run again and scored keys included.
        selection_ms: time the method took at prefill.
        reserve: when pruned tokens got their keys and values, None without a reserve; side_passes:
            runs of pruned tokens it took, reserve_ms: their time.
        longest_gap_ms: the longest time between two tokens.
        steps: one `StepLog` per decode step if `log_steps` was set.
        anchor: with log_steps="attention", what steps are compared with, as `StepLog.attention`.
        visual_rows: visual tokens that went through each decoder layer with the prompt.
    """

    method: str
    policy: str
    reason: str | None
    retention_asked: float
    retention_achieved: float
    num_visual: int
    kept: int
    mean_visible: float
    mean_visible_all_layers: float
    triggers: int
    trigger_steps: tuple[int, ...]
    forwards_per_token: float
    bytes_per_token: float
    selection_ms: float
    reserve: str | None
    side_passes: int
    reserve_ms: float
    longest_gap_ms: float
    steps: list[StepLog] | None = None
    anchor: tuple[float, ...] | None = None
    visual_rows: tuple[int, ...] = ()


@dataclass(frozen=True)
class Generation:
    """One finished (or cancelled) answer.

    Attributes:
        text: the answer; reasoning, special tokens and stop strings are not part of it.
        reasoning: what stood before `</think>`, or None where the model wrote no such part.
        token_ids: every token written, the end token included.
        finish_reason: "stop" (end token or stop string), "length" or "cancelled".
        stop_reason: the end token's id or the stop string that ended it, else None.
        prompt_tokens: tokens of the prompt, visual ones included; cached_tokens of them were
            still in the cache from an earlier turn.
        visual_tokens: visual tokens of the prompt; visible_tokens of them are read by decode
            attention, resident_tokens of them are held in memory.
        images: one `ImageInfo` per picture of the request.
        logprobs: one `TokenLogprob` per token if asked for, else None.
        seed: the seed of the draws (None when the answer was greedy).
        shift: how visual tokens were pruned and brought back.
        timings: wall-clock milliseconds per phase.
    """

    text: str
    token_ids: list[int]
    finish_reason: str
    stop_reason: int | str | None = None
    reasoning: str | None = None
    prompt_tokens: int = 0
    cached_tokens: int = 0
    visual_tokens: int = 0
    visible_tokens: int = 0
    resident_tokens: int = 0
    images: tuple[ImageInfo, ...] = ()
    logprobs: list[TokenLogprob] | None = None
    seed: int | None = None
    shift: ShiftReport | None = None
    timings: Timings = field(default_factory=Timings)

    @property
    def ms_per_token(self) -> float:
        """Mean milliseconds per decode step, the first token left out; 0 for a single token."""
        steps = len(self.token_ids) - 1
        return self.timings.decode_ms / steps if steps > 0 else 0.0

    def to_dict(self) -> dict[str, Any]:
        """A dictionary of plain values that `json.dumps` takes."""
        return {**asdict(self), "ms_per_token": self.ms_per_token}
