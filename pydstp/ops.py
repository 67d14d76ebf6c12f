"""The native ops: every tensor check, output allocation, and the call.

One function per op. Tensors are float32 or bfloat16 and lie on the CPU; all tensors of a call share
one dtype unless said otherwise. `out` gives the result's memory: it has the result's shape and is
contiguous. Ops know no autograd. A bad argument raises `OptionError`, which names it; `pool` is the
`ThreadPool` the op runs on. Within one instruction set a row's result is the same bit for bit
whatever other rows, and however many threads, are in the call (not so in the GEMM path of `linear`).

Ops on the cache skip indices they cannot obey and set bits in `status` (int32 [1]) if it is given:
1 a sequence out of range, 2 a slot out of range, 4 a layer without a group, 8 a length out of
range. With `check_indices=True` the same is an `OptionError` before anything runs.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pydstp import _C
from pydstp.errors import OptionError
from pydstp.tensor_checks import (
    address,
    check_index_range,
    check_rank,
    dtype_code,
    optional_address,
    row_address,
)

DECODE_ROWS = 8
"""`linear` runs the native kernel up to this many tokens, the library's GEMM above."""

ATTENTION_CHUNK = 64
"""`decode_attention` cuts its lists into chunks of this many entries."""

_INT32 = torch.int32
_FLOAT32 = torch.float32


class ThreadPool(_C.ThreadPool):
    """`num_threads` threads, the caller's included, that sleep while there is nothing to do.

    Several Python threads may use one pool; their calls take turns. After `close()` and in a forked
    child everything runs on the calling thread.
    """

    def __init__(self, num_threads: int) -> None:
        if isinstance(num_threads, bool) or not isinstance(num_threads, int):
            raise OptionError(f"num_threads: expected an int, got {num_threads!r}")
        if not 1 <= num_threads <= 1024:
            raise OptionError(f"num_threads: expected 1 to 1024, got {num_threads}")
        super().__init__(num_threads)


def cpu_features() -> dict[str, bool]:
    """The instruction set features that tiers need, and whether this machine has them."""
    return _C.cpu_features()


def available_isas() -> list[str]:
    """Tiers this build holds and this machine can run, best first, then test-only twins."""
    return _C.available_tiers()


def current_isa() -> str:
    """The tier that ops use now: "avx512bf16", "avx2" or "portable"."""
    return _C.current_tier()


def set_isa(tier: str | None) -> None:
    """For tests: make ops of the whole process use one tier; None goes back to the best."""
    if tier == "" or not _C.set_tier(tier or ""):
        raise OptionError(f"tier: expected one of {available_isas()}, got {tier!r}")


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    pool: ThreadPool,
    out: Tensor | None = None,
    deterministic: bool = False,
) -> Tensor:
    """x @ weight.T + bias, fp32 sums.

    Up to `DECODE_ROWS` tokens, or with `deterministic=True`, own kernels read the weights once at
    memory speed and a token's result does not depend on the others; above that it is torch's GEMM.

    Args:
        x: [num_tokens, in_features].
        weight: [out_features, in_features].
        bias: [out_features] or None.
        out: [num_tokens, out_features]; overlaps no other argument.

    Returns:
        [num_tokens, out_features].
    """
    code = dtype_code(x, "x")
    check_rank(x, "x", ("num_tokens", "in_features"))
    check_rank(weight, "weight", ("out_features", "in_features"))
    num_tokens, in_features = x.shape
    out_features = weight.shape[0]
    dtype = x.dtype
    weight_address = address(weight, "weight", dtype, (out_features, in_features))
    bias_address = optional_address(bias, "bias", dtype, (out_features,))
    if num_tokens > DECODE_ROWS and not deterministic:
        return _gemm(x, weight, bias, out)
    if out is None:
        out = x.new_empty(num_tokens, out_features)
    _C.linear(
        pool,
        address(x, "x", dtype, (num_tokens, in_features)),
        weight_address,
        bias_address,
        address(out, "out", dtype, (num_tokens, out_features)),
        num_tokens,
        in_features,
        out_features,
        code,
    )
    return out


def _gemm(x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor | None) -> Tensor:
    if out is None:
        return F.linear(x, weight, bias)
    address(out, "out", x.dtype, (x.shape[0], weight.shape[0]))
    if bias is None:
        return torch.mm(x, weight.t(), out=out)
    return torch.addmm(bias, x, weight.t(), out=out)


def rms_norm(
    x: Tensor,
    weight: Tensor,
    eps: float,
    *,
    residual: Tensor | None = None,
    pool: ThreadPool,
    out: Tensor | None = None,
) -> Tensor:
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
    code = dtype_code(x, "x")
    check_rank(weight, "weight", ("hidden_size",))
    dtype, shape, hidden_size = x.dtype, x.shape, weight.shape[0]
    if not shape or shape[-1] != hidden_size or not hidden_size:
        raise OptionError(f"x: expected shape [..., {hidden_size} > 0], got {list(shape)}")
    if out is None:
        out = torch.empty_like(x)
    _C.rms_norm(
        pool,
        address(x, "x", dtype, shape),
        address(weight, "weight", dtype, (hidden_size,)),
        optional_address(residual, "residual", dtype, shape),
        address(out, "out", dtype, shape),
        x.numel() // hidden_size,
        hidden_size,
        eps,
        code,
    )
    return out


def silu_and_mul(gate_up: Tensor, *, pool: ThreadPool, out: Tensor | None = None) -> Tensor:
    """silu(gate) * up, silu rounded to the dtype before the product.

    Args:
        gate_up: [num_tokens, 2 * intermediate_size], gate first.
        out: [num_tokens, intermediate_size].

    Returns:
        [num_tokens, intermediate_size].
    """
    code = dtype_code(gate_up, "gate_up")
    check_rank(gate_up, "gate_up", ("num_tokens", "2 * intermediate_size"))
    num_tokens, size = gate_up.shape
    if size % 2:
        raise OptionError(f"gate_up: expected an even last dimension, got {list(gate_up.shape)}")
    if out is None:
        out = gate_up.new_empty(num_tokens, size // 2)
    _C.silu_and_mul(
        pool,
        address(gate_up, "gate_up", gate_up.dtype, (num_tokens, size)),
        address(out, "out", gate_up.dtype, (num_tokens, size // 2)),
        num_tokens,
        size // 2,
        code,
    )
    return out


def qk_norm_rope(
    qkv: Tensor,
    q_weight: Tensor | None,
    k_weight: Tensor | None,
    cos_sin: Tensor,
    *,
    num_heads: int,
    num_kv_heads: int,
    eps: float,
    pool: ThreadPool,
) -> None:
    """RMSNorm over head_dim, then rotate-half RoPE, on the q and k heads of `qkv` in place.

    Args:
        qkv: [num_tokens, (num_heads + 2 * num_kv_heads) * head_dim]: q heads, k heads, v heads.
        q_weight, k_weight: [head_dim], or None: not normalised.
        cos_sin: [num_tokens, head_dim] float32: cos of the head_dim/2 angles, then their sin;
            rounded to qkv's dtype before use, as transformers does.
    """
    code = dtype_code(qkv, "qkv")
    check_rank(qkv, "qkv", ("num_tokens", "(num_heads + 2 * num_kv_heads) * head_dim"))
    check_rank(cos_sin, "cos_sin", ("num_tokens", "head_dim"))
    num_tokens, width = qkv.shape
    head_dim, dtype = cos_sin.shape[1], qkv.dtype
    if num_heads < 1 or num_kv_heads < 1 or head_dim < 2 or head_dim % 2:
        raise OptionError(
            f"num_heads, num_kv_heads, head_dim: expected positive and head_dim even, got "
            f"{num_heads}, {num_kv_heads}, {head_dim}"
        )
    if width != (num_heads + 2 * num_kv_heads) * head_dim:
        raise OptionError(
            f"qkv: expected width ({num_heads} + 2 * {num_kv_heads}) * {head_dim}, got {width}"
        )
    _C.qk_norm_rope(
        pool,
        address(qkv, "qkv", dtype, (num_tokens, width)),
        optional_address(q_weight, "q_weight", dtype, (head_dim,)),
        optional_address(k_weight, "k_weight", dtype, (head_dim,)),
        address(cos_sin, "cos_sin", _FLOAT32, (num_tokens, head_dim)),
        num_tokens,
        num_heads,
        num_kv_heads,
        head_dim,
        eps,
        code,
    )


def store_kv(
    k: Tensor,
    v: Tensor,
    visual: Tensor,
    text: Tensor,
    seq_idx: Tensor,
    slot_idx: Tensor,
    *,
    pool: ThreadPool,
    status: Tensor | None = None,
    check_indices: bool = False,
) -> None:
    """Write each token's K and V into its slot of one layer's arenas.

    Slots [0, visual_capacity) lie in the visual arena, the next text_capacity ones in the text
    arena. A token with seq_idx or slot_idx -1 is skipped. No slot may come twice in one call.

    Args:
        k, v: [num_tokens, num_kv_heads, head_dim]; the stride of dimension 0 is free.
        visual: [max_batch, visual_capacity, 2, num_kv_heads, head_dim].
        text: [max_batch, text_capacity, 2, num_kv_heads, head_dim].
        seq_idx, slot_idx: [num_tokens] int32.
    """
    arena = _arena(visual, text)
    check_rank(k, "k", ("num_tokens", "num_kv_heads", "head_dim"))
    num_tokens = k.shape[0]
    shape, dtype = (num_tokens, *visual.shape[3:]), visual.dtype
    seq_address = address(seq_idx, "seq_idx", _INT32, (num_tokens,))
    slot_address = address(slot_idx, "slot_idx", _INT32, (num_tokens,))
    if check_indices:
        check_index_range(seq_idx, "seq_idx", -1, visual.shape[0])
        check_index_range(slot_idx, "slot_idx", -1, visual.shape[1] + text.shape[1])
    _C.store_kv(
        pool,
        row_address(k, "k", dtype, shape),
        row_address(v, "v", dtype, shape),
        arena,
        seq_address,
        slot_address,
        optional_address(status, "status", _INT32, (1,)),
        num_tokens,
        k.stride(0),
        v.stride(0),
    )


def gather_kv(
    visual: Tensor,
    text: Tensor,
    seq_idx: int,
    slots: Tensor,
    *,
    pool: ThreadPool,
    status: Tensor | None = None,
    out: Tensor | None = None,
    check_indices: bool = False,
) -> Tensor:
    """Rows of one sequence in the order of `slots`, numbered as in `store_kv`.

    A slot that names no row gives zeros.

    Args:
        visual, text: as in `store_kv`.
        seq_idx: 0 <= seq_idx < max_batch.
        slots: [num_slots] int32.
        out: [num_slots, 2, num_kv_heads, head_dim].

    Returns:
        [num_slots, 2, num_kv_heads, head_dim], K then V.
    """
    arena = _arena(visual, text)
    check_rank(slots, "slots", ("num_slots",))
    num_slots, max_batch = slots.shape[0], visual.shape[0]
    if not isinstance(seq_idx, int) or not 0 <= seq_idx < max_batch:
        raise OptionError(f"seq_idx: expected an int in [0, {max_batch}), got {seq_idx!r}")
    if check_indices:
        check_index_range(slots, "slots", -1, visual.shape[1] + text.shape[1])
    shape = (num_slots, *visual.shape[2:])
    if out is None:
        out = visual.new_empty(shape)
    _C.gather_kv(
        pool,
        arena,
        address(slots, "slots", _INT32, (num_slots,)),
        address(out, "out", visual.dtype, shape),
        optional_address(status, "status", _INT32, (1,)),
        seq_idx,
        num_slots,
    )
    return out


def attention_workspace(batch: int, num_heads: int, visible_indices: Tensor, text: Tensor) -> Tensor:
    """A float32 workspace for `decode_attention` of up to `batch` rows, whatever their lengths."""
    chunks = _num_chunks(visible_indices.shape[2]) + _num_chunks(text.shape[1])
    return torch.empty(batch * chunks * num_heads * (text.shape[-1] + 2), device=text.device)


def _num_chunks(num_entries: int) -> int:
    return -(-num_entries // ATTENTION_CHUNK)


def decode_attention(
    q: Tensor,
    visual: Tensor,
    text: Tensor,
    *,
    seq_idx: Tensor,
    visible_indices: Tensor,
    visible_len: Tensor,
    layer_to_group: Tensor,
    layer_idx: int,
    text_len: Tensor,
    scale: float,
    pool: ThreadPool,
    workspace: Tensor | None = None,
    status: Tensor | None = None,
    out: Tensor | None = None,
    check_indices: bool = False,
) -> Tensor:
    """softmax(scale * q k) v over the visible visual rows and all text rows of each sequence.

    Row i reads sequence seq_idx[i]: the list visible_indices[seq, g, :visible_len[seq, g]] of its
    group g = layer_to_group[seq, layer_idx] in the visual arena, and text rows [0, text_len[seq]).
    A row with seq_idx -1, or with nothing to read, gives zeros.

    Args:
        q: [batch, num_heads, head_dim]; the stride of dimension 0 is free. Head h reads KV head
            h // (num_heads // num_kv_heads).
        visual: [max_batch, visual_capacity, 2, num_kv_heads, head_dim], this layer's.
        text: [max_batch, text_capacity, 2, num_kv_heads, head_dim], this layer's.
        seq_idx: [batch] int32.
        visible_indices: [max_batch, num_groups, list_capacity] int32.
        visible_len: [max_batch, num_groups] int32.
        layer_to_group: [max_batch, num_layers] int32.
        text_len: [max_batch] int32.
        workspace: what `attention_workspace` gives for this batch or a larger one, or None.
        out: [batch, num_heads, head_dim].

    Returns:
        [batch, num_heads, head_dim].
    """
    arena = _arena(visual, text)
    check_rank(q, "q", ("batch", "num_heads", "head_dim"))
    check_rank(visible_indices, "visible_indices", ("max_batch", "num_groups", "list_capacity"))
    check_rank(layer_to_group, "layer_to_group", ("max_batch", "num_layers"))
    batch, num_heads, head_dim = q.shape
    max_batch, num_kv_heads = visual.shape[0], visual.shape[3]
    num_groups, list_capacity = visible_indices.shape[1:]
    num_layers = layer_to_group.shape[1]
    if not num_heads or num_heads % num_kv_heads:
        raise OptionError(f"q: expected a multiple of {num_kv_heads} heads, got {num_heads}")
    if not 0 <= layer_idx < num_layers:
        raise OptionError(f"layer_idx: expected 0 to {num_layers - 1}, got {layer_idx}")
    dtype, shape = visual.dtype, (batch, num_heads, visual.shape[4])
    addresses = (
        address(seq_idx, "seq_idx", _INT32, (batch,)),
        address(
            visible_indices, "visible_indices", _INT32, (max_batch, num_groups, list_capacity)
        ),
        address(visible_len, "visible_len", _INT32, (max_batch, num_groups)),
        address(layer_to_group, "layer_to_group", _INT32, (max_batch, num_layers)),
        address(text_len, "text_len", _INT32, (max_batch,)),
    )
    if check_indices:
        _check_decode_indices(
            visual, text, seq_idx, visible_indices, visible_len, layer_to_group, text_len
        )
    if workspace is None:
        workspace = attention_workspace(batch, num_heads, visible_indices, text)
    if out is None:
        out = q.new_empty(shape)
    _C.decode_attention(
        pool,
        row_address(q, "q", dtype, shape),
        arena,
        *addresses,
        _workspace_address(workspace, batch, num_heads, list_capacity, text),
        optional_address(status, "status", _INT32, (1,)),
        address(out, "out", dtype, shape),
        batch,
        num_heads,
        num_groups,
        list_capacity,
        num_layers,
        layer_idx,
        q.stride(0),
        scale,
    )
    return out


def _arena(visual: Tensor, text: Tensor) -> tuple[int, ...]:
    """Check both arenas and describe them to the native side."""
    code = dtype_code(visual, "visual")
    dims = ("2", "num_kv_heads", "head_dim")
    check_rank(visual, "visual", ("max_batch", "visual_capacity", *dims))
    check_rank(text, "text", ("max_batch", "text_capacity", *dims))
    max_batch, visual_capacity, pair, num_kv_heads, head_dim = visual.shape
    if pair != 2 or not num_kv_heads or not head_dim:
        raise OptionError(
            "visual: expected shape [max_batch, visual_capacity, 2, num_kv_heads > 0, "
            f"head_dim > 0], got {list(visual.shape)}"
        )
    text_capacity = text.shape[1]
    row = (2, num_kv_heads, head_dim)
    return (
        address(visual, "visual", visual.dtype, (max_batch, visual_capacity, *row)),
        address(text, "text", visual.dtype, (max_batch, text_capacity, *row)),
        max_batch,
        visual_capacity,
        text_capacity,
        num_kv_heads,
        head_dim,
        code,
    )


def _workspace_address(
    workspace: Tensor, batch: int, num_heads: int, list_capacity: int, text: Tensor
) -> int:
    chunks = _num_chunks(list_capacity) + _num_chunks(text.shape[1])
    needed = batch * chunks * num_heads * (text.shape[4] + 2)
    size = workspace.numel() if isinstance(workspace, Tensor) else 0
    if size < needed:
        raise OptionError(f"workspace: expected at least {needed} elements, got {size}")
    return address(workspace, "workspace", _FLOAT32, (size,))


def _check_decode_indices(
    visual: Tensor,
    text: Tensor,
    seq_idx: Tensor,
    visible_indices: Tensor,
    visible_len: Tensor,
    layer_to_group: Tensor,
    text_len: Tensor,
) -> None:
    num_groups, list_capacity = visible_indices.shape[1:]
    check_index_range(seq_idx, "seq_idx", -1, visual.shape[0])
    used = seq_idx[seq_idx >= 0].long()
    check_index_range(text_len[used], "text_len", 0, text.shape[1] + 1)
    check_index_range(visible_len[used], "visible_len", 0, list_capacity + 1)
    check_index_range(layer_to_group[used], "layer_to_group", 0, num_groups)
    in_list = torch.arange(list_capacity) < visible_len[used].unsqueeze(-1)
    check_index_range(visible_indices[used][in_list], "visible_indices", 0, visual.shape[1])
