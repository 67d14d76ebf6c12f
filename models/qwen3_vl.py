"""Qwen3-VL and Qwen3-VL-MoE: vision tower and decoder, and how they meet."""

from collections.abc import Sequence

from torch import Tensor, nn

from pydstp.errors import PromptError
from pydstp.models.config import VLMConfig
from pydstp.models.mrope import mrope_positions
from pydstp.models.plans import Context
from pydstp.models.qwen3 import Decoder, DeepStack
from pydstp.models.qwen3_vl_vision import VisionOutput, VisionTower


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
        self, pixel_values: Tensor, grids: Sequence[tuple[int, int]], ctx: Context
    ) -> VisionOutput:
        """pixel_values: [num_patches, patch_dim] fp32, images one after the other; grids: (height,
        width) in patches of each. Activations are in the dtype of the weights.

        Raises PromptError where rows and grids do not agree.
        """
        expected = sum(height * width for height, width in grids), self.config.vision.patch_dim
        if tuple(pixel_values.shape) != expected:
            raise PromptError(f"pixel_values: expected {expected}, got {tuple(pixel_values.shape)}")
        return self.visual(pixel_values, grids, ctx.check)

    def positions(
        self, input_ids: Tensor, grids: Sequence[tuple[int, int]], start: int = 0
    ) -> tuple[Tensor, int]:
        """M-RoPE positions of one sequence, see `mrope_positions`."""
        merge_size = self.config.vision.spatial_merge_size
        return mrope_positions(input_ids, grids, self.config.image_token_id, merge_size, start)

    def embed(
        self, input_ids: Tensor, vision: VisionOutput | None = None
    ) -> tuple[Tensor, DeepStack | None]:
        """Prompt embeddings with the visual tokens in place of the image tokens, in order.

        input_ids: [num_tokens] -> x: [num_tokens, hidden_size] and what to add behind the first
        layers. Raises PromptError where image tokens and visual tokens differ in number.
        """
        x = self.language_model.embed(input_ids)
        positions = (input_ids == self.config.image_token_id).nonzero().squeeze(1)
        num_visual = 0 if vision is None else len(vision.rows)
        if len(positions) != num_visual:
            found = len(positions)
            raise PromptError(f"input_ids: expected {num_visual} image tokens, got {found}")
        if vision is None:
            return x, None
        x = x.index_copy(0, positions, vision.rows)
        return x, DeepStack(vision.deepstack, positions)
