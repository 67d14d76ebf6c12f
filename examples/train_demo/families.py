"""The two architectures that train.py can give the small model: Qwen3-VL and InternVL3.5.

InternVL reads square tiles. Here a picture is one tile of 10 x 10 visual tokens, whatever its size:
each of its at most 9 x 10 cells has the middle of a token, and cells and tokens do not coincide.
"""
from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from checkpoint import (
    SPECIAL,
    build_config,
    build_model,
    build_tokenizer,
    chat_template,
    write_files,
)
from data import Batch, Cells, cell_facts, render_prompt
from PIL import Image
from tokenizers import Tokenizer
from torch.nn import functional
from transformers import InternVLConfig, InternVLForConditionalGeneration

from pydstp.tasks import Example

TILE, SIDE = 320, 10  # pixels and visual tokens along one side
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
INTERNVL_SPECIAL = (*SPECIAL, "<img>", "</img>", "<IMG_CONTEXT>")
INTERNVL_TEMPLATE = chat_template("<IMG_CONTEXT>\\n")
INTERNVL_PROCESSOR = {
    "crop_to_patches": True, "do_convert_rgb": True, "do_normalize": True, "do_rescale": True,
    "do_resize": True, "image_mean": IMAGENET[0], "image_processor_type":
    "GotOcr2ImageProcessorFast", "image_std": IMAGENET[1], "max_patches": 1, "min_patches": 1,
    "processor_class": "InternVLProcessor", "resample": 3, "rescale_factor": 1 / 255,
    "size": {"height": TILE, "width": TILE}}


class Qwen3VL(Cells):
    """The family of the embedded checkpoint."""

    def tokenizer(self) -> Tokenizer:
        """A tokenizer trained on the tasks."""
        return build_tokenizer()

    def model(self, tokenizer: Tokenizer, seed: int) -> torch.nn.Module:
        """Fresh weights."""
        model = build_model(build_config(tokenizer), seed)
        use_fast_patches(model)
        return model

    def write_files(self, folder: Path, tokenizer: Tokenizer) -> None:
        """Everything beside config and weights."""
        write_files(folder, tokenizer)

    def see(self, model: torch.nn.Module, batch: Batch) -> object:
        """The output of the vision side; `pooler_output` holds the visual tokens."""
        return model.model.get_image_features(batch.patches, batch.grid_thw, return_dict=True)

    def hidden(self, model: torch.nn.Module, batch: Batch, seen: object) -> torch.Tensor:
        """[batch, length, hidden] behind the last layer."""
        return model.model(input_ids=batch.input_ids, mm_token_type_ids=batch.types,
                           mm_encoder_outputs={"image": seen}, image_grid_thw=batch.grid_thw,
                           use_cache=False).last_hidden_state


def use_fast_patches(model: torch.nn.Module) -> None:
    """Still pictures repeat one frame: sum both temporal halves of the kernel, skip the conv."""
    layer = model.model.visual.patch_embed

    def forward(patches: torch.Tensor) -> torch.Tensor:
        weight = layer.proj.weight.sum(2).flatten(1)
        return functional.linear(patches, weight, layer.proj.bias)

    layer.forward = forward


class InternVL(Cells):
    """The same sizes with InternVL's tower, projector and one-dimensional positions."""

    image_token = "<IMG_CONTEXT>"

    def prompt(self, example: Example) -> str:
        """What the template writes, with all visual tokens."""
        picture = f"<img>{self.image_token * SIDE**2}</img>"
        text = render_prompt(len(example.images), example.prompt, INTERNVL_TEMPLATE)
        return text.replace(self.image_token, picture)

    def pixels(self, images: list) -> torch.Tensor:
        """[num_images, 3, TILE, TILE], as the processor of transformers makes them."""
        tiles = [np.asarray(image.resize((TILE, TILE), Image.Resampling.BICUBIC))
                 for image in images]
        pixels = torch.from_numpy(np.stack(tiles)).permute(0, 3, 1, 2).float() / 255
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in IMAGENET)
        return (pixels - mean) / std

    def facts(self, examples: list[Example]) -> torch.Tensor:
        """The classes of FACTS for every visual token."""
        return cell_facts(examples, SIDE)

    def size(self, rows: int, cols: int) -> dict[str, int]:
        """At least 4 rows and columns: fewer would be blown up beyond what the others teach."""
        return {"rows": max(4, rows), "cols": max(4, cols)}

    def tokenizer(self) -> Tokenizer:
        """A tokenizer trained on the tasks."""
        return build_tokenizer(special=INTERNVL_SPECIAL)

    @torch.no_grad()
    def model(self, tokenizer: Tokenizer, seed: int) -> InternVLForConditionalGeneration:
        """Fresh weights, large where positions and words are told apart, as for Qwen3-VL."""
        torch.manual_seed(seed)
        model = InternVLForConditionalGeneration(internvl_config(tokenizer)).float()
        for name, weight in model.named_parameters():
            if name.endswith(("embed_tokens.weight", "position_embeddings", "cls_token")):
                weight.normal_(0, 0.5)
            elif name.endswith((".lambda_1", ".lambda_2")):
                weight.fill_(1.0)
            elif name.endswith(".bias"):
                weight.zero_()
            elif "norm" not in name:
                weight.normal_(0, 1 / math.sqrt(weight[0].numel()))
        return model

    def write_files(self, folder: Path, tokenizer: Tokenizer) -> None:
        """Everything beside config and weights."""
        write_files(folder, tokenizer, INTERNVL_SPECIAL, INTERNVL_TEMPLATE, INTERNVL_PROCESSOR)

    def see(self, model: torch.nn.Module, batch: Batch) -> object:
        """The output of the vision side; `pooler_output` holds the visual tokens."""
        return model.model.get_image_features(batch.patches, return_dict=True)

    def hidden(self, model: torch.nn.Module, batch: Batch, seen: object) -> torch.Tensor:
        """[batch, length, hidden] behind the last layer."""
        return model.model(input_ids=batch.input_ids, mm_encoder_outputs={"image": seen},
                           use_cache=False).last_hidden_state


def internvl_config(tokenizer: Tokenizer) -> InternVLConfig:
    """The decoder of the embedded model behind a larger tower, which has to find the cells."""
    text = {"model_type": "qwen3", "vocab_size": tokenizer.get_vocab_size(), "hidden_size": 128,
            "intermediate_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4,
            "num_key_value_heads": 2, "head_dim": 64, "max_position_embeddings": 4096,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0},
            "bos_token_id": None, "eos_token_id": tokenizer.token_to_id("<|im_end|>"),
            "tie_word_embeddings": True}
    vision = {"hidden_size": 96, "num_hidden_layers": 4, "num_attention_heads": 4,
              "intermediate_size": 192, "image_size": [TILE, TILE], "patch_size": [16, 16],
              "attention_bias": True, "use_qk_norm": False, "norm_type": "layer_norm"}
    return InternVLConfig(text_config=text, vision_config=vision, tie_word_embeddings=True,
                          image_token_id=tokenizer.token_to_id("<IMG_CONTEXT>"),
                          image_seq_length=SIDE**2)


FAMILIES = {"qwen3_vl": Qwen3VL(), "internvl": InternVL()}
