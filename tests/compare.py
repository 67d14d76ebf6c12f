"""Comparisons by kind. A failure says where, and both values.

Data movement is compared bit for bit; fp32 arithmetic at 1e-5 of the largest value (at least of 1);
half precision may be off by twice what plain PyTorch is off in the same precision.
"""

from __future__ import annotations

import torch
from torch import Tensor

FP32_TOLERANCE = 1e-5
_BITS = {torch.float32: torch.int32, torch.bfloat16: torch.int16}


def assert_bitwise(actual: Tensor, expected: Tensor) -> None:
    """Same dtype, shape and bits; NaN equals the same NaN."""
    assert actual.dtype == expected.dtype, f"{actual.dtype} instead of {expected.dtype}"
    assert actual.shape == expected.shape, f"{actual.shape} instead of {expected.shape}"
    bits = _BITS.get(actual.dtype, actual.dtype)
    differs = actual.contiguous().view(bits) != expected.contiguous().view(bits)
    assert not differs.any(), _describe(actual, expected, differs.double())


def assert_matches(actual: Tensor, reference: Tensor, plain: Tensor | None = None) -> None:
    """Within the tolerance of its dtype.

    Args:
        actual: what the op gave, float32 or bfloat16.
        reference: the fp32 truth, from the same (possibly bf16-rounded) inputs.
        plain: plain PyTorch's result in the dtype of `actual`; needed for bfloat16.
    """
    assert actual.shape == reference.shape, f"{actual.shape} instead of {reference.shape}"
    assert plain is None or plain.dtype == actual.dtype
    _assert_same_specials(actual, reference)
    finite = torch.isfinite(reference)
    if not finite.any():
        return
    error = _error(actual, reference)
    largest = max(1.0, float(reference[finite].abs().max()))
    if actual.dtype == torch.float32:
        allowed = FP32_TOLERANCE * largest
    else:  # one rounding to bf16 is always allowed
        allowed = max(2.0 * float(_error(plain, reference).max()), 2.0**-9 * largest)
    assert float(error.max()) <= allowed, (
        f"allowed {allowed:.3g}; {_describe(actual, reference, error)}")


def _error(actual: Tensor, reference: Tensor) -> Tensor:
    return (actual.double() - reference.double()).abs().nan_to_num(0.0, 0.0, 0.0)


def _assert_same_specials(actual: Tensor, reference: Tensor) -> None:
    for is_special in (torch.isnan, torch.isposinf, torch.isneginf):
        differs = is_special(actual) != is_special(reference)
        assert not differs.any(), _describe(actual, reference, differs.double())


def _describe(actual: Tensor, expected: Tensor, error: Tensor) -> str:
    """Where the error is largest, both values there, and how many elements differ."""
    place = [int(i) for i in torch.unravel_index(error.argmax(), error.shape)]
    got, wanted = actual[tuple(place)].item(), expected[tuple(place)].item()
    return (f"at {place}: got {got!r}, expected {wanted!r}; "
            f"{int((error > 0).sum())} of {error.numel()} elements differ")
