"""What was recorded does the same again with whatever its tensors hold by then."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
import torch

from pydstp import ops

POOL = ops.ThreadPool(1)


def layers(x, weights):
    """Three small layers, one of them with a part that is no op."""
    x, behind = ops.compute(torch.Tensor.clone, x), torch.zeros_like(x)
    for weight in weights:
        with ops.scratch():
            normed = ops.rms_norm(behind, weight[0].contiguous(), 1e-6, residual=x, pool=POOL)
            behind = ops.linear(normed, weight, pool=POOL)
    ops.perform(x.add_, behind)
    return x


@pytest.fixture
def weights():
    return [torch.randn(24, 24) for _ in range(3)]


def test_a_replay_is_the_same_calls_on_new_values(weights):
    inputs = torch.randn(2, 24)
    with ops.Recording(ops.Scratch()) as recording:
        out = layers(inputs, weights)
    assert torch.equal(out, layers(inputs, weights))
    for _ in range(3):
        inputs.normal_()
        gc.collect()
        junk = [torch.full((2, 24), 7.0) for _ in range(64)]  # takes memory that nobody holds
        recording.replay()
        assert torch.equal(out, layers(inputs, weights))
        del junk


def test_recordings_that_share_scratch_take_turns(weights):
    scratch = ops.Scratch()
    made = []
    for rows in (1, 5, 2):  # the second needs larger buffers than the first
        inputs = torch.randn(rows, 24)
        with ops.Recording(scratch) as recording:
            made.append((inputs, recording, layers(inputs, weights)))
    for _ in range(2):
        for inputs, recording, out in made:
            inputs.normal_()
            recording.replay()
            assert torch.equal(out, layers(inputs, weights))


def test_results_within_a_scratch_block_do_not_overlap():
    scratch = ops.Scratch()
    with ops.Recording(scratch), ops.scratch():
        x = torch.randn(3, 8)
        first = ops.rms_norm(x, torch.ones(8), 1e-6, pool=POOL)
        second = ops.rms_norm(x, torch.zeros(8), 1e-6, pool=POOL)
        assert first.abs().sum() > 0 and second.abs().sum() == 0
    places = [first.data_ptr()]
    for _ in range(3):
        with ops.Recording(scratch), ops.scratch():
            places.append(ops.rms_norm(x, torch.ones(8), 1e-6, pool=POOL).data_ptr())
    assert places[0] == places[2] != places[1] == places[3]


def test_what_is_computed_is_not_recorded_twice(weights):
    calls = []

    def inner(x):
        calls.append(1)
        return ops.linear(x, weights[0], pool=POOL)
    inputs = torch.randn(2, 24)
    with ops.Recording(ops.Scratch()) as recording:
        out = ops.compute(inner, inputs)
    inputs.normal_()
    recording.replay()
    assert len(calls) == 2 and torch.equal(out, inner(inputs))


def test_an_exception_ends_a_recording_and_a_replay(weights):
    def stop():
        raise KeyError("stop")
    with pytest.raises(KeyError), ops.Recording(ops.Scratch()):
        ops.perform(stop)
    with ops.scratch():  # nothing is recorded any more
        assert ops.linear(torch.randn(1, 24), weights[0], pool=POOL).shape == (1, 24)
    state = {"raises": False}
    with ops.Recording(ops.Scratch()) as recording:
        ops.perform(lambda: stop() if state["raises"] else None)
    recording.replay()
    state["raises"] = True
    with pytest.raises(KeyError):
        recording.replay()


def test_every_address_is_taken_where_recordings_see_it():
    """A tensor whose address is taken elsewhere could be gone when a call is repeated."""
    for path in Path(ops.__file__).parent.glob("*.py"):
        assert "data_ptr" not in path.read_text() or path.name == "checks.py", path


def test_other_threads_are_not_recorded(weights):
    import threading

    x = torch.randn(1, 24)
    with ops.Recording(ops.Scratch()) as recording:
        thread = threading.Thread(target=lambda: ops.linear(x, weights[0], pool=POOL))
        thread.start()
        thread.join()
    assert recording._calls == []
