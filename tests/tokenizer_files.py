"""Tokenizer, chat template, preprocessor and generation files of a tiny checkpoint.

The tokenizer is a byte-level BPE trained on the few sentences below, with Qwen's own pre-tokeniser
expression and Qwen's 26 added tokens in their order; only their ids are smaller than the real ones.
"""

import json
from functools import cache
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

NUM_BPE_TOKENS = 384
VOCAB_SIZE = 448  # rows of the embedding; the last ones belong to no token, as in the real ones

CORPUS = (
    "The red arrow in row two, column three points to the right. What do you see there?",
    "Follow the arrows for 4 steps and say at each step where you are, then give the answer.",
    "A small blue circle is left of the green square; the yellow star isn't in this picture.",
    "I'm sure we've seen it: they'll say it's the third cell, but you'd better look again.",
    "Übermäßig große Äpfel, naïve café, señor, Ελληνικά, русский текст, 日本語の文章, 한국어 문장.",
    "def step(x, y):\n    return x + 1, y - 1\n\n\tif x >= 10: print('done', x, y)\r\n",
    '1234567890 + 98.6 = 1.2e9 (roughly) -- see [cell 7, 8] & <tag> {"key": "value"}',
    "Which of the pictures holds the answer? Look at the picture, think, answer with one word.",
)

# (name, whether the token is special): the order of Qwen's ids 151643 to 151668.
ADDED_TOKENS = (
    ("<|endoftext|>", True),
    ("<|im_start|>", True),
    ("<|im_end|>", True),
    ("<|object_ref_start|>", True),
    ("<|object_ref_end|>", True),
    ("<|box_start|>", True),
    ("<|box_end|>", True),
    ("<|quad_start|>", True),
    ("<|quad_end|>", True),
    ("<|vision_start|>", True),
    ("<|vision_end|>", True),
    ("<|vision_pad|>", True),
    ("<|image_pad|>", True),
    ("<|video_pad|>", True),
    ("<tool_call>", False),
    ("</tool_call>", False),
    ("<|fim_prefix|>", False),
    ("<|fim_middle|>", False),
    ("<|fim_suffix|>", False),
    ("<|fim_pad|>", False),
    ("<|repo_name|>", False),
    ("<|file_sep|>", False),
    ("<tool_response>", False),
    ("</tool_response>", False),
    ("<think>", False),
    ("</think>", False),
)

# ChatML with picture items, in our own words; what it renders is what Qwen3-VL's template renders.
CHAT_TEMPLATE = """\
{%- set pictures = namespace(count=0) -%}
{%- macro show(content) -%}
  {%- if content is string -%}{{ content }}
  {%- else -%}
    {%- for item in content -%}
      {%- if item.type == 'image' or 'image' in item or 'image_url' in item -%}
        {%- set pictures.count = pictures.count + 1 -%}
        {%- if add_vision_id -%}{{ 'Picture ' ~ pictures.count ~ ': ' }}{%- endif -%}
        {{ '<|vision_start|><|image_pad|><|vision_end|>' }}
      {%- elif 'text' in item -%}{{ item.text }}
      {%- endif -%}
    {%- endfor -%}
  {%- endif -%}
{%- endmacro -%}
{%- for message in messages -%}
  {{ '<|im_start|>' ~ message.role ~ '\\n' }}
  {%- if message.role == 'assistant' -%}
    {{ show(message.content).split('</think>')[-1].lstrip('\\n') }}
  {%- else -%}{{ show(message.content) }}
  {%- endif -%}
  {{ '<|im_end|>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}
"""
THINKING_TEMPLATE = CHAT_TEMPLATE.replace("assistant\\n'", "assistant\\n<think>\\n'")


def token_id(name: str) -> int:
    """The id of an added token, for example `token_id("<|image_pad|>")`."""
    return NUM_BPE_TOKENS + [token for token, _ in ADDED_TOKENS].index(name)


@cache
def trained_tokenizer() -> Tokenizer:
    """The byte-level BPE with Qwen's rules; training is deterministic and takes milliseconds."""
    tokenizer = Tokenizer(BPE())
    tokenizer.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), behavior="isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=NUM_BPE_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS * 2, trainer)
    for name, special in ADDED_TOKENS:
        added = AddedToken(name, special=special, normalized=False)
        (tokenizer.add_special_tokens if special else tokenizer.add_tokens)([added])
    return tokenizer


def write_tokenizer_files(folder: Path, *, chat_template: str = CHAT_TEMPLATE) -> None:
    """Writes tokenizer.json, vocab.json, merges.txt, tokenizer_config.json and the template."""
    tokenizer = trained_tokenizer()
    tokenizer.save(str(folder / "tokenizer.json"))
    tokenizer.model.save(str(folder))  # vocab.json and merges.txt
    added = {
        str(token_id(name)): {
            "content": name, "lstrip": False, "normalized": False, "rstrip": False,
            "single_word": False, "special": special,
        }
        for name, special in ADDED_TOKENS
    }  # fmt: skip
    _write_json(folder / "tokenizer_config.json", {
        "tokenizer_class": "Qwen2Tokenizer", "added_tokens_decoder": added,
        "additional_special_tokens": [name for name, special in ADDED_TOKENS[1:] if special],
        "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "bos_token": None,
        "unk_token": None, "add_prefix_space": False, "clean_up_tokenization_spaces": False,
        "errors": "replace", "model_max_length": 262144, "split_special_tokens": False,
    })  # fmt: skip
    (folder / "chat_template.jinja").write_text(chat_template, encoding="utf-8")


def write_preprocessor_files(folder: Path) -> None:
    """Writes preprocessor_config.json (4 to 64 tokens a picture) and generation_config.json."""
    _write_json(folder / "preprocessor_config.json", {
        "size": {"shortest_edge": 4 * 32 * 32, "longest_edge": 64 * 32 * 32},
        "patch_size": 16, "temporal_patch_size": 2, "merge_size": 2,
        "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5],
        "image_processor_type": "Qwen2VLImageProcessorFast", "processor_class": "Qwen3VLProcessor",
    })  # fmt: skip
    _write_json(folder / "generation_config.json", {
        "eos_token_id": [token_id("<|im_end|>"), token_id("<|endoftext|>")],
        "pad_token_id": token_id("<|endoftext|>"), "do_sample": True,
        "temperature": 0.7, "top_p": 0.8, "top_k": 20, "repetition_penalty": 1.0,
    })  # fmt: skip


def _write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
