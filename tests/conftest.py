"""Settings and fixtures of the whole suite."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterator

# Before torch is imported: OpenMP's spinning threads cost milliseconds beside a busy neighbour.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--native", metavar="FILE",
                     help="use this build of the extension module (tests/run_sanitized.sh does)")


def pytest_configure(config: pytest.Config) -> None:
    """Put the module given with --native in place before anything imports it."""
    path = config.getoption("--native")
    if path is None:
        return
    import torch  # noqa: F401  # before the extension, as the package does

    spec = importlib.util.spec_from_file_location("pydstp._C", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.modules["pydstp._C"] = module


@pytest.fixture(scope="module")
def pool() -> Iterator[object]:
    """An `ops.ThreadPool` of two threads."""
    from pydstp import ops

    pool = ops.ThreadPool(2)
    yield pool
    pool.close()
