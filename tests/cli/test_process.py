"""The command line as a process: its environment, its signals, its pipes."""

from __future__ import annotations

import signal

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
