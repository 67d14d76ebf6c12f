"""PyramidDrop, SparseVLM and MustDrop at one stage, against their definitions written in loops."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from pydstp import OptionError, PruningConfig, VisualTokens
from pydstp.pruning import Selection, checked_stages, run_pruner
from pydstp.pruning.clusters import density_peaks
from pydstp.pruning.registry import register_pruner
from pydstp.pruning.stages import StagedPruner
from tests.pruning import plain_staged_methods as plain
from tests.pruning.plain_layer_methods import Answer
from tests.pruning.samples import GRIDS, HIDDEN, NUM_TEXT, count, make_tokens

every_grid = pytest.mark.parametrize("grids", GRIDS, ids=str)
every_seed = pytest.mark.parametrize("seed", range(3))


def facts_of(tokens: VisualTokens, text: Tensor, embedded_text: Tensor,
             embedded_visual: Tensor) -> plain.StageFacts:
    def numbers(tensor: Tensor) -> list:
        return tensor.double().tolist()
    return plain.StageFacts(
        tokens.stage, list(tokens.spans), list(tokens.quotas), list(tokens.grids),
        tokens.origins.tolist(), numbers(tokens.features), numbers(tokens.upcoming_row),
        numbers(text), numbers(tokens.vision_attention), numbers(embedded_text),
        numbers(embedded_visual))


def assert_answer(found: Selection, answer: Answer, tokens: VisualTokens) -> None:
    assert found.kept.tolist() == answer.kept
    assert (found.merge is None) == (not answer.merged)
    features = tokens.features.double()
    if found.merge is not None:
        assert found.merge.targets.tolist() == [target for target, _ in answer.merged]
        means = features[found.merge.targets] + found.merge.weights.double() @ features
        for mean, (_, part) in zip(means, answer.merged, strict=True):
            torch.testing.assert_close(mean, features[part].mean(dim=0), atol=1e-6, rtol=1e-5)


@every_grid
@every_seed
@pytest.mark.parametrize("quota", ["span", "global"])
def test_pyramiddrop(grids, seed, quota) -> None:
    for ratio in (0.2, 0.5, 0.9):
        config = PruningConfig("pyramiddrop", ratio, quota=quota)
        tokens = make_tokens(config, grids, seed)
        tokens.upcoming_row.mul_(8).floor_()  # ties
        facts = facts_of(tokens, tokens.text_attention, tokens.text_states, tokens.features)
        assert_answer(run_pruner(config, tokens), plain.pyramiddrop(facts), tokens)


@every_grid
@every_seed
@pytest.mark.parametrize("options", [{}, {"recycle": 0.0}, {"recycle": 1.0}, {"quota": "span"}],
                         ids=str)
def test_sparsevlm(grids, seed, options) -> None:
    generator = torch.Generator().manual_seed(seed)
    text = torch.randn(NUM_TEXT, HIDDEN, generator=generator)
    visual = torch.randn(count(grids), HIDDEN, generator=generator)
    for ratio in (0.2, 0.5, 0.9):
        config = PruningConfig("sparsevlm", ratio, **options)
        rating = config.pruner.raters(visual, text)
        assert rating.nonzero().squeeze(1).tolist() == plain.raters(visual.tolist(), text.tolist())
        tokens = make_tokens(config, grids, seed)
        facts = facts_of(tokens, tokens.text_attention, text, visual)
        answer = plain.sparsevlm(facts, options.get("recycle", 0.3))
        shown = replace(tokens, text_attention=tokens.text_attention[rating])
        assert_answer(run_pruner(config, shown), answer, tokens)


def test_raters_are_never_none() -> None:
    """Property 37: some value is at least the mean; where all are equal, or no number, all rate."""
    pruner = PruningConfig("sparsevlm", 0.5).pruner
    alike = torch.ones(7, 3)
    assert pruner.raters(torch.randn(5, 3), alike).all()
    assert pruner.raters(torch.full((5, 3), float("nan")), torch.randn(7, 3)).all()
    assert pruner.raters(torch.randn(5, 3), torch.randn(1, 3)).tolist() == [True]
    many = pruner.raters(torch.randn(600, 3), torch.tensor([[9.0, 0, 0], [0, 0, 0], [-9, 0, 0]]))
    assert 1 <= int(many.sum()) <= 2


@every_seed
def test_merged_tokens_keep_the_mean_of_what_was_recycled(seed) -> None:
    """Property 37: the mean of clusters, each counted as often as it has members."""
    config = PruningConfig("sparsevlm", 0.2, recycle=1.0)
    tokens = make_tokens(config, ((13, 7),), seed)
    plan = run_pruner(config, tokens).merge
    weights = plan.weights.clone()
    weights[torch.arange(len(plan.targets)), plan.targets] += 1.0
    sizes = (weights > 1e-6).sum(dim=1)
    assert int(sizes.sum()) == len((weights > 1e-6).any(dim=0).nonzero()) > len(sizes) > 5
    clusters = weights @ tokens.features
    members = tokens.features[(weights > 1e-6).any(dim=0)]
    torch.testing.assert_close((clusters * sizes[:, None]).sum(dim=0) / sizes.sum(),
                               members.mean(dim=0), atol=1e-6, rtol=1e-5)


@every_seed
@pytest.mark.parametrize(("n", "groups"), [(1, 1), (2, 1), (2, 2), (9, 3), (23, 4), (23, 23)])
def test_density_peaks(n, groups, seed) -> None:
    generator = torch.Generator().manual_seed(seed)
    for points in (torch.randn(n, 5, generator=generator),
                   torch.randint(0, 2, (n, 3), generator=generator).float()):  # many alike
        centres, found = density_peaks(points.double(), groups)
        expected = plain.clusters(points.double().tolist(), groups)
        assert centres.tolist() == [centre for centre, _ in expected]
        for row, (_, members) in enumerate(expected):
            assert (found == row).nonzero().squeeze(1).tolist() == members


def test_the_rank_of_the_raters_attention_bounds_the_number() -> None:
    tokens = make_tokens(PruningConfig("sparsevlm", 0.8), ((13, 7),))
    for rank in (1, 2, 5):
        rows = tokens.text_attention[:rank].repeat(3, 1)
        for scale, bias in ((3.0, 0.0), (2.5, 4.0), (0.1, 0.0), (99.0, 0.0)):
            config = PruningConfig("sparsevlm", 0.8, schedule="rank", rank_scale=scale,
                                   rank_bias=bias, recycle=0.0)
            kept = run_pruner(config, replace(tokens, text_attention=rows)).kept
            assert len(kept) == min(max(int(scale * rank + bias), 1), tokens.quotas[0])


@every_grid
@every_seed
@pytest.mark.parametrize("window", [1, 2, 3])
def test_mustdrop_merges_windows_that_are_alike(grids, seed, window) -> None:
    config = PruningConfig("mustdrop", 0.3, window=window, similarity=0.0)
    tokens = make_tokens(config, grids, seed)
    if sum(tokens.quotas) == len(tokens):
        return  # there is but one token
    facts = facts_of(tokens, tokens.text_attention, tokens.text_states, tokens.features)
    answer = plain.mustdrop(facts, window, 0.0)
    assert_answer(run_pruner(config, tokens), answer, tokens)
    assert answer.merged or window == 1 or len(tokens) < 20


def stage_of(tokens: VisualTokens, left: Tensor) -> VisualTokens:
    """A later stage, at which some tokens are left."""
    return replace(tokens, stage=1, origins=left, features=tokens.features[left],
                   upcoming_row=tokens.upcoming_row[left],
                   vision_attention=tokens.vision_attention[left],
                   text_attention=tokens.text_attention[:, left],
                   spans=((0, len(left)),), quotas=(len(left),))


@every_grid
@every_seed
def test_mustdrop_drops_what_no_word_looks_at(grids, seed) -> None:
    for share, limit, key_share in ((0.02, 0.9, 0.08), (0.5, 0.6, 0.3), (1.0, 0.99, 0.0)):
        options = {"global_threshold": share, "individual_threshold": limit,
                   "key_share": key_share}
        config = PruningConfig("mustdrop", 0.3, **options)
        tokens = make_tokens(config, grids, seed)
        left = torch.arange(len(tokens))[::2] if seed else torch.arange(len(tokens))
        tokens = stage_of(tokens, left)
        facts = facts_of(tokens, tokens.text_attention, tokens.text_states, tokens.features)
        answer = plain.mustdrop(facts, 3, 0.8, key_share, share, limit)
        assert run_pruner(config, tokens).kept.tolist() == answer.kept


@every_grid
def test_thresholds_of_mustdrop_at_their_ends(grids) -> None:
    """Property 38: 0 drops nothing; without bound the key set is what is left."""
    def kept(**options: float) -> list[int]:
        config = PruningConfig("mustdrop", 0.3, **options)
        tokens = stage_of(make_tokens(config, grids), torch.arange(count(grids)))
        return run_pruner(config, tokens).kept.tolist()
    everything = list(range(count(grids)))
    assert kept(global_threshold=0.0) == kept(individual_threshold=0.0) == everything
    vision = make_tokens(PruningConfig("mustdrop", 0.3), grids).vision_attention
    key_set, start = [], 0
    for rows, cols in grids:
        best = vision[start:start + rows * cols].argsort(descending=True)
        key_set += (start + best[:math.ceil(0.2 * (rows * cols - 1))]).tolist()
        start += rows * cols
    left = kept(global_threshold=1e6, individual_threshold=1e6, key_share=0.2)
    assert left == sorted(key_set) or not key_set and len(left) == 1
    scaled = kept(global_threshold=1e-3, individual_threshold=0.9, key_share=0.0,
                  scale_thresholds=True)
    factor = 576 / count(grids)
    assert scaled == kept(global_threshold=1e-3 * factor, individual_threshold=0.9 * factor,
                          key_share=0.0)


def test_stages_follow_from_the_depth_of_the_model() -> None:
    def stages(name: str, num_layers: int, **options: object) -> tuple[int, ...]:
        return PruningConfig(name, 0.5, **options).pruner.stages(num_layers)
    assert stages("pyramiddrop", 32) == (8, 16, 24)
    assert stages("pyramiddrop", 36) == (9, 18, 27)
    assert stages("sparsevlm", 36) == (3, 8, 18)
    assert stages("mustdrop", 32) == (0, 3, 7, 11, 15)
    assert stages("pyramiddrop", 4) == stages("sparsevlm", 4) == (1, 2, 3)
    assert stages("mustdrop", 4) == (0, 1, 2, 3) and stages("pyramiddrop", 2) == (1,)
    assert stages("mustdrop", 4, layers=[2]) == (0, 2)
    assert stages("pyramiddrop", 4, layers=[1, 3]) == (1, 3)


def test_quotas_of_stages() -> None:
    """Property 36: counts by the ratio, nested, and all of them where all ratios are 1."""
    def quotas(num_stages: int, stage: int, ratio: float = 1 / 8, **options: object) -> int:
        config = PruningConfig("pyramiddrop", ratio, **options)
        (_, (quota,)) = config.quotas_at([(16, 36)], stage, num_stages, torch.arange(576))
        return quota
    assert [quotas(3, stage) for stage in range(3)] == [288, 144, 72]
    assert [quotas(3, stage, 1.0) for stage in range(3)] == [576] * 3
    shares = {"shares": [300 / 576, 200 / 576]}
    assert [quotas(3, stage, 110 / 576, **shares) for stage in range(3)] == [300, 200, 110]
    assert [quotas(3, stage, 0.4, **shares) for stage in range(3)] == [300, 230, 230]


def test_spans_shrink_with_what_is_left() -> None:
    config = PruningConfig("pyramiddrop", 0.25, quota="span")
    origins = torch.tensor([0, 3, 5, 6, 7, 13])
    spans, quotas = config.quotas_at([(2, 3), (2, 2), (1, 4)], 1, 2, origins)
    assert spans == ((0, 3), (3, 2), (5, 1)) and quotas == (2, 1, 1)


@pytest.mark.parametrize(("name", "options", "match"), [
    ("pyramiddrop", {"layers": [2, 1]}, "layers: expected ascending"),
    ("pyramiddrop", {"layers": [0, 1]}, "layers: each"), ("sparsevlm", {"layers": 3}, "layers"),
    ("pyramiddrop", {"layers": []}, "layers"), ("pyramiddrop", {"shares": [0.2, 0.4]}, "shares"),
    ("pyramiddrop", {"shares": [0.0]}, "shares: each"), ("sparsevlm", {"recycle": 2}, "recycle"),
    ("sparsevlm", {"schedule": "odd"}, "schedule"), ("mustdrop", {"shares": [0.5]}, "shares"),
    ("mustdrop", {"window": 0}, "window"), ("mustdrop", {"key_share": -1}, "key_share"),
    ("look_m", {"merge": "odd"}, "merge"), ("look_m", {"recent": 2.0}, "recent"),
], ids=str)
def test_a_wrong_option_is_refused(name, options, match) -> None:
    with pytest.raises(OptionError, match=match):
        PruningConfig(name, 0.5, **options)


def test_stages_that_a_model_has_no_room_for() -> None:
    @register_pruner("many")
    class Many(StagedPruner):
        needs = frozenset({"picture_row"})

        def select(self, tokens: VisualTokens) -> Tensor:
            return tokens.top(tokens.picture_row)
    for layers, match in (([1, 2, 3, 4, 5, 6, 7], "at most 6 ascending"), ([1, 2], "picture_row")):
        with pytest.raises(OptionError, match=match):
            checked_stages(PruningConfig("many", 0.5, layers=layers), 9, 6)
