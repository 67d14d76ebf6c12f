"""rms_norm, silu_and_mul, qk_norm_rope against plain PyTorch."""

from __future__ import annotations

import pytest
import torch

from pydstp import ops
from tests import reference
from tests.compare import assert_bitwise, assert_matches
from tests.generators import SIZES, Guarded, near_one, normal

EPS = 1e-6


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("tokens", [1, 3, 97])
def test_rms_norm_matches_the_reference(isa, dtype, tokens, size, pool):
    x, weight = normal(tokens, size, dtype=dtype), near_one(size, dtype=dtype)
    out = Guarded(tokens, size, dtype=dtype)
    assert ops.rms_norm(x, weight, EPS, pool=pool, out=out.tensor) is out.tensor
    out.check()
    truth = reference.rms_norm(x.float(), weight.float(), EPS)
    assert_matches(out.tensor, truth, reference.rms_norm(x, weight, EPS))


@pytest.mark.parametrize("size", SIZES)
def test_rms_norm_adds_the_residual_first_and_in_place(isa, dtype, size, pool):
    x, weight = normal(3, size, dtype=dtype), near_one(size, dtype=dtype)
    residual = Guarded(3, size, dtype=dtype)
    residual.tensor.copy_(normal(3, size, dtype=dtype, seed=1))
    total = residual.tensor + x
    out = ops.rms_norm(x, weight, EPS, residual=residual.tensor, pool=pool)
    residual.check()
    assert_bitwise(residual.tensor, total)
    truth = reference.rms_norm(total.float(), weight.float(), EPS)
    assert_matches(out, truth, reference.rms_norm(total, weight, EPS))


def test_rms_norm_may_write_over_its_input_and_takes_any_rank(isa, dtype, pool):
    x, weight = normal(2, 3, 19, dtype=dtype), near_one(19, dtype=dtype)
    expected = ops.rms_norm(x, weight, EPS, pool=pool)
    assert expected.shape == x.shape
    assert_bitwise(ops.rms_norm(x[1, 2], weight, EPS, pool=pool), expected[1, 2])
    assert_bitwise(ops.rms_norm(x, weight, EPS, pool=pool, out=x), expected)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("tokens", [1, 19])
def test_silu_and_mul_matches_the_reference(isa, dtype, tokens, size, pool):
    gate_up = 4 * normal(tokens, 2 * size, dtype=dtype)
    out = Guarded(tokens, size, dtype=dtype)
    assert ops.silu_and_mul(gate_up, pool=pool, out=out.tensor) is out.tensor
    out.check()
    truth = reference.silu_and_mul(gate_up.float())
    assert_matches(out.tensor, truth, reference.silu_and_mul(gate_up))


def test_silu_of_extreme_values(isa, dtype, pool):
    gate = torch.tensor([0.0, -0.0, 200.0, -200.0, 1e30, -1e30, float("nan"), 88.5, -88.5, 1e-30])
    gate_up = torch.cat([gate, torch.ones(10)]).unsqueeze(0).to(dtype)
    truth = reference.silu_and_mul(gate_up.float())
    out = ops.silu_and_mul(gate_up, pool=pool).float()
    assert torch.equal(out.isnan(), truth.isnan())
    assert torch.allclose(out, truth, rtol=1e-5 if dtype == torch.float32 else 1e-2, atol=1e-30,
                          equal_nan=True)


HEADS = [(1, 1, 2), (3, 1, 38), (6, 2, 64), (8, 1, 128), (5, 5, 6)]


@pytest.mark.parametrize("heads", HEADS, ids=str)
@pytest.mark.parametrize("with_norm", [True, False], ids=["norm", "plain"])
@pytest.mark.parametrize("float_angles", [False, True], ids=["rounded", "float"])
def test_qk_norm_rope_matches_the_reference(isa, dtype, heads, with_norm, float_angles, pool):
    num_heads, num_kv_heads, head_dim = heads
    qkv = Guarded(19, (num_heads + 2 * num_kv_heads) * head_dim, dtype=dtype)
    before = qkv.tensor.copy_(normal(*qkv.tensor.shape, dtype=dtype)).clone()
    weights = [near_one(head_dim, dtype=dtype, seed=s) if with_norm else None for s in (1, 2)]
    angles = 100 * normal(19, head_dim // 2, seed=3)
    cos_sin = torch.cat([angles.cos(), angles.sin()], dim=1)
    sizes = {"num_heads": num_heads, "num_kv_heads": num_kv_heads, "eps": EPS}
    assert ops.qk_norm_rope(qkv.tensor, *weights, cos_sin, pool=pool, float_angles=float_angles,
                            **sizes) is None
    qkv.check()
    wide = [None if w is None else w.float() for w in weights]
    seen = cos_sin if float_angles else cos_sin.to(dtype).float()
    truth = reference.qk_norm_rope(before.float(), *wide, seen, **sizes)
    plain = reference.qk_norm_rope(before, *weights, cos_sin, float_angles=float_angles, **sizes)
    assert_matches(qkv.tensor, truth, plain)
    v_width = num_kv_heads * head_dim
    assert_bitwise(qkv.tensor[:, -v_width:], before[:, -v_width:])


def test_rows_do_not_depend_on_neighbours_or_threads(isa, dtype, pools):
    x, weight = normal(111, 769, dtype=dtype), near_one(769, dtype=dtype)
    gate_up = normal(111, 2 * 769, dtype=dtype)
    for pool in pools:
        normed = ops.rms_norm(x, weight, EPS, pool=pool)
        gated = ops.silu_and_mul(gate_up, pool=pool)
        for row in (0, 7, 110):
            one = slice(row, row + 1)
            assert_bitwise(ops.rms_norm(x[one], weight, EPS, pool=pools[0]), normed[one])
            assert_bitwise(ops.silu_and_mul(gate_up[one], pool=pools[0]), gated[one])


def test_no_tokens(isa, dtype, pool):
    x, weight = normal(0, 19, dtype=dtype), near_one(19, dtype=dtype)
    assert ops.rms_norm(x, weight, EPS, pool=pool).shape == (0, 19)
    assert ops.silu_and_mul(normal(0, 38, dtype=dtype), pool=pool).shape == (0, 19)
    ops.qk_norm_rope(normal(0, 24, dtype=dtype), None, None, normal(0, 8), num_heads=1,
                     num_kv_heads=1, eps=EPS, pool=pool)
