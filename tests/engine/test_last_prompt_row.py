"""VisionPulse on the last row of the prompt: tests/shift has it against the plain method."""

from __future__ import annotations

import pytest
import torch

from pydstp import VisionPulse
from tests.engine.selection import answer, open_engine


@pytest.fixture(scope="module")
def engine():
    with open_engine(max_text_tokens=512) as engine:
        yield engine


def test_the_last_row_of_the_prompt_may_select(engine):
    """Up to layer anchor + 1 its keys are those of the prompt, to rounding; above they differ, and
    so does the first token's distribution; where all is shown it is the same."""
    rows, runs = {}, {}
    for share in (0.06, 1.0):
        for again in (False, True):
            shift = VisionPulse(1, budget="fixed", fixed_share=share,
                                apply_to_last_prefill_row=again)
            runs[share, again] = answer(engine, 1, shift=shift, log_steps=True)
            rows[share, again] = engine._cache.text[:, 0, :int(engine._cache.text_len[0])].clone()
    for share in (0.06, 1.0):
        plain, pulsed = rows[share, False], rows[share, True]
        torch.testing.assert_close(pulsed[:3], plain[:3])
        assert torch.equal(pulsed[:, :-1], plain[:, :-1])
        assert torch.allclose(pulsed[3:], plain[3:], atol=1e-5) == (share == 1.0)
        found, before = ([entry.logprob for entry in runs[share, again].logprobs]
                         for again in (True, False))
        assert (found == pytest.approx(before, abs=1e-5)) == (share == 1.0)
        assert not runs[share, True].shift.steps
