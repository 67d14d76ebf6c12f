"""Who may import whom: the two tables of docs/layout.md, held against every file."""

from __future__ import annotations

import ast
import re
from fnmatch import fnmatch
from pathlib import Path

from tests.house import source_tree as tree

LAYOUT = Path("docs/layout.md")
PYTHON_RULES = tree.rules(tree.fenced_blocks(LAYOUT, "imports")[0])
NATIVE_RULES = tree.rules(tree.fenced_blocks(LAYOUT, "includes")[0])


def is_within(module: str, room: str) -> bool:
    return module == room or module.startswith(room + ".")


def inside(module: str) -> str:
    """`pydstp.models.qwen3` -> `models.qwen3`; the root is `__init__`."""
    return module.partition(".")[2] or "__init__"


def may_import(allowed: list[str], name: str) -> bool:
    """Whether a row `a b c` or `* except a b` allows the module `name`."""
    if allowed[:1] == ["*"]:
        return not any(is_within(name, room) for room in allowed[2:])
    return any(is_within(name, room) for room in allowed)


def test_the_package_imports_only_what_its_rooms_may() -> None:
    wrong = []
    for path in tree.python_files(tree.PACKAGE):
        module = inside(tree.module_name(path))
        rooms = [room for room in PYTHON_RULES if is_within(module, room)]
        assert len(rooms) == 1, f"{path}: expected one row of the import table, got {rooms}"
        wrong += [f"{path}:{line} imports {name}" for line, name in tree.imported_modules(path)
                  if is_within(name, "pydstp")
                  and not may_import(PYTHON_RULES[rooms[0]], inside(name))]
    assert not wrong, f"against the import table of {LAYOUT}: {wrong}"


def importers(files: list[Path], *modules: str) -> list[str]:
    """`file:line` of every import of one of `modules`."""
    return [f"{path}:{line}" for path in files for line, name in tree.imported_modules(path)
            if any(is_within(name, module) for module in modules)]


def test_the_package_needs_no_test_dependency() -> None:
    # What a peer's environment runs, as a file: it imports the peer when it is asked for one.
    peers = Path("pydstp/bench/peer_server.py")
    package = [path for path in tree.python_files(tree.PACKAGE) if path != peers]
    assert not importers(package, "transformers", "pytest", "tests", "benchmarks", "examples")


def test_nothing_imports_a_package_named_models() -> None:
    assert not importers(tree.python_files(), "models"), "import pydstp.models instead"


def test_the_build_does_not_import_torch() -> None:
    assert not importers([Path("setup.py"), *tree.python_files((".ci",))], "torch")


def test_the_native_module_is_reached_through_ops_alone() -> None:
    others = [path for path in tree.python_files(tree.PACKAGE)
              if not is_within(tree.module_name(path), "pydstp.ops")]
    assert not importers(others, "pydstp._C")


def test_only_the_command_line_touches_the_environment_or_prints() -> None:
    wrong = []
    for path in tree.python_files(tree.PACKAGE):
        if path.stem in ("cli", "console", "demo", "repl", "__main__"):
            continue
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


def test_native_code_includes_only_what_its_room_may() -> None:
    wrong = []
    for path in tree.native_files():
        rows = [row for row in NATIVE_RULES if fnmatch(path.as_posix(), row)]
        assert len(rows) == 1, f"{path}: expected one row of the include table, got {rows}"
        own = [resolve(path, name) for kind, name in included(path) if kind == '"']
        own += [name for _, name in included(path) if name.startswith("pybind11/")]
        wrong += [f"{path} includes {name}" for name in own
                  if not any(fnmatch(name, allowed) for allowed in NATIVE_RULES[rows[0]])]
    assert not wrong, f"against the include table of {LAYOUT}: {wrong}"


def test_native_code_includes_no_torch() -> None:
    wrong = [f"{path}: {name}" for path in tree.native_files() for _, name in included(path)
             if re.match(r"(torch|ATen|c10|caffe2)/", name)]
    assert not wrong, wrong
