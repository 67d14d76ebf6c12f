"""Lines that survive their program, and results that are found again."""

from __future__ import annotations

import json

import pytest

from pydstp import OptionError
from pydstp.experiments.journal import ANSWERS, ROWS, EvalLog, Journal

IDENTITY = {"version": "1", "checkpoint_sha256": "abc"}


def lines(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_lines_are_in_the_file_at_once(tmp_path) -> None:
    path = tmp_path / "x.jsonl"
    journal = Journal("--output", path)
    for number in range(3):
        journal.append({"number": number, "text": "é\n"})
        assert len(lines(path)) == number + 1
    journal.close()
    again = Journal("--output", path)
    assert again.records == [{"number": number, "text": "é\n"} for number in range(3)]
    again.append({"number": 3})
    assert [record["number"] for record in lines(path)] == [0, 1, 2, 3]


@pytest.mark.parametrize("torn", [b'{"number": 1', b"{", b'{"number": 1}', b"\xff\xfe"])
def test_half_a_line_at_the_end_is_cut_off(torn, tmp_path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"number": 0}\n' + torn)
    journal = Journal("--output", path)
    assert journal.records == [{"number": 0}]
    journal.append({"number": 1})
    assert path.read_text() == '{"number": 0}\n{"number": 1}\n'


@pytest.mark.parametrize("line", [b"nonsense", b"[1]", b"", b"\xff", b"[" * 100_000])
def test_another_broken_line_is_an_error(line, tmp_path) -> None:
    path = tmp_path / "x.jsonl"
    content = b'{"number": 0}\n' + line + b"\n{}\n"
    path.write_bytes(content)
    with pytest.raises(OptionError, match="--output: expected a JSON object .* line 2 of .*fresh"):
        Journal("--output", path)
    assert path.read_bytes() == content
    Journal("--output", path, fresh=True).close()
    assert path.read_bytes() == b""


def test_a_file_that_cannot_be_opened_is_an_error(tmp_path) -> None:
    for path in (tmp_path, tmp_path / "missing" / "x.jsonl"):
        with pytest.raises(OptionError, match="--output: expected a file that can be written"):
            Journal("--output", path)


def test_one_program_at_a_time(tmp_path) -> None:
    with EvalLog("--output", tmp_path, IDENTITY):
        with pytest.raises(OptionError, match="no other program"):
            EvalLog("--output", tmp_path, IDENTITY)
    EvalLog("--output", tmp_path, IDENTITY).__exit__()


def test_a_full_disk_is_an_error(tmp_path) -> None:
    journal = Journal("--output", tmp_path / "x.jsonl")
    journal._file.close()
    journal._file = open("/dev/full", "wb", buffering=0)
    with pytest.raises(OptionError, match="--output: expected room for 9 more bytes"):
        journal.append({"a": 1})


def test_rows_are_found_again_under_their_key(tmp_path) -> None:
    with EvalLog("--output", tmp_path, IDENTITY) as log:
        key = log.key({"task": "read", "n": 3})
        assert log.row(key) is None and log.rows() == []
        log.add_row({"key": key, "identity": IDENTITY, "accuracy": 1.0})
    with EvalLog("--output", tmp_path, IDENTITY) as log:
        assert log.row(key)["accuracy"] == 1.0 and len(log.rows()) == 1
        assert log.key({"n": 3, "task": "read"}) == key
        others = [{"task": "read", "n": 4}, {"task": "trail", "n": 3}]
        assert key not in [log.key(asked) for asked in others]


def test_rows_of_another_version_stay_and_are_not_used(tmp_path) -> None:
    with EvalLog("--output", tmp_path, IDENTITY) as log:
        key = log.key({"task": "read"})
        log.add_row({"key": key, "identity": IDENTITY})
    with EvalLog("--output", tmp_path, {**IDENTITY, "version": "2"}) as log:
        assert log.row(log.key({"task": "read"})) is None
        assert log.rows() == [] and log.num_others == 1
    assert len(lines(tmp_path / ROWS)) == 1


def test_answers_of_a_row_that_was_not_finished(tmp_path) -> None:
    with EvalLog("--output", tmp_path, IDENTITY) as log:
        log.add_answers("a", 0, [{"seed": 0}, {"seed": 1}])
        log.add_answers("b", 0, [{"seed": 9}])
        log.add_answers("a", 2, [{"seed": 2}])
        log.add_row({"key": "b", "identity": IDENTITY})
    with EvalLog("--output", tmp_path, IDENTITY) as log:
        assert [answer["seed"] for answer in log.answers("a")] == [0, 1, 2]
        assert log.answers("b") == [] and log.answers("c") == []


def test_a_block_out_of_turn_is_not_trusted(tmp_path) -> None:
    blocks = [{"key": "a", "first": 0, "answers": [1]}, {"key": "a", "first": 5, "answers": [2]},
              {"key": "b", "first": 3, "answers": [3]}, {"key": "a", "first": 1},
              {"key": "c", "first": 0, "answers": [4]}, {"key": "c", "first": 0, "answers": [5]}]
    (tmp_path / ANSWERS).write_text("".join(json.dumps(block) + "\n" for block in blocks))
    with EvalLog("--output", tmp_path, IDENTITY) as log:
        assert (log.answers("a"), log.answers("b"), log.answers("c")) == ([1], [], [5])


def test_a_fresh_start_throws_everything_away(tmp_path) -> None:
    with EvalLog("--output", tmp_path, IDENTITY) as log:
        log.add_answers("a", 0, [{}])
        log.add_row({"key": "b", "identity": IDENTITY})
    with EvalLog("--output", tmp_path, IDENTITY, fresh=True) as log:
        assert log.rows() == [] and log.answers("a") == []
    assert (tmp_path / ROWS).read_text() == (tmp_path / ANSWERS).read_text() == ""
