"""A checkpoint folder: which files it has, and what their headers say. No weights are read here."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydstp.errors import CheckpointError, OptionError, show
from pydstp.json_file import read_json
from pydstp.weights.safetensors_file import TensorInfo, read_header

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
OTHER_FORMATS = (".bin", ".pt", ".pth", ".ckpt", ".gguf", ".onnx", ".msgpack", ".h5")


@dataclass(frozen=True)
class Checkpoint:
    """A folder whose files were found and whose headers hold together.

    config: the content of config.json. tensors: of all files, by the name in the file.
    generation_config: empty where the folder has none.
    """

    path: Path
    config: dict[str, Any]
    config_path: Path
    generation_config: dict[str, Any]
    tensors: dict[str, TensorInfo]


def open_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Find and check the files of a checkpoint.

    Raises:
        CheckpointError: the folder, config.json or weights are missing, a file breaks its format,
            or the index and the files disagree.
    """
    folder = checkpoint_folder(path)
    config = read_config(folder)
    generation_config = read_generation_config(folder)
    index = weight_files(folder)
    tensors, problems = read_headers(folder, index)
    if problems:
        raise CheckpointError(join(problems))
    return Checkpoint(folder, config, folder / "config.json", generation_config, tensors)


def checkpoint_folder(path: str | os.PathLike[str]) -> Path:
    """The folder; `CheckpointError` if there is none, or if it cannot be read."""
    if not isinstance(path, str | os.PathLike):
        raise OptionError(f"path: expected the path of a folder, got {show(path)}")
    if not os.fspath(path):
        raise CheckpointError("path: expected the path of a folder, got an empty one")
    folder = Path(path)
    if os.path.isfile(folder):
        raise CheckpointError(f"{folder}: expected the folder of a checkpoint, got a file")
    try:
        os.listdir(folder)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder}: expected a checkpoint folder on this machine "
                              f"({getattr(error, 'strerror', error)})") from None
    return folder


def inside(folder: Path, name: str) -> Path:
    """The path of a file of a checkpoint.

    A link may lead to another file of the folder or, where the folder is a snapshot of a download
    cache (models--x/snapshots/y), to that model's blobs.

    Raises:
        CheckpointError: `name` is no plain file name, is a link that leads elsewhere, or is
            something else than a file (a pipe would be waited for).
    """
    if not _is_plain(name):
        raise CheckpointError(f"{folder}: expected plain file names, got {name[:200]!a}")
    root = Path(os.path.realpath(folder))
    homes = [root, root.parents[1] / "blobs"] if root.parent.name == "snapshots" else [root]
    target = Path(os.path.realpath(root / name))
    if not any(target.is_relative_to(home) for home in homes):
        raise CheckpointError(f"{folder / name}: expected a file of this folder, got a link that "
                              f"leads out of the folder, to {target}; name the folder that holds "
                              "the files, or copy them")
    if target.exists() and not target.is_file():
        raise CheckpointError(f"{folder / name}: expected a regular file")
    return folder / name


def _is_plain(name: str) -> bool:
    return Path(name).name == name and not any(char in name for char in "\\\0")


def read_config(folder: Path) -> dict[str, Any]:
    """The content of config.json."""
    return read_json(inside(folder, "config.json"))


def read_generation_config(folder: Path) -> dict[str, Any]:
    """The content of generation_config.json, empty where there is none."""
    path = inside(folder, "generation_config.json")
    return read_json(path) if path.exists() else {}


def weight_files(folder: Path) -> dict[str, set[str] | None]:
    """File name -> the tensors that the index expects in it (None: there is no index).

    A single file counts before an index, as it does for transformers.

    Raises:
        CheckpointError: there are no safetensors files, or the index is malformed.
    """
    if inside(folder, SINGLE_FILE).exists():
        return {SINGLE_FILE: None}
    index_path = inside(folder, INDEX_FILE)
    if not index_path.exists():
        raise CheckpointError(_why_no_weights(folder))
    weight_map = read_json(index_path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index_path}: expected a weight_map that names tensors")
    files: dict[str, set[str] | None] = {}
    for name, file in weight_map.items():
        if not isinstance(file, str) or not file.endswith(".safetensors"):
            raise CheckpointError(f"{index_path}: weight_map: expected the name of a safetensors "
                                  f"file for {name!r:.200}, got {file!r:.200}")
        files.setdefault(file, set()).add(name)
    return files


def _why_no_weights(folder: Path) -> str:
    names = sorted(entry.name for entry in folder.iterdir())
    loose = [name for name in names if name.endswith(".safetensors")]
    if loose:
        return (f"{folder}: expected {SINGLE_FILE} or {INDEX_FILE}, got {some(loose)} without an "
                f"index")
    others = [name for name in names if name.endswith(OTHER_FORMATS)]
    found = f", got {some(others)}: only safetensors files are read" if others else ""
    return f"{folder}: no weights: expected {SINGLE_FILE} or {INDEX_FILE}{found}"


def read_headers(folder: Path, files: dict[str, set[str] | None],
                 ) -> tuple[dict[str, TensorInfo], list[str]]:
    """The tensors of all files, and what is wrong with them."""
    tensors: dict[str, TensorInfo] = {}
    problems = []
    missing = [name for name in files if _is_plain(name) and not os.path.exists(folder / name)]
    if missing:
        problems.append(f"{folder}: files of the index are missing: {some(missing)}")
    for name, expected in files.items():
        if name in missing:
            continue
        try:
            header = read_header(inside(folder, name))
        except CheckpointError as error:
            problems.append(str(error))
            continue
        if expected is not None:
            problems += _compare(folder / name, expected, header.keys())
        tensors |= header
    return tensors, problems


def _compare(path: Path, expected: set[str], held: Iterable[str]) -> list[str]:
    held = set(held)
    problems = []
    if absent := expected - held:
        problems.append(f"{path}: the index names tensors that are not in it: {some(absent)}")
    if extra := held - expected:
        problems.append(f"{path}: it holds tensors that the index does not name there: "
                        f"{some(extra)}")
    return problems


def some(names: Iterable[str], limit: int = 8) -> str:
    """Names for a message, sorted; of many, the first few and how many more there are."""
    names = sorted(names)
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    shown = ", ".join(name[:200] for name in names[:limit])
    return shown.encode("utf-8", "backslashreplace").decode() + more


def join(problems: list[str]) -> str:
    """One message out of several problems."""
    if len(problems) == 1:
        return problems[0]
    return f"{len(problems)} problems:" + "".join(f"\n- {problem}" for problem in problems)
