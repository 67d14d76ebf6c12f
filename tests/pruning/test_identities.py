"""What a method leaves as it is: windows of one token, and the order of what is averaged."""

from __future__ import annotations

import pytest
import torch

from pydstp import PruningConfig
from pydstp.pruning import run_pruner
from pydstp.pruning.base import best_of_whole, unit_rows
from pydstp.pruning.merging import weighted_sums
from tests.pruning.samples import GRIDS, count, make_tokens


@pytest.mark.parametrize("grids", GRIDS, ids=str)
@pytest.mark.parametrize("pool", ["mean", "max", "argmax_l1"])
@pytest.mark.parametrize("ratio", [0.1, 0.5])
def test_windows_of_one_token_pool_nothing(grids, pool, ratio) -> None:
    """Property 31."""
    config = PruningConfig("pooling", ratio, pool=pool, window=1)
    selection = run_pruner(config, make_tokens(config, grids))
    assert selection.kept.tolist() == list(range(count(grids))) and selection.merge is None


def test_what_is_merged_has_no_order() -> None:
    """Property 34: the tokens of one target may change places, and the merged token is the same."""
    config = PruningConfig("visionzip", 0.2)
    tokens = make_tokens(config, ((13, 7),))
    plan = run_pruner(config, tokens).merge
    group = max((row.nonzero().squeeze(1) for row in plan.weights), key=len)
    assert len(group) > 2
    order = torch.arange(len(tokens))
    order[group] = group.flip(0)
    turned = make_tokens(config, ((13, 7),), features=tokens.features[order],
                         vision_keys=tokens.vision_keys[order],
                         vision_attention=tokens.vision_attention[order])
    again = run_pruner(config, turned).merge
    assert again.targets.tolist() == plan.targets.tolist()
    torch.testing.assert_close(turned.features[again.targets] + again.weights @ turned.features,
                               tokens.features[plan.targets] + plan.weights @ tokens.features)


@pytest.mark.parametrize("size", [1, 3, 97, 1025])
def test_the_best_whole_numbers_are_those_of_a_stable_sort(size) -> None:
    generator = torch.Generator().manual_seed(size)
    for spread in (1, 5, 10**6):  # ties, and none
        values = torch.randint(-spread, spread + 1, (7, size), generator=generator).float()
        values[::2, size // 2] = -torch.inf
        for count_ in {1, 2, size // 2, size - 1} & set(range(1, size + 1)):
            expected = values.sort(dim=1, descending=True, stable=True).indices[:, :count_]
            found = best_of_whole(values, count_)
            assert found.sort(dim=1).values.tolist() == expected.sort(dim=1).values.tolist()


def test_one_odd_row_changes_no_other_unit_row() -> None:
    """All rows of common lengths take a short way: the same numbers but for rounding."""
    rows = torch.randn(9, 33, generator=torch.Generator().manual_seed(0))
    alone, _ = unit_rows(rows)
    for odd in (0.0, 1e-30, 1e30, float("nan"), float("inf")):
        among, is_finite = unit_rows(torch.cat([rows, torch.full((1, 33), odd)]))
        torch.testing.assert_close(among[:9], alone, atol=1e-6, rtol=0)
        assert is_finite[:9].all() and bool(is_finite[9]) == (abs(odd) < float("inf"))


@pytest.mark.parametrize("share", [0.0, 0.01, 0.1, 0.5, 1.0])
def test_sums_of_few_weights_are_the_product(share) -> None:
    generator = torch.Generator().manual_seed(1)
    weights = torch.randn(7, 97, generator=generator)
    weights[torch.rand(7, 97, generator=generator) > share] = 0.0
    rows = torch.randn(97, 33, generator=generator)
    torch.testing.assert_close(weighted_sums(weights, rows).double(),
                               weights.double() @ rows.double(), atol=1e-5, rtol=1e-5)
