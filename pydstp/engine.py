"""The engine: one checkpoint, one cache, and everything a caller asks of them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from os import PathLike
from typing import Any

from pydstp import ops
from pydstp.chat import PICTURE_MARKS, ChatTemplate
from pydstp.config import INT8, EngineConfig, SamplingParams, with_given
from pydstp.conversation import Chat
from pydstp.device_memory import chosen_device, enough_memory
from pydstp.errors import CancelledError, CheckpointError, OptionError, PydstpError
from pydstp.generation import CancelToken, Generation, one_reader
from pydstp.image_processors import open_image_processor
from pydstp.kv_cache import CacheGeometry, KVCache
from pydstp.models.config import VLMConfig
from pydstp.models.config_reader import Section
from pydstp.preparation import Preparation, Prompt, as_list, is_batch, require_type, spread
from pydstp.pruning import PruningConfig
from pydstp.runner import Runner
from pydstp.scheduler import Scheduler
from pydstp.selection import ENGINE_DEFAULT, SelectionParams
from pydstp.sequence import Sequence
from pydstp.shift import Shift
from pydstp.tokenizer import Tokenizer
from pydstp.weights import Checkpoint, check_memory, load_model, open_checkpoint, resolve_dtype

logger = logging.getLogger("pydstp")

TextCallback = Callable[[str, int], object]


class Engine:
    """A vision-language model ready to answer.

    Args:
        path: a checkpoint folder (config.json, safetensors, tokenizer, chat template).
        device: "auto", "cpu" or "cuda"; given here it replaces the one of `config`.
        dtype: "auto" (bfloat16 from a billion parameters on, else float32), "bfloat16" or
            "float32".
        config: limits and resources.
        weights: "float" or "int8"; given here it replaces the one of `config`.
        pruning: how visual tokens are pruned at prefill, unless a request says otherwise.
        shift: the policy that says which tokens decoding reads, likewise.
        reserve, bypass: when pruned tokens get their keys and values, and whether the engine may
            drop pruning that does not pay, see `SelectionParams`, likewise.
        progress: called as `progress(tensors_done, tensors_total)` while weights are read.

    Raises:
        CheckpointError, UnsupportedModelError: the folder cannot be used; the message says why.
        CapacityError: weights and cache do not fit into the memory that is available.
        DeviceError: "cuda" was asked for and cannot be had; the message says what is missing.

    Calls from several threads are safe: each forward pass takes its turn. An engine installs no
    signal handlers and keeps no global state; several can live in one process. It holds memory
    and threads until `close()`, and works as a context manager.
    """

    def __init__(self, path: str | PathLike[str], device: str | None = None, dtype: str = "auto",
                 config: EngineConfig | None = None, *, weights: str | None = None,
                 pruning: PruningConfig | None = None, shift: Shift | None = None,
                 reserve: str = "auto", bypass: str = "never",
                 progress: Callable[[int, int], None] | None = None) -> None:
        require_type("config", config, EngineConfig)
        require_type("progress", progress, Callable)
        self._selection = SelectionParams(pruning, shift, reserve, bypass=bypass)
        self.config = config = with_given(config or EngineConfig(), device=device, weights=weights)
        gpu, self.device = chosen_device(config)
        checkpoint = open_checkpoint(path)
        self.model_config = VLMConfig.from_dict(checkpoint.config, str(checkpoint.config_path))
        self.dtype = resolve_dtype(checkpoint, dtype)
        geometry = _cache_geometry(self.model_config, config)
        check_memory(checkpoint, self.model_config, self.dtype, geometry.kv_bytes(self.dtype),
                     max_batch=config.max_batch, max_visual_tokens=config.max_visual_tokens,
                     max_text_tokens=config.max_text_tokens, weights=config.weights, device=gpu)
        tokenizer = Tokenizer.from_checkpoint(checkpoint.path)
        self.model_config = _with_token_ids(self.model_config, tokenizer, checkpoint)
        self._preparation = _open_preparation(checkpoint, self.model_config, tokenizer, config)
        self._pool = ops.ThreadPool(config.num_threads or ops.num_processors())
        int8_pool = self._pool if config.weights == INT8 else None
        with enough_memory():
            model = load_model(checkpoint, self.model_config, self.dtype, progress,
                               int8_pool=int8_pool, device=self.device)
            self._cache = KVCache(geometry, self.dtype, self.device)
            self._runner = Runner(model, self._cache, self._pool)
        self._scheduler = Scheduler(self._runner, self._cache)
        self._is_closed = False
        logger.info("loaded %s as %s, weights %s", path, self.dtype, config.weights)

    @property
    def tokenizer(self) -> Tokenizer:
        """The checkpoint's tokenizer."""
        return self._preparation.tokenizer

    def generate(self, image: Any, prompt: Prompt | list[Prompt],
                 sampling: SamplingParams | list[SamplingParams] | None = None, *,
                 pruning: PruningConfig | None = ENGINE_DEFAULT,
                 shift: Shift | None = ENGINE_DEFAULT, reserve: str = ENGINE_DEFAULT,
                 bypass: str = ENGINE_DEFAULT, log_steps: bool | str = False,
                 cancel: CancelToken | list[CancelToken | None] | None = None,
                 callback: TextCallback | None = None) -> Generation | list[Generation]:
        """Answer one prompt, or a list of prompts as a batch.

        Args:
            image: for one prompt None, a picture or a list of pictures: a path, bytes, a PIL
                image, a uint8 array [height, width, 3] or a data URL. For a batch a list with
                one such entry per prompt, or None.
            prompt: a string, or one list of chat messages; a list of either is a batch, run at
                most `max_batch` at once. Pictures of a string come before its text; in messages,
                each `{"type": "image"}` item takes the next one.
            sampling: one for all, or one per prompt.
            pruning, shift, reserve, bypass: as for the engine; they replace what it was made with.
                `pruning` and `shift` may be lists with one entry per prompt.
            log_steps: keep a record of every decode step in `Generation.shift`; "attention" with
                the watched attention.
            cancel: stops the request(s) from another thread.
            callback: called as `callback(text, index)` with every piece of text that is certain.

        Returns:
            One `Generation`, or a list of them in the order of the prompts.

        Raises:
            ImageError, PromptError, CapacityError, OptionError: the request cannot run; nothing
                has, and the engine is as before. (A method's error at prefill ends a batch.)
            CancelledError: a single request was cancelled (its `generation` holds what was
                written). In a batch, that row says `finish_reason="cancelled"` instead.
        """
        self._check_open()
        require_type("callback", callback, Callable)
        options = {"reserve": reserve, "bypass": bypass, "log_steps": log_steps}
        if not is_batch(prompt):
            selection = self._selection.with_changes(pruning=pruning, shift=shift, **options)
            sequences = [self._preparation.request(prompt, image, sampling, cancel, selection)]
        else:
            selections = [
                self._selection.with_changes(pruning=pruner, shift=policy, **options)
                for pruner, policy in zip(spread("pruning", pruning, len(prompt)),
                                          spread("shift", shift, len(prompt)), strict=True)]
            sequences = self._preparation.batch(prompt, image, sampling, cancel, selections)
        self._run(sequences, callback)
        if is_batch(prompt):
            return [seq.result() for seq in sequences]
        return _uncancelled(sequences[0])

    def stream(self, image: Any, prompt: Prompt, sampling: SamplingParams | None = None, *,
               pruning: PruningConfig | None = ENGINE_DEFAULT,
               shift: Shift | None = ENGINE_DEFAULT, reserve: str = ENGINE_DEFAULT,
               bypass: str = ENGINE_DEFAULT, log_steps: bool | str = False,
               cancel: CancelToken | None = None) -> Stream:
        """Answer one prompt piece by piece; arguments and errors as for `generate`.

        Returns:
            An iterator over pieces of text, each whole UTF-8 characters; `generation` on it
            holds the result after the last piece. Closing it early frees its place in the cache.
        """
        self._check_open()
        selection = self._selection.with_changes(pruning=pruning, shift=shift, reserve=reserve,
                                                 bypass=bypass, log_steps=log_steps)
        seq = self._preparation.request(prompt, image, sampling, cancel, selection)
        return Stream(self._scheduler.run([seq]), seq)

    def chat(self, system: str | None = None, *, pruning: PruningConfig | None = ENGINE_DEFAULT,
             shift: Shift | None = ENGINE_DEFAULT, reserve: str = ENGINE_DEFAULT,
             bypass: str = ENGINE_DEFAULT) -> Chat:
        """A conversation that keeps its cache between turns; it holds one of `max_batch`.

        Pictures of every turn are pruned as they come; every turn has an anchor of its own.
        """
        self._check_open()
        selection = self._selection.with_changes(pruning=pruning, shift=shift, reserve=reserve,
                                                 bypass=bypass)
        return Chat(self._preparation, self._scheduler, self._cache, system, selection)

    def close(self) -> None:
        """Refuse further work, stop its threads, give up weights and cache; idempotent."""
        if self._is_closed:
            return
        self._scheduler.close()
        self._is_closed = True
        self._pool.close()
        self._runner.close()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _run(self, sequences: list[Sequence], callback: TextCallback | None) -> None:
        with closing(self._scheduler.run(sequences)) as pieces:
            for index, piece in pieces:
                if callback is not None and piece:
                    callback(piece, index)

    def _check_open(self) -> None:
        if self._is_closed:
            raise PydstpError("engine: expected an open engine, got one that was closed")


class Stream:
    """Pieces of one answer as they become certain."""

    def __init__(self, pieces: Iterator[tuple[int, str]], seq: Sequence) -> None:
        self._pieces = pieces
        self._seq = seq
        self.generation: Generation | None = None

    def __iter__(self) -> Stream:
        return self

    def __next__(self) -> str:
        with one_reader("stream"):
            for _, piece in self._pieces:
                if piece:
                    return piece
        if self._seq.finish_reason is not None:
            self.generation = self.generation or _uncancelled(self._seq)
        raise StopIteration

    def close(self) -> None:
        """Stop the request where it stands; `generation` then holds what was written."""
        with one_reader("stream"):
            self._pieces.close()
        self._seq.finish_cancelled()
        self.generation = self.generation or self._seq.result()

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def _uncancelled(seq: Sequence) -> Generation:
    generation = seq.result()
    if generation.finish_reason == "cancelled":
        raise CancelledError("the request was cancelled", generation)
    return generation


def _cache_geometry(model: VLMConfig, config: EngineConfig) -> CacheGeometry:
    text = model.text
    return CacheGeometry(text.num_layers, text.num_kv_heads, text.head_dim, config.max_batch,
                         config.max_visual_tokens, config.max_text_tokens, text.num_heads)


def _open_preparation(checkpoint: Checkpoint, model: VLMConfig, tokenizer: Tokenizer,
                      config: EngineConfig) -> Preparation:
    _check_generation_config(model, checkpoint)
    template = ChatTemplate.from_checkpoint(checkpoint.path)
    processor = open_image_processor(checkpoint.path, min_pixels=config.min_pixels,
                                     max_pixels=config.max_pixels, max_tiles=config.max_tiles)
    return Preparation(tokenizer, template, processor, model, checkpoint.generation_config, config)


def _with_token_ids(model: VLMConfig, tokenizer: Tokenizer,
                    checkpoint: Checkpoint) -> VLMConfig:
    """The tokenizer and the model must mean the same by a placeholder, and ids must have rows.

    Where config.json names no image token, the tokenizer's counts.
    """
    marks = PICTURE_MARKS[model.model_type]
    placeholder = tokenizer.added_tokens.get(marks.token)
    if model.image_token_id is not None and placeholder != model.image_token_id:
        raise CheckpointError(f"{checkpoint.config_path}: image_token_id: expected the id of "
                              f"{marks.token} in the tokenizer, {placeholder}, "
                              f"got {model.image_token_id}")
    for name in marks.tokens:
        if name not in tokenizer.added_tokens:
            raise CheckpointError(f"{checkpoint.path}: tokenizer: expected a token {name}, got "
                                  f"none of this name")
    if tokenizer.vocab_size > model.text.vocab_size:
        raise CheckpointError(f"{checkpoint.config_path}: vocab_size: expected at least the "
                              f"{tokenizer.vocab_size} ids of the tokenizer, "
                              f"got {model.text.vocab_size}")
    return replace(model, image_token_id=placeholder)


def _check_generation_config(model: VLMConfig, checkpoint: Checkpoint) -> None:
    """Its end tokens must be ids of the model, its defaults values that sampling can take."""
    section = Section(checkpoint.generation_config, str(checkpoint.path / "generation_config.json"))
    for token_id in as_list(section.values.get("eos_token_id")):
        if not isinstance(token_id, int) or not 0 <= token_id < model.text.vocab_size:
            raise section.wrong("eos_token_id", f"ids below vocab_size {model.text.vocab_size}")
    try:
        SamplingParams().resolve(checkpoint.generation_config)
    except OptionError as error:
        raise CheckpointError(f"{section.source}: {error}") from None
