"""Write a Qwen3-VL checkpoint of real shape with random weights: for speed and memory, not sense.

    python -m benchmarks.make_random_checkpoint FOLDER [--shape 2b|small|tiny] [--seed 0]

The names, shards and files are those of a real one; every tensor differs. The tokenizer is that of
the embedded checkpoint, padded with fillers so that ids run as far as the real vocabulary.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file

import pydstp

SHARD_BYTES = 2 << 30
FIRST_SPECIAL_ID = 151643  # of Qwen's added tokens; the embedded tokenizer has them in this order

# hidden, MLP, layers, query heads, KV heads of the text model; width, MLP, depth, heads, taps of
# the vision tower.
SHAPES = {
    "2b": ((2048, 6144, 28, 16, 8), (1024, 4096, 24, 16, [5, 11, 17])),
    "small": ((1024, 3072, 12, 16, 8), (768, 3072, 12, 12, [3, 6, 9])),
    "tiny": ((128, 256, 2, 4, 2), (64, 128, 2, 2, [0])),
}
HEAD_DIM = 128
VOCAB_SIZE = 151936
MROPE_SECTION = [24, 20, 20]


def model_config(shape: str) -> dict:
    """config.json, in the spelling of the released checkpoints."""
    (hidden, mlp, layers, heads, kv_heads), (width, vision_mlp, depth, vision_heads, taps) = (
        SHAPES[shape])
    text = {
        "model_type": "qwen3_vl_text", "vocab_size": VOCAB_SIZE, "hidden_size": hidden,
        "intermediate_size": mlp, "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": kv_heads, "head_dim": HEAD_DIM, "rms_norm_eps": 1e-6,
        "hidden_act": "silu", "attention_bias": False, "attention_dropout": 0.0,
        "max_position_embeddings": 262144, "bos_token_id": 151643, "eos_token_id": 151645,
        "rope_theta": 5000000, "rope_scaling": {
            "rope_type": "default", "mrope_interleaved": True, "mrope_section": MROPE_SECTION},
        "tie_word_embeddings": True, "use_cache": True, "dtype": "bfloat16",
    }
    vision = {
        "model_type": "qwen3_vl", "depth": depth, "hidden_size": width, "in_channels": 3,
        "intermediate_size": vision_mlp, "num_heads": vision_heads, "out_hidden_size": hidden,
        "patch_size": 16, "spatial_merge_size": 2, "temporal_patch_size": 2,
        "num_position_embeddings": 2304, "hidden_act": "gelu_pytorch_tanh",
        "deepstack_visual_indexes": taps,
    }
    return {
        "architectures": ["Qwen3VLForConditionalGeneration"], "model_type": "qwen3_vl",
        "image_token_id": 151655, "video_token_id": 151656, "vision_start_token_id": 151652,
        "vision_end_token_id": 151653, "tie_word_embeddings": True, "dtype": "bfloat16",
        "text_config": text, "vision_config": vision,
    }


def text_tensors(text: dict) -> Iterator[tuple[str, list[int]]]:
    """(name, shape) of every tensor of the decoder."""
    hidden, mlp = text["hidden_size"], text["intermediate_size"]
    query = text["num_attention_heads"] * HEAD_DIM
    key = text["num_key_value_heads"] * HEAD_DIM
    root = "model.language_model."
    yield root + "embed_tokens.weight", [VOCAB_SIZE, hidden]
    for layer in range(text["num_hidden_layers"]):
        at = f"{root}layers.{layer}."
        yield at + "input_layernorm.weight", [hidden]
        yield at + "self_attn.q_proj.weight", [query, hidden]
        yield at + "self_attn.k_proj.weight", [key, hidden]
        yield at + "self_attn.v_proj.weight", [key, hidden]
        yield at + "self_attn.o_proj.weight", [hidden, query]
        yield at + "self_attn.q_norm.weight", [HEAD_DIM]
        yield at + "self_attn.k_norm.weight", [HEAD_DIM]
        yield at + "post_attention_layernorm.weight", [hidden]
        yield at + "mlp.gate_proj.weight", [mlp, hidden]
        yield at + "mlp.up_proj.weight", [mlp, hidden]
        yield at + "mlp.down_proj.weight", [hidden, mlp]
    yield root + "norm.weight", [hidden]


def with_bias(name: str, shape: list[int]) -> Iterator[tuple[str, list[int]]]:
    """A weight and its bias."""
    yield name + ".weight", shape
    yield name + ".bias", shape[:1]


def vision_tensors(vision: dict) -> Iterator[tuple[str, list[int]]]:
    """(name, shape) of every tensor of the vision tower."""
    width, mlp = vision["hidden_size"], vision["intermediate_size"]
    merged = 4 * width
    root = "model.visual."
    yield from with_bias(root + "patch_embed.proj", [width, 3, 2, 16, 16])
    yield root + "pos_embed.weight", [vision["num_position_embeddings"], width]
    for block in range(vision["depth"]):
        at = f"{root}blocks.{block}."
        yield from with_bias(at + "norm1", [width])
        yield from with_bias(at + "attn.qkv", [3 * width, width])
        yield from with_bias(at + "attn.proj", [width, width])
        yield from with_bias(at + "norm2", [width])
        yield from with_bias(at + "mlp.linear_fc1", [mlp, width])
        yield from with_bias(at + "mlp.linear_fc2", [width, mlp])
    taps = range(len(vision["deepstack_visual_indexes"]))
    for at in [root + "merger", *(f"{root}deepstack_merger_list.{tap}" for tap in taps)]:
        yield from with_bias(at + ".norm", [width if at.endswith("merger") else merged])
        yield from with_bias(at + ".linear_fc1", [merged, merged])
        yield from with_bias(at + ".linear_fc2", [vision["out_hidden_size"], merged])


def random_tensor(name: str, shape: list[int], generator: torch.Generator) -> torch.Tensor:
    """Norms around 1, small biases, everything else scaled so that activations keep their size."""
    values = torch.empty(shape, dtype=torch.bfloat16).normal_(generator=generator)
    if name.endswith(".bias"):
        return values.mul_(0.02)
    if len(shape) == 1:
        return values.mul_(0.05).add_(1.0)
    return values.mul_(1.0 / math.sqrt(math.prod(shape[1:])))


def write_weights(folder: Path, config: dict, seed: int) -> int:
    """Write the shards and their index; returns the bytes of all tensors."""
    tensors = [*text_tensors(config["text_config"]), *vision_tensors(config["vision_config"])]
    generator = torch.Generator().manual_seed(seed)
    shards: list[list[tuple[str, list[int]]]] = [[]]
    room = SHARD_BYTES
    for name, shape in tensors:
        room -= 2 * math.prod(shape)
        if room < 0 and shards[-1]:
            shards.append([])
            room = SHARD_BYTES - 2 * math.prod(shape)
        shards[-1].append((name, shape))
    weight_map = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file({name: random_tensor(name, shape, generator) for name, shape in shard},
                  folder / file, metadata={"format": "pt"})
        weight_map.update({name: file for name, _ in shard})
    total_bytes = sum(2 * math.prod(shape) for _, shape in tensors)
    write_json(folder / "model.safetensors.index.json",
               {"metadata": {"total_size": total_bytes}, "weight_map": weight_map})
    return total_bytes


def write_tokenizer(folder: Path, source: Path) -> None:
    """The tokenizer of `source`, its added tokens moved to Qwen's ids, with fillers before them."""
    tokenizer = json.loads((source / "tokenizer.json").read_text(encoding="utf-8"))
    vocab = tokenizer["model"]["vocab"]
    vocab.update({f"filler{i}": i for i in range(len(vocab), FIRST_SPECIAL_ID)})
    for token_id, token in enumerate(tokenizer["added_tokens"], FIRST_SPECIAL_ID):
        token["id"] = token_id
    write_json(folder / "tokenizer.json", tokenizer)
    settings = json.loads((source / "tokenizer_config.json").read_text(encoding="utf-8"))
    settings["added_tokens_decoder"] = {
        str(token["id"]): {key: value for key, value in token.items() if key != "id"}
        for token in tokenizer["added_tokens"]}
    write_json(folder / "tokenizer_config.json", settings)
    (folder / "chat_template.jinja").write_bytes((source / "chat_template.jinja").read_bytes())


def write_settings(folder: Path, config: dict) -> None:
    """config.json, preprocessor_config.json and generation_config.json."""
    write_json(folder / "config.json", config)
    write_json(folder / "preprocessor_config.json", {
        "size": {"shortest_edge": 65536, "longest_edge": 16777216},
        "patch_size": 16, "temporal_patch_size": 2, "merge_size": 2,
        "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5],
        "processor_class": "Qwen3VLProcessor",
        "image_processor_type": "Qwen2VLImageProcessorFast"})
    write_json(folder / "generation_config.json", {
        "do_sample": False, "eos_token_id": [151645, 151643], "pad_token_id": 151643})


def write_json(path: Path, content: dict) -> None:
    """Readable JSON."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--shape", choices=SHAPES, default="2b")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if (options.folder / "config.json").exists():
        print(f"{options.folder} is there already")
        return
    started = time.perf_counter()
    options.folder.mkdir(parents=True, exist_ok=True)
    config = model_config(options.shape)
    write_tokenizer(options.folder, Path(pydstp.demo_checkpoint()))
    total_bytes = write_weights(options.folder, config, options.seed)
    write_settings(options.folder, config)  # last: config.json says that the rest is complete
    print(f"{options.folder}: {total_bytes / 1e9:.2f} GB in {time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
