"""Qwen3-VL and Qwen3-VL-MoE: vision tower and decoder, and how they meet."""

from collections.abc import Sequence

from torch import Tensor, nn

from pydstp.errors import PromptError
from pydstp.models.config import VLMConfig
from pydstp.models.mrope import mrope_positions
from pydstp.models.plans import Context
from pydstp.models.qwen3 import Decoder, DeepStack
from pydstp.models.qwen3_vl_vision import VisionTower
from pydstp.models.visual_tokens import VisionOutput, place_visual_tokens


class Qwen3VL(nn.Module):
    """Everything between pixel rows and logits.

    tied: the checkpoint holds no head of its own; the embedding table serves.
    """

    def __init__(self, config: VLMConfig, tied: bool) -> None:
        super().__init__()
        self.config = config
        self.visual = VisionTower(config.vision)
        self.language_model = Decoder(config.text, tied)

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
        expected = sum(height * width for height, width in grids), self.config.vision.patch_dim
        if tuple(pixel_values.shape) != expected:
            raise PromptError(f"pixel_values: expected {expected}, got {tuple(pixel_values.shape)}")
        return self.visual(pixel_values, grids, ctx.check, observe)

    def positions(
        self, input_ids: Tensor, grids: Sequence[tuple[int, int]], start: int = 0
    ) -> tuple[Tensor, int]:
        """M-RoPE positions of one sequence, see `mrope_positions`."""
        merge_size = self.config.vision.spatial_merge_size
        return mrope_positions(input_ids, grids, self.config.image_token_id, merge_size, start)

    def embed(
        self, input_ids: Tensor, vision: VisionOutput | None = None
    ) -> tuple[Tensor, DeepStack | None]:
        """Prompt embeddings with the visual tokens in place, see `place_visual_tokens`."""
        image_token_id = self.config.image_token_id
        return place_visual_tokens(self.language_model, input_ids, image_token_id, vision)
