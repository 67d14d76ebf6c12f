"""Make the virtual environment that the Makefile works in; an installed torch is reused.

    python3 .ci/make_venv.py FOLDER [--torch REQUIREMENT]

Standard library only: this runs before anything else is installed. Running it again is harmless.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shlex
import shutil
import site
import subprocess
import sys
from importlib import metadata
from pathlib import Path

TORCH_RANGE = ((2, 11), (2, 14))  # as in pyproject.toml: at least the first, below the second
TORCH_DEFAULT = "torch==2.13.0"
BUILD_REQUIREMENTS = ["setuptools>=77", "pybind11>=2.13", "ninja"]


def torch_in_range() -> bool:
    """Whether this interpreter sees a torch that pydstp accepts (read from its metadata)."""
    try:
        version = metadata.version("torch")
    except metadata.PackageNotFoundError:
        return False
    major, minor = version.split(".")[:2]
    return TORCH_RANGE[0] <= (int(major), int(minor)) < TORCH_RANGE[1]


def create(folder: Path, share_packages: bool) -> None:
    """Create `folder`; with `share_packages` it sees the packages of the running interpreter."""
    if importlib.util.find_spec("ensurepip") is not None:
        command = [sys.executable, "-m", "venv"]
    elif importlib.util.find_spec("virtualenv") is not None:
        command = [sys.executable, "-m", "virtualenv", "--quiet"]
    else:
        sys.exit("error: this Python cannot make virtual environments; on Debian and Ubuntu: "
                 "apt install python3-venv")
    if share_packages:
        command.append("--system-site-packages")
    subprocess.run([*command, str(folder)], check=True)
    if share_packages and sys.prefix != sys.base_prefix:
        # Started from inside another virtual environment: --system-site-packages looks past it.
        paths = [path for path in site.getsitepackages() if os.path.isdir(path)]
        target = next(folder.glob("lib*/python3*/site-packages"))
        (target / "outer_environment.pth").write_text("\n".join(paths) + "\n")


def install(python: Path, torch: str | None) -> None:
    """Install the build requirements, and torch unless a fitting one is visible already."""
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    build = BUILD_REQUIREMENTS + ([] if shutil.which("cmake") else ["cmake"])
    # --upgrade: the setuptools a new environment starts with may be too old to build a wheel.
    subprocess.run([*pip, "--upgrade", *build], check=True)
    script = str(Path(__file__).resolve())
    has_torch = subprocess.run([str(python), script, "--has-torch"], check=False).returncode == 0
    if torch is not None or not has_torch:
        print(f"installing {torch or TORCH_DEFAULT} (a large download the first time)", flush=True)
        subprocess.run([*pip, *shlex.split(torch or TORCH_DEFAULT)], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, default=Path(".venv"))
    parser.add_argument("--torch", help=f"pip requirement for torch (default {TORCH_DEFAULT})")
    parser.add_argument("--has-torch", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if sys.version_info < (3, 10):  # noqa: UP036 (this is where an older Python is told)
        sys.exit(f"error: Python 3.10 or newer is needed, this is {sys.version.split()[0]}; "
                 "choose another with PYTHON=python3.x")
    if options.has_torch:
        sys.exit(0 if torch_in_range() else 1)
    torch = options.torch or None  # the Makefile passes an empty string for "not given"
    if not (options.folder / "bin" / "pip").exists():
        create(options.folder, share_packages=torch is None and torch_in_range())
    install(options.folder / "bin" / "python", torch)


if __name__ == "__main__":
    main()
