"""What holds for every method: the ones that come with the package, and somebody's first."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from pydstp import Pruner, PruningConfig, Selection, VisualTokens, register_pruner
from pydstp.pruning import available_pruners, run_pruner
from pydstp.pruning.base import STATISTICS
from pydstp.pruning.registry import _PRUNERS, pruner_class
from tests.compare import assert_bitwise
from tests.pruning.samples import GRIDS, count, make_tokens


@dataclass(frozen=True)
class Longest(Pruner):
    """Keeps the tokens whose features are longest: a plug-in in ten lines."""

    power: float = 2.0

    def select(self, tokens: VisualTokens) -> Tensor:
        return tokens.top(tokens.features.float().norm(p=self.power, dim=1))


@pytest.fixture(scope="module", autouse=True)
def _plug_in() -> Iterator[None]:
    register_pruner("longest")(Longest)
    yield
    _PRUNERS.pop("longest")


OURS = ["longest", *(
    name for name in available_pruners() if pruner_class(name).__module__.startswith("pydstp.")
    and not pruner_class(name).acts_on_picture  # resize: see tests/prompts/test_resize.py
    and not pruner_class(name).acts_on_cache)]  # look_m: see tests/engine/test_look_m.py
PRUNING = [name for name in OURS if name != "none"]
VARIANTS = [(name, {}) for name in PRUNING] + [
    ("longest", {"power": 1.0}), ("fastv", {"quota": "span"}), ("divprune", {"quota": "global"}),
    ("random", {"quota": "global", "layer": 3}), ("visionzip", {"quota": "global"}),
    ("visionzip", {"prune_only": True}), ("visionzip", {"merge_only": True}),
    ("visionzip", {"dominant_share": 0.0}), ("visionzip", {"dominant_share": 1.0}),
    ("visionzip", {"dominant_share": 0.5, "quota": "global"}),
    ("fastv", {"rows": "all"}), ("window_fastv", {"window": (2, 3), "quota": "span"}),
    ("fastv_vis", {"quota": "global"}), ("alpha", {"alpha": 0.0}),
    ("alpha", {"alpha": 0.25, "rows": "all", "quota": "span"}), ("pooling", {"quota": "global"}),
    ("pooling", {"pool": "max", "window": (2, 4)}), ("pooling", {"pool": "argmax_l1"}),
    ("dart", {"quota": "span"}), ("dart", {"visual_pivots": 1, "text_pivots": 0}),
    ("vispruner", {"important_share": 0.0, "drop": 1}), ("vispruner", {"quota": "global"}),
    ("cdpruner", {"relevance_weight": 0.5}), ("cdpruner", {"quota": "global"}),
    ("pyramiddrop", {"quota": "span"}), ("sparsevlm", {"recycle": 0.0}),
    ("sparsevlm", {"recycle": 1.0, "quota": "span"}),
    ("sparsevlm", {"schedule": "rank", "rank_scale": 0.5}), ("mustdrop", {"similarity": -1.0}),
    ("prumerge", {"prune_only": True}), ("prumerge", {"neighbours": 1, "quota": "global"}),
]
SCORES = ("attention_row", "upcoming_row", "vision_attention", "picture_row",
          "received_attention", "key_norms", "text_key_norms")
every_variant = pytest.mark.parametrize(("name", "options"), VARIANTS, ids=str)
every_grid = pytest.mark.parametrize("grids", GRIDS, ids=str)


def chosen(selection: Selection) -> Tensor:
    """Everything that stays, merged tokens at the places they take."""
    targets = [] if selection.merge is None else [selection.merge.targets]
    return torch.cat([selection.kept, *targets]).sort().values


def assert_same(ours: Selection, expected: Selection) -> None:
    assert_bitwise(ours.kept, expected.kept)
    assert (ours.merge is None) == (expected.merge is None)
    if ours.merge is not None:
        assert_bitwise(ours.merge.targets, expected.merge.targets)
        assert_bitwise(ours.merge.weights, expected.merge.weights)


def test_every_method_is_here() -> None:
    assert {"alpha", "cdpruner", "dart", "divprune", "fastervlm", "fastv", "fastv_vis", "longest",
            "mustdrop", "none", "pooling", "prumerge", "pyramiddrop", "random", "reverse_fastv",
            "sparsevlm", "visionzip", "vispruner", "window_fastv"} <= set(OURS)


# Property 1

@pytest.mark.parametrize("name", OURS)
@every_grid
def test_keeping_all_keeps_all_in_order(name, grids) -> None:
    amounts = [{"retention_ratio": 1.0}] + [{"num_kept": 10**6}] * (name != "none")
    for amount in amounts:
        config = PruningConfig(name, **amount)
        tokens = make_tokens(config, grids)
        selection = run_pruner(config, tokens)
        assert selection.kept.tolist() == list(range(count(grids))) and selection.merge is None
        asked = config.pruner.select(tokens)  # without the shortcut
        asked = asked if isinstance(asked, Selection) else Selection(asked)
        assert asked.kept.tolist() == list(range(count(grids))) and asked.merge is None


# Property 2

@every_variant
@every_grid
@pytest.mark.parametrize("amount", [{"retention_ratio": 0.01}, {"retention_ratio": 1 / 3},
                                    {"retention_ratio": 0.7}, {"num_kept": 1}, {"num_kept": 5}],
                         ids=str)
def test_as_many_as_asked_sorted_and_in_their_spans(name, options, grids, amount) -> None:
    config = PruningConfig(name, **amount, **options)
    for seed in range(3):
        tokens = make_tokens(config, grids, seed)
        selection = run_pruner(config, tokens)
        kept, stays = selection.kept, chosen(selection)
        assert kept.dtype == torch.int64 and (kept.diff() > 0).all() and (stays.diff() > 0).all()
        if config.pruner.adaptive:
            assert all(((stays >= span.start) & (stays < span.stop)).any()
                       for span, _ in tokens.each_span())
            continue
        assert len(stays) == sum(tokens.quotas)
        for span, quota in tokens.each_span():
            assert int(((stays >= span.start) & (stays < span.stop)).sum()) == quota


# Property 6

@every_variant
@every_grid
def test_shifted_and_scaled_scores_make_no_difference(name, options, grids) -> None:
    config = PruningConfig(name, 0.4, **options)
    tokens = make_tokens(config, grids)
    expected = run_pruner(config, tokens)
    changes = {"features": tokens.features * 4, "vision_keys": tokens.vision_keys * 0.25,
               "text_embeddings": tokens.text_embeddings * 2}
    for factor, shift in ((1.0, 3.0), (8.0, 0.0), (0.5, -1.0)):
        changes |= {field: getattr(tokens, field) * factor + shift for field in SCORES}
        changed = replace(tokens, **changes, generator=config.generator())
        found = run_pruner(config, changed)
        if name == "prumerge" and shift:  # merges in proportion to attention: other weights
            assert chosen(found).tolist() == chosen(expected).tolist()
        elif name == "sparsevlm":  # densities are not those of other distances: other clusters
            assert_bitwise(found.kept, expected.kept)
        else:
            assert_same(found, expected)


@pytest.mark.parametrize(("name", "options"), [
    ("fastv", {}), ("longest", {}), ("divprune", {}), ("visionzip", {"prune_only": True}),
    ("fastervlm", {}), ("vispruner", {"important_share": 1}), ("cdpruner", {})], ids=str)
@every_grid
def test_of_equal_tokens_the_first_stay(name, options, grids) -> None:
    config = PruningConfig(name, 0.4, **options)
    alike = {"features": torch.full((count(grids), 5), 0.3), "text_embeddings": torch.ones(3, 5),
             "attention_row": torch.full((count(grids),), 0.1),
             "vision_attention": torch.full((count(grids),), 0.1)}
    tokens = make_tokens(config, grids, **alike)
    expected = [index for span, quota in tokens.each_span()
                for index in range(span.start, span.start + quota)]
    assert run_pruner(config, tokens).kept.tolist() == expected


# Property 20

@every_variant
@every_grid
def test_the_seed_and_the_request_decide(name, options, grids) -> None:
    first = PruningConfig(name, 0.4, seed=1, **options)
    runs = [run_pruner(first, make_tokens(first, grids)) for _ in range(3)]
    torch.manual_seed(99)  # the process's own generator is nobody's business
    before = torch.get_rng_state()
    runs.append(run_pruner(first, make_tokens(first, grids)))
    assert torch.equal(torch.get_rng_state(), before)
    for run in runs[1:]:
        assert_same(run, runs[0])
    other = PruningConfig(name, 0.4, seed=2, **options)
    if name != "random":
        assert_same(run_pruner(other, make_tokens(other, grids)), runs[0])


@every_variant
def test_what_is_not_needed_is_not_looked_at(name, options) -> None:
    config = PruningConfig(name, 0.4, **options)
    tokens = make_tokens(config, GRIDS[4])
    unneeded = set(STATISTICS) - config.pruner.needs
    without = replace(tokens, **dict.fromkeys(unneeded), generator=config.generator())
    assert_same(run_pruner(config, without), run_pruner(config, tokens))


@every_variant
def test_tokens_are_left_as_they_were(name, options) -> None:
    config = PruningConfig(name, 0.4, **options)
    tokens = make_tokens(config, GRIDS[4])
    fields = ("features", *STATISTICS)
    copies = {field: getattr(tokens, field).clone() for field in fields}
    run_pruner(config, tokens)
    for field, copy in copies.items():
        assert_bitwise(getattr(tokens, field), copy)


@every_variant
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_features_of_any_dtype_and_stride(name, options, dtype) -> None:
    config = PruningConfig(name, 0.4, **options)
    tokens = make_tokens(config, GRIDS[4])
    features = tokens.features.to(dtype)
    expected = run_pruner(config, replace(tokens, features=features.float()))
    strided = torch.stack([features, features], dim=-1)[..., 0]
    changed = replace(tokens, features=strided, generator=config.generator())
    assert_same(run_pruner(config, changed), expected)


@every_variant
def test_in_inference_mode_and_with_another_default_dtype(name, options) -> None:
    config = PruningConfig(name, 0.4, **options)
    expected = run_pruner(config, make_tokens(config, GRIDS[4]))
    with torch.inference_mode():
        assert_same(run_pruner(config, make_tokens(config, GRIDS[4])), expected)
    tokens = make_tokens(config, GRIDS[4])
    try:
        torch.set_default_dtype(torch.float64)
        assert_same(run_pruner(config, tokens), expected)
    finally:
        torch.set_default_dtype(torch.float32)


# Hostile inputs

@every_variant
@every_grid
@pytest.mark.parametrize("value", [0.0, 1e30, -1e-30, float("inf"), float("nan")])
def test_constant_and_broken_features_still_make_a_selection(name, options, grids, value) -> None:
    config = PruningConfig(name, 0.4, **options)
    num_tokens = count(grids)
    tokens = make_tokens(config, grids)
    everything = {field: torch.full_like(getattr(tokens, field), value)
                  for field in ("features", *STATISTICS)}
    stays = chosen(run_pruner(config, replace(tokens, **everything)))
    assert 1 <= len(stays) <= num_tokens
    assert len(stays) == sum(tokens.quotas) or config.pruner.adaptive


@pytest.mark.parametrize(("name", "options"), [
    ("fastv", {}), ("divprune", {}), ("visionzip", {"prune_only": True}), ("fastervlm", {}),
    ("vispruner", {}), ("cdpruner", {})], ids=str)
def test_broken_tokens_are_kept_last(name, options) -> None:
    grids, broken = ((3, 5),), [0, 4, 9]
    config = PruningConfig(name, num_kept=12, **options)
    tokens = make_tokens(config, grids)
    for field in ("features", "attention_row", "vision_attention"):
        getattr(tokens, field)[broken] = float("nan")
    rest = [index for index in range(15) if index not in broken]
    assert run_pruner(config, tokens).kept.tolist() == rest
    one_more = replace(tokens, quotas=(13,))
    assert run_pruner(config, one_more).kept.tolist() == sorted([0, *rest])
