"""Somebody's own method: what registering it checks, and every way its answer can be wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from pydstp import CancelledError, OptionError, Pruner, PruningConfig, PydstpError, Selection
from pydstp.pruning import MergePlan, available_pruners, register_pruner, run_pruner
from tests.pruning.samples import make_tokens

GRIDS = ((2, 3), (2, 2))  # at a ratio of 0.5: 3 of the first 6, 2 of the last 4
GOOD = [0, 2, 5, 6, 9]


def run(answer: Any, amount: float = 0.5, **attributes: Any) -> Selection:
    """What `run_pruner` makes of a method that answers `answer` (called, if it can be)."""
    @register_pruner("mine")
    @dataclass(frozen=True)
    class Mine(Pruner):
        def select(self, tokens):
            return answer(tokens) if isinstance(answer, Callable) else answer
    for name, value in attributes.items():
        setattr(Mine, name, value)
    config = PruningConfig("mine", amount)
    return run_pruner(config, make_tokens(config, GRIDS))


@pytest.mark.parametrize("answer", [
    GOOD, tuple(GOOD), np.array(GOOD), torch.tensor(GOOD), torch.tensor(GOOD, dtype=torch.int32),
    torch.tensor(GOOD, dtype=torch.uint8), Selection(torch.tensor(GOOD)), Selection(GOOD),
    torch.tensor([*GOOD, 99])[:5], torch.tensor([[i, -1] for i in GOOD])[:, 0],
], ids=lambda answer: type(answer).__name__)
def test_indices_of_many_kinds_are_taken(answer) -> None:
    selection = run(answer)
    assert selection.kept.dtype == torch.int64 and selection.kept.tolist() == GOOD
    assert selection.merge is None


@pytest.mark.parametrize(("answer", "message"), [
    ([0, 2, 5, 6], r"expected 2 of tokens \[6, 10\), got 1"),
    ([0, 2, 6, 7, 9], r"expected 3 of tokens \[0, 6\), got 2"),
    ([], r"expected 3 of tokens \[0, 6\), got 0"),
    (torch.empty(0), r"expected 3 of tokens \[0, 6\), got 0"),
    (list(range(10)), r"expected 3 of tokens \[0, 6\), got 6"),
    ([0, 5, 2, 6, 9], "kept: expected sorted indices, each once, got 2 after 5"),
    ([0, 2, 2, 6, 9], "kept: expected sorted indices, each once, got 2 after 2"),
    ([-1, 2, 5, 6, 9], r"kept: expected indices in \[0, 10\), got -1 to 9"),
    ([0, 2, 5, 6, 10], r"kept: expected indices in \[0, 10\), got 0 to 10"),
    ([0, 2, 5, 6, 2**63 - 1], r"kept: expected indices in \[0, 10\)"),
    ([0, 2, 5, 6, 2**70], "kept: expected indices, got"),
    ([0.0, 2.0, 5.0, 6.0, 9.0], "one-dimensional tensor of integers, got float32 of shape .5"),
    ([0, 2, float("nan"), 6, 9], "one-dimensional tensor of integers, got float32"),
    (torch.ones(10, dtype=torch.bool), "one-dimensional tensor of integers, got bool of shape .10"),
    (torch.tensor([GOOD]), r"one-dimensional tensor of integers, got int64 of shape \[1, 5\]"),
    (torch.tensor(3), r"one-dimensional tensor of integers, got int64 of shape \[\]"),
    (3, r"one-dimensional tensor of integers, got int64 of shape \[\]"),
    (torch.ones(5, dtype=torch.complex64), "got complex64"),
    (None, "kept: expected indices, got None"), ("0 2 5", "kept: expected indices, got '0 2 5'"),
    ({0, 2, 5, 6, 9}, "kept: expected indices, got {"), (object(), "kept: expected indices, got <"),
    (Selection(None), "kept: expected indices, got None"),
    (Selection(torch.tensor([0, 2, 5]), merge=[6, 9]), "merge: expected a MergePlan or None, got"),
])
def test_a_wrong_answer_is_an_error_that_names_the_method(answer, message) -> None:
    with pytest.raises(PydstpError, match=f"pruning method 'mine'.*{message}"):
        run(answer)


def merging(targets: Any, weights: Any) -> Selection:
    return Selection(torch.tensor([0, 2, 5, 6]), MergePlan(targets, weights))


@pytest.mark.parametrize(("targets", "weights", "message"), [
    ([9], torch.zeros(1, 9), r"weights: expected shape \[1, 10\], got \[1, 9\]"),
    ([9], torch.zeros(10), r"weights: expected shape \[1, 10\], got \[10\]"),
    ([9], torch.zeros(1, 10, dtype=torch.int64), "weights: expected a floating-point tensor, got"),
    ([9], [[0.0] * 10], "weights: expected a floating-point tensor, got"),
    ([9], torch.full((1, 10), float("nan")), "weights: expected finite numbers, got NaN"),
    ([9, 8], torch.zeros(2, 10), "targets: expected sorted indices, each once, got 8 after 9"),
    ([10], torch.zeros(1, 10), r"targets: expected indices in \[0, 10\), got 10 to 10"),
    ([6], torch.zeros(1, 10), "expected targets that are not kept, got 6 in both"),
    ([3], torch.zeros(1, 10), r"expected 3 of tokens \[0, 6\), got 4"),
    ([8, 9], torch.zeros(2, 10), r"expected 2 of tokens \[6, 10\), got 3"),
], ids=str)
def test_a_wrong_merge_is_an_error_that_names_the_method(targets, weights, message) -> None:
    with pytest.raises(PydstpError, match=f"pruning method 'mine'.*{message}"):
        run(merging(targets, weights))


def test_a_reduction_that_does_not_exist() -> None:
    plan = MergePlan([9], torch.ones(1, 10), "median")
    with pytest.raises(PydstpError, match="'mine': merge.reduce: expected one of .*'median'"):
        run(Selection(torch.tensor([0, 2, 5, 6]), plan))


def test_a_merge_that_is_right() -> None:
    weights = torch.rand(1, 10, dtype=torch.float64)
    merge = run(merging([9], weights)).merge
    assert merge.targets.tolist() == [9] and merge.targets.dtype == torch.int64
    assert merge.weights.dtype == torch.float32 and torch.equal(merge.weights, weights.float())
    nothing = Selection(torch.tensor(GOOD), MergePlan([], torch.zeros(0, 10)))
    assert run(nothing).merge is None
    only = Selection([], MergePlan(GOOD, torch.zeros(5, 10)))
    assert len(run(only).kept) == 0


def test_an_adaptive_method_may_keep_another_number() -> None:
    assert run([4], adaptive=True).kept.tolist() == [4]
    assert run(list(range(10)), adaptive=True).kept.tolist() == list(range(10))
    with pytest.raises(PydstpError, match="'mine': expected at least one token, got none"):
        run([], adaptive=True)
    with pytest.raises(PydstpError, match="'mine': kept: expected indices in"):
        run([11], adaptive=True)


def test_a_method_that_fails_says_so_and_keeps_the_cause() -> None:
    def fail(tokens):
        return tokens.features[100]
    with pytest.raises(PydstpError, match="pruning method 'mine' failed: IndexError: ") as caught:
        run(fail)
    assert isinstance(caught.value.__cause__, IndexError)


def test_errors_of_ours_and_the_keyboard_pass_through() -> None:
    for error in (CancelledError("stop"), OptionError("no"), KeyboardInterrupt()):
        def fail(tokens, error=error):
            raise error
        with pytest.raises(type(error)) as caught:
            run(fail)
        assert caught.value is error


def test_where_all_stay_the_method_is_not_asked() -> None:
    assert run(lambda tokens: 1 / 0, 1.0).kept.tolist() == list(range(10))


def test_a_missing_statistic_is_an_error() -> None:
    config = PruningConfig("fastv", 0.5)
    tokens = make_tokens(config, GRIDS, attention_row=None)
    with pytest.raises(PydstpError, match="'fastv': expected tokens with attention_row, got None"):
        run_pruner(config, tokens)


# Registering

def test_a_method_without_options_needs_no_decorator_of_its_own() -> None:
    @register_pruner("first")
    class First(Pruner):
        def select(self, tokens):
            return tokens.top(torch.arange(len(tokens), 0, -1))
    assert "first" in available_pruners()
    config = PruningConfig("first", 0.5)
    assert config == PruningConfig("first", 0.5) and len({config, PruningConfig("first", 0.5)}) == 1
    assert run_pruner(config, make_tokens(config, GRIDS)).kept.tolist() == [0, 1, 2, 6, 7]
    with pytest.raises(OptionError, match=r"options of 'first' among \(none\), got 'layer'"):
        PruningConfig("first", 0.5, layer=1)


def test_options_are_the_fields() -> None:
    @register_pruner("listed")
    @dataclass(frozen=True)
    class Listed(Pruner):
        slots: tuple[int, ...]
        layer: int = 0
        default_quota = "global"

        @property
        def act_before(self) -> int:
            return self.layer

        def select(self, tokens):
            return torch.tensor(self.slots)
    config = PruningConfig("listed", num_kept=2, slots=[3, 8], layer=3)  # a list, as from JSON
    assert config.pruner == Listed((3, 8), 3) and config.quota == "global"
    assert config.pruner.act_before == 3 and len({config}) == 1
    assert run_pruner(config, make_tokens(config, GRIDS)).kept.tolist() == [3, 8]
    with pytest.raises(OptionError, match="slots: expected a value with pruning method 'listed'"):
        PruningConfig("listed", num_kept=2)
    with pytest.raises(OptionError, match="'listed'.*: TypeError: unhashable type: 'dict'"):
        PruningConfig("listed", num_kept=2, slots={})


def test_what_cannot_be_registered() -> None:
    class NoSelect(Pruner):
        pass

    @dataclass(frozen=True)
    class Clash(Pruner):
        seed: int = 0

        def select(self, tokens):
            return []
    for kind in (NoSelect, Pruner, int, 3, None, Clash()):
        with pytest.raises(OptionError, match="expected a subclass of Pruner that defines select"):
            register_pruner("new")(kind)
    with pytest.raises(OptionError, match="Clash: expected options that .* got seed"):
        register_pruner("new")(Clash)
    with pytest.raises(OptionError, match=r"Bare: expected @dataclass.frozen=True. below @regist"):
        @register_pruner("new")
        class Bare(Pruner):
            layer: int = 0

            def select(self, tokens):
                return []
    for name in ("", "two words", "a-b", None, 3):
        with pytest.raises(OptionError, match="expected a name such as 'my_method', got"):
            register_pruner(name)(type(PruningConfig("random", 0.5).pruner))
    assert "new" not in available_pruners()


def test_a_name_is_taken_once_but_a_class_may_come_again() -> None:
    def define(result: list[int], where: str) -> None:
        class Mine(Pruner):
            def select(self, tokens):
                return result
        Mine.__module__ = where
        register_pruner("again")(Mine)
    define([0], "notebook")
    old = PruningConfig("again", num_kept=1, quota="global")
    define([1], "notebook")
    new = PruningConfig("again", num_kept=1, quota="global")
    assert old != new and run_pruner(old, make_tokens(old, GRIDS)).kept.tolist() == [0]
    assert run_pruner(new, make_tokens(new, GRIDS)).kept.tolist() == [1]
    with pytest.raises(OptionError, match="expected a new name, got 'again', which is notebook"):
        define([2], "elsewhere")
    with pytest.raises(OptionError, match="expected a new name, got 'fastv', which is pydstp"):
        register_pruner("fastv")(type(old.pruner))


@pytest.mark.parametrize(("attributes", "message"), [
    ({"needs": {"features"}}, "needs: expected a set of names among .*attention_row"),
    ({"needs": "attention_row"}, "needs: expected a set of names"),
    ({"needs": ["attention_row"]}, "needs: expected a set of names"),
    *(({"needs": {name}}, r"act_before: expected an integer in \[1, .*got 0")
      for name in ("picture_row", "received_attention", "key_norms", "text_key_norms")),
    ({"needs": {"attention_row"}}, r"act_before: expected an integer in \[1, .*got 0"),
    ({"act_before": -1}, "act_before: expected an integer"),
    ({"act_before": None}, "act_before: expected an integer"),
    ({"default_quota": "picture"}, "default_quota: expected one of"),
    ({"block": "last"}, "block: expected an integer"),
], ids=str)
def test_what_a_method_says_of_itself_is_checked(attributes, message) -> None:
    with pytest.raises(OptionError, match=f"pruning method 'mine': {message}"):
        run(GOOD, **attributes)


def test_options_that_a_method_itself_cannot_take() -> None:
    @register_pruner("picky")
    @dataclass(frozen=True)
    class Picky(Pruner):
        power: float = 2.0

        def __post_init__(self) -> None:
            if self.power < 0:
                raise ValueError("negative")

        def select(self, tokens):
            return []
    for value, cause in ((-1, "ValueError: negative"), ("x", "TypeError: ")):
        with pytest.raises(OptionError, match=f"pruning method 'picky': .*{cause}"):
            PruningConfig("picky", 0.5, power=value)
