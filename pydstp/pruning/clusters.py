"""Clusters around density peaks."""

from __future__ import annotations

import torch
from torch import Tensor

from pydstp.pruning.base import top_indices


def density_peaks(points: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Group points around those that are dense and far from anything denser.

    Distances are Euclidean, divided by sqrt(d). The density of a point is exp(-mean of the squared
    distances to its `count` nearest points, itself among them). A centre scores its density times
    the distance to the nearest denser point; the densest takes the largest distance of all. Of
    equal densities the first point counts as denser, of equal scores and distances the first wins.

    Args:
        points: [n, d] float64; rows that are not finite count as zeros.
        count: 1 <= count <= n.

    Returns:
        centres [count] int64, sorted; groups [n] int64, which of them each point belongs to. A
        centre belongs to itself.
    """
    finite = points.isfinite().all(dim=1, keepdim=True)
    points = torch.where(finite, points, 0.0)
    distance = _distances(points) / points.shape[1] ** 0.5
    nearest = distance.sort(dim=1).values[:, :count]
    density = (-nearest.square().mean(dim=1)).exp()
    place = torch.empty_like(density, dtype=torch.int64)
    place[density.sort(descending=True, stable=True).indices] = torch.arange(
        len(points), device=points.device)
    is_denser = place[None, :] < place[:, None]
    apart = distance.masked_fill(~is_denser, torch.inf).amin(dim=1)
    apart = torch.where(place == 0, distance.max(), apart)
    centres = top_indices(apart * density, count)
    groups = distance[:, centres].argmin(dim=1)
    groups[centres] = torch.arange(count, device=points.device)
    return centres, groups


def _distances(points: Tensor) -> Tensor:
    """[n, n] float64, from products; 0 where nothing but their rounding is left."""
    squares = points.square().sum(dim=1)
    both = squares[:, None] + squares
    apart = both - 2 * (points @ points.T)
    return torch.where(apart > 1e-12 * both, apart, 0.0).sqrt()
