"""What a table leaves behind: FILE.json with everything, FILE.md to be read, FILE.png."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydstp.errors import OptionError
from pydstp.experiments.record import require_writable, write_json
from pydstp.experiments.tables.layout import LEGEND, Table

FLAG = "--output"
SUFFIXES = (".json", ".md")


def require_outputs(path: str) -> Path:
    """The JSON file that `--output` means, whichever of the two it names.

    Raises:
        OptionError: another suffix, or a folder that cannot be written to.
    """
    if Path(path).suffix not in SUFFIXES:
        raise OptionError(f"{FLAG}: expected a file that ends in {' or '.join(SUFFIXES)}, "
                          f"got {path!r}")
    return require_writable(FLAG, Path(path).with_suffix(".json"))


def read_results(path: Path) -> dict[str, Any]:
    """What an earlier run left in its record; nothing if there is none.

    Raises:
        OptionError: the file is no such record.
    """
    if not path.exists():
        return {}
    try:
        results = json.loads(path.read_text("utf-8"))["results"]
    except (OSError, ValueError, KeyError, TypeError):
        results = None
    if not isinstance(results, dict):
        raise OptionError(f"--resume: expected a record of `pydstp tables` in {str(path)!r}")
    return results


def write_table(path: Path, record: dict[str, Any], table: Table, command: str) -> None:
    """Write the finished record, and the Markdown beside it.

    Raises:
        OptionError: a file cannot be written.
    """
    write_json(FLAG, path, record | {"table": table.to_dict()})
    try:
        path.with_suffix(".md").write_text(to_page(record, table, command), "utf-8")
    except OSError as error:
        raise OptionError(f"{FLAG}: expected a file that can be written: {error}") from None


def to_page(record: dict[str, Any], table: Table, command: str) -> str:
    """The table with all that a reader needs."""
    where = record["environment"]
    notes = "\n".join(f"- {note}" for note in (f"Reprints {table.source}.", LEGEND, *table.notes))
    figure = "" if table.figure is None else f"\n![{table.title}]({record['name']}.png)\n"
    return (f"# {table.title}\n\n`{command}`\n\n{table.to_markdown()}{figure}\n{notes}\n\n"
            f"n = {record['n']} questions per cell from seed {record['seed']} on, test split, "
            f"greedy, whole answers. Weights SHA-256 `{record['checkpoint_sha256']}`, commit "
            f"{where['commit']}, {where['date']}, {where['cpu']}, {where['processors']} "
            f"processor{'s' if where['processors'] > 1 else ''}.\n")
