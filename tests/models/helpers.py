"""Both models side by side: our weights copied from the oracle, inputs, stages, a plain cache."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from pydstp.models.config import VLMConfig
from pydstp.models.internvl import InternVL
from pydstp.models.plans import Context, DecodePlan, PrefillPlan
from pydstp.models.qwen3 import Decoder
from pydstp.models.qwen3_vl import Qwen3VL
from pydstp.models.registry import build_model

TOLERANCE = 1e-5  # times max(1, largest reference value): fp32 against transformers

FUSED = {
    "qkv_proj": ("q_proj", "k_proj", "v_proj"),
    "gate_up_proj": ("gate_proj", "up_proj"),
    "qkv": ("q_proj", "k_proj", "v_proj"),
}


def gap(ours: Tensor, theirs: Tensor) -> float:
    """Largest difference in units of max(1, largest reference value)."""
    ours, theirs = ours.float().squeeze(), theirs.float().squeeze()
    assert ours.shape == theirs.shape, f"shape: expected {theirs.shape}, got {ours.shape}"
    return ((ours - theirs).abs().max() / theirs.abs().max().clamp(min=1)).item()


def read_config(path: Path) -> VLMConfig:
    file = path / "config.json"
    return VLMConfig.from_dict(json.loads(file.read_text()), str(file))


def copy_weights(model: nn.Module, tensors: dict[str, Tensor], dtype: torch.dtype) -> None:
    """Fill a meta model by name; the fused parameters from their parts."""
    for name, parameter in list(model.named_parameters()):
        owner, _, leaf = name.rpartition(".")
        kind = owner.rpartition(".")[2]
        if name in tensors:
            value = tensors[name]
        else:
            value = torch.cat([tensors[name.replace(kind, part)] for part in FUSED[kind]])
        assert value.shape == parameter.shape, name
        value = nn.Parameter(value.detach().to(dtype).contiguous(), requires_grad=False)
        setattr(model.get_submodule(owner), leaf, value)


@cache
def our_model(path: Path, oracle: PreTrainedModel, dtype: torch.dtype = torch.float32) -> Qwen3VL:
    """Our model with the oracle's weights (not through the loader, which has tests of its own)."""
    tied = oracle.lm_head.weight is oracle.model.language_model.embed_tokens.weight
    model = build_model(read_config(path), tied=tied)
    tensors = {name.removeprefix("model."): t for name, t in oracle.state_dict().items()}
    tensors["language_model.lm_head.weight"] = tensors.pop("lm_head.weight")
    copy_weights(model, tensors, dtype)
    return model


@dataclass(frozen=True)
class Inputs:
    """A prompt with images; `grids` are (height, width) in patches."""

    input_ids: Tensor
    pixel_values: Tensor
    grids: tuple[tuple[int, int], ...]

    def for_oracle(self, config: VLMConfig) -> dict[str, Tensor]:
        ids = self.input_ids.unsqueeze(0)
        kwargs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if self.grids:
            kwargs |= {
                "mm_token_type_ids": (ids == config.image_token_id).long(),
                "pixel_values": self.pixel_values,
                "image_grid_thw": torch.tensor([(1, *grid) for grid in self.grids]),
            }
        return kwargs


def make_inputs(config: VLMConfig, grids: Sequence[tuple[int, int]], seed: int = 0) -> Inputs:
    """Random text, an image, random text, an image ..., random text, random pixels in [-1, 1]."""
    generator = torch.Generator().manual_seed(seed)

    def text(length: int) -> list[int]:
        return torch.randint(0, 256, (length,), generator=generator).tolist()

    ids = text(5)
    for height, width in grids:
        visual = [config.image_token_id] * (height * width // config.vision.merge_unit)
        ids += [config.vision_start_token_id, *visual, config.vision_end_token_id, *text(3)]
    patches = sum(height * width for height, width in grids)
    pixels = torch.rand(patches, config.vision.patch_dim, generator=generator) * 2 - 1
    return Inputs(torch.tensor(ids), pixels, tuple(grids))


class TinyCache:
    """Arenas and lists with everything visible, one layer group, slots in order of arrival."""

    def __init__(self, decoder: Decoder, max_batch: int = 1, capacity: int = 96) -> None:
        text, dtype = decoder.config, decoder.norm.weight.dtype
        shape = (max_batch, capacity, 2, text.num_kv_heads, text.head_dim)
        self.capacity = capacity
        self.visual = torch.full((text.num_layers, *shape), torch.nan, dtype=dtype)
        self.text = torch.full((text.num_layers, *shape), torch.nan, dtype=dtype)
        every_slot = torch.arange(capacity, dtype=torch.int32)
        self.visible_indices = every_slot.repeat(max_batch, 1, 1).contiguous()
        self.visible_len = torch.zeros(max_batch, 1, dtype=torch.int32)
        self.layer_to_group = torch.zeros(max_batch, text.num_layers, dtype=torch.int32)
        self.text_len = torch.zeros(max_batch, dtype=torch.int32)
        self.slots: list[list[int]] = [[] for _ in range(max_batch)]

    def append(self, seq_idx: int, is_visual: Tensor) -> Tensor:
        new = []
        for visual in is_visual.tolist():
            length = self.visible_len[seq_idx] if visual else self.text_len[seq_idx]
            new.append(int(length) + (0 if visual else self.capacity))
            length += 1
        self.slots[seq_idx] += new
        return torch.tensor(new, dtype=torch.int32)

    def prefill_plan(self, seq_idx: int, is_visual: Tensor) -> PrefillPlan:
        num_past = len(self.slots[seq_idx])
        slot_idx = self.append(seq_idx, is_visual)
        context = visible_len = None
        if num_past:
            context = torch.tensor(self.slots[seq_idx], dtype=torch.int32)
            visible_len = torch.arange(num_past + 1, len(context) + 1, dtype=torch.int32)
        return PrefillPlan(
            seq_idx, torch.full_like(slot_idx, seq_idx), slot_idx, context, visible_len
        )

    def decode_plan(self, sequences: list[int]) -> DecodePlan:
        is_text = torch.tensor([False])
        slot_idx = torch.cat([self.append(seq_idx, is_text) for seq_idx in sequences])
        return DecodePlan(
            seq_idx_rows=torch.tensor(sequences, dtype=torch.int32),
            slot_idx=slot_idx,
            visible_indices=self.visible_indices,
            visible_len=self.visible_len,
            layer_to_group=self.layer_to_group,
            text_len=self.text_len,
        )


@dataclass
class Runner:
    """Prompt by prompt and step by step through our model, as an engine would."""

    model: Qwen3VL | InternVL
    ctx: Context
    max_batch: int = 1
    capacity: int = 96
    next_position: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.cache = TinyCache(self.model.language_model, self.max_batch, self.capacity)
        self.all_layers = range(self.model.config.text.num_layers)

    @torch.inference_mode()
    def prefill(self, inputs: Inputs, seq_idx: int = 0) -> Tensor:
        """-> fp32 logits of every row, [num_tokens, vocab_size]."""
        model, decoder, vision = self.model, self.model.language_model, None
        if inputs.grids:
            vision = model.encode_images(inputs.pixel_values, inputs.grids, self.ctx)
        start = self.next_position.get(seq_idx, 0)
        positions, end = model.positions(inputs.input_ids, inputs.grids, start)
        self.next_position[seq_idx] = end
        x, deepstack = model.embed(inputs.input_ids, vision)
        is_visual = inputs.input_ids == model.config.image_token_id
        x = decoder.forward_layers(
            x,
            layers=self.all_layers,
            cos_sin=decoder.rotary(positions),
            cache=self.cache,
            plan=self.cache.prefill_plan(seq_idx, is_visual),
            ctx=self.ctx,
            deepstack=deepstack,
        )
        return decoder.logits(x, self.ctx)

    @torch.inference_mode()
    def decode(self, tokens: dict[int, int]) -> Tensor:
        """tokens: the next token of some sequences -> [len(tokens), vocab_size] fp32."""
        decoder, sequences = self.model.language_model, list(tokens)
        positions = torch.tensor([self.next_position[seq_idx] for seq_idx in sequences])
        for seq_idx in sequences:
            self.next_position[seq_idx] += 1
        x = decoder.forward_layers(
            decoder.embed(torch.tensor(list(tokens.values()))),
            layers=self.all_layers,
            cos_sin=decoder.rotary(positions),
            cache=self.cache,
            plan=self.cache.decode_plan(sequences),
            ctx=self.ctx,
        )
        return decoder.logits(x, self.ctx)

    def generate(self, prompts: list[Inputs], num_tokens: int) -> list[list[int]]:
        """Greedy continuations of the prompts, decoded together."""
        rows = [self.prefill(prompt, i)[-1] for i, prompt in enumerate(prompts)]
        generated = [[int(row.argmax())] for row in rows]
        for _ in range(num_tokens - 1):
            logits = self.decode({i: tokens[-1] for i, tokens in enumerate(generated)})
            for tokens, row in zip(generated, logits):
                tokens.append(int(row.argmax()))
        return generated
