"""The pool: takes turns, sleeps, survives close and fork."""

from __future__ import annotations

import os
import threading
import time

import pytest
import torch

from pydstp import ops
from pydstp.errors import OptionError
from tests.compare import assert_bitwise
from tests.generators import normal


def work(pool: ops.ThreadPool) -> torch.Tensor:
    """A result that needs all parts of a large op."""
    return ops.linear(normal(1, 1025), normal(769, 1025, seed=1), pool=pool)


@pytest.mark.parametrize("num_threads", [1, 2, 3, 16])
def test_every_part_runs_once(num_threads):
    pool = ops.ThreadPool(num_threads)
    assert pool.num_threads == num_threads
    expected = work(ops.ThreadPool(1))
    for _ in range(50):
        assert_bitwise(work(pool), expected)
    pool.close()


def test_several_python_threads_may_share_a_pool(pool):
    expected, results = work(pool), []
    threads = [threading.Thread(target=lambda: results.extend(work(pool) for _ in range(20)))
               for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 80
    for result in results:
        assert_bitwise(result, expected)


def test_closing_is_idempotent_and_leaves_a_pool_of_one_thread():
    pool = ops.ThreadPool(3)
    expected = work(pool)
    pool.close()
    pool.close()
    assert_bitwise(work(pool), expected)


def test_an_idle_pool_sleeps():
    pool = ops.ThreadPool(4)
    work(pool)
    time.sleep(0.05)
    before = time.process_time()
    time.sleep(0.3)
    assert time.process_time() - before < 0.1
    pool.close()


def test_the_calling_thread_gives_up_the_interpreter_lock(pool):
    x, weight = normal(8, 1025), normal(8 * 1025, 1025, seed=1)
    ticks, done = [], threading.Event()

    def tick() -> None:
        while not done.is_set():
            ticks.append(None)
            time.sleep(0)

    thread = threading.Thread(target=tick)
    thread.start()
    for _ in range(5):
        ops.linear(x, weight, pool=pool)
    done.set()
    thread.join()
    assert len(ticks) > 5


def test_a_forked_child_runs_everything_itself_and_exits(pool):
    expected = work(pool)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            status = 0 if torch.equal(work(pool), expected) else 2
            pool.close()
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert_bitwise(work(pool), expected)


@pytest.mark.parametrize("num_threads", [0, -1, 1025, 2.0, "2", None, True])
def test_a_bad_number_of_threads_is_refused(num_threads):
    with pytest.raises(OptionError, match="num_threads: expected"):
        ops.ThreadPool(num_threads)
