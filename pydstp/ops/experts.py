"""Products of rows with a matrix each, chosen among several."""

from __future__ import annotations

import torch
from torch import Tensor

from pydstp import _C
from pydstp.errors import OptionError
from pydstp.ops.checks import address, check_rank, dtype_code, op
from pydstp.ops.quantised import GROUP_COLUMNS, QuantisedMatrix
from pydstp.ops.recording import new_result
from pydstp.ops.runtime import ThreadPool, call


@op
def expert_linear(x: Tensor, weight: Tensor | QuantisedMatrix, expert_idx: Tensor, *,
                  pool: ThreadPool, out: Tensor | None = None) -> Tensor:
    """Row i of x times weight[expert_idx[i]].T, with the bits of `linear` or `quantised_linear`.

    Which experts there are is read where the op runs: on a GPU the host need not know. On the CPU
    neighbouring rows of one expert read its weights once for every eight of them.

    Args:
        x: [num_rows, in_features].
        weight: [num_experts, out_features, in_features], or as many matrices in 8 bits.
        expert_idx: [num_rows] int32; an index that names no expert gives zeros.
        out: [num_rows, out_features]; overlaps no other argument.

    Returns:
        [num_rows, out_features].
    """
    code, dtype = dtype_code(x, "x"), x.dtype
    check_rank(x, "x", ("num_rows", "in_features"))
    num_experts, out_features, in_features = _shape(weight)
    num_rows = x.shape[0]
    x_address = address(x, "x", dtype, (num_rows, in_features))
    index_address = address(expert_idx, "expert_idx", torch.int32, (num_rows,))
    if out is None:
        out = new_result(x, (num_rows, out_features))
    out_address = address(out, "out", dtype, (num_rows, out_features))
    if isinstance(weight, Tensor):
        call(_C.expert_linear, pool, x_address, address(weight, "weight", dtype, weight.shape),
             index_address, out_address, num_rows, in_features, out_features, num_experts, code)
        return out
    size = num_rows * -(-in_features // GROUP_COLUMNS)
    workspace = x.new_empty(size * (GROUP_COLUMNS + 8), dtype=torch.uint8)
    codes = address(workspace, "workspace", torch.uint8, tuple(workspace.shape))
    scales = codes + size * GROUP_COLUMNS  # behind the codes, and the offsets behind them
    call(_C.quantised_expert_linear, pool, x_address, *weight.addresses("weight", num_experts),
         index_address, out_address, codes, scales, scales + 4 * size, num_rows, num_experts, code)
    return out


def _shape(weight: Tensor | QuantisedMatrix) -> tuple[int, int, int]:
    """(num_experts, out_features, in_features)."""
    if isinstance(weight, Tensor) and weight.dim() == 3:
        return tuple(weight.shape)
    if isinstance(weight, QuantisedMatrix) and weight.codes.dim() == 6:
        return len(weight.codes), weight.out_features, weight.in_features
    found = list(weight.shape) if isinstance(weight, Tensor) else type(weight).__name__
    raise OptionError("weight: expected shape [num_experts, out_features, in_features], or as many "
                      f"matrices in 8 bits, got {found}")
