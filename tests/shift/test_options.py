"""Options of the policies: whatever comes for one of several names is refused by the option's name,
and so is a file that holds no options."""

import numpy as np
import pytest

from pydstp import DSTP, EngineConfig, PruningConfig, SelectionParams, SketchReturn, VisionPulse
from pydstp.errors import OptionError
from pydstp.shift import dstp, vision_pulse

CHOICES = [
    *((DSTP, name) for name in dstp.CHOICES), *((VisionPulse, name) for name in
                                                vision_pulse.CHOICES),
    (SketchReturn, "bits"), (SelectionParams, "reserve"), (SelectionParams, "bypass"),
    (SelectionParams, "log_steps"), (EngineConfig, "max_pixels"), (EngineConfig, "weights")]


@pytest.mark.parametrize(("kind", "name"), CHOICES)
@pytest.mark.parametrize("value", [
    np.array([1, 2]), np.array(["risd", "next"]), 4.0, None, object(), ["auto"], float("nan")])
def test_a_value_that_is_none_of_the_names_is_refused_by_name(kind, name, value):
    if value is None and name == "max_pixels":
        return  # the default
    with pytest.raises(OptionError, match=f"^{name}: expected"):
        kind(**{name: value})


@pytest.mark.parametrize(("method", "name"), [
    ("fastv", "rows"), ("pooling", "pool"), ("look_m", "merge"), ("sparsevlm", "schedule"),
    ("mustdrop", "scale_thresholds"), ("random", "quota")])
@pytest.mark.parametrize("value", [np.array([1, 2]), 4.0, "x"])
def test_so_is_one_of_a_pruning_method(method, name, value):
    with pytest.raises(OptionError, match=f"^{name}: expected"):
        PruningConfig(method, retention_ratio=0.5, **{name: value})


def test_every_choice_is_taken():
    for kind, choices in ((DSTP, dstp.CHOICES), (VisionPulse, vision_pulse.CHOICES)):
        for name, known in choices.items():
            for value in known:
                more = {"add": {"max_returned": 1}, "fixed": {"fixed_share": 0.1}}.get(value, {})
                assert getattr(kind(**{name: value}, **more), name) == value
    assert SketchReturn(bits=16).bits == 16


@pytest.mark.parametrize("text", [
    "[" * 100_000, "[1]", "{", '{"options": [1]}', '{"threshold": NaN}', '{"thresholds": 1}',
    '{"monitor_layers": {"a": 1}}'])
def test_a_file_that_holds_no_options_is_refused(tmp_path, text):
    (tmp_path / "policy.json").write_text(text)
    with pytest.raises(OptionError):
        DSTP.from_file(tmp_path / "policy.json")


@pytest.mark.parametrize("path", [None, 5.0, "a\0b", ""])
def test_a_path_that_is_none_is_refused(path):
    with pytest.raises(OptionError, match="expected"):
        DSTP.from_file(path)
    with pytest.raises(OptionError, match="path: expected a file that can be written"):
        DSTP().save(path)


def test_what_is_saved_is_read_back(tmp_path):
    policy = DSTP(threshold=0.5, monitor_layers=[2, 1], swap="add", max_returned=3)
    policy.save(tmp_path / "policy.json", note="x")
    assert DSTP.from_file(tmp_path / "policy.json") == policy


def test_requests_of_one_seed_draw_from_streams_of_their_own():
    words = [DSTP(seed=7).policy(5, 9, request_idx)[0] for request_idx in range(4)]
    assert len(set(map(tuple, words))) == 4 and words[0] == DSTP(seed=7).policy(5, 9)[0]
    pulse = VisionPulse(budget="random", max_share=0.9, seed=7)
    draws = [[pulse.bounds(1000, step, idx) for step in range(1, 9)] for idx in range(4)]
    assert len(set(map(tuple, draws))) == 4
    assert draws[0] == [pulse.bounds(1000, step) for step in range(1, 9)]
