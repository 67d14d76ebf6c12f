"""Folders: which files are used, and what is refused before any header is believed."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from pydstp.errors import CheckpointError, OptionError
from pydstp.weights import open_checkpoint
from pydstp.weights.checkpoint import INDEX_FILE, SINGLE_FILE
from tests.checkpoints import tiny_qwen3_vl
from tests.loader.raw_files import edit_json

SHARD = "model-00002-of-00003.safetensors"


def refused(folder: Path | str, *fragments: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(folder)
    for fragment in fragments:
        assert fragment in str(caught.value)


def edit_index(folder: Path, changes: dict[str, object]) -> None:
    path = folder / INDEX_FILE
    weight_map = json.loads(path.read_text())["weight_map"] | changes
    edit_json(path, weight_map={name: file for name, file in weight_map.items() if file})


@pytest.fixture
def single(tmp_path: Path) -> Path:
    return tiny_qwen3_vl(tmp_path)


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    return tiny_qwen3_vl(tmp_path, num_shards=3)


def test_one_file_and_shards_hold_the_same(single: Path) -> None:
    one, three = open_checkpoint(single), open_checkpoint(tiny_qwen3_vl(num_shards=3))
    assert one.tensors.keys() == three.tensors.keys()
    assert len({info.file for info in three.tensors.values()}) == 3
    assert one.config == three.config
    assert one.generation_config["top_k"] == 20


def test_generation_config_may_be_absent(single: Path) -> None:
    (single / "generation_config.json").unlink()
    assert open_checkpoint(str(single)).generation_config == {}


def test_a_file_beside_shards_is_preferred(sharded: Path) -> None:
    shutil.copy(tiny_qwen3_vl() / SINGLE_FILE, sharded)
    assert {info.file.name for info in open_checkpoint(sharded).tensors.values()} == {SINGLE_FILE}


def test_refuses_what_is_no_folder(single: Path) -> None:
    refused(single / "nowhere", "nowhere", "No such file")
    refused("Qwen/Qwen3-VL-2B-Instruct", "folder on this machine")
    refused(single / "config.json", "got a file")
    refused("\0", "null byte")
    refused("", "path: expected the path of a folder, got an empty one")
    with pytest.raises(OptionError, match="path: expected"):
        open_checkpoint(None)


@pytest.mark.parametrize(("content", "message"), [
    (None, "config.json is missing"),
    (b"", "not valid JSON"),
    (b'{"model_type": ', "not valid JSON"),
    (b"[1, 2]", "expected a JSON object, got list"),
    (b"\xff\xfe", "not UTF-8"),
    (b"[" * 100_000, "not valid JSON"),
])  # fmt: skip
def test_refuses_a_bad_config(single: Path, content: bytes | None, message: str) -> None:
    path = single / "config.json"
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    refused(single, "config.json", message)


def test_refuses_a_bad_generation_config(single: Path) -> None:
    (single / "generation_config.json").write_text("{")
    refused(single, "generation_config.json", "not valid JSON")


@pytest.mark.parametrize(("name", "message"), [
    (None, "no weights: expected model.safetensors"),
    ("pytorch_model.bin", "got pytorch_model.bin: only safetensors files are read"),
    ("model-q4.gguf", "got model-q4.gguf: only safetensors"),
    ("weights.safetensors", "got weights.safetensors without an index"),
])  # fmt: skip
def test_says_which_weights_it_found_instead(single: Path, name: str | None, message: str) -> None:
    (single / SINGLE_FILE).unlink()
    if name is not None:
        (single / name).write_bytes(b"x")
    refused(single, message)


def test_lists_missing_shards(sharded: Path) -> None:
    (sharded / SHARD).unlink()
    refused(sharded, "files of the index are missing", SHARD)


def test_names_every_damaged_shard(sharded: Path) -> None:
    shards = sorted(sharded.glob("*.safetensors"))
    for path in shards[:2]:
        path.write_bytes(path.read_bytes()[:-1])
    refused(sharded, "2 problems", shards[0].name, shards[1].name, "truncated")


@pytest.mark.parametrize("weight_map", [None, {}, [], "x"])
def test_refuses_an_index_without_a_map(sharded: Path, weight_map: object) -> None:
    edit_json(sharded / INDEX_FILE, weight_map=weight_map)
    refused(sharded, INDEX_FILE, "weight_map")


@pytest.mark.parametrize("file", [
    "../model.safetensors", "sub/model.safetensors", "/etc/model.safetensors", "..",
    "..\\model.safetensors", "C:\\model.safetensors", "./model.safetensors", "x.safetensors\0",
    "/etc/passwd", "", 7, None, ["model.safetensors"], "model.bin", "a" * 5000 + ".safetensors",
    "\ud800.safetensors",
])  # fmt: skip
def test_refuses_shard_names_that_are_no_plain_names(sharded: Path, file: object) -> None:
    index = json.loads((sharded / INDEX_FILE).read_text())
    index["weight_map"]["model.visual.pos_embed.weight"] = file
    (sharded / INDEX_FILE).write_text(json.dumps(index))
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(sharded)
    str(caught.value).encode("utf-8")  # printable whatever was in it


def test_refuses_a_disagreement_of_index_and_shard(sharded: Path) -> None:
    first = "model-00001-of-00003.safetensors"
    edit_index(sharded, {"model.visual.pos_embed.weight": first, "ghost.weight": first})
    refused(sharded, "the index names tensors that are not in it: ghost.weight",
            "holds tensors that the index does not name there: model.visual.pos_embed.weight")


def test_a_link_may_not_leave_the_folder(single: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside.safetensors"
    (single / SINGLE_FILE).rename(outside)
    (single / SINGLE_FILE).symlink_to(outside)
    refused(single, "link that leads out of the folder", str(outside))
    (single / SINGLE_FILE).unlink()
    (single / SINGLE_FILE).symlink_to("loop")
    (single / "loop").symlink_to(SINGLE_FILE)
    refused(single, SINGLE_FILE)


def test_links_inside_the_folder_and_to_the_folder_are_followed(sharded: Path,
                                                               tmp_path: Path) -> None:
    (sharded / SHARD).rename(sharded / "moved.safetensors")
    (sharded / SHARD).symlink_to("moved.safetensors")
    (tmp_path / "alias").symlink_to(sharded)
    assert len(open_checkpoint(tmp_path / "alias").tensors) == 121


def test_a_download_cache_links_to_its_blobs(single: Path, tmp_path: Path) -> None:
    repository = tmp_path / "models--Qwen--tiny"
    blobs, snapshot = repository / "blobs", repository / "snapshots" / "0123abcd"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for number, path in enumerate(sorted(single.iterdir())):
        path.rename(blobs / str(number))
        (snapshot / path.name).symlink_to(os.path.join("..", "..", "blobs", str(number)))
    assert len(open_checkpoint(snapshot).tensors) == 121
    for elsewhere in (repository / "config.json", tmp_path / "config.json"):
        elsewhere.write_text("{}")
        (snapshot / "config.json").unlink()
        (snapshot / "config.json").symlink_to(elsewhere)
        refused(snapshot, "config.json", "leads out of the folder")


def test_a_pipe_is_refused_and_not_waited_for(single: Path) -> None:
    for name in ("config.json", "generation_config.json", SINGLE_FILE):
        (single / name).rename(single / "kept")
        os.mkfifo(single / name)
        refused(single, name, "regular file")
        os.replace(single / "kept", single / name)
