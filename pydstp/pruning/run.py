"""Asking a method, and checking what it answers: it may be somebody's first ten lines."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pydstp.errors import PydstpError, show
from pydstp.pruning.base import REDUCTIONS, MergePlan, Selection, VisualTokens
from pydstp.pruning.registry import PruningConfig


def run_pruner(config: PruningConfig, tokens: VisualTokens) -> Selection:
    """What the method of `config` decides about `tokens`. Where all stay, it is not asked.

    Raises:
        PydstpError: the method failed, or its answer is not a decision; the message names it.
    """
    who = f"pruning method {config.name!r}"
    is_asked = config.pruner.adaptive and tokens.stage  # fewer than asked may have been left
    if sum(tokens.quotas) == len(tokens) and not is_asked:
        return Selection(torch.arange(len(tokens), device="cpu"))
    for need in sorted(config.pruner.needs_at(tokens.stage)):
        if getattr(tokens, need) is None:
            raise PydstpError(f"{who}: expected tokens with {need}, got None")
    try:
        answer = config.pruner.select(tokens)
    except PydstpError:
        raise
    except Exception as error:
        raise PydstpError(f"{who} failed: {type(error).__name__}: {error}") from error
    return _checked(who, answer, tokens, config.pruner.adaptive)


def _checked(who: str, answer: Any, tokens: VisualTokens, adaptive: bool) -> Selection:
    selection = answer if isinstance(answer, Selection) else Selection(answer)
    kept = _indices(f"{who}: kept", selection.kept, len(tokens))
    merge = None
    if selection.merge is not None:
        merge = _checked_merge(who, selection.merge, tokens)
    chosen = kept if merge is None else torch.cat([kept, merge.targets])
    count = chosen.new_zeros(len(tokens)).index_add_(
        0, chosen, torch.ones_like(chosen))
    if (count > 1).any():
        raise PydstpError(f"{who}: expected targets that are not kept, got {int(count.argmax())} "
                          f"in both")
    if adaptive and not len(chosen) and len(tokens):
        raise PydstpError(f"{who}: expected at least one token, got none")
    for (start, length), quota in zip(tokens.spans, tokens.quotas, strict=True):
        found = int(count[start:start + length].sum())
        if found != quota and not adaptive:
            raise PydstpError(f"{who}: expected {quota} of tokens [{start}, {start + length}), "
                              f"got {found}")
    return Selection(kept, merge)


def _checked_merge(who: str, merge: Any, tokens: VisualTokens) -> MergePlan | None:
    """The plan with float32 weights; None where it merges nothing."""
    if not isinstance(merge, MergePlan):
        raise PydstpError(f"{who}: merge: expected a MergePlan or None, got {show(merge)}")
    targets = _indices(f"{who}: merge.targets", merge.targets, len(tokens))
    weights, shape = merge.weights, (len(targets), len(tokens))
    if not isinstance(weights, Tensor) or not weights.is_floating_point():
        raise PydstpError(f"{who}: merge.weights: expected a floating-point tensor, "
                          f"got {_kind(weights)}")
    if tuple(weights.shape) != shape:
        raise PydstpError(f"{who}: merge.weights: expected shape {list(shape)}, "
                          f"got {list(weights.shape)}")
    if not weights.isfinite().all():
        raise PydstpError(f"{who}: merge.weights: expected finite numbers, got NaN or infinity")
    if merge.reduce not in REDUCTIONS:
        raise PydstpError(f"{who}: merge.reduce: expected one of {REDUCTIONS}, "
                          f"got {show(merge.reduce)}")
    return MergePlan(targets, weights.float(), merge.reduce) if len(targets) else None


def _indices(what: str, value: Any, num_tokens: int) -> Tensor:
    """`value` as sorted, distinct int64 indices below `num_tokens`."""
    try:
        indices = torch.as_tensor(value)
    except Exception as error:
        raise PydstpError(f"{what}: expected indices, got {show(value)}") from error
    if indices.ndim == 1 and not len(indices):
        return torch.empty(0, dtype=torch.int64, device="cpu")
    is_integral = not indices.is_floating_point() and not indices.is_complex()
    if indices.ndim != 1 or not is_integral or indices.dtype == torch.bool:
        raise PydstpError(f"{what}: expected a one-dimensional tensor of integers, "
                          f"got {_kind(indices)}")
    indices = indices.to("cpu", torch.int64)
    if int(indices.min()) < 0 or int(indices.max()) >= num_tokens:
        raise PydstpError(f"{what}: expected indices in [0, {num_tokens}), "
                          f"got {int(indices.min())} to {int(indices.max())}")
    wrong = (indices.diff() <= 0).nonzero()
    if len(wrong):
        place = int(wrong[0])
        raise PydstpError(f"{what}: expected sorted indices, each once, got "
                          f"{int(indices[place + 1])} after {int(indices[place])}")
    return indices


def _kind(value: Any) -> str:
    if not isinstance(value, Tensor):
        return show(value)
    return f"{str(value.dtype).removeprefix('torch.')} of shape {list(value.shape)}"
