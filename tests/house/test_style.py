"""Small on purpose: lengths, annotations, docstrings, and no assert that a user could meet."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from tests.house import source_tree as tree

MAX_FILE_LINES = 300
MAX_FUNCTION_LINES = 30  # without its docstring

# An entry is a debt with its reason. A stale entry fails: see the last test.
LONG_FILES: dict[str, str] = {}
LONG_FUNCTIONS: dict[str, str] = {
    "csrc/kernels/decode_attention.cuh:attend_chunk_kernel":
        "one kernel: scores, softmax and sum share the registers and the barriers between them",
}

Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions(path: Path) -> Iterator[tuple[str, Function, ast.AST]]:
    """(dotted name, function, parent) of every function and method in the file."""
    def walk(node: ast.AST, prefix: str) -> Iterator[tuple[str, Function, ast.AST]]:
        for child in ast.iter_child_nodes(node):
            name = f"{prefix}.{child.name}" if hasattr(child, "name") else prefix
            if isinstance(child, Function):
                yield name.lstrip("."), child, node
            yield from walk(child, name)
    yield from walk(tree.parse(path), "")


def code_lines(function: Function) -> int:
    """Lines from `def` to the end, the docstring not counted."""
    lines = (function.end_lineno or function.lineno) - function.lineno + 1
    first = function.body[0]
    if ast.get_docstring(function) is not None:
        lines -= (first.end_lineno or first.lineno) - first.lineno + 1
    return lines


def native_functions(path: Path) -> Iterator[tuple[str, int]]:
    """(name, lines) of each function whose head and closing brace stand in the first column."""
    other = ("namespace", "extern", "struct", "class", "enum", "template", "#", "//", "}")
    head, start, is_open = "", 0, False
    for number, line in enumerate(tree.lines(path), 1):
        found = None if head or line.startswith(other) else re.match(r"(?=\w).*?(\w+)\(", line)
        if found:
            head, start = found.group(1), number
        if head and not is_open:
            is_open = line.endswith("{")
            head = "" if line.endswith((";", "}")) else head
        elif head and line.startswith("}"):
            yield head, number - start + 1
            head, is_open = "", False


def long_files() -> dict[str, int]:
    paths = [*tree.python_files(), *tree.native_files(), Path("setup.py"), Path("CMakeLists.txt")]
    counts = {str(path): len(tree.lines(path)) for path in paths}
    return {path: count for path, count in counts.items() if count > MAX_FILE_LINES}


def long_functions() -> dict[str, int]:
    counts = {f"{path}:{name}": code_lines(function) for path in tree.python_files()
              for name, function, _ in functions(path)}
    counts |= {f"{path}:{name}": count for path in tree.native_files()
               for name, count in native_functions(path)}
    return {name: count for name, count in counts.items() if count > MAX_FUNCTION_LINES}


def test_files_are_short() -> None:
    excess = {p: n for p, n in long_files().items() if p not in LONG_FILES}
    assert not excess, f"more than {MAX_FILE_LINES} lines, and no stated reason: {excess}"


def test_functions_are_short() -> None:
    excess = {f: n for f, n in long_functions().items() if f not in LONG_FUNCTIONS}
    assert not excess, f"more than {MAX_FUNCTION_LINES} lines, and no stated reason: {excess}"


def missing_annotations(function: Function, parent: ast.AST) -> list[str]:
    """Arguments without a type (`self` and `cls` need none), and `return` if that lacks one."""
    arguments = function.args
    named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    named += [a for a in (arguments.vararg, arguments.kwarg) if a is not None]
    if isinstance(parent, ast.ClassDef) and named and named[0].arg in ("self", "cls"):
        named = named[1:]
    return [a.arg for a in named if a.annotation is None] + ["return"] * (function.returns is None)


def test_every_function_of_the_package_is_annotated() -> None:
    missing = {f"{path}:{name}": names for path in tree.python_files(tree.PACKAGE)
               for name, function, parent in functions(path)
               if (names := missing_annotations(function, parent))}
    assert not missing, f"no annotation: {missing}"


def test_every_module_and_public_name_has_a_docstring() -> None:
    missing = []
    for path in tree.python_files(tree.PACKAGE):
        module = tree.parse(path)
        missing += [] if ast.get_docstring(module) else [str(path)]
        missing += [f"{path}:{node.name}" for node in module.body
                    if isinstance(node, ast.ClassDef | Function)
                    and not node.name.startswith("_") and not ast.get_docstring(node)]
    assert not missing, f"no docstring: {missing}"


def test_no_assert_a_user_could_meet() -> None:
    found = [f"{path}:{node.lineno}" for path in tree.python_files(tree.PACKAGE)
             for node in ast.walk(tree.parse(path)) if isinstance(node, ast.Assert)]
    assert not found, f"raise a PydstpError instead of assert: {found}"


def test_no_path_of_one_machine_and_no_half_done_marks() -> None:
    pattern = re.compile(r"(?<![\w.:])/(?:hom[e]|roo[t]|wor[k]|User[s])/|TOD[O]|FIXM[E]|XX[X]")
    documents = [Path("Makefile"), Path("README.md"),
                 *(path.relative_to(tree.ROOT) for path in (tree.ROOT / "docs").glob("*.md"))]
    wrong = [f"{path}:{number}: {line.strip()}"
             for path in [*tree.python_files(), *tree.native_files(), *documents]
             for number, line in enumerate(tree.lines(path), 1) if pattern.search(line)]
    assert not wrong, "\n".join(wrong)


def test_stated_exceptions_are_still_needed() -> None:
    stale = [p for p in LONG_FILES if p not in long_files()]
    stale += [f for f in LONG_FUNCTIONS if f not in long_functions()]
    assert not stale, f"short again, remove from the exceptions: {stale}"
