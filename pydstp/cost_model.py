"""The cost model: what a prompt and a decode step must read and compute, from config.json alone.

Norms, activations, rotations and sampling are left out; so is the time between operations. What is
measured lies above the prediction, and how far above says how good the implementation is.
"""

from __future__ import annotations

from dataclasses import dataclass

from pydstp.cost import Cost
from pydstp.models.config import InternVisionConfig, VLMConfig


@dataclass(frozen=True)
class CostModel:
    """Costs of one model.

    Attributes:
        config: the model.
        element_bytes: of an element of keys, values and activations.
        weight_bytes: of the decoder's weights that one token reads, head included; None takes all
            matrices at `element_bytes` (of sparse layers the experts that one token uses).
    """

    config: VLMConfig
    element_bytes: int
    weight_bytes: int | None = None

    @property
    def kv_bytes(self) -> int:
        """Keys and values of one token in one layer."""
        text = self.config.text
        return 2 * text.num_kv_heads * text.head_dim * self.element_bytes

    @property
    def layer_elements(self) -> int:
        """Elements of the matrices of one decoder layer that one token passes."""
        text = self.config.text
        heads = 2 * text.num_heads + 2 * text.num_kv_heads
        attention = heads * text.head_dim * text.hidden_size
        moe = text.moe
        if moe is None:
            return attention + 3 * text.hidden_size * text.intermediate_size
        experts = 3 * moe.moe_intermediate_size * moe.num_experts_per_tok + moe.num_experts
        return attention + text.hidden_size * experts

    @property
    def step_weight_bytes(self) -> int:
        """Bytes of weights that a decode step of one sequence reads."""
        if self.weight_bytes is not None:
            return self.weight_bytes
        text = self.config.text
        head = text.vocab_size * text.hidden_size
        return (text.num_layers * self.layer_elements + head) * self.element_bytes

    def vision(self, num_visual: int, num_pictures: int = 1) -> Cost:
        """The vision tower on pictures (or tiles) of equal size, `num_visual` tokens together."""
        vision = self.config.vision
        patches = num_visual * vision.merge_unit
        width = vision.hidden_size
        has_class_token = isinstance(vision, InternVisionConfig)
        rows = patches + num_pictures * has_class_token
        block = 4 * width**2 + 2 * width * vision.intermediate_size
        linear = patches * vision.patch_dim * width + rows * vision.depth * block
        merged = num_visual * self._merger_elements()
        pairs = rows**2 / max(1, num_pictures)
        return Cost(flops=2 * (linear + merged) + 4 * vision.depth * width * pairs)

    def _merger_elements(self) -> int:
        """Elements of what makes visual tokens of patches, DeepStack included."""
        vision, out = self.config.vision, self.config.vision.out_hidden_size
        wide = vision.hidden_size * vision.merge_unit
        if isinstance(vision, InternVisionConfig):
            return wide * out + out**2
        return (1 + len(vision.deepstack_visual_indexes)) * (wide**2 + wide * out)

    def prefill(self, num_rows: float, num_seen: float | None = None, *,
                num_layers: int | None = None) -> Cost:
        """Rows on their way through decoder layers.

        num_seen: tokens that a row looks at, on average; None: the rows before it and itself.
        num_layers: None takes all of them.
        """
        text = self.config.text
        layers = text.num_layers if num_layers is None else num_layers
        seen = (num_rows + 1) / 2 if num_seen is None else num_seen
        attention = 4 * text.num_heads * text.head_dim * seen
        return Cost(flops=layers * num_rows * (2 * self.layer_elements + attention))

    def decode_step(self, num_tokens: float, batch: int = 1) -> Cost:
        """One step: the weights once, and keys and values of so many tokens per sequence.

        num_tokens: that each sequence reads, visual and text, mean over layers.
        """
        rows = batch * num_tokens * self.config.text.num_layers
        return Cost(self.step_weight_bytes + rows * self.kv_bytes)

    def cache_bytes(self, num_tokens: int) -> int:
        """Keys and values of so many tokens in all layers."""
        return num_tokens * self.config.text.num_layers * self.kv_bytes
