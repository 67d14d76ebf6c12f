"""Methods that a test registers are gone behind it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pydstp.pruning.registry import _PRUNERS


@pytest.fixture(autouse=True)
def _forget_plug_ins() -> Iterator[None]:
    before = dict(_PRUNERS)
    yield
    _PRUNERS.clear()
    _PRUNERS.update(before)
