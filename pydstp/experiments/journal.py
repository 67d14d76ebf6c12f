"""Results that survive their program: one JSON object per line, appended as soon as it is known."""

from __future__ import annotations

import fcntl
import hashlib
import json
from pathlib import Path
from typing import Any

from pydstp.errors import OptionError

ROWS, ANSWERS = "rows.jsonl", "answers.jsonl"


class Journal:
    """A file of JSON lines that one program at a time appends to.

    A program that is killed may leave half a line at the end; opening the file again cuts it off.

    Args:
        name: of the option that named the file, for messages.
        path: the file; it need not exist, its folder must.
        fresh: throw away what it holds.

    Attributes:
        records: what the file held when it was opened, one dictionary per line.

    Raises:
        OptionError: the file cannot be opened, another program has it open, or a line other than
            a torn last one is no JSON object.
    """

    def __init__(self, name: str, path: Path, *, fresh: bool = False) -> None:
        self._name, self._path = name, path
        try:
            self._file = path.open("a+b", buffering=0)
        except OSError as error:
            raise OptionError(f"{name}: expected a file that can be written, got {str(path)!r}: "
                              f"{error.strerror}") from None
        try:
            self._lock()
            self.records = [] if fresh else self._read()
            if fresh:
                self._file.truncate(0)
        except OptionError:
            self._file.close()
            raise

    def append(self, record: dict[str, Any]) -> None:
        """Add one line; it is in the file when this returns.

        Raises:
            OptionError: the file cannot be written, as on a full disk.
        """
        line = json.dumps(record, ensure_ascii=False).encode() + b"\n"
        try:
            is_whole = self._file.write(line) == len(line)
        except OSError:
            is_whole = False
        if not is_whole:
            raise OptionError(f"{self._name}: expected room for {len(line)} more bytes in "
                              f"{str(self._path)!r}")

    def close(self) -> None:
        """Let others open the file."""
        self._file.close()

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise OptionError(f"{self._name}: expected a folder that no other program writes "
                              f"results to, but one has {str(self._path)!r} open") from None

    def _read(self) -> list[dict[str, Any]]:
        """The whole lines; half a line at the end is cut off."""
        self._file.seek(0)
        content = self._file.read()
        whole = content.rfind(b"\n") + 1
        self._file.truncate(whole)
        return [self._parse(line, number)
                for number, line in enumerate(content[:whole].splitlines(), 1)]

    def _parse(self, line: bytes, number: int) -> dict[str, Any]:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            record = None
        if not isinstance(record, dict):
            raise OptionError(f"{self._name}: expected a JSON object in every line, but line "
                              f"{number} of {str(self._path)!r} is none; --fresh starts over")
        return record


class EvalLog:
    """What an evaluation has measured so far, in a folder: rows, and the answers behind them.

    A result is found again by a key over everything that it depends on, so another checkpoint,
    version or option measures anew, and results of both stay side by side.

    Args:
        name: of the option that named the folder, for messages.
        folder: exists.
        identity: what holds for all rows: version, checkpoint, precision. Plain values.
        fresh: throw away what the folder holds.

    Raises:
        OptionError: as for `Journal`.
    """

    def __init__(self, name: str, folder: Path, identity: dict[str, Any], *,
                 fresh: bool = False) -> None:
        self.identity = identity
        self._rows_file = Journal(name, folder / ROWS, fresh=fresh)
        try:
            self._answers_file = Journal(name, folder / ANSWERS, fresh=fresh)
        except OptionError:
            self._rows_file.close()
            raise
        self._rows = {row.get("key"): row for row in self._rows_file.records}
        self._answers: dict[str, list[dict[str, Any]]] = {}
        for block in self._answers_file.records:
            self._take(block)

    def __enter__(self) -> EvalLog:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._rows_file.close()
        self._answers_file.close()

    def key(self, asked: dict[str, Any]) -> str:
        """16 hexadecimal digits that stand for a setting under this identity."""
        text = json.dumps({**self.identity, **asked}, sort_keys=True, default=list)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def row(self, key: str) -> dict[str, Any] | None:
        """A row that is finished, or None."""
        return self._rows.get(key)

    def answers(self, key: str) -> list[dict[str, Any]]:
        """What is known of a row that is not finished, from its first question on."""
        return list(self._answers.get(key, ()))

    def add_answers(self, key: str, first: int, answers: list[dict[str, Any]]) -> None:
        """A block of answers; `first` is how many came before it."""
        self._answers_file.append({"key": key, "first": first, "answers": answers})

    def add_row(self, row: dict[str, Any]) -> None:
        """A finished row, under `row["key"]`."""
        self._rows_file.append(row)
        self._rows[row["key"]] = row

    def rows(self) -> list[dict[str, Any]]:
        """The finished rows of this identity, in the order they were measured."""
        return [row for row in self._rows.values()
                if row.get("identity") == json.loads(json.dumps(self.identity))]

    @property
    def num_others(self) -> int:
        """Rows in the folder of another version, checkpoint or precision."""
        return len(self._rows) - len(self.rows())

    def _take(self, block: dict[str, Any]) -> None:
        """Answers of finished rows are not needed again; a block out of turn is not trusted."""
        key, first, answers = block.get("key"), block.get("first"), block.get("answers")
        if key in self._rows or not isinstance(answers, list):
            return
        known = self._answers.setdefault(key, [])
        if first == 0:
            known[:] = answers
        elif first == len(known):
            known += answers
