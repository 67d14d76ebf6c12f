"""`pydstp demo`: draw a picture, ask the model about it, check the answer."""

from __future__ import annotations

import random
from pathlib import Path
from typing import TYPE_CHECKING

from pydstp.errors import OptionError
from pydstp.tasks import Example, is_correct, make_example

if TYPE_CHECKING:
    from pydstp.engine import Engine
    from pydstp.generation import CancelToken


def run(engine: Engine, task: str, seed: int | None, output: str, cancel: CancelToken) -> bool:
    """Draw, save, ask, stream, judge; returns whether the answer is the right one."""
    if seed is None:
        seed = random.SystemRandom().randrange(10**6)
    if seed < 0:
        raise OptionError(f"seed: expected an integer >= 0, got {seed}")
    example = make_example(task, seed, split="test")
    paths = save(example, Path(output))
    for path, image in zip(paths, example.images, strict=True):
        print(f"picture   {path} ({image.width} x {image.height} pixels, seed {seed})")
    print(f"question  {example.prompt}")
    print("answer    ", end="", flush=True)
    stream = engine.stream([str(path) for path in paths], example.prompt, cancel=cancel)
    for piece in stream:
        print(piece, end="", flush=True)
    generation = stream.generation
    is_right = is_correct(example, generation.text)
    print(f"\nverdict   {'right' if is_right else f'wrong; the answer is: {example.answer}'}")
    print(f"time      {generation.timings.time_to_first_token_ms:.0f} ms to the first token, "
          f"then {generation.ms_per_token:.1f} ms each ({len(generation.token_ids)} tokens, "
          f"{generation.visual_tokens} visual tokens)")
    return is_right


def save(example: Example, output: Path) -> list[Path]:
    """Write the pictures, numbered when there are several; the model reads these files."""
    count = len(example.images)
    try:
        paths = [output] if count == 1 else [
            output.with_stem(f"{output.stem}-{number}") for number in range(1, count + 1)]
        for path, image in zip(paths, example.images, strict=True):
            image.save(path)
    except (OSError, ValueError) as error:
        raise OptionError(f"output: expected a file a picture can be written to, "
                          f"got {str(output)!r}: {error}") from None
    return paths
