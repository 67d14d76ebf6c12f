"""What a user installs: everything that is needed, nothing that is large, and quick to import."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pydstp import _C
from tests.house.source_tree import ROOT


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python files and data as the build lays them out; nothing is compiled."""
    folder = tmp_path_factory.mktemp("build")
    subprocess.run([sys.executable, "setup.py", "--quiet", "egg_info", "--egg-base", folder,
                    "build_py", "--build-lib", folder], cwd=ROOT, check=True)
    return folder


def test_every_module_and_the_checkpoint_are_installed(installed: Path) -> None:
    found = {path.relative_to(installed).as_posix()
             for path in (installed / "pydstp").rglob("*") if path.is_file()}
    sources = {f"pydstp/{path.relative_to(ROOT).as_posix()}".replace("pydstp/pydstp/", "pydstp/")
               for folder in ("pydstp", "models") for path in (ROOT / folder).rglob("*.py")}
    assert sources - found == set()
    assert {"pydstp/py.typed", "pydstp/assets/demo/model.safetensors"} <= found


def test_nothing_but_the_package_is_installed(installed: Path) -> None:
    others = [path.name for path in installed.iterdir() if path.suffix != ".egg-info"]
    assert others == ["pydstp"]


def test_the_package_is_small(installed: Path) -> None:
    files = sum(path.stat().st_size for path in installed.rglob("*") if path.is_file())
    assert files + Path(_C.__file__).stat().st_size <= 20e6


def test_the_package_itself_imports_in_no_time() -> None:
    program = ("import time; import torch; start = time.process_time(); import pydstp; "
               "pydstp.Engine; print(time.process_time() - start)")
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True,
                          text=True, check=True)
    assert float(done.stdout) < 0.8  # processor time; 0.3 s on a machine with nothing else to do
