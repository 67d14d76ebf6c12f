"""A byte-level BPE with Qwen's rules, trained here, saved in every form that checkpoints ship."""

import json
from functools import cache
from pathlib import Path

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

from tests.tokenizer_files import ADDED_TOKENS, CORPUS

NUM_BPE_TOKENS = 1500
FORMS = ("tokenizer.json", "tokenizer.json alone", "vocab and merges",
         "vocab and added_tokens.json")

WRITTEN_STRINGS = (
    "", " ", "  ", "\n", "\r\n", "\n\n\n", "\t", " \n ", "a", " a", "a ", "  a  b   c ",
    "Hello, world!", "I'm you're HE'LL we'VE it'd ISN'T o'clock", "''s 's's", "x=1;y=2",
    "1234567890", "3.14e-10", "1,000,000", "½ ² ٣ ४ 五 Ⅷ", "a1b2c3", "2024-02-30T25:61",
    "naïve café", "nai\u0308ve cafe\u0301", "\u1e9b\u0323", "\u212b \u2126", "ﬁ ﬂ ™ ①",
    "한국어", "\u1112\u1161\u11ab", "日本語のテキスト", "中文，标点。", "ไทย", "हिन्दी", "עברית",
    "العربية", "Ελληνικά", "русский", "ქართული", "አማርኛ", "🙂", "👨‍👩‍👧‍👦", "🇩🇪🇫🇷", "👍🏽", "❤️",
    "\u200b\u200d\ufeff", "a\u0300\u0301\u0302", "\u0000\u0001\x7f", "\x85\u2028\u2029",
    "\u00a0nbsp\u00a0", "\u3000full", "tab\tand\vvt\ffeed", "trailing   \n   spaces  \n",
    "<|im_start|>user\nhi<|im_end|>\n", "<|vision_start|><|image_pad|><|vision_end|>",
    "<think>\nwell\n</think>\n\nyes", "<|im_start|", "|im_end|>", "<|IM_END|>", "<tool_call>{}",
    "a<|endoftext|>b", " <|im_end|> ", "<|im_end|><|im_end|>", "<<|im_end|>>",
    "def f(x):\n\treturn x**2  # ok\n", "https://a.b/c?d=e&f=%20#g", "{\"k\": [1, null]}",
    "$x^2$ \\alpha \\n", "@#$%^&*()_+-=[]{}|;:'\",.<>/?`~", "....", "-----", "!!!???\n\n",
    "ß ẞ ſ İ ı", "x" * 300, "ab " * 100, "\n" * 50, " " * 70 + "x", "é" * 40, "🙂" * 20,
    "\U0010ffff", "\ue000", "\U000e0001", "Zalgo̴̢", "ﷺ", "\u202eabc\u202c",
)

CHARACTER_RANGES = (
    (32, 127), (32, 127), (9, 33), (160, 0x250), (0x300, 0x370), (0x370, 0x530), (0x590, 0x700),
    (0x900, 0xE80), (0x1100, 0x1200), (0x2000, 0x2100), (0x2190, 0x2C00), (0x3000, 0x3100),
    (0x4E00, 0x9FFF), (0xAC00, 0xD7A3), (0xFB00, 0xFFFE), (0x1F300, 0x1FAFF),
)


@cache
def trained() -> Tokenizer:
    """Merges that reach across scripts, digits, code and white space."""
    tokenizer = Tokenizer(BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    documents = [kind.__doc__ or "" for kind in (str, dict, list, bytes, int, float, set, type)]
    documents += [getattr(str, name).__doc__ or "" for name in dir(str)]
    trainer = BpeTrainer(vocab_size=NUM_BPE_TOKENS, show_progress=False,
                         initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator([*CORPUS, *documents, *odd_strings()[:60]] * 3, trainer)
    for name, special in ADDED_TOKENS:
        token = AddedToken(name, special=special, normalized=False)
        (tokenizer.add_special_tokens if special else tokenizer.add_tokens)([token])
    return tokenizer


def save(folder: Path, form: str, *, version_line: bool = True) -> Path:
    """Writes the files of one of FORMS into `folder`."""
    tokenizer = trained()
    first_id = tokenizer.get_vocab_size(with_added_tokens=False)
    pad = {"__type": "AddedToken", **_token_entry("<|endoftext|>", True)}
    config = {"tokenizer_class": "Qwen2Tokenizer", "bos_token": None,
              "eos_token": "<|im_end|>", "pad_token": pad,
              "additional_special_tokens": [name for name, special in ADDED_TOKENS if special]}
    if form.startswith("tokenizer.json"):
        tokenizer.enable_truncation(7)
        tokenizer.enable_padding(length=50)
        tokenizer.save(str(folder / "tokenizer.json"))
        tokenizer.no_truncation()
        tokenizer.no_padding()
    else:
        tokenizer.model.save(str(folder))
        merges = (folder / "merges.txt").read_text(encoding="utf-8").split("\n", 1)
        assert merges[0].startswith("#version")
        if not version_line:
            (folder / "merges.txt").write_text(merges[1], encoding="utf-8")
    if form == "vocab and added_tokens.json":
        ids = {name: first_id + i for i, (name, _) in enumerate(ADDED_TOKENS)}
        (folder / "added_tokens.json").write_text(json.dumps(dict(reversed(ids.items()))))
    else:
        config["added_tokens_decoder"] = {
            str(first_id + i): _token_entry(name, special)
            for i, (name, special) in enumerate(ADDED_TOKENS)}
    if form != "tokenizer.json alone":
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def _token_entry(name: str, special: bool) -> dict[str, object]:
    return {"content": name, "special": special, "normalized": False,
            "lstrip": False, "rstrip": False, "single_word": False}


@cache
def odd_strings() -> tuple[str, ...]:
    """A few hundred strings: written ones first, then random ones out of many scripts."""
    rng = np.random.default_rng(7)

    def stretch() -> str:
        low, high = CHARACTER_RANGES[rng.integers(len(CHARACTER_RANGES))]
        return "".join(map(chr, rng.integers(low, high, rng.integers(1, 12))))

    names = [name for name, _ in ADDED_TOKENS]
    strings = list(WRITTEN_STRINGS)
    for _ in range(400):
        parts = [stretch() for _ in range(rng.integers(1, 7))]
        if rng.random() < 0.2:
            parts.insert(rng.integers(len(parts) + 1), names[rng.integers(len(names))])
        strings.append("".join(parts))
    return tuple(strings)
