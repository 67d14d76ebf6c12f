"""What the adapters share: an engine made of plain options, and answers to chat messages."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pydstp.config import EngineConfig, SamplingParams, names_unknown_options, require_int
from pydstp.engine import Engine
from pydstp.errors import OptionError, PromptError, show
from pydstp.experiments.settings import parse_policies, parse_ratios
from pydstp.experiments.startup import checkpoint_folder
from pydstp.generation import Generation
from pydstp.pruning import PruningConfig
from pydstp.shift import Shift

logger = logging.getLogger("pydstp")

Messages = list[dict[str, Any]]
_SAMPLING = ("max_new_tokens", "temperature", "top_p", "top_k", "do_sample", "until", "seed",
             "num_beams")


@names_unknown_options
@dataclass(frozen=True)
class AdapterOptions:
    """What a framework may say about the model, as plain values from its own command line.

    Attributes:
        model: the checkpoint folder; None takes the embedded checkpoint.
        batch_size: prompts at once.
        max_new_tokens: the longest answer, where the task does not say.
        pruning: a method of docs/experiments.md, or None; retention_ratio, a number or a fraction
            such as "1/3", or num_kept says how much it keeps.
        pruning_options: options of the method, a dictionary or its JSON text.
        shift: "none", "dstp", "recommended", "sketch", "visionpulse", "dycoke", or a file that
            `pydstp calibrate` wrote; shift_options as above.
        reserve, bypass: see `SelectionParams`.
        system: a system message before every prompt that has none.
        device, dtype, weights: as for `Engine`; max_pixels, max_tiles, max_images,
            max_visual_tokens, max_text_tokens: as for `EngineConfig`.

    Raises:
        OptionError: an unknown option or a value that cannot be used.
    """

    model: str | None = None
    batch_size: int = 1
    max_new_tokens: int = 1024
    pruning: str | None = None
    retention_ratio: float | str | None = None
    num_kept: int | None = None
    pruning_options: Mapping[str, Any] | str = "{}"
    shift: str = "none"
    shift_options: Mapping[str, Any] | str = "{}"
    reserve: str = "auto"
    bypass: str = "never"
    system: str | None = None
    device: str = "auto"
    dtype: str = "auto"
    weights: str = "float"
    max_pixels: int | str | None = None
    max_tiles: int | None = None
    max_images: int = 16
    max_visual_tokens: int = 4096
    max_text_tokens: int = 4096

    def __post_init__(self) -> None:
        require_int("max_new_tokens", self.max_new_tokens, 1)
        for name in ("model", "pruning", "system"):
            if not isinstance(getattr(self, name), str | None):
                raise OptionError(f"{name}: expected a text, got {show(getattr(self, name))}")
        self.engine_config()
        self.pruning_config()
        self.policy()

    def engine_config(self) -> EngineConfig:
        """Limits and resources of the engine."""
        return EngineConfig(
            max_batch=self.batch_size, max_visual_tokens=self.max_visual_tokens,
            max_text_tokens=self.max_text_tokens, max_images=self.max_images,
            max_pixels=self.max_pixels, max_tiles=self.max_tiles, weights=self.weights)

    def pruning_config(self) -> PruningConfig | None:
        """The pruning method."""
        own, ratio = _options("pruning_options", self.pruning_options), self.retention_ratio
        if self.pruning is None:
            if own or ratio is not None or self.num_kept is not None:
                raise OptionError("pruning: expected a method with retention_ratio, num_kept or "
                                  "pruning_options, got none")
            return None
        if isinstance(ratio, str):
            ratios = parse_ratios(ratio)
            if len(ratios) != 1:
                raise OptionError(f"retention_ratio: expected one ratio, got {show(ratio)}")
            ratio, = ratios
        return PruningConfig(self.pruning, ratio, self.num_kept, **own)

    def policy(self) -> Shift | None:
        """The shift policy."""
        if not isinstance(self.shift, str):
            raise OptionError(f"shift: expected a text, got {show(self.shift)}")
        found = list(parse_policies(self.shift).values())
        if len(found) != 1:
            raise OptionError(f"shift: expected one policy, got {show(self.shift)}")
        own = _options("shift_options", self.shift_options)
        if found[0] is None and own:
            raise OptionError("shift: expected a policy with shift_options, got none")
        return replace(found[0], **own) if own else found[0]


def _options(name: str, value: Mapping[str, Any] | str) -> dict[str, Any]:
    """A dictionary, or the JSON text of one."""
    try:
        options = json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError):
        options = None
    if not isinstance(options, Mapping):
        raise OptionError(f"{name}: expected a JSON object, got {show(value)}")
    return dict(options)


class AdapterModel:
    """Answers lists of chat messages, a batch at a time.

    Args:
        options: of the engine and of its visual tokens.
    """

    def __init__(self, options: AdapterOptions) -> None:
        self.options = options
        self._ignored: set[str] = set()
        self.engine = Engine(
            checkpoint_folder(options.model), options.device, options.dtype,
            options.engine_config(), pruning=options.pruning_config(), shift=options.policy(),
            reserve=options.reserve, bypass=options.bypass)

    def answer(self, prompts: Sequence[Messages],
               asked: Sequence[Mapping[str, Any]]) -> list[Generation]:
        """One answer per prompt, at most `batch_size` at once.

        Args:
            prompts: chat messages as `Engine.generate` takes them.
            asked: for each what the task says about its answer, see `sampling`.

        Raises:
            PromptError, ImageError, CapacityError, OptionError: as for `Engine.generate`.
        """
        prompts = [self._with_system(messages) for messages in prompts]
        return self.engine.generate(None, prompts, [self.sampling(one) for one in asked])

    def sampling(self, asked: Mapping[str, Any]) -> SamplingParams:
        """Sampling parameters from generation options as frameworks spell them.

        `do_sample` false, no temperature or temperature 0 is greedy. `until` holds stop strings; of
        those that are white space nothing is taken, because they would end an answer after its
        first paragraph. Options that are not known are ignored, and named once in the log.

        Raises:
            OptionError: a value out of its range, or more than one beam.
        """
        for name in sorted(set(asked) - set(_SAMPLING) - self._ignored):
            self._ignored.add(name)
            logger.warning("generation option %s is not known and is ignored", name)
        if asked.get("num_beams") not in (None, 1):
            raise OptionError(f"num_beams: expected 1, got {show(asked['num_beams'])}")
        until = asked.get("until") or ()
        until = [until] if isinstance(until, str) else until
        temperature = (asked.get("temperature") or 0.0) if asked.get("do_sample", True) else 0.0
        given = {name: asked[name] for name in ("top_p", "top_k", "seed")
                 if temperature and asked.get(name) is not None}
        longest = asked.get("max_new_tokens")
        return SamplingParams(
            temperature=temperature, stop=[text for text in until if not str(text).isspace()],
            max_new_tokens=self.options.max_new_tokens if longest is None else longest, **given)

    def _with_system(self, messages: Messages) -> Messages:
        if self.options.system is None or messages[0].get("role") == "system":
            return messages
        return [{"role": "system", "content": self.options.system}, *messages]


def text_or_picture(kind: Any, value: Any) -> dict[str, Any]:
    """One item of a message; `kind` is the framework's word for what `value` is.

    Raises:
        PromptError: a kind other than text and image; video and audio are not supported.
    """
    if kind not in ("text", "image"):
        raise PromptError(f"messages: expected text and image items, got {show(kind)}")
    return {"type": kind, kind: value}
