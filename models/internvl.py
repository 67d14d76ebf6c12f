"""InternVL3.5: InternViT, projector and Qwen3 decoder, and how they meet."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from pydstp.errors import PromptError
from pydstp.models.config import VLMConfig
from pydstp.models.internvl_vision import InternVisionTower, Projector
from pydstp.models.plans import Context
from pydstp.models.visual_tokens import VisionLanguageModel, VisionOutput


class InternVL(VisionLanguageModel):
    """The family's parts put together."""

    def __init__(self, config: VLMConfig, tied: bool) -> None:
        super().__init__(config, tied, InternVisionTower(config.vision))
        self.projector = Projector(config.vision)

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
        self.check_rows(pixel_values, grids)
        vision = self.visual(pixel_values, ctx, observe)
        return replace(vision, rows=self.projector(vision.rows))

    def positions(
        self, input_ids: Tensor, grids: Sequence[tuple[int, int]], start: int = 0
    ) -> tuple[Tensor, int]:
        """Positions count tokens, visual ones among them.

        -> [num_tokens] int64 on the host, and the position of the next token.
        """
        end = start + len(input_ids)
        return torch.arange(start, end, device="cpu"), end
