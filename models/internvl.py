"""InternVL3.5: InternViT, projector and Qwen3 decoder, and how they meet."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from pydstp.errors import PromptError
from pydstp.models.config import VLMConfig
from pydstp.models.internvl_vision import InternVisionTower, Projector
from pydstp.models.plans import Context
from pydstp.models.qwen3 import Decoder, DeepStack
from pydstp.models.visual_tokens import VisionOutput, place_visual_tokens


class InternVL(nn.Module):
    """Everything between pixel rows and logits.

    tied: the checkpoint holds no head of its own; the embedding table serves.
    """

    def __init__(self, config: VLMConfig, tied: bool) -> None:
        super().__init__()
        self.config = config
        self.visual = InternVisionTower(config.vision)
        self.projector = Projector(config.vision)
        self.language_model = Decoder(config.text, tied)

    def encode_images(
        self,
        pixel_values: Tensor,
        grids: Sequence[tuple[int, int]],
        ctx: Context,
        observe: int | None = None,
    ) -> VisionOutput:
        """pixel_values: [num_patches, patch_dim] fp32, tiles one after the other; grids: (height,
        width) in patches of each tile; observe: see `InternVisionTower`. Activations are in the
        dtype of the weights. Raises PromptError where tiles are not of the model's size, or rows
        and grids do not agree.
        """
        side = self.config.vision.tile_side
        if set(grids) != {(side, side)}:
            raise PromptError(f"grids: expected tiles of {side} x {side} patches, got {grids}")
        expected = len(grids) * side**2, self.config.vision.patch_dim
        if tuple(pixel_values.shape) != expected:
            raise PromptError(f"pixel_values: expected {expected}, got {tuple(pixel_values.shape)}")
        vision = self.visual(pixel_values, ctx.check, observe)
        return replace(vision, rows=self.projector(vision.rows))

    def positions(
        self, input_ids: Tensor, grids: Sequence[tuple[int, int]], start: int = 0
    ) -> tuple[Tensor, int]:
        """Positions count tokens, visual ones among them.

        -> [num_tokens] int64, and the position of the next token.
        """
        end = start + len(input_ids)
        return torch.arange(start, end), end

    def embed(
        self, input_ids: Tensor, vision: VisionOutput | None = None
    ) -> tuple[Tensor, DeepStack | None]:
        """Prompt embeddings with the visual tokens in place, see `place_visual_tokens`."""
        image_token_id = self.config.image_token_id
        return place_visual_tokens(self.language_model, input_ids, image_token_id, vision)
