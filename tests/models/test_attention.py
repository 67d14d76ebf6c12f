"""Attention of many rows: our op and the library's answer alike, whatever the rows see."""

from __future__ import annotations

import pytest
import torch

from pydstp.models import attention
from pydstp.models.plans import Context
from pydstp.reserve import visible_lengths
from tests.compare import assert_matches
from tests.generators import normal

VISIBLE = torch.tensor([1, 2, 2, 4, 1, 2, 5], dtype=torch.int32)


@pytest.mark.parametrize("num_keys, options", [
    (7, {}), (19, {}), (7, {"segments": [3, 4]}), (19, {"visible_len": VISIBLE}),
    (7, {"segments": [1, 6], "visible_len": VISIBLE.clamp(max=6)})], ids=str)
def test_the_library_gives_the_same(num_keys: int, options: dict, ctx: Context,
                                    monkeypatch: pytest.MonkeyPatch) -> None:
    q = normal(7, 6, 8, seed=1)
    k, v = normal(num_keys, 2, 8, seed=2), normal(num_keys, 2, 8, seed=3)
    ours = attention.attend(q, k, v, pool=ctx.pool, **options)
    monkeypatch.setattr(attention.ops, "prefill_attention", None)
    monkeypatch.setattr(torch.Tensor, "is_cpu", False)
    theirs = attention.attend(q, k, v, pool=ctx.pool, **options)
    monkeypatch.undo()
    assert_matches(theirs, ours)


def test_lengths_say_what_the_mask_of_prompt_order_says() -> None:
    context = torch.tensor([0, 1, 1, 4, 6, 9], dtype=torch.int32)  # a merged token has a twin
    rows = torch.tensor([0, 1, 2, 4, 9, 12], dtype=torch.int32)
    seen = attention.prefix_mask(visible_lengths(rows, context), len(context))
    assert torch.equal(seen, context.unsqueeze(0) <= rows.unsqueeze(1))
