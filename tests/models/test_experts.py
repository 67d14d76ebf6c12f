"""A mixture of experts in a decode step: the sum by its definition, and nothing asked of a GPU."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from pydstp import ops
from pydstp.models.config import MoEConfig
from pydstp.models.gemm import linear
from pydstp.models.moe import SparseMLP
from pydstp.models.plans import Context
from tests.compare import assert_bitwise
from tests.generators import normal

HIDDEN, WIDTH, EXPERTS, CHOSEN = 24, 9, 7, 3


class WithoutReads(TorchFunctionMode):
    """Refuses what would bring numbers of a GPU to the host, or wait for them."""

    READS = frozenset({"item", "tolist", "nonzero", "unique", "__bool__", "__int__", "numpy"})

    def __torch_function__(self, function: Callable[..., Any], types: Any,
                           args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        name = getattr(function, "__name__", "")
        assert name not in self.READS, f"{name}: the host waits for the GPU"
        return function(*args, **(kwargs or {}))


def sparse_mlp(dtype: torch.dtype, in_8_bits: bool, pool: ops.ThreadPool) -> SparseMLP:
    mlp = SparseMLP(HIDDEN, MoEConfig(EXPERTS, CHOSEN, WIDTH)).requires_grad_(False)
    for seed, (name, weight) in enumerate(list(mlp.named_parameters())):
        weight.data = normal(*weight.shape, dtype=dtype, seed=seed)
        if in_8_bits and weight.dim() == 3:
            matrices = ops.QuantisedMatrix.allocate(*weight.shape)
            for i, rows in enumerate(weight):
                ops.quantise_rows(rows, matrices[i], pool=pool)
            leaf = name.rpartition(".")[2]
            delattr(mlp.experts, leaf)
            setattr(mlp.experts, leaf, matrices)
    return mlp


def by_definition(mlp: SparseMLP, x: Tensor, weights: Tensor, chosen: Tensor, plan: Any,
                  ctx: Context) -> Tensor:
    out = torch.zeros_like(x)
    for token, row in enumerate(x.split(1)):
        for expert, place in sorted((int(e), i) for i, e in enumerate(chosen[token])):
            out[token] += mlp.experts(row, expert, plan, ctx)[0] * weights[token, place]
    return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("in_8_bits", [False, True])
@pytest.mark.parametrize("num_tokens", [1, 2, 8])
def test_few_rows_add_up_their_experts_in_ascending_order(num_tokens, in_8_bits, dtype, pool):
    mlp, ctx = sparse_mlp(dtype, in_8_bits, pool), Context(pool, lambda: None)
    plan = SimpleNamespace(linear=lambda x, weight, ctx: linear(x, weight, ctx.pool))
    x = normal(num_tokens, HIDDEN, dtype=dtype, seed=9)
    with WithoutReads():
        weights, chosen = mlp.route(x, plan, ctx)
        found = mlp._mix_few(x, weights, chosen, ctx)
    assert_bitwise(found, by_definition(mlp, x, weights, chosen, plan, ctx))


def test_the_refusal_of_reads_can_fail():
    with pytest.raises(AssertionError, match="tolist: the host waits"), WithoutReads():
        torch.ones(3).tolist()
