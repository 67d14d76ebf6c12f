"""The comparison can fail: one wrong detail at a time moves the logits out of the tolerance."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pydstp.models import mrope, qwen3, qwen3_vl, qwen3_vl_vision, vision_positions
from pydstp.models.moe import SparseMLP
from pydstp.models.plans import Context
from tests.checkpoints import reference_model, tiny_qwen3_vl
from tests.models.helpers import TOLERANCE, Runner, gap, make_inputs, our_model

Patch = pytest.MonkeyPatch
GRIDS = ((4, 10), (6, 4))


def erf_gelu_in_blocks(patch: Patch) -> None:
    def forward(self: qwen3_vl_vision.VisionMLP, x: Tensor) -> Tensor:
        return self.linear_fc2(F.gelu(self.linear_fc1(x)))

    patch.setattr(qwen3_vl_vision.VisionMLP, "forward", forward)


def tanh_gelu_in_mergers(patch: Patch) -> None:
    def forward(self: qwen3_vl_vision.PatchMerger, x: Tensor) -> Tensor:
        x = self.norm(x.view(-1, *self.norm.normalized_shape)).view(-1, self.merged_size)
        return self.linear_fc2(F.gelu(self.linear_fc1(x), approximate="tanh"))

    patch.setattr(qwen3_vl_vision.PatchMerger, "forward", forward)


def blocked_mrope(patch: Patch) -> None:
    def blocked(angles: Tensor, mrope_section: tuple[int, int, int]) -> Tensor:
        parts = angles.split(mrope_section, dim=-1)
        return torch.cat([part[axis] for axis, part in enumerate(parts)], dim=-1)

    patch.setattr(mrope, "interleave_axes", blocked)


def no_deepstack(patch: Patch) -> None:
    patch.setattr(qwen3.DeepStack, "add", lambda self, x, layer_idx: x)


def deepstack_one_layer_late(patch: Patch) -> None:
    add = qwen3.DeepStack.add
    patch.setattr(qwen3.DeepStack, "add", lambda self, x, i: add(self, x, i - 1) if i else x)


def half_pixel_corners(patch: Patch) -> None:
    def matrix(length: int, side: int, device: torch.device) -> Tensor:
        centre = (torch.arange(length) + 0.5) * side / length - 0.5
        return (1 - (centre.clamp(0, side - 1)[:, None] - torch.arange(side)).abs()).clamp(min=0)

    patch.setattr(vision_positions, "_interpolation_matrix", matrix)


def row_major_patches(patch: Patch) -> None:
    patch.setattr(vision_positions, "merge_block_order", lambda grid, _: grid.flatten(0, 1))


def images_see_each_other(patch: Patch) -> None:
    attention = qwen3_vl_vision.VisionAttention
    forward = attention.forward
    patch.setattr(attention, "forward",
                  lambda self, x, cs, _, ctx: forward(self, x, cs, [len(x)], ctx))


def text_positions_for_images(patch: Patch) -> None:
    def positions(ids: Tensor, grids: object, token: int, merge: int, start: int) -> tuple:
        return torch.arange(start, start + len(ids)).expand(3, -1), start + len(ids)

    patch.setattr(qwen3_vl, "mrope_positions", positions)


def experts_not_renormalised(patch: Patch) -> None:
    def route(self: SparseMLP, x: Tensor, plan: object, ctx: Context) -> tuple[Tensor, Tensor]:
        return self.gate(x, plan, ctx).softmax(dim=-1).topk(self.num_experts_per_tok, dim=-1)

    patch.setattr(SparseMLP, "route", route)


DENSE_FAULTS: list[Callable[[Patch], None]] = [
    erf_gelu_in_blocks,
    tanh_gelu_in_mergers,
    blocked_mrope,
    no_deepstack,
    deepstack_one_layer_late,
    half_pixel_corners,
    row_major_patches,
    images_see_each_other,
    text_positions_for_images,
]
FAULTS = [(fault, False) for fault in DENSE_FAULTS] + [(experts_not_renormalised, True)]


@pytest.mark.parametrize(("fault", "moe"), FAULTS, ids=lambda value: getattr(value, "__name__", ""))
def test_a_wrong_detail_is_seen(
    fault: Callable[[Patch], None], moe: bool, monkeypatch: Patch, ctx: Context
) -> None:
    path = tiny_qwen3_vl(moe=moe)
    oracle = reference_model(path)
    model = our_model(path, oracle)
    inputs = make_inputs(model.config, GRIDS)
    with torch.inference_mode():
        theirs = oracle(**inputs.for_oracle(model.config)).logits
    fault(monkeypatch)
    wrong = gap(Runner(model, ctx).prefill(inputs), theirs)
    assert wrong > 3 * TOLERANCE, f"moved the logits by {wrong:.1e} only"
    print(f"{fault.__name__}: {wrong:.1e}")
