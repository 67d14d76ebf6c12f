"""Measure the embedded checkpoint: python evaluate.py CHECKPOINT --out FOLDER.

An answer counts only if greedy decoding gives the whole of it. Greedy decoding gives the gold
answer exactly when, after every prefix of the gold answer, the likeliest token is the next gold
token, so one forward pass over question and gold answer decides; `--generate` checks this against
transformers' own generate().
"""
from __future__ import annotations

import argparse
import hashlib
import json
import math
import platform
from pathlib import Path

import numpy as np
import torch
from data import Batch, collate
from families import use_fast_patches
from tokenizers import Tokenizer
from torch.nn import functional
from train import answer_losses
from transformers import AttentionInterface, Qwen3VLForConditionalGeneration
from transformers import __version__ as transformers_version

from pydstp.tasks import TASKS, Example, is_correct, make_example

VISIBLE: list[torch.Tensor | None] = [None]  # [batch, length] of bool, read by masked_attention


def masked_attention(module, query, key, value, attention_mask, scaling=None, **_):
    """Attention that hides tokens from layer 1 on, as FastV with K = 1 does; [b, h, n, d]."""
    bias = None
    if VISIBLE[0] is not None and getattr(module, "layer_idx", 0) >= 1:
        length = query.shape[2]
        bias = VISIBLE[0][:, None, None, :] & torch.ones(length, length, dtype=torch.bool).tril()
    causal = bias is None and hasattr(module, "layer_idx")
    out = functional.scaled_dot_product_attention(query, key, value, bias, is_causal=causal,
                                                  scale=scaling, enable_gqa=True)
    return out.transpose(1, 2).contiguous(), None


def visible_mask(batch: Batch, examples: list[Example], kept_share: float,
                 rng: np.random.Generator, keep: str) -> torch.Tensor:
    """Hide all but a random share of each row's visual tokens; [batch, length] of bool.

    keep: "none", or "asked" to keep the cells the answer needs, or "start" for the first of them.
    """
    visible = torch.ones_like(batch.types, dtype=torch.bool)
    for row, example in enumerate(examples):
        places = torch.nonzero(batch.types[row])[:, 0].numpy()
        needed = set() if keep == "none" else set(visual_indices(example))
        if keep == "start":
            needed = {visual_indices(example)[0]}
        others = [index for index in rng.permutation(len(places)) if index not in needed]
        hidden = min(len(others), len(places) - round(kept_share * len(places)))
        visible[row, places[others[:hidden]]] = False
    return visible


def visual_indices(example: Example) -> list[int]:
    """Which visual tokens of the prompt the answer needs, in order of need."""
    rows, cols = example.meta["rows"], example.meta["cols"]
    return [image * rows * cols + row * cols + col for image, row, col in example.meta["cells"]]


@torch.no_grad()
def exact(model, tokenizer: Tokenizer, examples: list[Example], kept_share: float = 1.0,
          keep: str = "none", size: int = 32) -> list[bool]:
    """Whether greedy decoding gives each whole gold answer. Examples of one size are batched."""
    result = [False] * len(examples)
    order = sorted(range(len(examples)), key=lambda i: (
        examples[i].images[0].size, len(examples[i].images), len(examples[i].answer)))
    while order:
        first = examples[order[0]].images[0].size
        take = [i for i in order[:size] if examples[i].images[0].size == first]
        order = order[len(take):]
        chosen = [examples[i] for i in take]
        batch = collate(tokenizer, chosen)
        rng = np.random.default_rng(chosen[0].seed)
        VISIBLE[0] = None if kept_share == 1 else visible_mask(batch, chosen, kept_share, rng, keep)
        _, right, row, _ = answer_losses(model, batch)
        VISIBLE[0] = None
        missed = torch.bincount(row[~right], minlength=len(chosen)) > 0
        for index, miss in zip(take, missed.tolist()):
            result[index] = not miss
    return result


def wilson(hits: int, count: int, z: float = 1.96) -> tuple[float, float]:
    """The Wilson 95 % interval of a share."""
    share = hits / count
    middle = share + z * z / (2 * count)
    spread = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return (middle - spread) / (1 + z * z / count), (middle + spread) / (1 + z * z / count)


def summary(right: list[bool]) -> dict:
    """Count, share and interval of right answers."""
    low, high = wilson(sum(right), len(right))
    share = sum(right) / len(right)
    return {"examples": len(right), "exact": sum(right), "accuracy": round(share, 5),
            "wilson95": [round(low, 5), round(high, 5)]}


def load(folder: Path) -> tuple[Qwen3VLForConditionalGeneration, Tokenizer]:
    """Model and tokenizer of a checkpoint directory, in fp32."""
    AttentionInterface.register("masked", masked_attention)
    model = Qwen3VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32,
                                                            attn_implementation="masked").eval()
    return model, Tokenizer.from_file(str(folder / "tokenizer.json"))


def round_weights(model) -> None:
    """Round the weights to bf16; what is computed with them stays fp32."""
    for weight in model.parameters():
        weight.data = weight.data.bfloat16().float()


def accuracy(model, tokenizer: Tokenizer, count: int, split: str) -> dict:
    """Accuracy per task, and for parts of a task: its kinds, its numbers of steps, 8 x 8 only."""
    table = {}
    for task in TASKS:
        examples = [make_example(task, seed, split) for seed in range(count)]
        right = exact(model, tokenizer, examples)
        table[task] = {"all": summary(right)}
        for key in ("kind", "steps", "hits", "size"):
            values = [part(example, key) for example in examples]
            for value in sorted({value for value in values if value is not None}, key=str):
                chosen = [hit for hit, other in zip(right, values) if other == value]
                table[task][f"{key} {value}"] = summary(chosen)
        print(task, table[task]["all"], flush=True)
    return table


def beyond(model, tokenizer: Tokenizer, count: int, split: str) -> dict:
    """Questions that the checkpoint was taught little or nothing of."""
    runs = {"locate, two hits": ("locate", {"hits": 2}),
            "locate, digit alone": ("locate", {"kind": "digit"}),
            "haystack, pictures of 8 x 8": ("haystack", {"rows": 8, "cols": 8})}
    return {name: summary(exact(model, tokenizer, [make_example(task, seed, split, **options)
                                                   for seed in range(count)]))
            for name, (task, options) in runs.items()}


def part(example: Example, key: str) -> str | int | None:
    """The part of its task an example belongs to."""
    if key == "size":
        cells = example.meta["rows"] * example.meta["cols"]
        return f"{cells // 16 * 16}-{cells // 16 * 16 + 15} cells"
    if key == "hits":
        return len(example.meta["cells"]) if example.task == "locate" else None
    return example.meta.get(key)


def masking(model, tokenizer: Tokenizer, count: int, split: str) -> dict:
    """Accuracy with 2/3 of the visual tokens hidden at random in layers >= 1."""
    runs = {"read cell": ("read", {"kind": "cell"}), "read row": ("read", {"kind": "row"}),
            "trail 3 steps": ("trail", {"steps": 3}), "trail 6 steps": ("trail", {"steps": 6}),
            "locate": ("locate", {"hits": 1}),
            "locate, digit alone": ("locate", {"hits": 1, "kind": "digit"})}
    table = {}
    for name, (task, options) in runs.items():
        examples = [make_example(task, seed, split, rows=8, cols=8, **options)
                    for seed in range(count)]
        table[name] = {"full": summary(exact(model, tokenizer, examples))}
        for keep in ("none", "start", "asked"):
            if keep != "start" or examples[0].task in ("read", "trail"):
                right = exact(model, tokenizer, examples, 1 / 3, keep)
                table[name][f"1/3 kept, {keep} forced"] = summary(right)
        print(name, {key: value["accuracy"] for key, value in table[name].items()}, flush=True)
    return table


def both_frames(patches: torch.Tensor) -> torch.Tensor:
    """Patches [n, 3 * 256] -> [n, 3 * 2 * 256], the frame repeated as the processor does."""
    return patches.view(-1, 3, 1, 256).expand(-1, 3, 2, 256).reshape(-1, 1536)


@torch.no_grad()
def generated(folder: Path, model, tokenizer: Tokenizer, count: int, split: str) -> dict:
    """Answers by an untouched model's generate(): accuracy, and agreement with the one pass."""
    table, stop = {}, tokenizer.token_to_id("<|im_end|>")
    plain = Qwen3VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    for task in TASKS:
        examples = [make_example(task, seed, split) for seed in range(count)]
        right, agree = [], 0
        for example, expected in zip(examples, exact(model, tokenizer, examples)):
            batch = collate(tokenizer, [example])
            length = int((batch.labels[0] == -100).sum())
            ids = batch.input_ids[:, :length]
            out = plain.generate(input_ids=ids, attention_mask=torch.ones_like(ids),
                                 mm_token_type_ids=batch.types[:, :length],
                                 pixel_values=both_frames(batch.patches),
                                 image_grid_thw=batch.grid_thw,
                                 max_new_tokens=128, do_sample=False, eos_token_id=stop)
            text = tokenizer.decode(out[0, length:].tolist())
            right.append(is_correct(example, text))
            agree += right[-1] == expected
        table[task] = {**summary(right), "agrees_with_one_pass": agree}
        print("generate", task, table[task], flush=True)
    return table


def main() -> None:
    """Parse the options, measure, write accuracy.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--masked", type=int, default=300)
    parser.add_argument("--generate", type=int, default=0)
    parser.add_argument("--split", default="test")
    args = parser.parse_args()
    torch.set_num_threads(1)
    model, tokenizer = load(args.checkpoint)
    weights = (args.checkpoint / "model.safetensors").read_bytes()
    report = {"sha256": hashlib.sha256(weights).hexdigest(),
              "split": args.split, "torch": torch.__version__,
              "transformers": transformers_version, "python": platform.python_version()}
    use_fast_patches(model)
    if args.generate:
        report["generate"] = generated(args.checkpoint, model, tokenizer, args.generate,
                                       args.split)
    report["accuracy"] = accuracy(model, tokenizer, args.count, args.split)
    if args.masked:
        report["masking"] = masking(model, tokenizer, args.masked, args.split)
        report["beyond"] = beyond(model, tokenizer, args.masked, args.split)
    round_weights(model)
    rounded = accuracy(model, tokenizer, args.count, args.split)
    report["bfloat16"] = {task: parts["all"] for task, parts in rounded.items()}
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "accuracy.json").write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
