"""Greedy answers of transformers, through its own tokenizer, template and picture processor."""

from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import AutoTokenizer, Qwen2VLImageProcessorPil

from tests.checkpoints import reference_model


@cache
def _files(path: Path):
    return AutoTokenizer.from_pretrained(path), Qwen2VLImageProcessorPil.from_pretrained(path)


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """Random coarse blocks: every patch differs from its neighbours."""
    blocks = np.random.default_rng(seed).integers(0, 256, (height // 8 + 1, width // 8 + 1, 3))
    pixels = blocks.astype(np.uint8).repeat(8, axis=0).repeat(8, axis=1)
    return Image.fromarray(pixels[:height, :width])


def prompt_inputs(path: Path, messages: list[dict], images: list[Image.Image]) -> dict:
    """What transformers' model takes for a conversation."""
    tokenizer, processor = _files(path)
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    inputs = {}
    if images:
        features = processor(images, return_tensors="pt")
        inputs = {"pixel_values": features["pixel_values"],
                  "image_grid_thw": features["image_grid_thw"]}
        parts = text.split("<|image_pad|>")
        assert len(parts) == len(images) + 1
        text = parts[0]
        for (_, height, width), part in zip(features["image_grid_thw"].tolist(), parts[1:],
                                            strict=True):
            text += "<|image_pad|>" * (height * width // 4) + part
    input_ids = torch.tensor([tokenizer(text)["input_ids"]])
    pad = tokenizer.convert_tokens_to_ids("<|image_pad|>")
    return {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids),
            "mm_token_type_ids": (input_ids == pad).int(), **inputs}


@torch.inference_mode()
def greedy(path: Path, messages: list[dict], images: list[Image.Image], num_tokens: int,
           dtype: str = "float32") -> list[int]:
    """`num_tokens` greedy tokens, end tokens ignored."""
    inputs = prompt_inputs(path, messages, images)
    model = reference_model(path, dtype=dtype)
    if "pixel_values" in inputs:
        inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
    output = model.generate(**inputs, do_sample=False, max_new_tokens=num_tokens,
                            eos_token_id=None, pad_token_id=0)
    return output[0, inputs["input_ids"].shape[1]:].tolist()


def user(text: str, num_images: int = 0) -> dict:
    """A user message with pictures in front of its text."""
    items = [{"type": "image"} for _ in range(num_images)] + [{"type": "text", "text": text}]
    return {"role": "user", "content": items if num_images else text}
