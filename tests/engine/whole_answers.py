"""What both families' answers have to show beside those of transformers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pydstp.config import EngineConfig, SamplingParams
from pydstp.engine import Engine
from tests.engine.oracle import user


def greedy_params(steps: int) -> SamplingParams:
    """The likeliest tokens, so many."""
    return SamplingParams(temperature=0.0, repetition_penalty=1.0, max_new_tokens=steps,
                          ignore_eos=True)


def check_greedy_tokens(path: Path, prompts: list, steps: int, greedy: Callable[..., list]) -> None:
    """Alone and in a batch of four, every token is that of transformers."""
    params = greedy_params(steps)
    expected = [greedy(path, [user(text, len(images))], images, steps) for text, images in prompts]
    with Engine(path, config=EngineConfig(max_batch=4)) as engine:
        alone = [engine.generate(images, text, params).token_ids for text, images in prompts]
        batch = engine.generate([images for _, images in prompts], [text for text, _ in prompts],
                                params)
    assert alone == expected
    assert [generation.token_ids for generation in batch] == expected
