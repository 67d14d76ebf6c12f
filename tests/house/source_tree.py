"""The repository read as text and as syntax trees: what the tests of this folder look at."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ("pydstp", "models")  # what a user installs
PYTHON = (*PACKAGE, "tests", "benchmarks", "examples", ".ci")
NATIVE = ("csrc",)
NATIVE_SUFFIXES = {".h", ".cpp", ".cuh", ".cu"}


def python_files(folders: tuple[str, ...] = PYTHON) -> list[Path]:
    """Every Python file under `folders`, relative to the root, in a fixed order."""
    return sorted(p.relative_to(ROOT) for f in folders for p in (ROOT / f).rglob("*.py"))


def native_files() -> list[Path]:
    """Every C++ and CUDA file, relative to the root, in a fixed order."""
    found = (p for f in NATIVE for p in (ROOT / f).rglob("*") if p.suffix in NATIVE_SUFFIXES)
    return sorted(p.relative_to(ROOT) for p in found)


def lines(path: Path) -> list[str]:
    """The lines of a file; none if it does not exist."""
    file = ROOT / path
    return file.read_text(encoding="utf-8").splitlines() if file.exists() else []


@cache
def parse(path: Path) -> ast.Module:
    return ast.parse((ROOT / path).read_text(encoding="utf-8"), filename=str(path))


def module_name(path: Path) -> str:
    """`models/qwen3.py` -> `pydstp.models.qwen3`, `pydstp/shift/__init__.py` -> `pydstp.shift`."""
    parts = list(path.with_suffix("").parts)
    if parts[0] == "models":
        parts.insert(0, "pydstp")
    if parts[-1] == "__init__":
        parts.pop()
    return ".".join(parts)


def imported_modules(path: Path) -> Iterator[tuple[int, str]]:
    """(line, module) of every import in the file, functions included, relative ones resolved.

    `from pydstp import ops` yields `pydstp.ops` when that is a module, else `pydstp`.
    """
    known = {module_name(p) for p in python_files(PACKAGE)} | {"pydstp._C"}
    package = module_name(path).split(".")
    if path.name != "__init__.py":
        package.pop()
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*parents, *([node.module] if node.module else [])])
            for alias in node.names:
                full = f"{base}.{alias.name}"
                yield node.lineno, full if full in known else base


def fenced_blocks(path: Path, language: str) -> list[str]:
    """The fenced blocks of a Markdown file that are marked with `language`."""
    text = (ROOT / path).read_text(encoding="utf-8")
    return re.findall(rf"^```{re.escape(language)}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def rules(block: str) -> dict[str, list[str]]:
    """`left left -> right right` lines of a fenced block of docs/layout.md, by each left word."""
    table = {}
    for line in filter(str.strip, block.splitlines()):
        left, _, right = line.partition("->")
        table.update(dict.fromkeys(left.split(), right.split()))
    return table
