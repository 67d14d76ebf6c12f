"""Leaving rows out is the same as hiding them, and what a step reads is a set.

The engine drops rows at the pruning point; here the same decoder runs all of them to the end, with
the pruned ones hidden behind a mask, in a cache of its own.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

import pydstp.runner
from pydstp import Engine, SamplingParams
from pydstp.kv_cache import ALL, SELECTED, KVCache
from pydstp.models.plans import Context, PrefillPlan
from pydstp.prefill import Prefill, Rows
from tests.compare import assert_matches
from tests.engine.oracle import picture
from tests.engine.selection import IMAGE, PROMPT, answer, dstp, method, open_engine, same

PICTURES = [picture(130, 100, 1), picture(64, 97, 2), picture(33, 200, 3)]
POINTS = {"before the decoder": ("divprune", {}), "with the question": ("cdpruner", {}),
          "two kinds": ("vispruner", {}), "layer 1": ("fastv", {"layer": 1}),
          "layer 2": ("random", {"layer": 2}), "layer 3": ("fastv", {"layer": 3})}
ONE = SamplingParams(temperature=0.0, max_new_tokens=1, ignore_eos=True)


@pytest.fixture(scope="module")
def engine():
    with open_engine() as engine:
        yield engine


@pytest.fixture
def prefills(monkeypatch) -> list[Prefill]:
    """Every prefill of the test, its rows as they were before it ran."""
    seen = []

    class Watched(Prefill):
        def run(self) -> Tensor:
            self.before = replace(self.rows)
            seen.append(self)
            return super().run()

    monkeypatch.setattr(pydstp.runner, "Prefill", Watched)
    return seen


def masked(engine: Engine, rows: Rows, reserve: Tensor, first_layer: int) -> KVCache:
    """All rows to the end; from `first_layer` on nothing sees the reserve but itself."""
    decoder, geometry = engine._runner.model.language_model, engine._cache.geometry
    cache = KVCache(geometry, engine.dtype)
    n = len(rows.x)
    causal = torch.ones(n, n, dtype=torch.bool).tril()
    hidden = torch.zeros(n, dtype=torch.bool)
    hidden[torch.isin(rows.slots, reserve)] = True
    itself = torch.eye(n, dtype=torch.bool)
    slots, x = rows.slots.int(), rows.x
    for layers, mask in ((range(first_layer), causal),
                         (range(first_layer, geometry.num_layers), causal & ~hidden | itself)):
        plan = PrefillPlan(seq_idx=0, seq_idx_rows=torch.zeros(n, dtype=torch.int32),
                           slot_idx=slots, context_slots=slots, mask=mask)
        x = decoder.forward_layers(x, layers=layers, cos_sin=decoder.rotary(rows.positions),
                                   cache=cache, plan=plan, deepstack=rows.deepstack(),
                                   ctx=Context(engine._pool, lambda: None))
    return cache


def rows_of_main_stream(engine: Engine, cache: KVCache) -> Tensor:
    """[num_layers, n, 2, num_kv_heads, head_dim]: the base set of the engine's last request, and
    its text, as `cache` holds them."""
    own = engine._cache
    base = own.visible_slots(0, SELECTED).long()
    return torch.cat([cache.visual[:, 0, base], cache.text[:, 0, :int(own.text_len[0])]], dim=1)


@pytest.mark.parametrize("point", POINTS)
def test_dropped_rows_are_hidden_rows(engine, prefills, point):
    """Keys and values of every layer, so hidden states, positions and DeepStack rows as well."""
    name, options = POINTS[point]
    engine.generate(PICTURES, PROMPT, ONE, pruning=method(name, **options))
    shift, first_layer = engine._cache.shift, engine._cache.first_layer[0]
    reserve = shift.reserve_indices[0, :int(shift.reserve_len[0])]
    assert len(reserve) > 10 and first_layer == options.get("layer", 0)
    truth = masked(engine, prefills[0].before, reserve, first_layer)
    assert_matches(rows_of_main_stream(engine, engine._cache), rows_of_main_stream(engine, truth))


def test_features_of_the_wrong_tokens_would_be_seen(engine, prefills, monkeypatch):
    """DeepStack rows shifted by one: the test above must fail then."""
    def shifted(rows: Rows, dropped: Tensor) -> Rows:
        kept = without(rows, dropped)
        return replace(kept, features=[features.roll(1, 0) for features in kept.features])

    without = Rows.without
    monkeypatch.setattr(Rows, "without", shifted)
    engine.generate(PICTURES, PROMPT, ONE, pruning=method("divprune"))
    shift = engine._cache.shift
    reserve = shift.reserve_indices[0, :int(shift.reserve_len[0])]
    truth = rows_of_main_stream(engine, masked(engine, prefills[0].before, reserve, 0))
    found = rows_of_main_stream(engine, engine._cache)
    assert_matches(found[0], truth[0])  # layer 0 runs before the first features are added
    assert (found[1] - truth[1]).abs().max() > 1e-2


@pytest.mark.parametrize("point", POINTS)
def test_positions_are_those_of_the_whole_prompt(engine, prefills, point):
    name, options = POINTS[point]
    for pruning in (None, method(name, **options)):
        engine.generate(PICTURES, PROMPT, ONE, pruning=pruning)
    whole, pruned = prefills
    place = {int(slot): i for i, slot in enumerate(whole.before.slots)}
    kept = [place[int(slot)] for slot in pruned.rows.slots]
    assert len(kept) < len(place) and kept == sorted(kept)
    assert torch.equal(pruned.rows.positions, whole.before.positions[:, kept])
    assert pruned.seq.next_position == whole.seq.next_position < len(pruned.seq.prompt.input_ids)


def test_keys_of_the_first_layer_are_those_of_an_unpruned_run(engine):
    """They depend on the token and its position alone."""
    cache = engine._cache
    engine.generate(PICTURES, PROMPT, ONE)
    visual, text = cache.visual[0, 0].clone(), cache.text[0, 0].clone()
    engine.generate(PICTURES, PROMPT, ONE, pruning=method("divprune"))
    base, num_text = cache.visible_slots(0, SELECTED).long(), int(cache.text_len[0])
    assert_matches(cache.visual[0, 0, base], visual[base])
    assert_matches(cache.text[0, 0, :num_text], text[:num_text])


def before_every_step(engine: Engine, monkeypatch, act) -> None:
    """Call act(number of the step) before each decode step."""
    decode, steps = engine._runner.decode, []

    def watched(sequences):
        steps.append(None)
        act(len(steps))
        return decode(sequences)

    monkeypatch.setattr(engine._runner, "decode", watched)


@pytest.mark.parametrize("name", ["fastv", "divprune", "visionzip"])
def test_the_order_of_a_list_does_not_matter(engine, name, monkeypatch):
    plain = answer(engine, 12, pruning=method(name))
    generator = torch.Generator().manual_seed(1)

    def shuffle(_: int) -> None:
        for group in (ALL, SELECTED):
            slots = engine._cache.visible_slots(0, group)
            slots.copy_(slots[torch.randperm(len(slots), generator=generator)])

    before_every_step(engine, monkeypatch, shuffle)
    shuffled = answer(engine, 12, pruning=method(name))
    assert shuffled.token_ids == plain.token_ids
    for first, second in zip(plain.logprobs, shuffled.logprobs, strict=True):
        assert first.logprob == pytest.approx(second.logprob, abs=1e-4)


@pytest.mark.parametrize("name", ["fastv", "divprune", "random"])
def test_a_full_swap_is_unpruned_attention_over_the_same_cache(engine, name, monkeypatch):
    """Bit for bit; and it is no unpruned run: the prompt was computed without the reserve."""
    full = dstp(trigger="every", swap="full", expand_steps=100)
    swapped = answer(engine, 12, pruning=method(name), shift=full, reserve="side", log_steps=True)
    assert [step.visible for step in swapped.shift.steps] == [swapped.shift.kept] + 10 * [35]

    def show_all(step: int) -> None:
        if step > 1:
            engine._cache.layer_to_group[0] = ALL

    with monkeypatch.context() as patch:
        before_every_step(engine, patch, show_all)
        unpruned = answer(engine, 12, pruning=method(name), shift=dstp(trigger="never"),
                          reserve="side")
    assert same(swapped, unpruned)
    assert not same(swapped, answer(engine, 12))
    everywhere = answer(engine, 12, pruning=method(name), shift=full, reserve="full")
    assert not same(swapped, everywhere)


@pytest.mark.parametrize("name", ["fastv", "visionzip"])
def test_a_reserve_in_pieces_is_the_reserve(engine, name, monkeypatch):
    """Rows of a later piece see those of the earlier ones."""
    policy = {"shift": dstp(threshold=2.0, expand_steps=2), "pruning": method(name)}
    whole = answer(engine, **policy)
    shift = engine._cache.shift
    slots = shift.reserve_indices[0, :int(shift.reserve_len[0])].long()
    rows = engine._cache.visual[:, 0, slots].clone()
    monkeypatch.setattr("pydstp.reserve.SideRows.chunks.__defaults__", (5,))
    pieces = answer(engine, **policy)
    assert pieces.shift.side_passes == -(-len(slots) // 5) > whole.shift.side_passes == 1
    assert_matches(engine._cache.visual[:, 0, slots], rows)
    assert pieces.token_ids == whole.token_ids


def test_pruning_behind_the_last_layer_changes_nothing_but_the_lists(engine):
    """K = num_layers: logits and tokens are those of no pruning, to the last bit."""
    plain = answer(engine, 12)
    last = answer(engine, 12, pruning=method("fastv", layer=4), shift=dstp(
        trigger="every", monitor_layers="all"))
    assert same(plain, last) and last.shift.kept == 12
    assert last.shift.mean_visible_all_layers == 1.0
    assert engine.generate(IMAGE, PROMPT, ONE).token_ids == plain.token_ids[:1]
