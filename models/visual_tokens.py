"""What a vision tower hands to the decoder, how it takes its place in the prompt, and the model
that both families derive from."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from pydstp.errors import OptionError, PromptError
from pydstp.models.config import VLMConfig
from pydstp.models.qwen3 import Decoder, DeepStack


@dataclass(frozen=True)
class VisionOutput:
    """Visual tokens of some images, one image (or tile) after the other.

    rows: [num_visual, out_hidden_size]. deepstack: one [num_visual, out_hidden_size] per tap.
    Of the block that was observed, if one was: attention, [num_visual] fp32, what each token
    receives (mean over heads and over its patches) from the class token of its tile, or where the
    tower has none from all patches of its image (mean over them); and keys,
    [num_visual, head_dim] fp32, as attention takes them (mean over its patches and over heads).
    """

    rows: Tensor
    deepstack: list[Tensor]
    attention: Tensor | None = None
    keys: Tensor | None = None


def block_index(observe: int | None, depth: int) -> int | None:
    """A block counted from the start; negative ones count from the end.

    Raises OptionError for one that the tower does not have.
    """
    if observe is not None and not -depth <= observe < depth:
        raise OptionError(f"block: expected one of the {depth} blocks of the vision tower "
                          f"(-{depth}..{depth - 1}), got {observe}")
    return observe if observe is None else observe % depth


class VisionLanguageModel(nn.Module):
    """Everything between pixel rows and logits; a family adds how it looks at pictures
    (`encode_images`) and how it counts positions (`positions`).

    tied: the checkpoint holds no head of its own; the embedding table serves.
    """

    def __init__(self, config: VLMConfig, tied: bool, visual: nn.Module) -> None:
        super().__init__()
        self.config = config
        self.visual = visual
        self.language_model = Decoder(config.text, tied)

    def check_rows(self, pixel_values: Tensor, grids: Sequence[tuple[int, int]]) -> None:
        """grids: (height, width) in patches. Raises PromptError where the rows do not agree."""
        expected = sum(height * width for height, width in grids), self.config.vision.patch_dim
        if tuple(pixel_values.shape) != expected:
            raise PromptError(f"pixel_values: expected {expected}, got {tuple(pixel_values.shape)}")

    def embed(
        self, input_ids: Tensor, vision: VisionOutput | None = None
    ) -> tuple[Tensor, DeepStack | None]:
        """Prompt embeddings with the visual tokens in place of the image tokens, in order.

        input_ids: [num_tokens], on the host or beside the weights -> x: [num_tokens, hidden_size]
        and what to add behind the first layers, its positions where input_ids lie. Raises
        PromptError where image tokens and visual tokens differ in number.
        """
        x = self.language_model.embed(input_ids)
        positions = (input_ids == self.config.image_token_id).nonzero().squeeze(1)
        num_visual = 0 if vision is None else len(vision.rows)
        if len(positions) != num_visual:
            found = len(positions)
            raise PromptError(f"input_ids: expected {num_visual} image tokens, got {found}")
        if vision is None:
            return x, None
        x = x.index_copy(0, positions.to(x.device), vision.rows)
        return x, DeepStack(vision.deepstack, positions)
