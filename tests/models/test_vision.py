"""The vision tower: positions against independent formulas, odd sizes, no leak between images."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import Qwen3VLVisionModel
from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLVisionConfig

from pydstp import ops
from pydstp.errors import PromptError
from pydstp.models.config import VisionConfig
from pydstp.models.plans import Context
from pydstp.models.qwen3_vl_vision import VisionOutput, VisionTower
from pydstp.models.vision_positions import axial_rotary, interpolated_positions, merge_block_order
from tests.checkpoints import reference_model, tiny_qwen3_vl
from tests.models.helpers import TOLERANCE, copy_weights, gap, make_inputs, our_model


def in_blocks(image: Tensor, merge: int = 2) -> Tensor:
    """[height, width, ...] -> merge-block order, one patch after the other."""
    height, width = image.shape[:2]
    return torch.stack([
        image[row + i, col + j]
        for row in range(0, height, merge) for col in range(0, width, merge)
        for i in range(merge) for j in range(merge)
    ])  # fmt: skip


def test_merge_block_order_keeps_the_patches_of_a_token_together() -> None:
    image = torch.arange(24).view(4, 6)
    assert merge_block_order(image, 2).tolist()[:8] == [0, 1, 6, 7, 2, 3, 8, 9]
    for shape in [(2, 2), (6, 10, 3), (9, 3, 2)]:
        image = torch.rand(shape)
        merge = 3 if shape[0] == 9 else 2
        assert torch.equal(merge_block_order(image, merge), in_blocks(image, merge))


@pytest.mark.parametrize("grid", [(2, 2), (4, 6), (14, 2), (16, 18), (48, 48), (50, 100)], ids=str)
@pytest.mark.parametrize("side", [7, 48])
def test_position_table_equals_bilinear_align_corners(side: int, grid: tuple[int, int]) -> None:
    table = torch.randn(side * side, 5)
    square = table.view(1, side, side, 5).permute(0, 3, 1, 2)
    stretched = F.interpolate(square.double(), size=grid, mode="bilinear", align_corners=True)
    ours = interpolated_positions(table, [grid], 2)
    assert gap(ours, in_blocks(stretched[0].permute(1, 2, 0))) <= 2 * TOLERANCE
    if grid == (side, side):
        assert torch.equal(ours, in_blocks(table.view(side, side, 5)))


def test_position_table_is_interpolated_in_fp32_from_any_dtype() -> None:
    table = torch.randn(49, 5).bfloat16()
    ours = interpolated_positions(table, [(4, 6)], 2)
    assert ours.dtype == torch.float32
    assert torch.equal(ours, interpolated_positions(table.float(), [(4, 6)], 2))


def test_axial_rotary_turns_the_first_half_with_the_row() -> None:
    config = tower_config(head_dim=72)
    angles = axial_rotary([(4, 6), (2, 2)], config)
    assert angles.shape == (28, 72)
    row, col, quarter = 2, 5, 18
    patch = 24 // 2 + 10  # merged row 1, merged column 2, upper right of its block
    for i in range(quarter):
        for offset, position in ((0, row), (quarter, col)):
            angle = torch.tensor(position / 10000 ** (2 * i / 36), dtype=torch.float64)
            expected = torch.stack((angle.cos(), angle.sin()))
            got = angles[patch - 1, [offset + i, 36 + offset + i]].double()
            assert torch.allclose(got, expected, atol=1e-6)


def tower_config(head_dim: int, deepstack: tuple[int, ...] = ()) -> VisionConfig:
    return VisionConfig(
        depth=2, hidden_size=2 * head_dim, intermediate_size=40, num_heads=2, in_channels=3,
        patch_size=4, temporal_patch_size=2, spatial_merge_size=2, num_position_embeddings=25,
        out_hidden_size=24, deepstack_visual_indexes=deepstack,
    )  # fmt: skip


def build_towers(config: VisionConfig) -> tuple[VisionTower, Qwen3VLVisionModel]:
    fields = {k: v for k, v in vars(config).items() if k != "rope_theta"}
    oracle = Qwen3VLVisionModel(Qwen3VLVisionConfig(**fields, attn_implementation="eager")).eval()
    torch.manual_seed(0)
    for parameter in oracle.parameters():
        parameter.data.uniform_(-0.2, 0.2)
    with torch.device("meta"):
        tower = VisionTower(config)
    copy_weights(tower, oracle.state_dict(), torch.float32)
    return tower, oracle


@torch.inference_mode()
def run_towers(tower: VisionTower, oracle: Qwen3VLVisionModel) -> tuple[VisionOutput, object]:
    grids = [(4, 6), (2, 2)]
    pixels = torch.rand(28, tower.config.patch_dim) * 2 - 1
    theirs = oracle(pixels, torch.tensor([(1, *grid) for grid in grids]))
    return tower(pixels, grids, Context(ops.ThreadPool(2), lambda: None)), theirs


@pytest.mark.parametrize(("head_dim", "deepstack"), [(64, (1,)), (72, (0, 1)), (72, ())])
def test_real_head_sizes_equal_transformers(head_dim: int, deepstack: tuple[int, ...]) -> None:
    ours, theirs = run_towers(*build_towers(tower_config(head_dim, deepstack)))
    assert gap(ours.rows, theirs.pooler_output) <= TOLERANCE
    assert len(ours.deepstack) == len(deepstack)
    for feature, expected in zip(ours.deepstack, theirs.deepstack_features):
        assert gap(feature, expected) <= TOLERANCE


def test_norm_eps_shows_where_activations_are_small() -> None:
    tower, oracle = build_towers(tower_config(head_dim=64))
    for model in (tower, oracle):
        for name, parameter in model.named_parameters():
            if name.startswith(("patch_embed", "pos_embed")):
                parameter.data = parameter.data * 1e-2
    ours, theirs = run_towers(tower, oracle)
    assert gap(ours.rows, theirs.pooler_output) <= TOLERANCE
    for norm in (m for m in tower.modules() if isinstance(m, torch.nn.LayerNorm)):
        norm.eps = 1e-5
    wrong, theirs = run_towers(tower, oracle)
    assert gap(wrong.rows, theirs.pooler_output) > 3 * TOLERANCE


def test_images_do_not_see_each_other(ctx: Context) -> None:
    path = tiny_qwen3_vl()
    model = our_model(path, reference_model(path))
    inputs = make_inputs(model.config, ((4, 6), (6, 2), (2, 2)))
    together = model.encode_images(inputs.pixel_values, inputs.grids, ctx)
    assert len(together.rows) == 6 + 3 + 1
    pixels = inputs.pixel_values.split([24, 12, 4])
    alone = [model.encode_images(p, [g], ctx) for p, g in zip(pixels, inputs.grids)]
    assert gap(together.rows, torch.cat([one.rows for one in alone])) <= TOLERANCE
    for k, feature in enumerate(together.deepstack):
        assert gap(feature, torch.cat([one.deepstack[k] for one in alone])) <= TOLERANCE


def test_pixels_that_do_not_fit_the_grids_are_refused(ctx: Context) -> None:
    path = tiny_qwen3_vl()
    model = our_model(path, reference_model(path))
    for pixels in (torch.zeros(23, 1536), torch.zeros(24, 1535), torch.zeros(24, 3, 512)):
        with pytest.raises(PromptError, match=r"pixel_values: expected \(24, 1536\), got"):
            model.encode_images(pixels, [(4, 6)], ctx)
