"""The documents: their examples run, their commands exist, their links and versions are right."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest
from PIL import Image

import pydstp
from pydstp.cli import build_parser
from pydstp.tasks import make_example
from tests.house import source_tree as tree

README = Path("README.md")
DOCUMENTS = [README, Path("CHANGELOG.md"), Path("benchmarks/README.md"),
             *sorted(path.relative_to(tree.ROOT) for path in (tree.ROOT / "docs").glob("*.md"))]
DEMO_SEED = 11  # of the picture in the README


@pytest.mark.parametrize("index", range(len(tree.fenced_blocks(README, "python"))))
def test_the_python_examples_run(index, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)  # where the checkpoint and the photo of the examples are
    shutil.copytree(pydstp.demo_checkpoint(), "Qwen3-VL-2B-Instruct")
    make_example("read", 1).images[0].save("photo.jpg")
    exec(compile(tree.fenced_blocks(README, "python")[index], str(README), "exec"), {})
    assert capsys.readouterr().out.strip()


def test_the_picture_and_the_transcript_are_of_the_demo() -> None:
    example = make_example("trail", DEMO_SEED)
    with Image.open(tree.ROOT / "docs" / "demo.png") as picture:
        is_same = picture.tobytes() == example.images[0].tobytes()
    assert is_same, f"draw it again: pydstp demo --seed {DEMO_SEED} --output docs/demo.png"
    transcript = tree.fenced_blocks(README, "text")[0]
    assert transcript == f"question  {example.prompt}\nanswer    {example.answer}\n"
    assert f'make_example("trail", seed={DEMO_SEED})' in "\n".join(tree.lines(README))


def test_the_commands_exist() -> None:
    targets = re.findall(r"^([a-z]+):", "\n".join(tree.lines(Path("Makefile"))), re.MULTILINE)
    for line in "".join(tree.fenced_blocks(README, "sh")).splitlines():
        words = shlex.split(line)
        if words[0] == "pydstp":
            build_parser().parse_args(words[1:])
        elif words[0] == "make":
            assert words[1] in targets, line
        else:
            assert words[0] == "export", f"{line}: not a command this test knows"


@pytest.mark.parametrize("document", DOCUMENTS, ids=str)
def test_links_lead_somewhere(document) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", "\n".join(tree.lines(document))):
        if "://" not in target:
            assert (tree.ROOT / document.parent / target).exists(), target


def test_one_torch_range_everywhere() -> None:
    range_of = re.compile(r"torch>=(\d+)\.(\d+),<(\d+)\.(\d+)")
    low_high = range_of.search("\n".join(tree.lines(Path("pyproject.toml")))).groups()
    script = "\n".join(tree.lines(Path(".ci/make_venv.py")))
    assert "TORCH_RANGE = (({}, {}), ({}, {}))".format(*low_high) in script
    readme = "\n".join(tree.lines(README))
    assert "| torch | >={}.{},<{}.{} |".format(*low_high) in readme
    default = re.search(r'TORCH_DEFAULT = "(torch==[\d.]+)"', script).group(1)
    assert f"`{default}`" in readme


def test_every_folder_has_its_sentence() -> None:
    layout = "\n".join(tree.lines(Path("docs/layout.md")))
    folders = {path.parent for path in [*tree.python_files(tree.PACKAGE), *tree.native_files()]}
    folders = {folder for folder in folders if folder.name != "pydstp"}
    missing = [str(folder) for folder in folders if f"`{folder}/`" not in layout]
    assert not missing, f"docs/layout.md has no row for {missing}"


def test_one_version() -> None:
    assert f'version = "{pydstp.__version__}"' in tree.lines(Path("pyproject.toml"))
    assert any(line.startswith(f"## {pydstp.__version__}")
               for line in tree.lines(Path("CHANGELOG.md")))


def test_numbers_about_speed_come_from_a_recorded_result() -> None:
    section = re.search(r"<!-- results: begin -->(.*)<!-- results: end -->",
                        "\n".join(tree.lines(README)), re.DOTALL).group(1)
    if re.search(r"\d", section):
        assert "(benchmarks/results/" in section
