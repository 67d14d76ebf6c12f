"""The command line as a process: its environment, its signals, its pipes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from tests.cli.conftest import ROOT

ASK = ("-m", "pydstp", "generate", "--prompt", "Go on", "--ignore-eos", "--model")
LONG = ("--max-new-tokens", "3000")


def test_threads_sleep_unless_the_environment_says_otherwise(start, model) -> None:
    program = ("import os, sys; from pydstp import cli; early = 'torch' in sys.modules\n"
               "try: cli.main(sys.argv[1:])\n"
               "finally: print([early, 'torch' in sys.modules, os.environ['OMP_WAIT_POLICY']])")
    out, err = start("-c", program, "inspect", model).communicate(timeout=60)
    assert out.endswith("[False, True, 'passive']\n"), err
    out, err = start("-c", program, "--help", OMP_WAIT_POLICY="active").communicate(timeout=60)
    assert out.endswith("[False, False, 'active']\n"), err


def test_ctrl_c_ends_an_answer(start, model) -> None:
    process = start(*ASK, model, *LONG)
    assert process.stdout.read(1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Traceback" not in err


def test_ctrl_c_in_a_chat_ends_the_answer_and_not_the_program(start, model) -> None:
    process = start("-m", "pydstp", "chat", "--ignore-eos", "--model", model, *LONG)
    process.stdin.write("Go on\n")
    process.stdin.flush()
    assert process.stdout.read(1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate("/quit\n", timeout=30)
    assert process.returncode == 0
    assert "(stopped)" in err and "Traceback" not in err


def test_a_reader_that_leaves_is_no_error(start, model) -> None:
    process = start(*ASK, model, *LONG)
    assert process.stdout.read(1)
    process.stdout.close()
    err = process.stderr.read()
    assert process.wait(timeout=30) == 0
    assert err == ""


def shell(command: str, model: str, **environment: str) -> subprocess.CompletedProcess:
    """Run `pydstp COMMAND` in a shell, which can close streams and spell any byte."""
    script = f"exec {sys.executable} -m pydstp {command}".replace("MODEL", model)
    return subprocess.run(["bash", "-c", script], cwd=ROOT, capture_output=True, timeout=60,
                          env=os.environ | environment)


GENERATE = "generate --model MODEL --prompt hi --ignore-eos --max-new-tokens 30"


@pytest.mark.parametrize("command, status, message", [
    (GENERATE + " > /dev/full", 2, "No space left"),
    ("inspect MODEL > /dev/full", 2, "No space left"),
    (GENERATE + " 2>&-", 0, ""),
    (GENERATE + " >&-", 0, "30 tokens"),
    ("generate --model /nonexistent --prompt hi 2>&-", 2, ""),
    ("chat --model MODEL <&-", 0, ""),
    (r"chat --model MODEL < <(printf '\xff\n/image ~nobody/x\n/image %400d\n')", 0, "expected"),
])
def test_odd_streams_and_bytes_end_without_a_trace(model, command, status, message) -> None:
    done = shell(command, model, PYTHONUTF8="1")
    assert done.returncode == status, done.stderr
    assert message in done.stderr.decode() and b"Traceback" not in done.stderr
    assert b"error" not in done.stdout


def test_a_terminal_without_unicode_shows_escapes(model) -> None:
    done = shell(GENERATE, model, PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr
    assert b"\\u" in done.stdout or b"\\x" in done.stdout
