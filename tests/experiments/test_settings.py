"""The rows that the flags of `pydstp eval` ask for."""

from __future__ import annotations

import pytest

from pydstp import DSTP, DyCoke, OptionError, SketchReturn, VisionPulse
from pydstp.experiments import settings

POLICIES = {"none": None, "dstp": DSTP(), "recommended": DSTP.recommended()}


def test_names_are_checked() -> None:
    assert settings.parse_methods("fastv, none,fastv") == ["none", "fastv"]
    for text in ("nonsense", "", ","):
        with pytest.raises(OptionError, match="--methods"):
            settings.parse_methods(text)


@pytest.mark.parametrize("text", ["0", "1.01", "-0.5", "x", "", "1/0", "nan", "0.5,2"])
def test_ratios_are_checked(text) -> None:
    with pytest.raises(OptionError, match=r"--ratios: expected .*\(0, 1\]"):
        settings.parse_ratios(text)


def test_ratios_may_be_fractions() -> None:
    assert settings.parse_ratios("0.5, 1/3,0.5") == [0.5, 1 / 3]


def test_policies_are_names_or_files(tmp_path) -> None:
    DSTP(threshold=0.6).save(tmp_path / "mine.json")
    found = settings.parse_policies(f"none,dstp,recommended,{tmp_path / 'mine.json'}")
    assert found == {**POLICIES, "mine": DSTP(threshold=0.6)}
    assert settings.parse_policies("sketch,visionpulse,dycoke") == {
        "sketch": SketchReturn(), "visionpulse": VisionPulse(), "dycoke": DyCoke()}
    for text in ("nonsense", ""):
        with pytest.raises(OptionError):
            settings.parse_policies(text)


def test_the_grid() -> None:
    rows = settings.grid(["none", "random", "fastv"], [0.5, 0.25], POLICIES, 1)
    assert len(rows) == 1 + 2 * 2 * 3
    assert rows[0].pruning is None and rows[0].ratio == 1
    assert [row.method for row in rows[1:]] == ["random"] * 6 + ["fastv"] * 6
    assert {row.pruning.to_dict()["layer"] for row in rows if row.method == "fastv"} == {1}
    assert [row.shift for row in rows[1:4]] == list(POLICIES.values())


def test_a_smaller_picture_comes_without_policy() -> None:
    rows = settings.grid(["resize", "random"], [0.5], POLICIES, 1)
    assert [(row.method, row.shift) for row in rows] == [("resize", None), *(
        ("random", shift) for shift in POLICIES.values())]


def test_a_policy_that_needs_no_pruning_is_measured_without_too() -> None:
    policies = {"none": None, "sketch": SketchReturn(), "visionpulse": VisionPulse()}
    rows = settings.grid(["none", "random"], [0.5], policies, 1)
    assert [(row.method, row.policy) for row in rows] == [
        ("none", "none"), ("none", "visionpulse"), *(("random", name) for name in policies)]
    assert rows[1].shift == VisionPulse() and rows[1].pruning is None
    assert [row.method for row in settings.grid(["random"], [0.5], policies, 1)] == 3 * ["random"]


@pytest.mark.parametrize("num_layers, layer", [(4, 1), (9, 1), (10, 2), (36, 2)])
def test_fastv_prunes_early_in_small_models(num_layers, layer) -> None:
    assert settings.default_fastv_layer(num_layers) == layer


@pytest.mark.parametrize("name, layer", [("fastv", 1), ("pooling", 1), ("dart", 1), ("random", 0),
                                         ("divprune", 0)])
def test_methods_inside_the_decoder_prune_before_the_layer_asked(name, layer) -> None:
    assert settings.prune(name, 0.5, 1).pruner.act_before == layer


def test_the_ablation_has_the_rows_of_the_paper_for_both_timings() -> None:
    rows = settings.ablation(["none", "fastv", "divprune", "random"], [0.5], 1)
    assert [row.method for row in rows].count("none") == 1
    fastv = {row.policy: row for row in rows if row.method == "fastv"}
    for timing in ("paper", "recommended"):
        assert {f"{timing}: {name}" for name in settings.ABLATION} <= set(fastv)
    assert fastv["paper: risd + cpts"].shift == DSTP()
    assert fastv["paper: random + cpts"].same_rate_as == DSTP()
    assert fastv["paper: random + cpts"].shift == DSTP(trigger="random")
    assert DSTP.recommended() in [row.shift for row in fastv.values()]
    for name in ("hard", "full", "merge"):
        assert fastv[f"paper: risd + {name}"].shift == DSTP(swap=name)
    assert {row.ratio for row in rows} == {1.0, settings.ABLATION_RATIO}


def test_the_row_that_a_random_trigger_copies_comes_before_it() -> None:
    seen = set()
    for row in settings.ablation(["fastv", "divprune"], [0.333], 2):
        assert row.same_rate_as is None or (row.pruning, row.same_rate_as) in seen
        seen.add((row.pruning, row.shift))


def test_the_ablation_needs_one_of_its_methods() -> None:
    with pytest.raises(OptionError, match="--methods: expected fastv or divprune"):
        settings.ablation(["none", "random"], [0.5], 1)


def test_nothing_is_measured_twice() -> None:
    both = [*settings.grid(["none", "fastv"], [1 / 3], POLICIES, 1),
            *settings.ablation(["fastv"], [1 / 3], 1)]
    rows = settings.unique(both)
    assert len(rows) == len(both) - 4  # all tokens, the method alone, dstp, recommended
    assert [row.table for row in rows[:4]] == ["grid"] * 4


def test_the_sketch_sweep_changes_one_option_at_a_time() -> None:
    rows = settings.sketch_sweep(["none", "random", "fastv"], [0.333, 0.1], 1)
    assert len(rows) == 1 + 2 * 2 * (1 + len(settings.SKETCHES))
    assert {row.table for row in rows} == {"sketch"}
    plain = SketchReturn().to_dict()
    for row in rows:
        if row.shift is not None:
            changed = {name for name, value in row.shift.to_dict().items() if value != plain[name]}
            assert changed <= set(settings.SKETCHES[row.policy.removeprefix("sketch: ")])
    assert SketchReturn() in [row.shift for row in rows]


def test_the_sweep() -> None:
    rows = settings.pareto(["none", "fastv"], [0.333], 1)
    assert [row.shift for row in rows[:2]] == [None, None]
    assert len({row.shift for row in rows[2:]}) == len({row.policy for row in rows}) - 1
    assert {row.shift.applies for row in rows[2:]} == {"next", "redo", "early"}
    for methods, ratios in ((["none"], [0.5]), (["fastv", "random"], [0.5]), (["fastv"], [0.5, 1])):
        with pytest.raises(OptionError, match="--pareto"):
            settings.pareto(methods, ratios, 1)
