"""Records: where they were measured, on what, and how they are written."""

from __future__ import annotations

import hashlib
import json

import pytest

from pydstp import OptionError, demo_checkpoint
from pydstp.experiments import record


def test_the_environment_is_plain_data() -> None:
    found = json.loads(json.dumps(record.environment()))
    assert {"cpu", "processors", "python", "packages", "commit", "date"} <= set(found)
    assert found["packages"]["torch"]


def test_the_checksum_of_one_file_is_that_of_the_file() -> None:
    weights = (demo_checkpoint() / "model.safetensors").read_bytes()
    assert record.checkpoint_sha256(demo_checkpoint()) == hashlib.sha256(weights).hexdigest()


def test_shards_are_read_by_name(tmp_path) -> None:
    for name, content in (("b.safetensors", b"2"), ("a.safetensors", b"1"), ("c.json", b"3")):
        (tmp_path / name).write_bytes(content)
    assert record.checkpoint_sha256(tmp_path) == hashlib.sha256(b"12").hexdigest()


def test_tables_line_up() -> None:
    assert record.markdown_table(["a", "long"], [["wide one", "1"]]) == (
        "| a        | long |\n| -------- | ---- |\n| wide one | 1    |\n")
    assert record.markdown_table(["a"], []) == "| a   |\n| --- |\n"


def test_a_place_is_checked_before_anything_is_measured(tmp_path) -> None:
    assert record.require_writable("--json", tmp_path / "new.json") == tmp_path / "new.json"
    assert list(tmp_path.iterdir()) == []
    for path in (tmp_path, tmp_path / "missing" / "x.json"):
        with pytest.raises(OptionError, match="--json"):
            record.require_writable("--json", path)
    assert record.require_folder("--output", tmp_path / "a" / "b").is_dir()
    (tmp_path / "file").write_text("")
    with pytest.raises(OptionError, match="--output"):
        record.require_folder("--output", tmp_path / "file")


def test_a_record_replaces_an_older_one(tmp_path) -> None:
    path = tmp_path / "x.json"
    for value in (1, 2):
        record.write_json("--json", path, {"value": value})
        assert json.loads(path.read_text()) == {"value": value}
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(OptionError, match="--json"):
        record.write_json("--json", tmp_path / "missing" / "x.json", {})
