"""Positions in the prompt and the rope angles they give."""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import takewhile

import torch
from torch import Tensor

from pydstp.errors import PromptError
from pydstp.models.config import TextConfig


def rotary_table(positions: Tensor, config: TextConfig) -> Tensor:
    """Cosines and sines of every token, in fp32.

    positions: [num_tokens]; or, where config.mrope_section is set, [3, num_tokens].
    -> [num_tokens, head_dim], the cosines of head_dim / 2 angles, then their sines.
    """
    inv_freq = inverse_frequencies(config.head_dim, config.rope_theta, positions.device)
    angles = positions.unsqueeze(-1).float() * inv_freq
    if positions.ndim == 2:
        angles = interleave_axes(angles, config.mrope_section)
    return torch.cat((angles.cos(), angles.sin()), dim=-1)


@lru_cache
def inverse_frequencies(head_dim: int, rope_theta: float, device: torch.device) -> Tensor:
    """[head_dim / 2] fp32: radians per position; every decode step asks for the same."""
    half = torch.arange(0, head_dim, 2, dtype=torch.float32, device=device)
    return 1.0 / rope_theta ** (half / head_dim)


def interleave_axes(angles: Tensor, mrope_section: tuple[int, int, int]) -> Tensor:
    """Interleaved M-RoPE: frequencies 1, 4, 7 ... turn with the height, 2, 5, 8 ... with the width,
    as many as mrope_section says; the others with the time.

    angles: [3, num_tokens, num_freqs] -> [num_tokens, num_freqs].
    """
    out = angles[0].clone()
    for axis in (1, 2):
        owned = slice(axis, 3 * mrope_section[axis], 3)
        out[:, owned] = angles[axis][:, owned]
    return out


def mrope_positions(
    input_ids: Tensor,
    grids: Sequence[tuple[int, int]],
    image_token_id: int,
    merge_size: int,
    start: int = 0,
) -> tuple[Tensor, int]:
    """Three-axis positions of a prompt (Qwen3-VL, `get_rope_index` of the reference).

    Text advances all axes by one. The tokens of an image share one time; row and column of the
    merged grid are added to height and width; what follows starts max(rows, columns) later.

    input_ids: [num_tokens]. grids: (height, width) in patches of each image, in prompt order.
    start: position of the first token.
    -> positions [3, num_tokens] int64 (time, height, width) on the host, and the position of the
    next token.
    Raises PromptError where image tokens and grids do not agree.
    """
    ids = input_ids.tolist()
    remaining = iter(grids)
    pieces, idx = [], 0
    while idx < len(ids):
        if ids[idx] == image_token_id:
            rows, cols = _next_grid(remaining, len(grids), merge_size)
            _check_span(ids, idx, rows * cols, image_token_id)
            pieces.append(start + _image_block(rows, cols))
            start, idx = start + max(rows, cols), idx + rows * cols
        else:
            end = next((i for i in range(idx, len(ids)) if ids[i] == image_token_id), len(ids))
            pieces.append(torch.arange(start, start + end - idx, device="cpu").expand(3, -1))
            start, idx = start + end - idx, end
    if unused := len(list(remaining)):
        raise PromptError(f"input_ids: expected {len(grids)} images, got {len(grids) - unused}")
    nothing = torch.empty(3, 0, dtype=torch.int64, device="cpu")
    return torch.cat([nothing, *pieces], dim=1), start


def _next_grid(
    remaining: Iterator[tuple[int, int]], num_images: int, merge_size: int
) -> tuple[int, int]:
    """Rows and columns of the next image's merged grid."""
    grid = next(remaining, None)
    if grid is None:
        raise PromptError(f"input_ids: expected {num_images} images, got image tokens of one more")
    return grid[0] // merge_size, grid[1] // merge_size


def _check_span(ids: list[int], idx: int, length: int, image_token_id: int) -> None:
    found = sum(1 for _ in takewhile(image_token_id.__eq__, ids[idx : idx + length]))
    if found != length:
        raise PromptError(f"input_ids: expected {length} image tokens at {idx}, got {found}")


def _image_block(rows: int, cols: int) -> Tensor:
    """[3, rows * cols]: time 0, row, column, row-major."""
    row = torch.arange(rows, device="cpu").repeat_interleave(cols)
    return torch.stack((torch.zeros_like(row), row, torch.arange(cols, device="cpu").repeat(rows)))
