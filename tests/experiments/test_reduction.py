"""The total reduction rate, and the share to keep for a stated reduction."""

from __future__ import annotations

import math

import pytest

from pydstp import OptionError
from pydstp.experiments.reduction import retention_for, total_reduction_rate


@pytest.mark.parametrize("patches, tokens, kept", [(576, 144, 48), (63, 63, 9), (1196, 299, 299)])
def test_the_rate_is_patches_over_kept_tokens(patches, tokens, kept) -> None:
    assert math.isclose(total_reduction_rate(patches / tokens, tokens, kept), patches / kept)


@pytest.mark.parametrize("reduction, tacr, kept", [
    (2 / 3, 4, 1.0), (7 / 9, 4, 8 / 9), (8 / 9, 4, 4 / 9), (0.0, 4, 1.0), (0.75, 4, 1.0),
    (2 / 3, 1, 1 / 3), (8 / 9, 1, 1 / 9)])
def test_the_share_to_keep(reduction, tacr, kept) -> None:
    assert math.isclose(retention_for(reduction, tacr), kept)


@pytest.mark.parametrize("reduction", [0.8, 0.9, 0.99])
def test_both_agree(reduction) -> None:
    share = retention_for(reduction, 4)
    assert math.isclose(1 / total_reduction_rate(4, 1000, 1000 * share), 1 - reduction)


@pytest.mark.parametrize("arguments, name", [
    ((0.5, 10, 5), "tacr"), ((4, 0, 5), "num_visual"), ((4, 10, 0), "kept"),
    ((4, math.nan, 5), "num_visual"), (("4", 10, 5), "tacr")])
def test_rates_are_checked(arguments, name) -> None:
    with pytest.raises(OptionError, match=f"{name}: expected"):
        total_reduction_rate(*arguments)


@pytest.mark.parametrize("arguments, name", [((1.0, 4), "reduction"), ((-0.1, 4), "reduction"),
                                             ((0.5, 0.9), "tacr"), ((None, 4), "reduction")])
def test_reductions_are_checked(arguments, name) -> None:
    with pytest.raises(OptionError, match=f"{name}: expected"):
        retention_for(*arguments)
