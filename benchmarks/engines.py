"""The engines that bench_generate compares: each loads a checkpoint and answers one prompt.

An answer is measured as: preprocess_ms, vision_ms, prefill_ms, first_token_ms (from the call to
the first token, everything included), decode_ms_per_token (first token left out), token_ids.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

MAX_TEXT_TOKENS = 1024


class Pydstp:
    """pydstp through its public API."""

    def __init__(self, path: Path, dtype: str, num_threads: int) -> None:
        import pydstp

        config = pydstp.EngineConfig(max_batch=1, max_text_tokens=MAX_TEXT_TOKENS,
                                     num_threads=num_threads)
        self._engine = pydstp.Engine(path, dtype=dtype, config=config)
        self._sampling_params = pydstp.SamplingParams

    def answer(self, image: Path, prompt: str, num_tokens: int) -> dict[str, Any]:
        """One measured answer of exactly `num_tokens` tokens."""
        sampling = self._sampling_params(temperature=0.0, max_new_tokens=num_tokens,
                                         ignore_eos=True)
        generation = self._engine.generate(image, prompt, sampling)
        timings = generation.timings
        return {"preprocess_ms": timings.preprocess_ms, "vision_ms": timings.vision_ms,
                "prefill_ms": timings.prefill_ms, "first_token_ms": timings.time_to_first_token_ms,
                "decode_ms_per_token": generation.ms_per_token,
                "prompt_tokens": generation.prompt_tokens,
                "visual_tokens": generation.visual_tokens, "token_ids": generation.token_ids}


class Transformers:
    """transformers' own class with sdpa attention, its PIL image processor and its `generate`."""

    def __init__(self, path: Path, dtype: str, num_threads: int) -> None:
        import torch
        from transformers import AutoModelForImageTextToText, AutoTokenizer
        from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import (
            Qwen2VLImageProcessorPil,
        )

        torch.set_num_threads(num_threads)
        self._tokenizer = AutoTokenizer.from_pretrained(path)
        self._processor = Qwen2VLImageProcessorPil.from_pretrained(path)
        self._model = AutoModelForImageTextToText.from_pretrained(
            path, dtype=getattr(torch, dtype), attn_implementation="sdpa").eval()
        self._model.generation_config.eos_token_id = None  # as ignore_eos
        self._vision_s = 0.0
        visual = self._model.model.visual
        visual.register_forward_pre_hook(self._vision_starts)
        visual.register_forward_hook(self._vision_ends)

    def _vision_starts(self, *_: object) -> None:
        self._vision_s -= time.perf_counter()

    def _vision_ends(self, *_: object) -> None:
        self._vision_s += time.perf_counter()

    def inputs(self, image: Path, prompt: str) -> dict[str, Any]:
        """What the model takes: the template rendered, the placeholder repeated per token."""
        from PIL import Image

        pixels = self._processor(images=[Image.open(image)], return_tensors="pt")
        num_visual = int(pixels["image_grid_thw"].prod()) // self._processor.merge_size**2
        content = [{"type": "image"}, {"type": "text", "text": prompt}]
        text = self._tokenizer.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True)
        pad = "<|image_pad|>"
        encoded = self._tokenizer(text.replace(pad, pad * num_visual), return_tensors="pt")
        is_visual = encoded["input_ids"] == self._model.config.image_token_id
        return {**encoded, **pixels, "mm_token_type_ids": is_visual.int()}

    def answer(self, image: Path, prompt: str, num_tokens: int) -> dict[str, Any]:
        """One measured answer of exactly `num_tokens` tokens."""
        import torch

        token_times = []

        def note_time(*_: object) -> torch.Tensor:
            token_times.append(time.perf_counter())
            return torch.zeros(1, dtype=torch.bool)

        self._vision_s = 0.0
        started = time.perf_counter()
        inputs = self.inputs(image, prompt)
        prepared = time.perf_counter()
        with torch.inference_mode():
            output = self._model.generate(**inputs, do_sample=False, max_new_tokens=num_tokens,
                                          stopping_criteria=[note_time])
        num_prompt = inputs["input_ids"].shape[1]
        vision_ms = 1e3 * self._vision_s
        return {"preprocess_ms": 1e3 * (prepared - started), "vision_ms": vision_ms,
                "prefill_ms": 1e3 * (token_times[0] - prepared) - vision_ms,
                "first_token_ms": 1e3 * (token_times[0] - started),
                "decode_ms_per_token":
                    1e3 * (token_times[-1] - token_times[0]) / (len(token_times) - 1),
                "prompt_tokens": num_prompt,
                "visual_tokens": int(inputs["mm_token_type_ids"].sum()),
                "token_ids": output[0, num_prompt:].tolist()}


ENGINES = {"pydstp": Pydstp, "transformers": Transformers}
