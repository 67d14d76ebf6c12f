"""The ops that detect and select against the plain policy: 1,000 random lives of a sequence."""

from __future__ import annotations

import random
from dataclasses import asdict

import pytest
import torch

from pydstp import DSTP, ops
from pydstp.kv_cache import BASE, PSEUDO, SELECTED, CacheGeometry, KVCache
from tests.shift.plain_policy import PlainDSTP, PlainPolicy

NUM_CASES, PER_TEST, NUM_STEPS = 1000, 50, 12


def random_options(rng: random.Random) -> PlainDSTP:
    swap = rng.choice(("cpts", "cpts", "hard", "merge", "full", "add"))
    return PlainDSTP(
        threshold=rng.uniform(0.5, 1.0), expand_steps=rng.randint(1, 4), swap=swap,
        applies=rng.choice(("next", "redo", "early")), seed=rng.getrandbits(63),
        retrigger=rng.choice(("off", "extend", "reselect")),
        trigger=rng.choice(("risd", "risd", "avg", "random", "every", "never")),
        trigger_rate=rng.random(), scores=rng.choice(("separate", "joint")),
        max_returned=rng.randint(1, 6) if swap == "add" else None)


class Life:
    """One sequence, told to both sides."""

    def __init__(self, rng: random.Random, pool: ops.ThreadPool) -> None:
        self.rng, self.pool, self.options = rng, pool, random_options(rng)
        self.total = rng.randint(1, 60)
        num_pseudo = rng.choice((0, 0, rng.randint(0, 5)))
        capacity = self.total + num_pseudo + 1 + rng.randint(0, 9)
        self.cache = KVCache(CacheGeometry(1, 1, 4, 2, capacity, 4, 1), torch.float32)
        self.s, self.shift = self.cache.acquire(), self.cache.shift
        self.kept = sorted(rng.sample(range(self.total), rng.randint(1, self.total)))
        self.pseudo = list(range(self.total, self.total + num_pseudo))
        mask = self.shift.base_mask[self.s]
        mask[self.kept], mask[self.pseudo] = BASE, PSEUDO
        self.cache.visual_len[self.s] = self.total + num_pseudo
        self.cache.show_base(self.s)
        self.base = self.kept + self.pseudo
        self.reserve = sorted(set(range(self.total)) - set(self.kept))
        self.anchor = self.vector()
        self.plain = PlainPolicy(self.options, self.base, self.reserve, self.anchor,
                                 pseudo=self.pseudo, merge_slot=capacity - 1,
                                 reserve_ready=rng.random() < 0.5)
        self._set_up(capacity - 1)

    def vector(self) -> dict[int, float]:
        """Positive numbers over S0 that are float32 already, mostly not far from the anchor's."""
        near = getattr(self, "anchor", None)
        values = torch.tensor([
            self.rng.random() ** 2 if near is None or self.rng.random() < 0.3 else near[slot]
            for slot in self.base])
        return dict(zip(self.base, (values / values.sum()).tolist(), strict=True))

    def _set_up(self, merge_slot: int) -> None:
        options = {name: value for name, value in asdict(self.options).items()
                   if name != "monitor_layers"}
        numbers, reals = DSTP(**options).policy(len(self.base), merge_slot)
        shift, s = self.shift, self.s
        shift.policy[s, :len(numbers)] = torch.tensor(numbers, dtype=torch.int32)
        shift.policy_float[s] = torch.tensor(reals)
        shift.state[s] = 0
        shift.state[s, ops.StateWord.RESERVE_READY] = int(
            self.plain.reserve_ready or not self.reserve)
        shift.similarity_sum[s] = 0
        self._write(shift.anchor, self.anchor)

    def _write(self, rows: torch.Tensor, values: dict[int, float]) -> None:
        rows[self.s] = 0
        for slot, value in values.items():
            rows[self.s, slot] = value

    def phase(self, phase: ops.Phase, vector: dict[int, float], scores: dict[int, float]) -> str:
        """One phase on both sides; compares what came of it."""
        seq_idx = torch.tensor([-1, self.s], dtype=torch.int32)
        ops.shift_detect(self.shift, seq_idx, phase, pool=self.pool)
        ops.shift_select(self.shift, seq_idx, self.cache.visible_indices, self.cache.visible_len,
                         SELECTED, pool=self.pool)
        state = self.shift.state[self.s]
        outcome = ops.Outcome(int(state[ops.StateWord.OUTCOME])).name.lower()
        if phase is ops.Phase.REDONE:
            self.plain.redone()
        else:
            run = self.plain.middle if phase is ops.Phase.MID else self.plain.end
            assert outcome == run(vector, scores)
        if phase is ops.Phase.END:
            assert float(self.shift.similarity[self.s]) == pytest.approx(self.plain.similarity,
                                                                        abs=1e-6)
        assert int(state[ops.StateWord.TRIGGERS]) == self.plain.triggers
        assert bool(state[ops.StateWord.MODE]) == self.plain.expanded
        shown = self.cache.visible_slots(self.s, SELECTED).tolist()
        assert shown == list(self.plain.view.slots)
        return outcome

    def step(self) -> None:
        """A decode step with attention drawn so that no decision is a close call."""
        vector = self.vector()
        scored = sorted({*self.base, *self.reserve}) if self.options.scores == "joint" else (
            self.reserve)
        scores = dict(zip(scored, torch.rand(len(scored), generator=torch.Generator().manual_seed(
            self.rng.getrandbits(40))).tolist(), strict=True))
        self._write(self.shift.probs, vector)
        self._write(self.shift.scores, scores)
        for phase in (ops.Phase.MID, ops.Phase.END):
            outcome = self.phase(phase, vector, scores)
            if outcome == "pending":  # the reserve comes, and the phase is asked again
                self.plain.reserve_ready = True
                self.shift.state[self.s, ops.StateWord.RESERVE_READY] = 1
                outcome = self.phase(phase, vector, scores)
                assert outcome != "pending"
            if outcome == "redo":
                self.phase(ops.Phase.REDONE, vector, scores)


@pytest.mark.parametrize("first", range(0, NUM_CASES, PER_TEST))
def test_random_lives(pool, first):
    for seed in range(first, first + PER_TEST):
        life = Life(random.Random(seed), pool)
        for _ in range(NUM_STEPS):
            try:
                life.step()
            except AssertionError as error:
                is_close = min(life.plain.margin, life.plain.selection_gap) < 1e-7
                if not is_close:
                    raise AssertionError(f"case {seed}, {life.options}") from error
                break
