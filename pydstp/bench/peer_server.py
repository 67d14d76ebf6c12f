"""Another engine in a process of its own: answers "run once" over a pipe, so that turns interleave.

    PYTHON -I peer_server.py KIND CHECKPOINT NUM_THREADS

KIND is one of `PEERS`. Requests and replies are lines of JSON; the process ends with its input.
The file is run by the python of the peer's environment, so it imports the standard library alone,
and the peer when it is asked for. What `answer` returns is described in `pydstp/bench/turns.py`.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

Answer = dict[str, Any]


def memory_bytes(key: str) -> int:
    """`VmHWM` (largest resident size so far) or `VmRSS` of this process; 0 where nobody knows."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(key + ":")), 0)


def serve(open_engine: Callable[[], Any]) -> None:
    """Open an engine and call its methods: {"call": name, ...} -> {"result": ...}.

    An exception becomes {"error": message, "type": name of its class}. What libraries print goes to
    stderr. The first reply comes when the engine is open.
    """
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    def reply(compute: Callable[[], Any]) -> Any:
        try:
            result = compute()
        except Exception as error:
            replies.write(json.dumps({"error": str(error), "type": type(error).__name__}) + "\n")
            return None
        replies.write(json.dumps({"result": None if hasattr(result, "answer") else result}) + "\n")
        return result

    engine = reply(open_engine)
    for line in sys.stdin if engine is not None else ():
        request = json.loads(line)
        reply(lambda: getattr(engine, request.pop("call"))(**request))  # noqa: B023


class Peer:
    """What all peers share."""

    packages: tuple[str, ...] = ()

    def memory(self) -> dict[str, int]:
        """Bytes: the largest resident size so far, mapped files included."""
        return {"peak_rss_bytes": memory_bytes("VmHWM")}

    def versions(self) -> dict[str, str]:
        """Versions of what it runs on."""
        return {name: metadata.version(name) for name in self.packages}


class Transformers(Peer):
    """transformers' own class with sdpa attention, its PIL image processor and its `generate`.

    is_packed: the linear layers of the decoder are packed for oneDNN, which its own code does not.
    """

    packages = ("transformers", "torch")

    def __init__(self, path: str, num_threads: int, *, is_packed: bool = False) -> None:
        import torch
        from transformers import AutoModelForImageTextToText, AutoTokenizer
        from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import (
            Qwen2VLImageProcessorPil,
        )

        torch.set_num_threads(num_threads)
        self._tokenizer = AutoTokenizer.from_pretrained(path)
        self._processor = Qwen2VLImageProcessorPil.from_pretrained(path)
        self._model = AutoModelForImageTextToText.from_pretrained(
            path, dtype=torch.bfloat16, attn_implementation="sdpa").eval()
        self._model.generation_config.eos_token_id = None  # goes on past end tokens
        if is_packed:
            pack_linears(self._model.model.language_model)
            pack_linears(self._model, only=("lm_head",))
        self._vision_s = 0.0
        visual = self._model.model.visual
        visual.register_forward_pre_hook(self._vision_starts)
        visual.register_forward_hook(self._vision_ends)

    def _vision_starts(self, *_: object) -> None:
        self._vision_s -= time.perf_counter()

    def _vision_ends(self, *_: object) -> None:
        self._vision_s += time.perf_counter()

    def _inputs(self, image: str, prompt: str) -> dict[str, Any]:
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

    def answer(self, image: str, prompt: str, new_tokens: int, retention: int = 100) -> Answer:
        """One measured answer of exactly `new_tokens` tokens; nothing is pruned."""
        import torch

        times = []

        def note_time(*_: object) -> Any:
            times.append(time.perf_counter())
            return torch.zeros(1, dtype=torch.bool)

        self._vision_s = 0.0
        started = time.perf_counter()
        inputs = self._inputs(image, prompt)
        prepared = time.perf_counter()
        with torch.inference_mode():
            output = self._model.generate(**inputs, do_sample=False, max_new_tokens=new_tokens,
                                          stopping_criteria=[note_time])
        num_prompt, vision_ms = inputs["input_ids"].shape[1], 1e3 * self._vision_s
        return {"preprocess_ms": 1e3 * (prepared - started), "vision_ms": vision_ms,
                "prefill_ms": 1e3 * (times[0] - prepared) - vision_ms,
                "first_token_ms": 1e3 * (times[0] - started),
                "decode_ms": 1e3 * (times[-1] - times[0]) / max(1, len(times) - 1),
                "prompt_tokens": num_prompt, "token_ids": output[0, num_prompt:].tolist()}


def pack_linears(module: Any, only: tuple[str, ...] | None = None) -> None:
    """Give the `nn.Linear` below `module` (by name, where `only` is given) weights in the blocked
    layout of oneDNN, made once; the plain ones stay, as embeddings may share them."""
    import torch

    for name, layer in list(module.named_modules()):
        if isinstance(layer, torch.nn.Linear) and (only is None or name in only):
            packed = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach(), None)

            def forward(x: Any, packed: Any = packed, bias: Any = layer.bias) -> Any:
                return torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")

            layer.forward = forward


class PackedTransformers(Transformers):
    """The same with linear layers that are packed beforehand."""

    def __init__(self, path: str, num_threads: int) -> None:
        super().__init__(path, num_threads, is_packed=True)


class OpenVINO(Peer):
    """OpenVINO GenAI's pipeline on an exported folder, with its own defaults.

    On a processor with bf16 these are: bf16 arithmetic, also for an fp16 export, keys and values
    in 8 bits, and a prefix cache, for which every turn needs another picture.
    """

    packages = ("openvino", "openvino-genai")

    def __init__(self, path: str, num_threads: int) -> None:
        import openvino_genai

        self._genai = openvino_genai
        self._pipeline = openvino_genai.VLMPipeline(path, "CPU", INFERENCE_NUM_THREADS=num_threads)

    def answer(self, image: str, prompt: str, new_tokens: int, retention: int = 100) -> Answer:
        """One measured answer; below 100 its CDPruner keeps that many percent."""
        import numpy as np
        import openvino
        from PIL import Image

        config = self._genai.GenerationConfig()
        config.max_new_tokens = config.min_new_tokens = new_tokens
        config.ignore_eos, config.do_sample = True, False
        if retention < 100:
            config.pruning_ratio = 100 - retention
        started = time.perf_counter()
        pixels = np.array(Image.open(image).convert("RGB"))
        read_ms = 1e3 * (time.perf_counter() - started)
        result = self._pipeline.generate(prompt, images=[openvino.Tensor(pixels)],
                                         generation_config=config)
        metrics = result.perf_metrics
        first_ms = metrics.get_ttft().mean
        vision_ms = metrics.get_prepare_embeddings_duration().mean
        return {"preprocess_ms": read_ms, "vision_ms": vision_ms,
                "prefill_ms": first_ms - vision_ms, "first_token_ms": read_ms + first_ms,
                "decode_ms": metrics.get_tpot().mean, "token_ids": None,
                "prompt_tokens": metrics.get_num_input_tokens(),
                "new_tokens": metrics.get_num_generated_tokens()}


PEERS = {"transformers": Transformers, "transformers-packed": PackedTransformers,
         "openvino": OpenVINO}


def main() -> None:
    """Serve the peer that the command line names."""
    kind, path, num_threads = sys.argv[1:]
    serve(lambda: PEERS[kind](path, int(num_threads)))


if __name__ == "__main__":
    main()
