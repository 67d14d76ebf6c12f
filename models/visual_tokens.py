"""What a vision tower hands to the decoder, and how it takes its place in the prompt."""

from dataclasses import dataclass

from torch import Tensor

from pydstp.errors import OptionError, PromptError
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


def place_visual_tokens(
    decoder: Decoder, input_ids: Tensor, image_token_id: int, vision: VisionOutput | None
) -> tuple[Tensor, DeepStack | None]:
    """Prompt embeddings with the visual tokens in place of the image tokens, in order.

    input_ids: [num_tokens] -> x: [num_tokens, hidden_size] and what to add behind the first
    layers. Raises PromptError where image tokens and visual tokens differ in number.
    """
    x = decoder.embed(input_ids)
    positions = (input_ids == image_token_id).nonzero().squeeze(1)
    num_visual = 0 if vision is None else len(vision.rows)
    if len(positions) != num_visual:
        found = len(positions)
        raise PromptError(f"input_ids: expected {num_visual} image tokens, got {found}")
    if vision is None:
        return x, None
    x = x.index_copy(0, positions, vision.rows)
    return x, DeepStack(vision.deepstack, positions)
