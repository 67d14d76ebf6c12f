"""From what a caller passes to requests that can run: pictures read, texts encoded, limits met."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from collections.abc import Sequence as Many
from dataclasses import replace
from typing import Any

from pydstp import chat, image
from pydstp.config import DEFAULT_MAX_NEW_TOKENS, EngineConfig, SamplingParams
from pydstp.errors import CapacityError, ImageError, OptionError, PromptError
from pydstp.generation import CancelToken
from pydstp.image_processors import open_image_processor
from pydstp.image_tiles import TileProcessor
from pydstp.models.config import VLMConfig
from pydstp.pruning import PruningConfig
from pydstp.selection import Progress, SelectionParams
from pydstp.sequence import AnswerText, Sequence
from pydstp.tokenizer import StreamDecoder, Tokenizer

Prompt = str | list[dict[str, Any]]

# What requests need from a checkpoint beside its model; each takes the folder.
READERS = (Tokenizer.from_checkpoint, chat.ChatTemplate.from_checkpoint, open_image_processor)


class Preparation:
    """Turns prompts and pictures into `Sequence`s; holds the files of one checkpoint."""

    def __init__(self, tokenizer: Tokenizer, template: chat.ChatTemplate,
                 processor: image.ImageProcessor | TileProcessor, model_config: VLMConfig,
                 generation_config: dict[str, Any], config: EngineConfig) -> None:
        self.tokenizer = tokenizer
        self._template = template
        self._processor = processor
        self._marks = chat.PICTURE_MARKS[model_config.model_type]
        self._num_layers = model_config.text.num_layers
        self._num_heads = model_config.text.num_heads
        self._max_positions = model_config.text.max_position_embeddings
        self._generation_config = generation_config
        self._config = config
        self._eos_ids = end_tokens(generation_config, tokenizer)
        self._turn_end = tokenizer.added_tokens.get("<|im_end|>")

    def request(self, prompt: Prompt, images: Any, sampling: SamplingParams | None,
                cancel: CancelToken | None, selection: SelectionParams,
                request_idx: int = 0) -> Sequence:
        """One prepared request.

        Raises:
            ImageError, PromptError, CapacityError, OptionError: see the message.
        """
        started = time.perf_counter()
        require_type("sampling", sampling, SamplingParams)
        require_type("cancel", cancel, CancelToken)
        messages, images = chat.to_messages(prompt, as_list(images))
        processed = self.read_images(images, selection.pruning)
        encoded = chat.build_prompt(self._template, self.tokenizer, messages,
                                    [picture.num_tokens for picture in processed], self._marks)
        progress = Progress(selection, request_idx=request_idx)
        progress.expect(self._num_layers, self._num_heads)
        progress.num_spared = sum(picture.num_spared for picture in processed)
        params = (sampling or SamplingParams()).resolve(self._generation_config)
        seed = secrets.randbits(63) if params.seed is None else params.seed
        seq = Sequence(
            prompt=encoded, images=processed, sampling=params, eos_ids=self._eos_ids,
            draw_key=(seed, request_idx), cancel=cancel or CancelToken(), started=started,
            answer=AnswerText(StreamDecoder(self.tokenizer), params.stop),
            progress=progress, instruction_ids=self._words(messages[-1], selection.pruning),
            instruction_end=last_before(encoded.input_ids, self._turn_end))
        self._fit(seq)
        seq.timings.preprocess_ms = 1e3 * (time.perf_counter() - started)
        return seq

    def _words(self, message: dict[str, Any], pruning: PruningConfig | None) -> list[int]:
        """The text of a message, where the pruning method looks at it."""
        if pruning is None or "text_embeddings" not in pruning.pruner.needs:
            return []
        return [token_id for text in chat.texts_in([message])
                for token_id in self.tokenizer.encode(text, parse_added=False)]

    def read_images(self, sources: Any,
                    pruning: PruningConfig | None = None) -> list[image.ProcessedImage]:
        """None, one picture or a list of them, read and resized (those already so stay as is).

        Raises:
            ImageError, CapacityError, OptionError: see the message.
        """
        sources = as_list(sources)
        if len(sources) > self._config.max_images:
            raise CapacityError(f"image: expected at most max_images = {self._config.max_images} "
                                f"pictures, got {len(sources)}")
        is_smaller = pruning is not None and pruning.pruner.acts_on_picture
        budget = pruning.budget if is_smaller else None
        return [source if isinstance(source, image.ProcessedImage) else self._read(source, budget)
                for source in sources]

    def _read(self, source: Any, budget: Callable[[int], int] | None) -> image.ProcessedImage:
        picture = image.load_image(source, max_image_pixels=self._config.max_image_pixels)
        return self._processor.preprocess(picture, self._config.max_visual_tokens, budget)

    def _fit(self, seq: Sequence) -> None:
        """Check the prompt against every limit and settle `max_new_tokens`."""
        num_tokens = len(seq.prompt.input_ids)
        num_visual = sum(length for _, length in seq.prompt.image_spans)
        num_text = num_tokens - num_visual
        _require_room("visual tokens", num_visual, "max_visual_tokens",
                      self._config.max_visual_tokens)
        _require_room("text tokens", num_text, "max_text_tokens", self._config.max_text_tokens)
        _require_room("tokens", num_tokens, "max_position_embeddings", self._max_positions)
        # The last new token is never fed back, so it needs no row.
        room, bound = min(
            (self._config.max_text_tokens - num_text + 1, "max_text_tokens"),
            (self._max_positions - num_tokens + 1, "max_position_embeddings"))
        asked = seq.sampling.max_new_tokens
        if asked is not None and asked > room:
            raise CapacityError(f"max_new_tokens: expected at most the {room} tokens that "
                                f"{bound} leaves behind the prompt ({num_text} text tokens, "
                                f"{num_visual} visual ones), got {asked}")
        if seq.sampling.min_new_tokens > (asked or room):
            raise CapacityError(f"min_new_tokens: expected at most the {asked or room} tokens "
                                f"that fit, got {seq.sampling.min_new_tokens}")
        limit = max(min(DEFAULT_MAX_NEW_TOKENS, room), seq.sampling.min_new_tokens)
        seq.sampling = replace(seq.sampling, max_new_tokens=asked or limit)

    def batch(self, prompts: Many[Prompt], images: Any, sampling: Any, cancel: Any,
              selection: list[SelectionParams]) -> list[Sequence]:
        """One prepared request per prompt; an error names the prompt it is about.

        Prompts that share sampling parameters or a policy draw different numbers; those with their
        own have seeds of their own, and draw what they would draw alone.
        """
        count = len(prompts)
        images = spread("image", images, count, allow_one=False)
        own_params = isinstance(sampling, list | tuple)
        shares_policy = all(one.shift is selection[0].shift for one in selection)
        sampling = spread("sampling", sampling, count)
        cancel = spread("cancel", cancel, count)
        sequences = []
        for index, prompt in enumerate(prompts):
            try:
                sequences.append(self.request(prompt, images[index], sampling[index],
                                              cancel[index], selection[index],
                                              0 if own_params else index))
                sequences[-1].progress.request_idx = index if shares_policy else 0
            except (ImageError, PromptError, CapacityError, OptionError) as error:
                raise type(error)(f"prompt[{index}]: {error}") from error
        return sequences


def is_batch(prompt: Any) -> bool:
    """True for a list of prompts; a string or one list of messages is a single prompt.

    Raises:
        PromptError: neither.
    """
    if isinstance(prompt, str):
        return False
    if not isinstance(prompt, list | tuple):
        raise PromptError(f"prompt: expected a string, a list of messages, or a list of prompts, "
                          f"got {type(prompt).__name__}")
    if not prompt:
        raise PromptError("prompt: expected at least one message or prompt, got an empty list")
    return not isinstance(prompt[0], dict)


def end_tokens(generation_config: dict[str, Any], tokenizer: Tokenizer) -> tuple[int, ...]:
    """Every id that ends an answer: generation_config.json's `eos_token_id`, else <|im_end|>."""
    ids = generation_config.get("eos_token_id")
    if ids is None:
        ids = [tokenizer.token_id("<|im_end|>")]
    ids = ids if isinstance(ids, list) else [ids]
    return tuple(dict.fromkeys(ids))


def last_before(input_ids: list[int], end_id: int | None) -> int:
    """The index of the token before the last `end_id`; of the last token where there is none."""
    after = [index for index, token_id in enumerate(input_ids) if token_id == end_id and index]
    return after[-1] - 1 if after else len(input_ids) - 1


def as_list(images: Any) -> list[Any]:
    """None, one picture or several, as a list."""
    images = [] if images is None else images
    return list(images) if isinstance(images, list | tuple) else [images]


def spread(name: str, value: Any, count: int, *, allow_one: bool = True) -> list[Any]:
    """One value per prompt of a batch, from one for all or a list of them."""
    if value is None:
        return [None] * count
    if not isinstance(value, list | tuple):
        if allow_one:
            return [value] * count
        raise OptionError(f"{name}: expected a list with one entry per prompt ({count}), "
                          f"got {type(value).__name__}")
    if len(value) != count:
        raise OptionError(f"{name}: expected one entry per prompt ({count}), got {len(value)}")
    return list(value)


def require_type(name: str, value: Any, kind: type) -> None:
    """Raise `OptionError` for a value that is neither None nor of `kind`."""
    if value is not None and not isinstance(value, kind):
        raise OptionError(f"{name}: expected {kind.__name__} or None, got {type(value).__name__}")


def _require_room(what: str, needed: int, option: str, limit: int) -> None:
    if needed > limit:
        raise CapacityError(f"{what}: the prompt needs {needed}, but {option} = {limit}")


