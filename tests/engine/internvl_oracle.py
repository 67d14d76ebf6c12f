"""Greedy answers of transformers' InternVL, through its own processor: tiles, prompt, tokens."""

from functools import cache
from pathlib import Path

import torch
from PIL import Image
from transformers import AutoTokenizer
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.internvl.processing_internvl import InternVLProcessor

from tests.internvl_checkpoints import TOKENS_PER_TILE, internvl_reference


class Processor(InternVLProcessor):
    """Without its video part, which needs torchvision."""

    def __init__(self, image_processor: object = None, tokenizer: object = None,
                 chat_template: str | None = None, **unused: object) -> None:
        super().__init__(image_processor, tokenizer, None, image_seq_length=TOKENS_PER_TILE,
                         chat_template=chat_template)

    def check_argument_for_proper_class(self, argument_name: str, argument: object) -> object:
        return None if argument is None else super().check_argument_for_proper_class(
            argument_name, argument)


@cache
def processor_of(path: Path) -> Processor:
    tokenizer = AutoTokenizer.from_pretrained(path, extra_special_tokens={
        "start_image_token": "<img>", "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>", "video_token": "<video>"})
    template = (path / "chat_template.jinja").read_text()
    return Processor(GotOcr2ImageProcessorPil.from_pretrained(path), tokenizer, template)


def prompt_inputs(path: Path, messages: list[dict], images: list[Image.Image]) -> dict:
    """What transformers' model takes for a conversation."""
    processor = processor_of(path)
    text = processor.tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=False)
    inputs = processor(images=images or None, text=[text], return_tensors="pt")
    inputs.pop("num_patches", None)
    return dict(inputs)


@torch.inference_mode()
def greedy(path: Path, messages: list[dict], images: list[Image.Image],
           num_tokens: int) -> list[int]:
    """`num_tokens` greedy tokens, end tokens ignored; names of files as in transformers."""
    inputs = prompt_inputs(path, messages, images)
    output = internvl_reference(path).generate(
        **inputs, do_sample=False, max_new_tokens=num_tokens, eos_token_id=None, pad_token_id=0)
    return output[0, inputs["input_ids"].shape[1]:].tolist()
