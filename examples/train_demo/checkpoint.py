"""The embedded checkpoint's files other than its weights: configuration, tokenizer, templates."""
from __future__ import annotations

import json
import math
from pathlib import Path

import torch
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

from pydstp.tasks import TASKS, make_example

# Splits text as Qwen does: digits one at a time, so that "B3" is two tokens.
PRETOKENIZER = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
                r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>",
           "<|object_ref_end|>", "<|box_start|>", "<|box_end|>", "<|quad_start|>", "<|quad_end|>",
           "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>",
           "<|video_pad|>")
_TEMPLATE = """\
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- if message.content is string %}
        {{- message.content }}
    {%- else %}
        {%- for item in message.content %}
            {%- if item.type == 'image' %}
                {{- 'PICTURE' }}
            {%- elif item.type == 'text' %}
                {{- item.text }}
            {%- endif %}
        {%- endfor %}
    {%- endif %}
    {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""


def chat_template(picture: str) -> str:
    """The template of both families; `picture` stands where an image is."""
    return _TEMPLATE.replace("PICTURE", picture)


CHAT_TEMPLATE = chat_template("<|vision_start|><|image_pad|><|vision_end|>")


def build_tokenizer(examples_per_task: int = 400, special: tuple[str, ...] = SPECIAL) -> Tokenizer:
    """A byte-level BPE tokenizer trained on the tasks' own questions and answers.

    `locate` is asked by digit alone here: "with an arrow" stays in pieces, as in what was shipped.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(PRETOKENIZER), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    kinds = {"locate": {"kind": "digit"}}
    examples = [make_example(task, seed, "train", **kinds.get(task, {})) for task in TASKS
                for seed in range(examples_per_task)]
    texts = [text for example in examples for text in (example.prompt, example.answer)]
    texts += ["system\nYou are a helpful assistant.", "user\n", "assistant\n"] * 20
    trainer = trainers.BpeTrainer(vocab_size=512, min_frequency=5, show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens([AddedToken(name, normalized=False) for name in special])
    return tokenizer


def build_config(tokenizer: Tokenizer) -> Qwen3VLConfig:
    """The sizes of the embedded model."""
    text = {"vocab_size": tokenizer.get_vocab_size(), "hidden_size": 128,
            "intermediate_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4,
            "num_key_value_heads": 2, "head_dim": 64, "max_position_embeddings": 4096,
            "rope_parameters": {"rope_type": "default", "rope_theta": 5000000.0,
                                "mrope_section": [12, 10, 10], "mrope_interleaved": True},
            "bos_token_id": None, "eos_token_id": tokenizer.token_to_id("<|im_end|>"),
            "tie_word_embeddings": True}
    vision = {"depth": 2, "hidden_size": 64, "intermediate_size": 128, "num_heads": 2,
              "out_hidden_size": 128, "num_position_embeddings": 256,
              "deepstack_visual_indexes": [0]}
    names = {"image_token_id": "<|image_pad|>", "video_token_id": "<|video_pad|>",
             "vision_start_token_id": "<|vision_start|>", "vision_end_token_id": "<|vision_end|>"}
    ids = {key: tokenizer.token_to_id(name) for key, name in names.items()}
    return Qwen3VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=True, **ids)


@torch.no_grad()
def build_model(config: Qwen3VLConfig, seed: int) -> Qwen3VLForConditionalGeneration:
    """A model with fresh weights; position table and embeddings are large on purpose.

    Started near 0.02, positions drown in the patch features and nothing is learned for long.
    """
    torch.manual_seed(seed)
    model = Qwen3VLForConditionalGeneration(config).float()
    for name, weight in model.named_parameters():
        if "norm" in name:
            continue
        if name.endswith(("embed_tokens.weight", "pos_embed.weight")):
            weight.normal_(0, 0.5)
        elif name.endswith(".bias"):
            weight.zero_()
        else:
            weight.normal_(0, 1 / math.sqrt(weight[0].numel()))
    return model


PROCESSOR = {
    "do_convert_rgb": True, "do_normalize": True, "do_rescale": True, "do_resize": True,
    "image_mean": [0.5] * 3, "image_processor_type": "Qwen2VLImageProcessorFast",
    "image_std": [0.5] * 3, "merge_size": 2, "patch_size": 16,
    "processor_class": "Qwen3VLProcessor", "resample": 3, "rescale_factor": 1 / 255,
    "size": {"shortest_edge": 32 * 32, "longest_edge": 16 * 16 * 1024},
    "temporal_patch_size": 2}


def write_files(folder: Path, tokenizer: Tokenizer, special: tuple[str, ...] = SPECIAL,
                template: str = CHAT_TEMPLATE, processor: dict = PROCESSOR) -> None:
    """Write tokenizer, templates and processor settings (all but config and weights)."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(template)
    added = {str(tokenizer.token_to_id(name)): {
        "content": name, "lstrip": False, "normalized": False, "rstrip": False,
        "single_word": False, "special": True} for name in special}
    _write(folder / "tokenizer_config.json", {
        "add_bos_token": False, "add_prefix_space": False, "added_tokens_decoder": added,
        "bos_token": None, "clean_up_tokenization_spaces": False, "eos_token": "<|im_end|>",
        "errors": "replace", "model_max_length": 4096, "pad_token": "<|endoftext|>",
        "split_special_tokens": False, "tokenizer_class": "Qwen2Tokenizer", "unk_token": None})
    _write(folder / "preprocessor_config.json", processor)
    end, stop = (tokenizer.token_to_id(name) for name in ("<|endoftext|>", "<|im_end|>"))
    _write(folder / "generation_config.json", {
        "do_sample": False, "eos_token_id": [stop, end], "pad_token_id": end,
        "max_new_tokens": 128})


def _write(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")
