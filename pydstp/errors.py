"""Every error a user can meet. All of them derive from `PydstpError`.

A message says what was expected, what came, and which argument, file or tensor it was about.
"""

import re


def show(value: object, limit: int = 120) -> str:
    """What came, for a message: its `repr`, shortened and without addresses."""
    try:
        text = re.sub(r" at 0x[0-9a-fA-F]+", "", repr(value))
    except Exception:  # integers of thousands of digits have no decimal form
        text = type(value).__name__
    return text if len(text) <= limit else text[:limit - 3] + "..."


class PydstpError(Exception):
    """Base class of every error raised on purpose by pydstp."""


class OptionError(PydstpError, ValueError):
    """An argument or option has the wrong type or a value outside its range."""


class CheckpointError(PydstpError):
    """A checkpoint folder is incomplete, damaged or contradicts itself."""


class UnsupportedModelError(CheckpointError):
    """A checkpoint was understood, and what it needs is not supported; the message names it."""


class ImageError(PydstpError):
    """A picture cannot be read, or is outside the limits for pictures."""


class PromptError(PydstpError):
    """A prompt or a list of messages is malformed, or does not fit its pictures."""


class CapacityError(PydstpError):
    """A request, a batch or a model is larger than the limit that the message names."""


class DeviceError(PydstpError):
    """A GPU was asked for that is missing or unsuitable, or it refused a launch."""


class CancelledError(PydstpError):
    """A request was cancelled before it finished.

    `generation` holds what had been written until then (None when nothing had).
    """

    def __init__(self, message: str, generation: object = None) -> None:
        super().__init__(message)
        self.generation = generation
