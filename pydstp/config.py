"""What a user can set: frozen dataclasses, each value checked once, when it is made."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import wraps
from typing import Any, Literal, TypeVar

from pydstp.errors import OptionError, show

DEFAULT_MAX_NEW_TOKENS = 1024
CPU_MAX_PIXELS = 1_300_000
FLOAT, INT8 = WEIGHTS = ("float", "int8")
AUTO, CPU, CUDA = DEVICES = ("auto", "cpu", "cuda")
_LARGEST_INT = 2**63 - 1
_Class = TypeVar("_Class", bound=type)


def require_int(name: str, value: Any, low: int, high: int = _LARGEST_INT) -> None:
    """Raise `OptionError` unless `value` is an integer in [low, high]."""
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        bound = f">= {low}, < 2**63" if high == _LARGEST_INT else f"in [{low}, {high}]"
        raise OptionError(f"{name}: expected an integer {bound}, got {show(value)}")


def require_float(name: str, value: Any, low: float, high: float = math.inf, *,
                   open_low: bool = False) -> None:
    """Raise `OptionError` unless `value` is a finite number in [low, high], or in (low, high]."""
    left, right = ("(" if open_low else "["), (")" if high == math.inf else "]")
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    # Compared, not converted: an integer may be larger than any float.
    is_finite = is_number and -sys.float_info.max <= value <= sys.float_info.max
    if not is_finite or value < low or value > high or (open_low and value == low):
        raise OptionError(f"{name}: expected a finite number in {left}{low:g}, {high:g}{right}, "
                          f"got {show(value)}")


def require_choice(name: str, value: Any, choices: tuple[Any, ...]) -> None:
    """Raise `OptionError` unless `value` is one of `choices`, all of them texts or integers.

    The type comes first: an array compares element by element, and 4.0 equals 4.
    """
    is_kind = isinstance(value, type(choices[0])) and not isinstance(value, bool)
    if not is_kind or value not in choices:
        raise OptionError(f"{name}: expected one of {choices}, got {show(value)}")


def names_unknown_options(kind: _Class) -> _Class:
    """Make an unknown option an `OptionError` that lists the known ones."""
    known = [field.name for field in fields(kind)]
    plain_init = kind.__init__

    @wraps(plain_init)
    def init(self: Any, *args: Any, **options: Any) -> None:
        for name in options:
            if name not in known:
                raise OptionError(f"{kind.__name__}: expected options among {', '.join(known)}, "
                                  f"got {name!r}")
        plain_init(self, *args, **options)

    kind.__init__ = init
    return kind


@names_unknown_options
@dataclass(frozen=True)
class EngineConfig:
    """Limits and resources of one engine; memory for them is checked before anything is loaded.

    Attributes:
        max_batch: sequences held at once (running requests, open streams and open chats).
        max_visual_tokens: visual tokens of one sequence, over all its pictures and turns.
        max_text_tokens: all other tokens of one sequence: prompt, answers, later turns.
        max_images: pictures of one request.
        max_image_pixels: pixels of one picture as it comes, checked before it is decoded.
        min_pixels, max_pixels: the area, in pixels, that a picture is resized into. None takes
            the checkpoint's own `min_pixels`, and for `max_pixels` on the CPU the smaller of the
            checkpoint's limit and 1.3 megapixels (attention in the vision tower grows with the
            square of the area); `max_pixels="checkpoint"` restores the file's limit.
        max_tiles: where the model cuts pictures into tiles (InternVL), at most so many of each,
            the thumbnail not counted; None takes the checkpoint's number.
        num_threads: threads of the engine's own pool; None takes the processors of this process.
        weights: "float" holds them in the engine's dtype; "int8" holds the matrices of the decoder
            and its head in 8 bits, quantised as they are read, with one scale per row and 128
            columns, and everything else as before; what they multiply is quantised likewise.
        device: "cpu"; "auto", which is the CPU too so far; or "cuda", an NVIDIA GPU, which has been
            tried in emulation alone.
    """

    max_batch: int = 4
    max_visual_tokens: int = 4096
    max_text_tokens: int = 4096
    max_images: int = 16
    max_image_pixels: int = 80_000_000
    min_pixels: int | None = None
    max_pixels: int | Literal["checkpoint"] | None = None
    max_tiles: int | None = None
    num_threads: int | None = None
    weights: Literal["float", "int8"] = FLOAT
    device: Literal["auto", "cpu", "cuda"] = AUTO

    def __post_init__(self) -> None:
        require_int("max_batch", self.max_batch, 1, 1024)
        require_int("max_visual_tokens", self.max_visual_tokens, 1, 1 << 20)
        require_int("max_text_tokens", self.max_text_tokens, 1, 1 << 20)
        require_int("max_images", self.max_images, 0)
        require_int("max_image_pixels", self.max_image_pixels, 1)
        if self.min_pixels is not None:
            require_int("min_pixels", self.min_pixels, 1)
        is_named = isinstance(self.max_pixels, str) and self.max_pixels == "checkpoint"
        if self.max_pixels is not None and not is_named:
            require_int("max_pixels", self.max_pixels, 1)
        if self.max_tiles is not None:
            require_int("max_tiles", self.max_tiles, 1)
        if self.num_threads is not None:
            require_int("num_threads", self.num_threads, 1, 1024)
        if not isinstance(self.weights, str) or self.weights not in WEIGHTS:
            raise OptionError(f"weights: expected 'float' or 'int8', got {show(self.weights)}")
        if not isinstance(self.device, str) or self.device not in DEVICES:
            raise OptionError(f"device: expected 'auto', 'cpu' or 'cuda', got {show(self.device)}")


def with_given(config: EngineConfig, **options: Any) -> EngineConfig:
    """The same with every option that is not None replaced."""
    given = {name: value for name, value in options.items() if value is not None}
    return replace(config, **given)


@names_unknown_options
@dataclass(frozen=True)
class SamplingParams:
    """How the next token is chosen and when to stop. None means: as generation_config.json says.

    Penalties act first, then temperature, top-k, top-p and min-p, in this order.

    Attributes:
        temperature: 0 is greedy; the checkpoint's default applies only if it says `do_sample`.
        top_k: keep the k most likely tokens; 0 keeps all.
        top_p: keep the smallest set of tokens whose probability reaches top_p; 1 keeps all.
        min_p: drop tokens less likely than min_p times the most likely one; 0 keeps all.
        repetition_penalty: divides positive and multiplies negative logits of every token of the
            prompt and of the answer (CTRL, arXiv 1909.05858, section 4.1); 1 is off.
        presence_penalty: subtracted from the logit of every token the answer holds; 0 is off.
        seed: draws are keyed by (seed, request, token index), so they depend neither on the batch
            nor on its other rows; None draws a fresh seed, which `Generation.seed` reports.
        max_new_tokens: default 1024, or what still fits; more than fits is a `CapacityError`.
        min_new_tokens: tokens to write before an end token is allowed.
        ignore_eos: go on past end tokens, until max_new_tokens or a stop string.
        stop: strings that end the answer; they are not part of the text.
        logprobs: log-probabilities of the chosen token and of this many best ones, at each token,
            from the model's own distribution (before penalties and temperature).
    """

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float = 0.0
    seed: int | None = None
    max_new_tokens: int | None = None
    min_new_tokens: int = 0
    ignore_eos: bool = False
    stop: str | Sequence[str] = ()
    logprobs: int | None = None

    def __post_init__(self) -> None:
        self._check_distribution()
        if self.seed is not None:
            require_int("seed", self.seed, 0, 2**64 - 1)
        if self.max_new_tokens is not None:
            require_int("max_new_tokens", self.max_new_tokens, 1)
        require_int("min_new_tokens", self.min_new_tokens, 0)
        if self.max_new_tokens is not None and self.min_new_tokens > self.max_new_tokens:
            raise OptionError(f"min_new_tokens: expected at most max_new_tokens = "
                              f"{self.max_new_tokens}, got {self.min_new_tokens}")
        if not isinstance(self.ignore_eos, bool):
            raise OptionError(f"ignore_eos: expected True or False, got {show(self.ignore_eos)}")
        if self.logprobs is not None:
            require_int("logprobs", self.logprobs, 0, 100)
        object.__setattr__(self, "stop", self._checked_stop())

    def _check_distribution(self) -> None:
        if self.temperature is not None:
            require_float("temperature", self.temperature, 0.0)
        if self.top_k is not None:
            require_int("top_k", self.top_k, 0)
        if self.top_p is not None:
            require_float("top_p", self.top_p, 0.0, 1.0, open_low=True)
        if self.min_p is not None:
            require_float("min_p", self.min_p, 0.0, 1.0)
        if self.repetition_penalty is not None:
            require_float("repetition_penalty", self.repetition_penalty, 0.01, 100.0)
        require_float("presence_penalty", self.presence_penalty, -100.0, 100.0)

    def _checked_stop(self) -> tuple[str, ...]:
        stop = (self.stop,) if isinstance(self.stop, str) else self.stop
        if not isinstance(stop, Sequence):
            raise OptionError(f"stop: expected a string or a list of strings, got {show(stop)}")
        for text in stop:
            if not isinstance(text, str) or not text:
                raise OptionError(f"stop: expected non-empty strings, got {show(text)}")
        return tuple(stop)

    def resolve(self, generation_config: dict[str, Any]) -> SamplingParams:
        """The same parameters with every None that generation_config.json can fill, filled."""
        sampled = bool(generation_config.get("do_sample", False))
        defaults = {
            "temperature": generation_config.get("temperature", 1.0) if sampled else 0.0,
            "top_k": generation_config.get("top_k", 0),
            "top_p": generation_config.get("top_p", 1.0),
            "min_p": generation_config.get("min_p", 0.0),
            "repetition_penalty": generation_config.get("repetition_penalty", 1.0),
        }
        neutral = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0,
                   "repetition_penalty": 1.0}
        changes = {name: neutral[name] if value is None else value
                   for name, value in defaults.items() if getattr(self, name) is None}
        return replace(self, **changes)
