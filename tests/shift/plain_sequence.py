"""Who sees whom: the rows of one sequence and the visibility matrices of its layers.

Rows are the prompt's (text and original visual tokens), then pseudo tokens, then generated tokens.
Slots are the original visual tokens 0 .. N-1, the pseudo tokens N .. N+M-1 and, for swap "merge",
the slot N+M.

Below the pruning point every prompt row sees every earlier one, and a generated row all originals.
From it on, reserve "side": row i sees j if j is not after i, and j is not in the reserve or i is;
reserve "full": prompt rows go on as before, and pseudo tokens are seen by pseudo tokens only. In
both, a generated row sees all text before it, itself, and the slots of its view. A pseudo token
stands where its target stands; "not after" includes the same place.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tests.shift.plain_policy import View
from tests.shift.plain_prompt import Prompt
from tests.shift.plain_pruning import PlainPruning

RowViews = Sequence[View]  # one per layer; layers below the pruning point take no notice


class PlainSequence:
    """The rows of a prompt under a pruning decision; `reserve` is "side" or "full"."""

    def __init__(self, prompt: Prompt, pruning: PlainPruning, reserve: str = "side") -> None:
        assert reserve in ("side", "full") and not set(pruning.kept) & set(pruning.targets)
        self.prompt, self.pruning, self.reserve_mode = prompt, pruning, reserve
        self.num_prompt, self.num_originals = len(prompt.ids), len(prompt.visual_rows)
        self.num_pseudo = len(pruning.targets)
        self.num_fixed = self.num_prompt + self.num_pseudo
        originals, pseudo = range(self.num_originals), range(self.num_pseudo)
        self.pseudo = [self.num_originals + p for p in pseudo]
        self.base = sorted([*pruning.kept, *self.pseudo])
        self.reserve = [slot for slot in originals if slot not in pruning.kept]
        self.merge_slot = self.num_originals + self.num_pseudo
        self.row_of = {slot: prompt.visual_rows[slot] for slot in originals}
        self.row_of |= {slot: self.num_prompt + p for p, slot in enumerate(self.pseudo)}
        self.text_rows = [i for i in range(self.num_prompt) if i not in prompt.visual_rows]
        places = [prompt.visual_rows[target] for target in pruning.targets]
        self.order = torch.tensor([*range(self.num_prompt), *places])

    def rows(self, slots: Sequence[int]) -> list[int]:
        return [self.row_of[slot] for slot in slots]

    def positions(self, num_generated: int) -> Tensor:
        """[3, n]"""
        first = self.prompt.next_position
        generated = torch.arange(first, first + num_generated).expand(3, -1)
        return torch.cat([self.prompt.positions[:, self.order], generated], dim=1)

    def averages(self, generated: Sequence[RowViews]) -> list[tuple[int, ...]]:
        """The sets of slots that merge slots hold the mean of, one further column for each."""
        return sorted({view.dropped for views in generated for view in views if view.dropped})

    def visible(self, layer: int, generated: Sequence[RowViews]) -> Tensor:
        """bool [n, n + len(averages)]"""
        columns = self.averages(generated)
        n = self.num_fixed + len(generated)
        seen = torch.zeros(n, n + len(columns), dtype=torch.bool)
        pruned = layer >= self.pruning.layer
        seen[: self.num_fixed, : self.num_fixed] = self._among_prompt_rows(pruned)
        for i, views in enumerate(generated):
            row, view = self.num_fixed + i, views[layer]
            seen[row, self.text_rows] = True
            seen[row, self.num_fixed : row + 1] = True
            slots = view.slots if pruned else range(self.num_originals)
            seen[row, self.rows([slot for slot in slots if slot != self.merge_slot])] = True
            if pruned and self.merge_slot in slots:
                seen[row, n + columns.index(view.dropped)] = True
        return seen

    def _among_prompt_rows(self, pruned: bool) -> Tensor:
        not_after = self.order.unsqueeze(0) <= self.order.unsqueeze(1)  # [i, j]
        is_pseudo = torch.arange(self.num_fixed) >= self.num_prompt
        in_reserve = torch.zeros(self.num_fixed, dtype=torch.bool)
        in_reserve[self.rows(self.reserve)] = True
        if not pruned:  # pseudo rows do not exist yet: each sees itself, so that no row is empty
            itself = torch.eye(self.num_fixed, dtype=torch.bool)
            return itself | not_after & ~is_pseudo & ~is_pseudo.unsqueeze(1)
        hidden = in_reserve if self.reserve_mode == "side" else is_pseudo
        return not_after & (~hidden | hidden.unsqueeze(1))

    def deepstack(self, num_generated: int) -> list[Tensor]:
        """Every map over all rows; pseudo tokens get those that are added after they exist."""
        maps = []
        for j, values in enumerate(self.prompt.deepstack):
            rows = torch.zeros(self.num_fixed + num_generated, values.shape[1])
            rows[self.prompt.visual_rows] = values
            if j >= self.pruning.layer:
                rows[self.num_prompt : self.num_fixed] = self.merged(values)
            maps.append(rows)
        return maps

    def merged(self, x: Tensor) -> Tensor:
        """[N, hidden] of originals -> [M, hidden] of pseudo tokens."""
        if not self.num_pseudo:
            return x[:0]
        return x[list(self.pruning.targets)] + self.pruning.weights @ x
