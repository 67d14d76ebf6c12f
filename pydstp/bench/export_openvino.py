"""Export a Qwen3-VL checkpoint for OpenVINO GenAI; run by the python of its own environment.

    HF_HUB_OFFLINE=1 PYTHON export_openvino.py CHECKPOINT OUTPUT [--weights fp16|int8]

The environment (optimum-intel 2.2.0 exports Qwen3-VL with transformers up to 4.57.6 only):

    pip install "optimum-intel[openvino]==2.2.0" openvino-genai==2026.4.1 openvino-tokenizers \\
        "transformers==4.57.6" "torch>=2.11,<2.14"

It takes three to five times the size of the files in memory, and half a minute per gigabyte.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

TOKENIZER = "openvino_tokenizer.xml"  # missing, without an error, where the tokenizer was not read


def old_config(config: dict[str, Any]) -> dict[str, Any]:
    """config.json as transformers 4.57 spells it."""
    text, vision = dict(config["text_config"]), dict(config["vision_config"])
    if (rope := text.pop("rope_parameters", None)) is not None:
        rope = dict(rope)
        text |= {"rope_theta": rope.pop("rope_theta"), "rope_scaling": rope}
    vision["model_type"] = "qwen3_vl"
    return {**config, "text_config": text, "vision_config": vision}


def old_tokenizer_config(config: dict[str, Any]) -> dict[str, Any]:
    """tokenizer_config.json without what 4.57 cannot read."""
    config = {key: value for key, value in config.items() if key != "backend"}
    if isinstance(config.get("extra_special_tokens"), list):
        del config["extra_special_tokens"]
    return config


def write_copy(checkpoint: Path, folder: Path) -> None:
    """The same checkpoint in the old spelling: two files rewritten, links to all others."""
    rewrites = {"config.json": old_config, "tokenizer_config.json": old_tokenizer_config}
    for path in checkpoint.iterdir():
        if path.name in rewrites:
            content = rewrites[path.name](json.loads(path.read_text("utf-8")))
            (folder / path.name).write_text(json.dumps(content, indent=2), "utf-8")
        else:
            (folder / path.name).symlink_to(path.resolve())


def load_torchvision() -> None:
    """Its CUDA build beside a torch for the CPU lacks two operators, which no export needs."""
    import torch

    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "DEF")
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        load_torchvision.library = library  # it is taken back when it is collected


def main() -> int:
    """Export, and see that all of it came."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--weights", choices=("fp16", "int8"), default="fp16")
    options = parser.parse_args()
    load_torchvision()
    from optimum.commands.optimum_cli import main as optimum_cli

    with tempfile.TemporaryDirectory() as folder:
        write_copy(options.checkpoint, Path(folder))
        sys.argv = ["optimum-cli", "export", "openvino", "--model", folder,
                    "--task", "image-text-to-text", "--weight-format", options.weights,
                    str(options.output)]
        optimum_cli()
    if not (options.output / TOKENIZER).exists():
        sys.stderr.write(f"{options.output}: expected {TOKENIZER}, got none: the tokenizer of "
                         f"the checkpoint was not understood\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
