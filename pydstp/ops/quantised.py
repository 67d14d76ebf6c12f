"""Matrices in 8 bits, and products with them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pydstp import _C
from pydstp.errors import OptionError, show
from pydstp.ops.checks import address, check_rank, dtype_code, op
from pydstp.ops.memory import empty_in_huge_pages
from pydstp.ops.recording import new_result
from pydstp.ops.runtime import ThreadPool, call

# kGroupColumns, kTileRows and kStepColumns of csrc/kernels/quantised.h
GROUP_COLUMNS, TILE_ROWS, STEP_COLUMNS = 128, 16, 4


@dataclass(frozen=True, eq=False)
class QuantisedMatrix:
    """A matrix of 8-bit codes with one scale per row and 128 columns, or several of one shape.

    A number is (code - 128) * scale; codes lie in [1, 255], so that this is symmetric. Tiles of 16
    rows and groups of 128 columns are filled up, the columns with code 128. A scale is the largest
    magnitude of its group / 127, rounded to bfloat16; the codes belong to the rounded scale, so the
    rounding costs no accuracy, and scales are 1.6 % of the bytes instead of the 3 % of float32.

    Attributes:
        codes: [..., num_tiles, num_groups, 32, 16, 4] uint8: 4 columns of 16 rows are neighbours.
        scales: [..., num_tiles, num_groups, 16] bfloat16.
        out_features, in_features: of the matrix itself.
    """

    codes: Tensor
    scales: Tensor
    out_features: int
    in_features: int

    @classmethod
    def allocate(cls, *shape: int) -> QuantisedMatrix:
        """Room on the CPU for a matrix [out_features, in_features], or for [num_experts, ...]."""
        *stack, out_features, in_features = shape
        blocks = (*stack, -(-out_features // TILE_ROWS), -(-in_features // GROUP_COLUMNS))
        steps = GROUP_COLUMNS // STEP_COLUMNS
        codes = empty_in_huge_pages(*blocks, steps, TILE_ROWS, STEP_COLUMNS, dtype=torch.uint8)
        return cls(codes, torch.empty(*blocks, TILE_ROWS, dtype=torch.bfloat16, device="cpu"),
                   out_features, in_features)

    def to(self, device: torch.device) -> QuantisedMatrix:
        """The same matrix where it is asked for; itself if it lies there."""
        return QuantisedMatrix(self.codes.to(device), self.scales.to(device), self.out_features,
                               self.in_features)

    @staticmethod
    def bytes_of(*shape: int) -> int:
        """What `allocate` takes up for this shape."""
        *stack, out_features, in_features = shape
        blocks = -(-out_features // TILE_ROWS) * -(-in_features // GROUP_COLUMNS)
        return math.prod(stack) * blocks * TILE_ROWS * (GROUP_COLUMNS + 2)

    @property
    def nbytes(self) -> int:
        """Bytes of both tensors."""
        return self.codes.nbytes + self.scales.nbytes

    def __getitem__(self, index: int) -> QuantisedMatrix:
        """One of several matrices; its memory is shared."""
        return QuantisedMatrix(self.codes[index], self.scales[index], self.out_features,
                               self.in_features)

    def rows(self, indices: Tensor) -> Tensor:
        """Some rows; in plain PyTorch, for the few that an embedding looks up.

        indices: [num_rows] integers in [0, out_features) -> [num_rows, in_features] float32.
        """
        tile, row = indices // TILE_ROWS, indices % TILE_ROWS
        codes = self.codes[tile, :, :, row].float().flatten(2) - 128.0
        wide = codes * self.scales[tile, :, row].float().unsqueeze(2)
        return wide.flatten(1)[:, : self.in_features]

    def addresses(self, name: str, *stack: int) -> tuple[int, int, int, int]:
        """What the native side takes; stack: (num_experts,) for several matrices, else empty.

        Raises:
            OptionError: a tensor of another dtype or shape than `allocate` gives.
        """
        blocks = (*stack, -(-self.out_features // TILE_ROWS),
                  -(-self.in_features // GROUP_COLUMNS))
        layout = (*blocks, GROUP_COLUMNS // STEP_COLUMNS, TILE_ROWS, STEP_COLUMNS)
        return (address(self.codes, f"{name}.codes", torch.uint8, layout),
                address(self.scales, f"{name}.scales", torch.bfloat16, (*blocks, TILE_ROWS)),
                self.out_features, self.in_features)


@op
def quantise_rows(x: Tensor, matrix: QuantisedMatrix, first_row: int = 0, *,
                  pool: ThreadPool) -> None:
    """Set some rows of a matrix.

    Numbers of a group that are all below 1e-30 become zero.

    Args:
        x: [num_rows, in_features], finite.
        matrix: one matrix; rows [first_row, first_row + num_rows) are written.
    """
    code, dtype = dtype_code(x, "x"), x.dtype
    check_rank(x, "x", ("num_rows", "in_features"))
    places = _addresses(matrix, "matrix")
    num_rows = x.shape[0]
    _check_range(matrix, first_row, num_rows)
    call(_C.quantise_rows, pool, address(x, "x", dtype, (num_rows, matrix.in_features)), *places,
         first_row, num_rows, code)


@op
def dequantise_rows(matrix: QuantisedMatrix, first_row: int, out: Tensor, *,
                    pool: ThreadPool) -> Tensor:
    """Some rows of a matrix as numbers, rounded once to the dtype of `out`.

    Args:
        out: [num_rows, in_features]; takes rows [first_row, first_row + num_rows).

    Returns:
        out.
    """
    code, dtype = dtype_code(out, "out"), out.dtype
    check_rank(out, "out", ("num_rows", "in_features"))
    places = _addresses(matrix, "matrix")
    num_rows = out.shape[0]
    _check_range(matrix, first_row, num_rows)
    call(_C.dequantise_rows, pool, *places,
         address(out, "out", dtype, (num_rows, matrix.in_features)), first_row, num_rows, code)
    return out


@op
def quantised_linear(x: Tensor, weight: QuantisedMatrix, *, pool: ThreadPool,
                     out: Tensor | None = None) -> Tensor:
    """x @ weight.T, with x quantised on the way: the product of a decode step, and of a prompt.

    x gets 8 bits per number and one fp32 scale per token and 128 columns. The products of a group
    are summed exactly, as integers, and the groups in fp32, in order, so the result has the same
    bits on every instruction set. Up to eight tokens the codes are read once, at memory speed; more
    tokens are multiplied in blocks. A token's result does not depend on the others or on how many
    they are. A token that holds NaN or an infinity gets NaN everywhere.

    Args:
        x: [num_tokens, in_features].
        weight: of shape [out_features, in_features].
        out: [num_tokens, out_features]; overlaps no other argument.

    Returns:
        [num_tokens, out_features].
    """
    code, dtype = dtype_code(x, "x"), x.dtype
    check_rank(x, "x", ("num_tokens", "in_features"))
    places = _addresses(weight, "weight")
    num_tokens, groups = x.shape[0], -(-weight.in_features // GROUP_COLUMNS)
    x_address = address(x, "x", dtype, (num_tokens, weight.in_features))
    if out is None:
        out = new_result(x, (num_tokens, weight.out_features))
    size = num_tokens * groups
    workspace = x.new_empty(size * (GROUP_COLUMNS + 8), dtype=torch.uint8)
    codes = address(workspace, "workspace", torch.uint8, tuple(workspace.shape))
    scales = codes + size * GROUP_COLUMNS  # behind the codes, and the offsets behind them
    call(_C.quantised_linear, pool, x_address, *places,
         address(out, "out", dtype, (num_tokens, weight.out_features)), codes, scales,
         scales + 4 * size, num_tokens, code)
    return out


def _addresses(matrix: QuantisedMatrix, name: str) -> tuple[int, int, int, int]:
    if not isinstance(matrix, QuantisedMatrix):
        raise OptionError(f"{name}: expected a QuantisedMatrix, got {type(matrix).__name__}")
    return matrix.addresses(name)


def _check_range(matrix: QuantisedMatrix, first_row: int, num_rows: int) -> None:
    last = matrix.out_features - num_rows
    if not isinstance(first_row, int) or not 0 <= first_row <= last:
        raise OptionError(f"first_row: expected an int in [0, {last}], for {num_rows} of "
                          f"{matrix.out_features} rows, got {show(first_row)}")
