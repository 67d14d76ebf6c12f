"""Who may import whom: the two tables of docs/layout.md, held against every file."""

from __future__ import annotations

import ast
import re
from fnmatch import fnmatch
from pathlib import Path

import pytest

from tests.house import source_tree as tree

LAYOUT = Path("docs/layout.md")
PYTHON_RULES = tree.rules(tree.fenced_blocks(LAYOUT, "imports")[0])
NATIVE_RULES = tree.rules(tree.fenced_blocks(LAYOUT, "includes")[0])


def is_within(module: str, room: str) -> bool:
    return module == room or module.startswith(room + ".")


def room_of(module: str) -> str | None:
    """The longest room of the table that holds `module`."""
    return max((r for r in PYTHON_RULES if is_within(module, r)), key=len, default=None)


@pytest.mark.parametrize("path", tree.python_files(tree.PACKAGE), ids=str)
def test_package_imports_only_what_its_room_may(path: Path) -> None:
    module = tree.module_name(path)
    room = room_of(module)
    if room is None:
        pytest.fail(f"{path} has no row in the import table of {LAYOUT}")
    allowed = PYTHON_RULES[room]
    if allowed == ["anything"]:
        return
    wrong = [f"{path}:{line} imports {name}" for line, name in tree.imported_modules(path)
             if is_within(name, "pydstp") and not any(is_within(name, a) for a in allowed)]
    assert not wrong, f"{room} may import {allowed}: " + "; ".join(wrong)


@pytest.mark.parametrize("path", tree.python_files(tree.PACKAGE), ids=str)
def test_package_needs_no_test_dependency(path: Path) -> None:
    banned = ("transformers", "pytest", "tests", "benchmarks", "examples", "models")
    wrong = [(line, name) for line, name in tree.imported_modules(path)
             if any(is_within(name, b) for b in banned)]
    assert not wrong, f"{path} imports {wrong}"


def test_the_native_module_is_reached_through_ops_alone() -> None:
    users = {str(path) for path in tree.python_files(tree.PACKAGE)
             for _, name in tree.imported_modules(path) if is_within(name, "pydstp._C")}
    assert users <= {"pydstp/ops.py"}


@pytest.mark.parametrize("path", tree.python_files(), ids=str)
def test_nothing_imports_a_package_named_models(path: Path) -> None:
    wrong = [line for line, name in tree.imported_modules(path) if is_within(name, "models")]
    assert not wrong, f"{path}: import pydstp.models instead, lines {wrong}"


def test_the_build_does_not_import_torch() -> None:
    for path in [Path("setup.py"), *tree.python_files((".ci",))]:
        assert not [n for _, n in tree.imported_modules(path) if is_within(n, "torch")], path


@pytest.mark.parametrize("path", tree.python_files(tree.PACKAGE), ids=str)
def test_only_the_command_line_touches_the_environment_or_prints(path: Path) -> None:
    if path.name in ("cli.py", "demo.py", "__main__.py"):
        return
    wrong = []
    for node in ast.walk(tree.parse(path)):
        if isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv", "putenv"):
            wrong.append(f"{path}:{node.lineno} {node.attr}")
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "print":
            wrong.append(f"{path}:{node.lineno} print")
    assert not wrong, wrong


def included(path: Path) -> list[tuple[str, str]]:
    """(kind, name) of each #include: kind is `"` for our own files and `<` for others."""
    text = (tree.ROOT / path).read_text(encoding="utf-8")
    return re.findall(r'^\s*#\s*include\s*(["<])([^">]+)[">]', text, re.MULTILINE)


def resolve(path: Path, name: str) -> str:
    """An include as a path from the root: beside the file that names it, else under csrc."""
    for base in (path.parent, Path("csrc")):
        if (tree.ROOT / base / name).exists():
            return (base / name).as_posix()
    return name


@pytest.mark.parametrize("path", tree.native_files(), ids=str)
def test_native_code_includes_only_what_its_room_may(path: Path) -> None:
    rows = [row for row in NATIVE_RULES if fnmatch(path.as_posix(), row)]
    assert len(rows) == 1, f"{path} must match one row of the include table, matches {rows}"
    allowed = NATIVE_RULES[rows[0]]
    names = [resolve(path, name) for kind, name in included(path) if kind == '"' or "/" in name]
    wrong = [n for n in names if not any(fnmatch(n, a) for a in allowed) and "sys/" not in n]
    assert not wrong, f"{path} includes {wrong}; {rows[0]} may include {allowed}"


@pytest.mark.parametrize("path", tree.native_files(), ids=str)
def test_native_code_includes_no_torch(path: Path) -> None:
    wrong = [n for _, n in included(path) if re.match(r"(torch|ATen|c10|caffe2)/", n)]
    assert not wrong, f"{path} includes {wrong}"


@pytest.mark.parametrize("path", tree.native_files(), ids=str)
def test_pybind11_stays_in_the_bindings(path: Path) -> None:
    uses = any(n.startswith("pybind11/") or n == "Python.h" for _, n in included(path))
    assert not uses or path.parts[1] == "bindings", path
