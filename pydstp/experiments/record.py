"""What every result carries: where it was measured, on which weights; and how it is written."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from pydstp.errors import OptionError

ROOT = Path(__file__).resolve().parents[2]  # of the repository, when it runs from one
CPU_FLAGS = ("avx2", "f16c", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16")
PACKAGES = ("pydstp", "torch", "transformers", "tokenizers", "safetensors", "numpy")


def environment() -> dict[str, Any]:
    """Hardware, software and commit: without these a number means nothing."""
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    fields = dict(line.split(":", 1) for line in info.splitlines() if ":" in line)
    fields = {key.strip(): value.strip() for key, value in fields.items()}
    flags = fields.get("flags", "").split()
    return {
        "cpu": fields.get("model name", platform.processor() or platform.machine()),
        "cpu_flags": [flag for flag in CPU_FLAGS if flag in flags],
        "processors": num_processors(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "load_average": [round(load, 2) for load in os.getloadavg()],
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "packages": {name: package_version(name) for name in PACKAGES},
        "commit": commit(),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
    }


def num_processors() -> int:
    """Processors that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def package_version(name: str) -> str | None:
    """The installed version of a package, or None."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def commit() -> str:
    """The commit of the working tree; `+` says that tracked files differ from it."""
    def git(*arguments: str) -> str:
        try:
            done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True,
                                  check=False)
        except OSError:
            return ""
        return done.stdout.strip()

    if not (ROOT / ".git").exists():
        return "unknown"
    changed = git("status", "--porcelain", "--untracked-files=no")
    return (git("rev-parse", "--short=12", "HEAD") or "unknown") + ("+" if changed else "")


def checkpoint_sha256(folder: str | os.PathLike[str]) -> str:
    """SHA-256 of the weights: the safetensors files of a folder, one after the other by name."""
    digest = hashlib.sha256()
    for path in sorted(Path(folder).glob("*.safetensors")):
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose columns line up in a terminal too."""
    lines = [list(header), *map(list, rows)]
    widths = [max(3, *(len(line[column]) for line in lines)) for column in range(len(header))]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join("| " + " | ".join(map(str.ljust, line, widths)) + " |"
                     for line in lines) + "\n"


def require_writable(name: str, path: str | os.PathLike[str]) -> Path:
    """Check that a file can be written, before hours go into what it shall hold.

    Raises:
        OptionError: `path` is a folder, or lies in none that can be written to.
    """
    path = Path(path)
    parent = path.resolve().parent
    if path.is_dir() or not parent.is_dir() or not os.access(parent, os.W_OK):
        raise OptionError(f"{name}: expected a file in a folder that can be written to, "
                          f"got {str(path)!r}")
    return path


def require_folder(name: str, path: str | os.PathLike[str]) -> Path:
    """Make a folder unless it is there.

    Raises:
        OptionError: it cannot be made or written to.
    """
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OptionError(f"{name}: expected a folder, got {str(path)!r}: {error}") from None
    if not os.access(path, os.W_OK):
        raise OptionError(f"{name}: expected a folder that can be written to, got {str(path)!r}")
    return path


def write_json(name: str, path: Path, record: dict[str, Any]) -> None:
    """Write a record as JSON; whoever reads the file sees the old one or the new one, whole.

    Raises:
        OptionError: the file cannot be written.
    """
    beside = path.with_name(path.name + ".part")
    try:
        beside.write_text(json.dumps(record, indent=1) + "\n", "utf-8")
        beside.replace(path)
    except OSError as error:
        raise OptionError(f"{name}: expected a file that can be written, "
                          f"got {str(path)!r}: {error}") from None
