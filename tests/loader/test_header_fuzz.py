"""Damaged headers against the safetensors library: what it refuses, we refuse, and never crash."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import pytest
from safetensors import SafetensorError, deserialize

from pydstp.errors import CheckpointError
from pydstp.weights.safetensors_file import read_header
from tests.loader.raw_files import DATA, HEADER, encode

NUM_CASES = 1000  # of each kind of damage
NUMBERS = (0, 1, -1, 2, 3, 7, 24, 34, 42, 2**31, 2**53, 2**62, 2**63, 2**64 - 1, 2**64, 10**30)
VALUES = (*NUMBERS, 1.0, 24.5, 1e308, True, None, "", "F32", "24", [], [0], [0, 24], {}, "\ud800")
DTYPES = ("F32", "F16", "BF16", "F64", "I64", "U8", "BOOL", "F8_E4M3", "F4", "C64", "f32", "X")
TEXTS = ("NaN", "-0", "01", "1.0", "1e2", "Infinity", "\\ud800", "\\u0000", "\\u0061", "{", "}",
         "[", "]", ",", ":", '"', " ", "\t", "\n", "\x00", "é", "//", "[" * 200, "1" * 5000, "null")

Damage = Callable[[random.Random], bytes]


def damage_fields(rng: random.Random) -> bytes:
    """Well-formed JSON with wrong contents."""
    header: dict[str, Any] = json.loads(json.dumps(HEADER))
    for _ in range(rng.randint(1, 2)):
        name = rng.choice(list(header) or ["x"])
        entry = header.get(name)
        kind = rng.randrange(6)
        if kind == 0 or not isinstance(entry, dict):
            header[name] = rng.choice(VALUES)
        elif kind == 1:
            entry["dtype"] = rng.choice(DTYPES)
        elif kind == 2:
            entry["shape"] = rng.choices(NUMBERS, k=rng.randrange(4))
        elif kind == 3:
            entry["data_offsets"] = rng.choices(NUMBERS, k=rng.choice((1, 2, 2, 2, 3)))
        elif kind == 4:
            entry[rng.choice(("dtype", "shape", "data_offsets", "more"))] = rng.choice(VALUES)
        else:
            header[rng.choice(("", "a.weight ", "é", "model"))] = header.pop(name)
    return encode(json.dumps(header), DATA)


def damage_text(rng: random.Random) -> bytes:
    """The header's text with pieces replaced, doubled, removed or inserted."""
    text = json.dumps(HEADER, separators=(",", ":"))
    for _ in range(rng.randint(1, 2)):
        start = rng.randrange(len(text) + 1)
        stop = min(len(text), start + rng.choice((0, 0, 1, 1, 2, 8)))
        piece = rng.choice((*TEXTS, text[start:stop] * 2, ""))
        text = text[:start] + piece + text[stop:]
    return encode(text.encode("utf-8", "surrogatepass"), DATA)


def damage_bytes(rng: random.Random) -> bytes:
    """The file with bits flipped, cut short, lengthened, or lying about its header's length."""
    file = bytearray(encode(HEADER))
    for _ in range(rng.randint(1, 2)):
        kind = rng.randrange(5)
        if kind == 0 and file:
            file[rng.randrange(len(file))] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del file[rng.randrange(len(file) + 1):]
        elif kind == 2:
            file += rng.randbytes(rng.randint(1, 9))
        elif kind == 3:
            file[:8] = (rng.choice(NUMBERS) % 2**64).to_bytes(8, "little")
        elif file:
            file[rng.randrange(len(file))] = rng.randrange(256)
    return bytes(file)


def damage_nothing(rng: random.Random) -> bytes:
    """Valid files: tensors in any order in the header, spaces behind it."""
    names = rng.sample(list(HEADER), len(HEADER))
    header = json.dumps({name: HEADER[name] for name in names}, indent=rng.choice((None, 0, 2)))
    return encode(header + " " * rng.randrange(9), DATA)


def accepted_by_library(content: bytes) -> dict[str, tuple] | None:
    try:
        tensors = deserialize(content)
    except SafetensorError:
        return None
    return {name: (t["dtype"], tuple(t["shape"]), bytes(t["data"])) for name, t in tensors}


def accepted_by_us(file: BinaryIO, content: bytes) -> dict[str, tuple] | None:
    file.seek(0)
    file.truncate()
    file.write(content)
    file.flush()
    try:
        tensors = read_header(Path(file.name))
    except CheckpointError:
        return None
    return {name: (t.dtype, t.shape, content[t.offset:t.offset + t.num_bytes])
            for name, t in tensors.items()}


@pytest.mark.parametrize("damage", [damage_fields, damage_text, damage_bytes, damage_nothing],
                         ids=lambda damage: damage.__name__)
def test_refuses_what_the_library_refuses_and_reads_the_rest_alike(
    tmp_path: Path, damage: Damage
) -> None:
    rng, verdicts = random.Random(f"{damage.__name__} 1"), Counter()
    with (tmp_path / "damaged.safetensors").open("wb") as file:
        for _ in range(NUM_CASES):
            content = damage(rng)
            theirs, ours = accepted_by_library(content), accepted_by_us(file, content)
            verdicts[theirs is not None, ours is not None] += 1
            assert ours is None or ours == theirs, content
    assert verdicts[True, True] >= (NUM_CASES if damage is damage_nothing else 10)
    assert verdicts[True, False] < 0.2 * NUM_CASES  # stricter than the library, not deaf

