"""Typed reading of a config.json section: every complaint names file, key and value."""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydstp.errors import CheckpointError, UnsupportedModelError


@dataclass(frozen=True)
class Section:
    """One JSON object of a configuration file.

    values: the object. source: the file it came from. prefix: dotted path of the object in the file
    (empty at the top, otherwise with a trailing dot).
    """

    values: Mapping[str, Any]
    source: str
    prefix: str = ""

    def where(self, key: str) -> str:
        return f"{self.source}: {self.prefix}{key}"

    def has(self, key: str) -> bool:
        """A key that is present with the value null counts as absent."""
        return self.values.get(key) is not None

    def section(self, key: str) -> "Section":
        value = self._require(key)
        if not isinstance(value, Mapping):
            raise self.wrong(key, "an object")
        return Section(value, self.source, f"{self.prefix}{key}.")

    def integer(self, key: str, minimum: int = 1) -> int:
        value = self._require(key)
        if not _is_int(value) or value < minimum:
            raise self.wrong(key, f"an integer >= {minimum}")
        return value

    def integers(self, key: str, minimum: int = 0) -> tuple[int, ...]:
        value = self._require(key)
        is_list = isinstance(value, Sequence) and not isinstance(value, str)
        if not is_list or not all(_is_int(item) and item >= minimum for item in value):
            raise self.wrong(key, f"a list of integers >= {minimum}")
        return tuple(value)

    def positive(self, key: str) -> float:
        value = self._require(key)
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        # Compared, not converted: an integer may be larger than any float.
        if not is_number or not 0 < value <= sys.float_info.max:
            raise self.wrong(key, "a finite number > 0")
        return float(value)

    def string(self, key: str) -> str:
        value = self._require(key)
        if not isinstance(value, str):
            raise self.wrong(key, "a string")
        return value

    def choice(self, key: str, supported: Sequence[str]) -> str:
        """A string out of `supported`; any other string raises UnsupportedModelError."""
        value = self.string(key)
        if value not in supported:
            raise self.unsupported(key, f"supported: {', '.join(supported)}")
        return value

    def refuse(self, key: str, *, unless: Sequence[Any], reason: str) -> None:
        """Raise UnsupportedModelError if `key` is neither null nor one of `unless`."""
        if self.has(key) and self.values[key] not in unless:
            raise self.unsupported(key, reason)

    def wrong(self, key: str, expected: str) -> CheckpointError:
        return CheckpointError(f"{self.where(key)}: expected {expected}, got {self.show(key)}")

    def unsupported(self, key: str, reason: str) -> UnsupportedModelError:
        setting = f"{self.where(key)} = {self.show(key)}"
        return UnsupportedModelError(f"{setting} is not supported ({reason})")

    def show(self, key: str) -> str:
        text = json.dumps(self.values.get(key), default=repr)
        return text if len(text) <= 120 else text[:117] + "..."

    def _require(self, key: str) -> Any:
        if not self.has(key):
            raise CheckpointError(f"{self.where(key)} is missing")
        return self.values[key]


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
