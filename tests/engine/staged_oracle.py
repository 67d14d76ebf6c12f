"""A conversation pruned before several layers, in transformers' own layers, by masks.

    told = Staged(model, inputs, stages=(1, 2), method=method)   # decides as it runs
    told.greedy(12)                                              # the tokens that follow

No row ever leaves: a mask says, layer by layer, what a row sees. Rows of the reserve see everything
before them and nothing else sees them, but generated rows to which they are `shown`. Merged tokens
are further rows. Every token runs everything again.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tests.engine.layer_oracle import Request
from tests.pruning.plain_layer_methods import Answer
from tests.pruning.plain_staged_methods import StageFacts

NEVER = 1 << 20
Method = Callable[[StageFacts], Answer]


class Staged:
    """One conversation of a tiny Qwen3-VL or InternVL.

    turns: (first row, end) of each prompt; rows between two of them were generated.
    quotas: (grids, stage) -> spans and quotas over all tokens of new pictures.
    vision: stage and origins -> attention in the tower. shrinks: the stage from whose layer on
    rows behind a prompt see what its last stage left.
    """

    def __init__(self, model: PreTrainedModel, inputs: dict[str, Any], stages: Sequence[int],
                 method: Method, ratio: float, *, vision: Tensor | None = None,
                 turns: list[tuple[int, int]] | None = None, shares: Sequence[float] | None = None,
                 shrinks: int | None = None, by_picture: bool = False) -> None:
        self.base, self.stages, self.method = Request(model, inputs, 0), list(stages), method
        self.ratio, self.shares, self.by_picture = ratio, shares, by_picture
        self.model, self.text, self.shrinks = model, self.base.text, shrinks
        n = len(self.base.prompt.x)
        self.vision = torch.zeros(len(self.base.visual)) if vision is None else vision
        self.turns = turns or [(0, n)]
        self.order = list(range(n))
        self.kind = ["visual" if row in set(self.base.visual.tolist()) else "text"
                     for row in range(n)]
        self.born, self.left, self.later = [-1] * n, [NEVER] * n, [NEVER] * n
        self.merged: list[tuple[int, list[int]]] = []  # (target row, rows) of pseudo tokens
        self.facts: list[StageFacts] = []
        self.num_base = n
        for turn, (_, end) in enumerate(self.turns):
            self._decide(turn, end)

    def turn_of(self, row: int) -> tuple[int, bool]:
        """(turn, whether the row is one of its prompt)."""
        if row >= self.num_base:
            pseudo = row - self.num_base
            if pseudo < len(self.merged):
                return self.turn_of(self.merged[pseudo][0])
            return len(self.turns) - 1, False
        for turn, (start, end) in enumerate(self.turns):
            if row < start:
                return turn - 1, False
            if row < end:
                return turn, True
        return len(self.turns) - 1, False

    def _mask(self, rows: list[int], layer: int, shown: dict[int, set[int]]) -> Tensor:
        """[1, 1, n, n]: 0 where a row sees another, else -inf."""
        def of(values: list[Any]) -> Tensor:
            return torch.tensor([values[row] for row in rows])
        order, born = of(self.order), of(self.born)
        is_text = of([kind == "text" for kind in self.kind])
        is_original = of([kind == "visual" for kind in self.kind])
        here = (born <= layer) & (of(self.left) > layer)
        behind = (born <= layer) & (of(self.later) > layer)
        turns = [self.turn_of(row) for row in rows]
        turn = torch.tensor([number for number, _ in turns])
        same = torch.tensor([own for _, own in turns])[:, None] & (turn[:, None] == turn)
        is_reserve = ~is_text & (of(self.left) <= layer)
        seen = torch.where(is_reserve[:, None], here | is_original, torch.where(same, here, behind))
        seen = (seen | is_text) & (order <= order[:, None])
        for row, more in shown.items():
            if row in rows:
                seen[rows.index(row), [rows.index(other) for other in more]] = True
        seen.fill_diagonal_(True)
        return torch.zeros(seen.shape).masked_fill(~seen, -torch.inf)[None, None]

    def _layer(self, i: int, x: Tensor, positions: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """What leaves a layer; its attention, mean over heads [n, n]."""
        module, seen = sys.modules[type(self.text).__module__], {}
        attend = module.eager_attention_forward

        def record(*args: Any, **kwargs: Any) -> Any:
            out, weights = attend(*args, **kwargs)
            seen["weights"] = weights[0].double().mean(dim=0)
            return out, weights
        tables = self.text.rotary_emb(x[None], positions.unsqueeze(-2))
        with mock.patch.object(module, "eager_attention_forward", record):
            out = self.text.layers[i](x[None], attention_mask=mask, position_embeddings=tables)
        return out[0], seen["weights"]

    def _decide(self, turn: int, end: int) -> None:
        start = self.turns[turn][0]
        new = [row for row in self.base.visual.tolist() if start <= row < end]
        self._forward(end, [], {}, deciding=(turn, new) if new else None)
        mine = [r for r in range(len(self.order)) if self.kind[r] != "text"
                and self.turn_of(r)[0] == turn]
        for row in mine:
            behind = None if self.shrinks is None else self.stages[self.shrinks]
            gone = behind is not None and behind < self.left[row] < NEVER
            self.later[row] = behind if gone else self.left[row]

    def _forward(self, end: int, ids: list[int], shown: dict[int, set[int]],
                 deciding: tuple[int, list[int]] | None = None) -> Tensor:
        """[n, hidden] behind the last layer: the first `end` rows, merged ones, then `ids`."""
        prompt = self.base.prompt
        state = State(self, end, ids)
        weights = None
        for layer in range(len(self.text.layers)):
            if deciding is not None and layer in self.stages:
                self._stage(state, layer, deciding, weights)
            for p, (_, part) in enumerate(self.merged):
                if self.born[self.num_base + p] == layer:
                    index = state.rows.index(self.num_base + p)
                    members = [state.rows.index(row) for row in part]
                    state.x[index] = state.x[members].mean(dim=0)
            mask = self._mask(state.rows, layer, shown)
            state.x, weights = self._layer(layer, state.x, state.positions, mask)
            if layer < len(prompt.maps):
                state.x = state.x + torch.stack([self._map(layer, row) for row in state.rows])
        return state.x

    def _map(self, layer: int, row: int) -> Tensor:
        """The DeepStack features that a row gets behind a layer."""
        values = self.base.prompt.maps[layer]
        if row < self.num_base:
            return values[row]
        if row - self.num_base < len(self.merged):
            part = self.merged[row - self.num_base][1]
            return torch.stack([self._map(layer, member) for member in part]).mean(dim=0)
        return torch.zeros_like(values[0])

    def _stage(self, state: State, layer: int, deciding: tuple[int, list[int]],
               weights: Tensor | None) -> None:
        turn, new = deciding
        facts, rows = self._facts(state, layer, turn, new, weights)
        self.facts.append(facts)
        answer = self.method(facts)
        targets = {target for target, _ in answer.merged}
        for i, row in enumerate(rows):
            if i not in set(answer.kept) - targets:
                self.left[row] = layer
        for target, part in answer.merged:
            self.merged.append((rows[target], [rows[i] for i in part]))
            self.order.append(self.order[rows[target]])
            self.kind.append("pseudo")
            self.born.append(layer)
            self.left.append(NEVER)
            self.later.append(NEVER)
            state.add(self.num_base + len(self.merged) - 1, rows[target])

    def _facts(self, state: State, layer: int, turn: int, new: list[int],
               weights: Tensor | None) -> tuple[StageFacts, list[int]]:
        """And the rows that they are about."""
        stage = self.stages.index(layer)
        rows = sorted((row for row in state.rows if self.kind[row] != "text"
                       and self.turn_of(row)[0] == turn and self.left[row] == NEVER),
                      key=lambda row: self.order[row])
        at = [state.rows.index(row) for row in rows]
        last = state.rows.index(self.turns[turn][1] - 1)
        _, upcoming = self._layer(layer, state.x, state.positions,
                                  self._mask(state.rows, layer, {}))
        text = [state.rows.index(row) for row in range(new[-1] + 1, self.turns[turn][1])]
        origins = [new.index(self.order[row]) for row in rows]
        spans, quotas = self._quotas(stage, origins, turn)
        seen = [] if weights is None else weights[text][:, at].tolist()
        before = sum(row < new[0] for row in self.base.visual.tolist())
        prompt = self.base.prompt.x.double()
        return StageFacts(
            stage, spans, quotas, self._grids(turn), origins, state.x[at].double().tolist(),
            upcoming[last, at].tolist(), seen,
            [float(self.vision[before + origin]) for origin in origins],
            prompt[new[-1] + 1:self.turns[turn][1]].tolist(), prompt[new].tolist()), rows

    def _grids(self, turn: int) -> list[tuple[int, int]]:
        """Those of the pictures of a turn."""
        start, end, first, found = *self.turns[turn], 0, []
        visual = self.base.visual.tolist()
        for rows, cols in self.base.grids:
            if start <= visual[first] < end:
                found.append((rows, cols))
            first += rows * cols
        return found

    def _quotas(self, stage: int, origins: list[int],
                turn: int) -> tuple[list[tuple[int, int]], list[int]]:
        lengths = [rows * cols for rows, cols in self._grids(turn)]
        if not self.by_picture:
            lengths = [sum(lengths)]
        spans, quotas, first = [], [], 0
        for length in lengths:
            final = min(max(math.floor(self.ratio * length + 0.5), 1), length)
            share = (final / length) ** ((stage + 1) / len(self.stages))
            if self.shares and stage < len(self.shares):
                share = self.shares[stage]
            is_last = stage == len(self.stages) - 1
            quota = final if is_last else max(math.floor(share * length + 0.5), final)
            there = [i for i, origin in enumerate(origins) if first <= origin < first + length]
            spans.append((there[0] if there else 0, len(there)))
            quotas.append(min(quota, len(there)))
            first += length
        return spans, quotas

    def greedy(self, num_tokens: int, shown: Sequence[set[int]] = ()) -> list[int]:
        """Tokens that follow; shown[i]: rows of the reserve that generated row i sees."""
        ids: list[int] = []
        first = self.num_base + len(self.merged)
        while len(ids) < num_tokens:
            for _ in ids[len(self.order) - first:]:
                self.order.append(len(self.order) + NEVER)
                self.kind.append("text")
                self.born.append(-1)
                self.left.append(NEVER)
                self.later.append(NEVER)
            sets = {first + i: rows for i, rows in enumerate(shown)}
            x = self._forward(self.num_base, ids, sets)
            row = -1 if ids else self.num_base - 1
            ids.append(int(self.model.lm_head(self.text.norm(x[row][None])).argmax()))
        return ids

    def kept(self) -> list[int]:
        """Original visual tokens, by number, that are left in the end."""
        return [i for i, row in enumerate(self.base.visual.tolist()) if self.left[row] == NEVER]


class State:
    """Rows on their way: prompt, merged tokens, generated ones."""

    def __init__(self, told: Staged, end: int, ids: list[int]) -> None:
        prompt = told.base.prompt
        count = len(told.merged)
        first = told.num_base + count
        self.rows = [*range(end), *range(told.num_base, first),
                     *range(first, first + len(ids))]
        embedded = told.model.get_input_embeddings()(torch.tensor(ids, dtype=torch.int64))
        self.x = torch.cat([prompt.x[:end], torch.zeros(count, prompt.x.shape[1]), embedded])
        targets = [told.merged[p][0] for p in range(count)]
        targets = [t if t < told.num_base else told.order[t] for t in targets]
        next_position = int(prompt.positions.max()) + 1
        new = torch.arange(next_position, next_position + len(ids))
        new = new.expand(*prompt.positions.shape[:-1], len(ids))
        self.positions = torch.cat([prompt.positions[..., :end], prompt.positions[..., targets],
                                    new], dim=-1)

    def add(self, row: int, target: int) -> None:
        """A merged token in the place of `target`."""
        place = self.rows.index(target)
        self.rows.append(row)
        self.x = torch.cat([self.x, torch.zeros_like(self.x[:1])])
        self.positions = torch.cat([self.positions, self.positions[..., place:place + 1]], dim=-1)
