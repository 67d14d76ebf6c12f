"""PruningConfig: what is refused and how it says so, budgets, quotas, round trips."""

from __future__ import annotations

import json
import math
import pickle
import random
from copy import deepcopy
from dataclasses import FrozenInstanceError, replace

import pytest

import pydstp
from pydstp import OptionError, PruningConfig
from pydstp.pruning import available_pruners
from pydstp.pruning.registry import pruner_class

BUILT_IN = ("alpha", "cdpruner", "dart", "divprune", "fastervlm", "fastv", "fastv_vis", "none",
            "pooling", "prumerge", "random", "resize", "reverse_fastv", "visionzip", "vispruner",
            "window_fastv")
INSIDE = ("alpha", "dart", "fastv", "fastv_vis", "pooling", "reverse_fastv", "window_fastv")


def test_public_names() -> None:
    for name in ("PruningConfig", "Pruner", "VisualTokens", "Selection", "register_pruner"):
        assert name in dir(pydstp) and getattr(pydstp, name).__doc__
    assert set(BUILT_IN) <= set(available_pruners())
    assert list(available_pruners()) == sorted(available_pruners())
    for name in BUILT_IN:
        assert pruner_class(name).__module__ == f"pydstp.pruning.{name}"


@pytest.mark.parametrize(("arguments", "message"), [
    (("fast",), "name: expected a pruning method among .*fastv.*, got 'fast'"),
    ((None,), "name: expected a pruning method among .*, got None"),
    ((["fastv"],), r"name: .*got \['fastv'\]"),
    (("fastv",), "retention_ratio, num_kept: expected one of the two, got neither"),
    (("fastv", 0.5, 3), "retention_ratio, num_kept: expected one of the two, got both"),
    (("none", 0.5), "expected none of them with 'none'.*got 0.5, None"),
    (("none", None, 3), "expected none of them with 'none'.*got None, 3"),
    (("resize", None, 9), "num_kept: expected retention_ratio with 'resize'.*got 9"),
    (("none", "1"), "expected none of them with 'none'.*got '1', None"),
    *((("random", ratio), r"retention_ratio: expected a finite number in \(0, 1\], got")
      for ratio in (0, 0.0, -0.1, 1.0001, 2, math.nan, math.inf, "0.5", True, 10**400)),
    *((("random", None, number), "num_kept: expected an integer >= 1")
      for number in (0, -1, 2.0, "3", True, 2**63)),
], ids=str)
def test_a_wrong_amount_or_method_is_refused(arguments, message) -> None:
    with pytest.raises(OptionError, match=message):
        PruningConfig(*arguments)


@pytest.mark.parametrize(("options", "message"), [
    (dict(name="fastv", layers=2), "options of 'fastv' among layer, rows, got 'layers'"),
    (dict(name="divprune", layer=2), r"options of 'divprune' among \(none\), got 'layer'"),
    (dict(name="fastv", pruner=1), "options of 'fastv' among layer, rows, got 'pruner'"),
    (dict(name="fastv", layer=0), r"layer: expected an integer in \[1, \d+\], got 0"),
    (dict(name="fastv", layer=True), "layer: expected an integer"),
    (dict(name="fastv", layer="2"), "layer: expected an integer .*, got '2'"),
    (dict(name="fastv", rows="first"), r"rows: expected one of \('last', 'all'\), got 'first'"),
    (dict(name="random", layer=-1), "layer: expected an integer"),
    (dict(name="random", layer=[0]), "layer: expected an integer"),
    (dict(name="visionzip", block=0.5), "block: expected an integer"),
    (dict(name="visionzip", dominant_share=1.5), r"dominant_share: expected .* in \[0, 1\]"),
    (dict(name="visionzip", prune_only=1), "prune_only: expected True or False, got 1"),
    (dict(name="visionzip", prune_only=True, merge_only=True), "at most one of them, got both"),
    (dict(name="fastervlm", block=None), "block: expected an integer"),
    (dict(name="vispruner", important_share=-0.1), r"important_share: expected .* in \[0, 1\]"),
    (dict(name="vispruner", drop=0), "drop: expected an integer >= 1|drop: expected an integer in"),
    (dict(name="vispruner", block="2"), "block: expected an integer"),
    (dict(name="cdpruner", relevance_weight=1.0), r"relevance_weight: .* in \[0, 0.99\], got 1"),
    (dict(name="prumerge", neighbours=0), "neighbours: expected an integer"),
    (dict(name="prumerge", prune_only="no"), "prune_only: expected True or False, got 'no'"),
    (dict(name="prumerge", block=[1]), "block: expected an integer"),
    (dict(name="resize", quota="global"), "quota: expected 'span' with 'resize'.* got 'global'"),
    (dict(name="resize", size=9), r"options of 'resize' among \(none\), got 'size'"),
    (dict(name="random", quota="picture"), r"quota: expected one of \('span', 'global'\), got"),
    (dict(name="random", quota=["span"]), "quota: expected one of"),
    (dict(name="random", seed=-1), "seed: expected an integer >= 0"),
    (dict(name="random", seed=0.0), "seed: expected an integer"),
    (dict(name="random", positions="reindex"), "'reindex' .not supported: kept tokens always keep"),
    (dict(name="random", positions=None), "positions: expected 'keep', got None$"),
], ids=str)
def test_a_wrong_option_is_refused(options, message) -> None:
    with pytest.raises(OptionError, match=message):
        PruningConfig(retention_ratio=0.5, **options)


def test_defaults_of_the_methods() -> None:
    configs = {name: PruningConfig(name, None if name == "none" else 0.5) for name in BUILT_IN}
    assert {name: config.quota for name, config in configs.items()} == {
        name: "global" if name in set(INSIDE) - {"fastv_vis", "pooling"} else "span"
        for name in BUILT_IN}
    assert {name: config.pruner.act_before for name, config in configs.items()} == {
        name: 2 if name in INSIDE else 0 for name in BUILT_IN}
    assert {name: set(config.pruner.needs) for name, config in configs.items()} == {
        **{name: set() for name in ("divprune", "none", "pooling", "random", "resize")},
        **{name: {"attention_row"} for name in ("fastv", "reverse_fastv", "window_fastv")},
        "alpha": {"attention_row", "text_states"}, "fastv_vis": {"picture_row"},
        "dart": {"key_norms", "text_key_norms", "text_states"}, "cdpruner": {"text_embeddings"},
        **{name: {"vision_attention"} for name in ("fastervlm", "vispruner")},
        **{name: {"vision_attention", "vision_keys"} for name in ("prumerge", "visionzip")}}
    assert {config.pruner.block for config in configs.values()} == {-2}
    assert PruningConfig("fastv", 0.5, rows="all").pruner.needs == {"received_attention"}
    assert PruningConfig("dart", 0.5, text_pivots=0).pruner.needs == {"key_norms"}
    assert PruningConfig("prumerge", 0.5, prune_only=True).pruner.needs == {"vision_attention"}
    assert PruningConfig("visionzip", 0.5, prune_only=True).pruner.needs == {"vision_attention"}
    assert PruningConfig("visionzip", 0.5, merge_only=True).pruner.needs == {"vision_keys"}
    assert PruningConfig("random", 0.5, layer=7).pruner.act_before == 7


def test_equal_values_make_equal_configs() -> None:
    config = PruningConfig("fastv", 0.5)
    assert config == PruningConfig("fastv", retention_ratio=0.5, layer=2, quota="global")
    assert hash(config) == hash(PruningConfig("fastv", 0.5, layer=2))
    others = [PruningConfig("fastv", 0.25), PruningConfig("fastv", num_kept=5),
              PruningConfig("fastv", 0.5, layer=3), PruningConfig("fastv", 0.5, seed=1),
              PruningConfig("fastv", 0.5, quota="span"), PruningConfig("random", 0.5)]
    assert len({config, *others}) == 7
    with pytest.raises(FrozenInstanceError):
        config.seed = 3
    with pytest.raises(OptionError, match="'pruner'"):  # rather than lose the method's options
        replace(config, seed=3)


@pytest.mark.parametrize("config", [
    PruningConfig("none"), PruningConfig("none", 1.0), PruningConfig("fastv", 1 / 3, layer=5),
    PruningConfig("random", num_kept=7, seed=2**63 - 1, layer=1, quota="global"),
    PruningConfig("visionzip", 0.1, block=3, dominant_share=0.25, prune_only=True),
    PruningConfig("pooling", 0.25, window=[2, 3], pool="max", layer=1),
], ids=str)
def test_a_config_survives_json_and_pickle(config) -> None:
    assert PruningConfig(**json.loads(json.dumps(config.to_dict()))) == config
    assert pickle.loads(pickle.dumps(config)) == config == deepcopy(config)


def test_budget_is_rounded_half_up_and_clamped() -> None:
    half = PruningConfig("random", 0.5)
    assert [half.budget(n) for n in (0, 1, 2, 3, 5, 6)] == [0, 1, 1, 2, 3, 3]
    assert [PruningConfig("random", 1e-9).budget(n) for n in (1, 1000)] == [1, 1]
    assert [PruningConfig("random", 1).budget(n) for n in (1, 7, 1000)] == [1, 7, 1000]
    assert [PruningConfig("random", 1 / 3).budget(n) for n in (35, 576, 1024)] == [12, 192, 341]
    assert [PruningConfig("random", num_kept=6).budget(n) for n in (0, 3, 6, 7)] == [0, 3, 6, 6]
    assert PruningConfig("none").budget(9) == 9


def test_quotas_follow_the_pictures() -> None:
    grids = [(4, 6), (1, 1), (3, 5)]
    spans = ((0, 24), (24, 1), (25, 15))
    assert PruningConfig("random", 1 / 3).quotas(grids) == (spans, (8, 1, 5))
    assert PruningConfig("random", 1 / 3, quota="global").quotas(grids) == (((0, 40),), (13,))
    assert PruningConfig("none").quotas(grids) == (spans, (24, 1, 15))
    assert PruningConfig("random", num_kept=10).quotas(grids) == (spans, (5, 1, 4))
    assert PruningConfig("random", num_kept=10, quota="global").quotas(grids) == (((0, 40),), (10,))
    for quota in ("span", "global"):
        assert PruningConfig("random", 0.5, quota=quota).quotas([]) == ((), ())
        assert PruningConfig("random", num_kept=3, quota=quota).quotas([]) == ((), ())


@pytest.mark.parametrize("seed", range(100))
def test_a_number_is_shared_out_exactly(seed) -> None:
    rng = random.Random(seed)
    grids = [(rng.randint(1, 9), rng.randint(1, 9)) for _ in range(rng.randint(1, 6))]
    lengths = [rows * cols for rows, cols in grids]
    number = rng.randint(1, sum(lengths) + 3)
    _, quotas = PruningConfig("random", num_kept=number).quotas(grids)
    assert sum(quotas) == min(max(number, len(grids)), sum(lengths))
    assert all(1 <= quota <= length for quota, length in zip(quotas, lengths, strict=True))
    pairs = list(zip(lengths, quotas, strict=True))
    assert all(one <= other for (length, one) in pairs for (longer, other) in pairs
               if length < longer)


def test_the_generator_is_new_each_time() -> None:
    config = PruningConfig("random", 0.5, seed=5)
    first, second = config.generator(), config.generator()
    assert first is not second
    assert first.initial_seed() == second.initial_seed() == 5
