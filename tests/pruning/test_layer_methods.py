"""Methods that act before a decoder layer, against their definitions written out in loops."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from pydstp import OptionError, PruningConfig, Selection
from pydstp.pruning import run_pruner
from pydstp.pruning.window_fastv import shares_by_area
from tests.generators import normal
from tests.pruning.plain_layer_methods import facts_of, plain, pooled
from tests.pruning.samples import GRIDS, count, make_tokens

METHODS = [
    ("fastv", {}), ("fastv", {"rows": "all"}), ("reverse_fastv", {}),
    ("reverse_fastv", {"rows": "all"}), ("window_fastv", {}), ("window_fastv", {"window": 2}),
    ("window_fastv", {"window": (3, 2), "rows": "all"}), ("fastv_vis", {}), ("alpha", {}),
    ("alpha", {"alpha": 0.0}), ("alpha", {"alpha": 0.9, "rows": "all"}), ("pooling", {}),
    ("pooling", {"pool": "max"}), ("pooling", {"pool": "argmax_l1"}), ("pooling", {"window": 3}),
    ("pooling", {"window": (1, 4), "pool": "argmax_l1"}), ("dart", {}),
    ("dart", {"visual_pivots": 1, "text_pivots": 0}), ("dart", {"visual_pivots": 2}),
    ("dart", {"visual_pivots": 10, "text_pivots": 5})]
every_method = pytest.mark.parametrize(("name", "options"), METHODS, ids=str)
every_grid = pytest.mark.parametrize("grids", GRIDS, ids=str)
every_quota = pytest.mark.parametrize("quota", ["span", "global"])


def members(weights: Tensor) -> list[list[int]]:
    return [row.nonzero().squeeze(1).tolist() for row in weights]


def merged_rows(selection: Selection, features: Tensor) -> Tensor:
    """As `MergePlan` defines them."""
    merge = selection.merge
    if merge.reduce == "max":
        return torch.stack([features[row != 0].max(dim=0).values for row in merge.weights])
    return features[merge.targets] + merge.weights @ features


@every_method
@every_quota
@every_grid
def test_every_method_equals_its_definition(name, options, grids, quota) -> None:
    for seed, amount in enumerate((0.1, 1 / 4, 1 / 3, 0.5, 0.9)):
        config = PruningConfig(name, amount, quota=quota, **options)
        tokens = make_tokens(config, grids, seed)
        if sum(tokens.quotas) == len(tokens):
            continue
        facts = facts_of(tokens)
        selection, expected = run_pruner(config, tokens), plain(name, facts, **options)
        assert selection.kept.tolist() == expected.kept
        assert (selection.merge is None) == (not expected.merged)
        if expected.merged:
            merge = selection.merge
            assert merge.targets.tolist() == [target for target, _ in expected.merged]
            assert members(merge.weights) == [part for _, part in expected.merged]
            pool = options.get("pool", "mean")
            truth = torch.tensor([pooled(facts, part, pool) for _, part in expected.merged])
            ours = merged_rows(selection, tokens.features)
            assert torch.allclose(ours, truth, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["fastv", "reverse_fastv", "window_fastv", "alpha", "dart"])
def test_ties_go_to_the_first(name) -> None:
    """Scores of a few values only; the definition breaks ties by index."""
    for seed in range(8):
        config = PruningConfig(name, 0.4)
        generator = torch.Generator().manual_seed(seed)

        def coarse(generator: torch.Generator = generator) -> Tensor:
            return torch.randint(1, 4, (35,), generator=generator) / 4
        features = torch.eye(12)[torch.randint(0, 3, (35,), generator=generator)]
        tokens = make_tokens(config, ((5, 7),), seed, attention_row=coarse(), key_norms=coarse(),
                             features=features)
        assert run_pruner(config, tokens).kept.tolist() == plain(name, facts_of(tokens)).kept


# Property 28

@every_quota
@every_grid
def test_alpha_one_is_fastv_and_alpha_zero_sees_no_attention(grids, quota) -> None:
    one, zero = (PruningConfig("alpha", 0.4, quota=quota, alpha=alpha) for alpha in (1, 0))
    fastv = PruningConfig("fastv", 0.4, quota=quota)
    tokens = make_tokens(one, grids)
    expected = run_pruner(fastv, tokens).kept.tolist()
    assert run_pruner(one, tokens).kept.tolist() == expected
    assert one.pruner.needs == {"attention_row"} and zero.pruner.needs == {"text_states"}
    close = 0.5 + torch.arange(count(grids), 0, -1) * 2.0**-24  # neighbours in float32
    tokens = replace(tokens, attention_row=close)
    assert run_pruner(one, tokens).kept.tolist() == run_pruner(fastv, tokens).kept.tolist()


@every_grid
def test_a_window_over_the_whole_grid_is_fastv(grids) -> None:
    window = PruningConfig("window_fastv", 0.4, quota="span", window=64)
    fastv = PruningConfig("fastv", 0.4, quota="span")
    tokens = make_tokens(window, grids)
    assert run_pruner(window, tokens).kept.tolist() == run_pruner(fastv, tokens).kept.tolist()


@every_quota
@every_grid
def test_fastv_and_its_reverse_share_the_tokens_out(grids, quota) -> None:
    config = PruningConfig("fastv", 0.4, quota=quota)
    reverse = PruningConfig("reverse_fastv", 0.4, quota=quota)
    tokens = make_tokens(config, grids)
    rest = tuple(length - k for (_, length), k in zip(tokens.spans, tokens.quotas, strict=True))
    if 0 in rest:
        return
    others = run_pruner(reverse, replace(tokens, quotas=rest)).kept.tolist()
    assert sorted(run_pruner(config, tokens).kept.tolist() + others) == list(range(len(tokens)))


@pytest.mark.parametrize("window", [1, (1, 1)])
def test_windows_of_one_token_keep_everything_or_are_refused(window) -> None:
    config = PruningConfig("window_fastv", 0.4, window=window)
    with pytest.raises(OptionError, match="window: expected more than one token where some"):
        run_pruner(config, make_tokens(config, ((3, 5),)))
    whole = PruningConfig("window_fastv", 1.0, window=window)
    assert run_pruner(whole, make_tokens(whole, ((3, 5),))).kept.tolist() == list(range(15))


def test_shares_are_exact_and_never_larger_than_a_window() -> None:
    assert shares_by_area([4, 4, 2, 2], 6) == [2, 2, 1, 1]
    assert shares_by_area([2, 4, 4], 5) == [1, 2, 2]
    assert shares_by_area([1, 3, 1, 3], 4) == [0, 2, 0, 2]  # of equal remainders the larger areas
    assert shares_by_area([2, 2, 2], 4) == [2, 1, 1]  # of equal areas the first
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        areas = torch.randint(1, 17, (7,), generator=generator).tolist()
        for total in (1, 5, sum(areas) // 2, sum(areas)):
            counts = shares_by_area(areas, total)
            assert sum(counts) == total
            assert all(0 <= c <= area for c, area in zip(counts, areas, strict=True))


# Property 31

def test_pooling_keeps_original_rows_or_a_constant() -> None:
    constant = torch.full((35, 12), 0.7)
    mean = PruningConfig("pooling", 0.25, window=2)
    selection = run_pruner(mean, make_tokens(mean, ((5, 7),), features=constant))
    rows = merged_rows(selection, constant)
    assert torch.allclose(rows, constant[:len(rows)], atol=1e-6, rtol=0)
    assert len(selection.kept) == 1 and len(rows) == 3 * 4 - 1  # one corner is a window of one
    argmax = PruningConfig("pooling", 0.25, pool="argmax_l1")
    assert run_pruner(argmax, make_tokens(argmax, ((5, 7),))).merge is None
    assert mean.pruner.merges and not argmax.pruner.merges


def test_pooling_chooses_its_window_from_the_ratio() -> None:
    def windows(ratio: float) -> int:
        config = PruningConfig("pooling", ratio)
        selection = run_pruner(config, make_tokens(config, ((24, 24),)))
        merged = [] if selection.merge is None else selection.merge.targets
        return len(selection.kept) + len(merged)
    assert {ratio: windows(ratio) for ratio in (1 / 4, 1 / 9, 1 / 16, 1 / 36)} == {
        1 / 4: 144, 1 / 9: 64, 1 / 16: 36, 1 / 36: 16}
    assert [windows(ratio) for ratio in (1 / 2, 1 / 3, 1 / 6, 0.7, 0.8, 1.0)] == [
        288, 144, 96, 288, 576, 576]


# Property 39

@every_quota
@pytest.mark.parametrize("amount", [{"num_kept": 1}, {"num_kept": 3}, {"retention_ratio": 0.4},
                                    {"retention_ratio": 0.9}], ids=str)
def test_dart_keeps_its_pivots_and_exactly_the_quota(amount, quota) -> None:
    config = PruningConfig("dart", **amount, quota=quota)
    tokens = make_tokens(config, ((1, 1), (4, 6), (2, 3)))
    kept = run_pruner(config, tokens).kept
    for span, k in tokens.each_span():
        inside = [i for i in kept.tolist() if span.start <= i < span.stop]
        pivots = span.start + tokens.key_norms[span].topk(min(4, k)).indices
        assert len(inside) == k and set(pivots.tolist()) <= set(inside)


def test_dart_and_text_that_is_short_or_long() -> None:
    for length in (1, 2, 50):
        config = PruningConfig("dart", 0.4)
        tokens = make_tokens(config, ((5, 7),), text_states=normal(length, 12, seed=length),
                             text_key_norms=torch.arange(length).float())
        kept = run_pruner(config, tokens).kept
        assert kept.tolist() == plain("dart", facts_of(tokens)).kept and len(kept) == 14


# What is refused, and broken numbers

@pytest.mark.parametrize(("name", "options", "message"), [
    *((name, {"layer": 0}, r"layer: expected an integer in \[1, \d+\], got 0")
      for name in ("reverse_fastv", "window_fastv", "fastv_vis", "alpha", "pooling", "dart")),
    ("alpha", {"rows": "first"}, "rows: expected one of .'last', 'all'., got 'first'"),
    ("alpha", {"alpha": 1.5}, r"alpha: expected a finite number in \[0, 1\], got 1.5"),
    ("alpha", {"alpha": "0"}, "alpha: expected a finite number"),
    ("window_fastv", {"window": 0}, "window: expected an integer"),
    ("window_fastv", {"window": (2, 2, 2)}, "window: expected an integer or a pair"),
    ("window_fastv", {"window": None}, "window: expected an integer"),
    ("pooling", {"window": [2, 0.5]}, "window: expected an integer"),
    ("pooling", {"pool": "median"}, "pool: expected one of .*'argmax_l1'.*, got 'median'"),
    ("dart", {"visual_pivots": 0}, "visual_pivots: expected an integer"),
    ("dart", {"text_pivots": -1}, "text_pivots: expected an integer"),
    ("fastv_vis", {"rows": "all"}, "options of 'fastv_vis' among layer, got 'rows'"),
    *((name, {"positions": "reindex"}, "positions: expected 'keep', got 'reindex'")
      for name in ("fastv", "pooling", "dart"))], ids=str)
def test_a_wrong_option_is_refused(name, options, message) -> None:
    with pytest.raises(OptionError, match=message):
        PruningConfig(name, 0.5, **options)


@pytest.mark.parametrize("name", ["reverse_fastv", "fastv_vis", "alpha", "dart"])
def test_broken_tokens_are_kept_last(name) -> None:
    broken, nan = [0, 4, 9], float("nan")
    config = PruningConfig(name, num_kept=12)
    tokens = make_tokens(config, ((3, 5),))
    for field in ("features", "attention_row", "picture_row", "key_norms"):
        getattr(tokens, field)[broken] = nan
    rest = [index for index in range(15) if index not in broken]
    assert run_pruner(config, tokens).kept.tolist() == rest
    one_more = replace(tokens, quotas=(13,))
    assert run_pruner(config, one_more).kept.tolist() == sorted([0, *rest])


def test_alpha_of_tokens_that_are_all_alike() -> None:
    config = PruningConfig("alpha", 0.4)
    alike = {"features": torch.full((15, 12), 0.3), "attention_row": torch.full((15,), 0.1)}
    assert run_pruner(config, make_tokens(config, ((3, 5),), **alike)).kept.tolist() == [*range(6)]
