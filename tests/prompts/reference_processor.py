"""transformers' Qwen3-VL processor without its video part, which needs torchvision."""

from pathlib import Path

from transformers import AutoTokenizer
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor


class ReferenceProcessor(Qwen3VLProcessor):
    """Template, placeholder expansion, tokens and pixels of transformers."""

    def __init__(self, image_processor: object = None, tokenizer: object = None,
                 chat_template: str | None = None, **unused: object) -> None:
        super().__init__(image_processor, tokenizer, None, chat_template)


def reference_processor(path: Path, chat_template: str) -> ReferenceProcessor:
    tokenizer = AutoTokenizer.from_pretrained(path)
    processor = Qwen2VLImageProcessorPil.from_pretrained(path)
    return ReferenceProcessor(processor, tokenizer, chat_template)
