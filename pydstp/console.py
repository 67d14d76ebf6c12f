"""What the commands share at the terminal: progress, Ctrl-C, and which stream a line goes to."""

from __future__ import annotations

import io
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydstp.generation import CancelToken, Generation, ShiftReport

# Policies that do nothing where nothing was pruned, and what the reasons of a report mean.
BRING_BACK = ("dstp", "sketch")
NO_EFFECT = {"no_image": "there is no picture", "no_method": "nothing was pruned (--pruning)",
             "retention_is_one": "all visual tokens were kept",
             "method_kept_all": "all visual tokens were kept",
             "below_break_even": "it would have made the answer slower (--bypass)"}


def prepare_streams() -> None:
    """Make every stream usable: closed ones lead nowhere, and no character is an error."""
    for name, mode, errors in (("stdin", "r", "surrogateescape"),
                               ("stdout", "w", "backslashreplace"),
                               ("stderr", "w", "backslashreplace")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))
        if isinstance(stream := getattr(sys, name), io.TextIOWrapper):
            stream.reconfigure(errors=errors)


def loading_bar(what: str = "loading") -> Callable[[int, int], None]:
    """A progress callback (tensors done, tensors in all): a bar, if stderr is a terminal."""
    from tqdm import tqdm

    bar = tqdm(desc=what, unit=" tensors", leave=False, delay=0.5, disable=None)

    def update(done: int, total: int) -> None:
        bar.total = total
        bar.update(done - bar.n)
        if done >= total:
            bar.close()

    return update


@contextmanager
def cancelled_by_ctrl_c() -> Iterator[CancelToken]:
    """Ctrl-C cancels the answer being written; pressed again before that, it ends the program."""
    from pydstp.generation import CancelToken

    cancel = CancelToken()

    def handle(_signal: int, _frame: object) -> None:
        if cancel.is_cancelled:
            raise KeyboardInterrupt
        cancel.cancel()

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield cancel
    finally:
        signal.signal(signal.SIGINT, before)


def report(error: Exception) -> None:
    """One line on stderr."""
    print("error:", " ".join(str(error).split()), file=sys.stderr, flush=True)


def say(text: str) -> None:
    """A line for the person at the terminal, not part of the answer."""
    print(text, file=sys.stderr, flush=True)


def write(pieces: Iterator[str]) -> None:
    """Print the answer as it comes."""
    is_mid_line = False
    try:
        for piece in pieces:
            print(piece, end="", flush=True)
            is_mid_line = True
    finally:
        if is_mid_line:
            print(flush=True)


def summary(generation: Generation) -> str:
    """What the answer cost, and what was done to its pictures, for stderr."""
    timings = generation.timings
    lines = [f"{len(generation.token_ids)} tokens, first after "
             f"{timings.time_to_first_token_ms:.0f} ms, then {generation.ms_per_token:.1f} ms "
             f"each; prompt of {generation.prompt_tokens} tokens, "
             f"{generation.visual_tokens} of them visual ({generation.finish_reason})"]
    if (shift := generation.shift) is not None and shift.kept < shift.num_visual:
        swaps = f", {shift.triggers} swaps" if shift.policy == "dstp" else ""
        lines.append(f"{shift.method}: kept {shift.kept} of {shift.num_visual} visual tokens; "
                     f"{shift.mean_visible:.0%} read per step{swaps}")
    if shift is not None and shift.reason is not None:
        lines += without_effect(shift)
    is_wanted = shift is not None and shift.method == "resize"
    for number, image in enumerate(generation.images, 1):
        if image.shrunk and not is_wanted:
            lines.append(f"note: picture {number} was shrunk from {size(image.original_size)} to "
                         f"{size(image.resized)} pixels; --max-pixels (for tiles --max-tiles) sets "
                         f"the limit")
    return "\n".join(lines)


def without_effect(shift: ShiftReport) -> list[str]:
    """A line where a method or policy was asked for and did nothing."""
    names = [shift.method] if shift.method != "none" else []
    names += [shift.policy] if shift.policy in BRING_BACK else []
    reason = NO_EFFECT[shift.reason]
    return [f"note: {' with '.join(names)} changed nothing: {reason}"] if names else []


def size(width_height: tuple[int, int]) -> str:
    """(640, 480) -> `640 x 480`."""
    return " x ".join(map(str, width_height))
