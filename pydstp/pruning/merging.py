"""Carrying out what a `MergePlan` says."""

from __future__ import annotations

import torch
from torch import Tensor

from pydstp.pruning.base import MergePlan

_FEW = 8  # times fewer weights than places: only they are looked at


def weighted_sums(weights: Tensor, rows: Tensor) -> Tensor:
    """weights @ rows, of float32 [num_merged, n] and [n, hidden_size]; most weights may be 0."""
    if not weights.is_cpu or _FEW * int(weights.count_nonzero()) > weights.numel():
        return weights @ rows
    return torch.sparse.mm(weights.to_sparse(), rows)


def merged_rows(rows: Tensor, merge: MergePlan) -> Tensor:
    """rows [num_visual, hidden_size] -> [num_merged, hidden_size], in fp32 and back."""
    wide = rows.float()
    if merge.reduce == "max":
        members = (merge.weights != 0).index_put(
            (torch.arange(len(merge.targets), device="cpu"), merge.targets),
            merge.weights.new_tensor(True, dtype=torch.bool))
        return torch.stack([wide[some].amax(dim=0) for some in members]).to(rows.dtype)
    return (wide[merge.targets] + weighted_sums(merge.weights, wide)).to(rows.dtype)
