"""Fixtures of the model tests."""

from __future__ import annotations

import pytest

from pydstp import ops
from pydstp.models.plans import Context


@pytest.fixture(scope="session")
def ctx() -> Context:
    return Context(pool=ops.ThreadPool(2), check=lambda: None)
