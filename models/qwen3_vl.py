"""Qwen3-VL and Qwen3-VL-MoE: vision tower and decoder, and how they meet."""

from collections.abc import Sequence

from torch import Tensor

from pydstp.models.config import VLMConfig
from pydstp.models.mrope import mrope_positions
from pydstp.models.plans import Context
from pydstp.models.qwen3_vl_vision import VisionTower
from pydstp.models.visual_tokens import VisionLanguageModel, VisionOutput


class Qwen3VL(VisionLanguageModel):
    """The family's parts put together."""

    def __init__(self, config: VLMConfig, tied: bool) -> None:
        super().__init__(config, tied, VisionTower(config.vision))

    def encode_images(
        self,
        pixel_values: Tensor,
        grids: Sequence[tuple[int, int]],
        ctx: Context,
        observe: int | None = None,
    ) -> VisionOutput:
        """pixel_values: [num_patches, patch_dim] fp32, images one after the other; grids: (height,
        width) in patches of each; observe: see `VisionTower`. Activations are in the dtype of the
        weights. Raises PromptError where rows and grids do not agree.
        """
        self.check_rows(pixel_values, grids)
        return self.visual(pixel_values, grids, ctx, observe)

    def positions(
        self, input_ids: Tensor, grids: Sequence[tuple[int, int]], start: int = 0
    ) -> tuple[Tensor, int]:
        """M-RoPE positions of one sequence, see `mrope_positions`."""
        merge_size = self.config.vision.spatial_merge_size
        return mrope_positions(input_ids, grids, self.config.image_token_id, merge_size, start)
