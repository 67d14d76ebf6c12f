"""Where a patch lies in its image: the learned table and the two-axis rope of the vision tower."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from pydstp.models.config import VisionConfig


def merge_block_order(grid: Tensor, merge_size: int) -> Tensor:
    """[height, width, ...] patches of an image -> [height * width, ...] in merge-block order."""
    height, width = grid.shape[:2]
    rows, cols = height // merge_size, width // merge_size
    blocks = grid.reshape(rows, merge_size, cols, merge_size, *grid.shape[2:])
    return blocks.transpose(1, 2).flatten(0, 3)


def interpolated_positions(
    table: Tensor, grids: Sequence[tuple[int, int]], merge_size: int
) -> Tensor:
    """The square position table stretched over each image, corners on corners, bilinear, in fp32.

    table: [side * side, hidden_size]. grids: (height, width) in patches per image.
    -> [num_patches, hidden_size] fp32 in merge-block order.
    """
    side = math.isqrt(len(table))
    square = table.float().view(side, side, -1)
    images = []
    for height, width in grids:
        rows = _interpolation_matrix(height, side, table.device)
        cols = _interpolation_matrix(width, side, table.device)
        stretched = torch.einsum("hr,rcd,wc->hwd", rows, square, cols)
        images.append(merge_block_order(stretched, merge_size))
    return torch.cat(images)


def _interpolation_matrix(length: int, side: int, device: torch.device) -> Tensor:
    """[length, side] fp32: point i samples the coordinate i * (side - 1) / (length - 1)."""
    coordinate = torch.linspace(0, side - 1, length, dtype=torch.float32, device=device)
    return (1 - (coordinate[:, None] - torch.arange(side, device=device)).abs()).clamp_(min=0)


def axial_rotary(grids: Sequence[tuple[int, int]], config: VisionConfig) -> Tensor:
    """Rope of the tower: half of the angles turns with the row, the other half with the column.

    -> [num_patches, head_dim] fp32 on the host in merge-block order, the cosines of head_dim / 2
    angles (row, column), then their sines.
    """
    half = config.head_dim // 2
    steps = torch.arange(0, half, 2, dtype=torch.float32, device="cpu")
    inv_freq = 1.0 / config.rope_theta ** (steps / half)
    images = []
    for height, width in grids:
        row = torch.arange(height, device="cpu").view(-1, 1, 1).expand(-1, width, -1)
        col = torch.arange(width, device="cpu").view(1, -1, 1).expand(height, -1, -1)
        angles = torch.cat((row * inv_freq, col * inv_freq), dim=-1)
        images.append(merge_block_order(angles, config.spatial_merge_size))
    angles = torch.cat(images)
    return torch.cat((angles.cos(), angles.sin()), dim=-1)
