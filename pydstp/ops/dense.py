"""Ops on activations."""

from __future__ import annotations

import torch
from torch import Tensor

from pydstp import _C
from pydstp.errors import OptionError
from pydstp.ops.checks import address, check_rank, dtype_code, op, optional_address
from pydstp.ops.recording import new_result
from pydstp.ops.runtime import ThreadPool, call

_ARGMAX_PART = 4096  # kArgmaxPart of csrc/kernels/argmax.h


@op
def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, pool: ThreadPool,
           out: Tensor | None = None) -> Tensor:
    """x @ weight.T + bias, fp32 sums.

    Made for the few tokens of a decode step: the weights are read once for every eight tokens, at
    memory speed, and a token's result does not depend on the others.

    Args:
        x: [num_tokens, in_features].
        weight: [out_features, in_features].
        bias: [out_features] or None.
        out: [num_tokens, out_features]; overlaps no other argument.

    Returns:
        [num_tokens, out_features].
    """
    code, dtype = dtype_code(x, "x"), x.dtype
    check_rank(x, "x", ("num_tokens", "in_features"))
    check_rank(weight, "weight", ("out_features", "in_features"))
    num_tokens, in_features = x.shape
    out_features = weight.shape[0]
    inputs = (address(x, "x", dtype, (num_tokens, in_features)),
              address(weight, "weight", dtype, (out_features, in_features)),
              optional_address(bias, "bias", dtype, (out_features,)))
    if out is None:
        out = new_result(x, (num_tokens, out_features))
    call(_C.linear, pool, *inputs, address(out, "out", dtype, (num_tokens, out_features)),
         num_tokens, in_features, out_features, code)
    return out


@op
def rms_norm(x: Tensor, weight: Tensor, eps: float, *, residual: Tensor | None = None,
             pool: ThreadPool, out: Tensor | None = None) -> Tensor:
    """weight * (x / sqrt(mean(x^2) + eps)): fp32 statistics, the quotient rounded to x's dtype.

    With `residual`, first `residual += x` in place, then the new residual is normalised.

    Args:
        x: [..., hidden_size].
        weight: [hidden_size].
        residual: like x, or None.
        out: like x; may be x.

    Returns:
        [..., hidden_size].
    """
    code, dtype, shape = dtype_code(x, "x"), x.dtype, x.shape
    check_rank(weight, "weight", ("hidden_size",))
    hidden_size = weight.shape[0]
    if not hidden_size or not shape or shape[-1] != hidden_size:
        raise OptionError(f"x: expected shape [..., {hidden_size}], not empty, got {list(shape)}")
    if out is None:
        out = new_result(x, shape)
    call(_C.rms_norm, pool, address(x, "x", dtype, shape),
         address(weight, "weight", dtype, (hidden_size,)),
         optional_address(residual, "residual", dtype, shape),
         address(out, "out", dtype, shape), x.numel() // hidden_size, hidden_size, eps, code)
    return out


@op
def silu_and_mul(gate_up: Tensor, *, pool: ThreadPool, out: Tensor | None = None) -> Tensor:
    """silu(gate) * up, silu rounded to the dtype before the product.

    Args:
        gate_up: [num_tokens, 2 * intermediate_size], gate first.
        out: [num_tokens, intermediate_size].

    Returns:
        [num_tokens, intermediate_size].
    """
    code, dtype = dtype_code(gate_up, "gate_up"), gate_up.dtype
    check_rank(gate_up, "gate_up", ("num_tokens", "2 * intermediate_size"))
    num_tokens, width = gate_up.shape
    if width % 2:
        raise OptionError(f"gate_up: expected an even last dimension, got {list(gate_up.shape)}")
    if out is None:
        out = new_result(gate_up, (num_tokens, width // 2))
    call(_C.silu_and_mul, pool, address(gate_up, "gate_up", dtype, (num_tokens, width)),
         address(out, "out", dtype, (num_tokens, width // 2)),
         num_tokens, width // 2, code)
    return out


@op
def qk_norm_rope(qkv: Tensor, q_weight: Tensor | None, k_weight: Tensor | None, cos_sin: Tensor, *,
                 num_heads: int, num_kv_heads: int, eps: float, pool: ThreadPool,
                 float_angles: bool = False) -> None:
    """RMSNorm over head_dim, then rotate-half RoPE, on the q and k heads of `qkv` in place.

    Args:
        qkv: [num_tokens, (num_heads + 2 * num_kv_heads) * head_dim]: q heads, k heads, v heads.
        q_weight, k_weight: [head_dim], or None: not normalised.
        cos_sin: [num_tokens, head_dim] float32: cos of the head_dim/2 angles, then their sin.
        float_angles: use them as they are, as transformers does for pictures; else they are
            rounded to qkv's dtype first, as it does for text.
    """
    code, dtype = dtype_code(qkv, "qkv"), qkv.dtype
    check_rank(qkv, "qkv", ("num_tokens", "(num_heads + 2 * num_kv_heads) * head_dim"))
    check_rank(cos_sin, "cos_sin", ("num_tokens", "head_dim"))
    num_tokens, width = qkv.shape
    head_dim = cos_sin.shape[1]
    if num_heads < 1 or num_kv_heads < 1 or head_dim < 2 or head_dim % 2:
        raise OptionError("num_heads, num_kv_heads, head_dim: expected positive, head_dim even, "
                          f"got {num_heads}, {num_kv_heads}, {head_dim}")
    if width != (num_heads + 2 * num_kv_heads) * head_dim:
        raise OptionError(f"qkv: expected width ({num_heads} + 2 * {num_kv_heads}) * {head_dim}, "
                          f"got {width}")
    call(_C.qk_norm_rope, pool, address(qkv, "qkv", dtype, (num_tokens, width)),
         optional_address(q_weight, "q_weight", dtype, (head_dim,)),
         optional_address(k_weight, "k_weight", dtype, (head_dim,)),
         address(cos_sin, "cos_sin", torch.float32, (num_tokens, head_dim)),
         num_tokens, num_heads, num_kv_heads, head_dim, eps, code, float_angles)


@op
def argmax(x: Tensor, *, pool: ThreadPool, workspace: Tensor | None = None,
           out: Tensor | None = None) -> Tensor:
    """Where each row has its largest number; the lowest place of equals.

    Args:
        x: [num_rows, size], size at least 1 and below 2^24.
        workspace: [2, num_rows, ceil(size / 4096)] float32, or None.
        out: [num_rows] int32.

    Returns:
        [num_rows] int32; -1 where the largest is an infinity, or where there is a NaN.
    """
    code, dtype = dtype_code(x, "x"), x.dtype
    check_rank(x, "x", ("num_rows", "size"))
    num_rows, size = x.shape
    if not 1 <= size < 1 << 24:
        raise OptionError(f"x: expected rows of 1 to 2^24 - 1 numbers, got {size}")
    x_address, shape = address(x, "x", dtype, x.shape), (2, num_rows, -(-size // _ARGMAX_PART))
    if workspace is None:
        workspace = x.new_empty(shape, dtype=torch.float32)
    values = address(workspace, "workspace", torch.float32, shape)
    indices = values + workspace.nbytes // 2
    if out is None:
        out = x.new_empty(num_rows, dtype=torch.int32)
    call(_C.argmax, pool, x_address, values, indices,
         address(out, "out", torch.int32, (num_rows,)), num_rows, size, code)
    return out
