"""The reserve: pruned tokens whose keys and values may be computed late.

A pruned token leaves the main stream at the pruning point. What it needs to go on alone is kept
here: its hidden state there, its position, and its DeepStack features. It sees what came before it,
kept and pruned, and is seen by no token of the main stream, so it can run at any later time with
the same result.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

CHUNK_ROWS = 256  # rows of one side pass


@dataclass(frozen=True)
class SideRows:
    """Some pruned tokens of one sequence, in prompt order, each at the layer it did not enter.

    Attributes:
        x: [num_rows, hidden_size]; like deepstack on the device, the others on the host.
        first_layers: [num_rows] int64: that layer.
        positions: [num_rows], or of M-RoPE [3, num_rows] (time, height, width).
        slots: [num_rows] int64 visual slots.
        deepstack: one [num_rows, hidden_size] per DeepStack layer of the model.
    """

    x: Tensor
    positions: Tensor
    slots: Tensor
    deepstack: list[Tensor]
    first_layers: Tensor

    def __len__(self) -> int:
        return len(self.slots)

    def select(self, rows: Tensor) -> SideRows:
        """The given rows (indices or a mask)."""
        return SideRows(self.x[rows], self.positions[..., rows], self.slots[rows],
                        [features[rows] for features in self.deepstack], self.first_layers[rows])

    def below(self, slot: int) -> SideRows | None:
        """The rows whose slots lie below `slot`, None if there are none."""
        inside = self.slots < slot
        if inside.all():
            return self
        return self.select(inside) if inside.any() else None

    def chunks(self, size: int = CHUNK_ROWS) -> list[SideRows]:
        """The same rows in runs of at most `size`."""
        rows = torch.arange(len(self), device="cpu")
        return [self.select(part) for part in rows.split(size)] if len(self) else []


def joined(parts: list[SideRows], prompt_order: Tensor) -> SideRows:
    """All rows in prompt order; prompt_order [num_slots] is that of every slot."""
    rows = SideRows(
        torch.cat([part.x for part in parts]), torch.cat([part.positions for part in parts], -1),
        torch.cat([part.slots for part in parts]),
        [torch.cat(features) for features in zip(*(part.deepstack for part in parts),
                                                 strict=True)],
        torch.cat([part.first_layers for part in parts]))
    return rows.select(prompt_order[rows.slots].argsort())


def visible_lengths(row_order: Tensor, context_order: Tensor) -> Tensor:
    """[num_rows] int32: how much of a context in prompt order each row may look at; order decides,
    ties included."""
    return torch.searchsorted(context_order, row_order, right=True, out_int32=True)
