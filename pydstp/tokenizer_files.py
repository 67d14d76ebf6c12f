"""The files a tokenizer is made from, in the two forms checkpoints ship.

Qwen's rules for vocab.json and merges.txt: transformers 5.23, models/qwen2/tokenization_qwen2.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from pydstp.errors import CheckpointError, UnsupportedModelError
from pydstp.json_file import read_json, read_text

# Contractions; a word with one character in front; a single digit; punctuation with a space in
# front and line breaks behind; line breaks with spaces around; spaces that end a line; spaces.
QWEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
    r"|[^\r\n\p{L}\p{N}]?\p{L}+"
    r"|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+"
    r"|\s+(?!\S)"
    r"|\s+"
)
ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


def load(folder: Path) -> tuple[Tokenizer, dict[str, str]]:
    """The tokenizer of a checkpoint folder, and the role names of tokenizer_config.json.

    tokenizer.json is taken if it is there, else vocab.json and merges.txt. Added tokens come from
    `added_tokens_decoder` of tokenizer_config.json, else from added_tokens.json.

    Raises:
        CheckpointError: see `Tokenizer.from_checkpoint`.
    """
    if (folder / "tokenizer.json").is_file():
        backend = _from_tokenizer_json(folder / "tokenizer.json")
    elif (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        backend = _from_vocab_and_merges(folder / "vocab.json", folder / "merges.txt")
    else:
        raise CheckpointError(f"no tokenizer in {folder}: looked for tokenizer.json, "
                              f"and for vocab.json with merges.txt")
    backend.no_truncation()
    backend.no_padding()
    config_path = folder / "tokenizer_config.json"
    config = read_json(config_path) if config_path.is_file() else {}
    _add_tokens(backend, *_listed_tokens(config, config_path, folder / "added_tokens.json"))
    return backend, roles_of(config)


def roles_of(tokenizer_config: dict[str, Any]) -> dict[str, str]:
    """Names like "eos_token" and the tokens that tokenizer_config.json gives to them."""
    found = {role: tokenizer_config.get(role) for role in ROLES}
    names = {role: value.get("content") if isinstance(value, dict) else value
             for role, value in found.items()}
    return {role: name for role, name in names.items() if isinstance(name, str)}


def _from_tokenizer_json(path: Path) -> Tokenizer:
    text = read_text(path)
    try:
        backend = Tokenizer.from_str(text)
    except (KeyboardInterrupt, MemoryError):
        raise
    except BaseException as error:  # the library raises plain Exception, and panics beside it
        raise CheckpointError(f"{path}: not a tokenizer ({error})") from None
    if not isinstance(backend.model, models.BPE):
        kind = type(backend.model).__name__
        raise UnsupportedModelError(f"{path}: model {kind} is not supported (supported: BPE)")
    return backend


def _from_vocab_and_merges(vocab_path: Path, merges_path: Path) -> Tokenizer:
    vocab = read_json(vocab_path)
    if not all(isinstance(id_, int) and id_ >= 0 for id_ in vocab.values()):
        raise CheckpointError(f"{vocab_path}: expected an id >= 0 for every token")
    try:
        bpe = models.BPE(vocab=vocab, merges=_read_merges(merges_path))
    except Exception as error:  # a merge of unknown tokens
        raise CheckpointError(f"{merges_path} does not fit {vocab_path.name} ({error})") from None
    backend = Tokenizer(bpe)
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(QWEN_SPLIT), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    backend.decoder = decoders.ByteLevel()
    return backend


def _read_merges(path: Path) -> list[tuple[str, str]]:
    """Pairs, one per line; a first line that begins with "#version" is a comment."""
    merges = []
    # Not splitlines: byte-level characters include some that it takes for line breaks.
    for number, line in enumerate(read_text(path).split("\n"), 1):
        line = line.removesuffix("\r")
        if not line or (number == 1 and line.startswith("#version")):
            continue
        pair = line.split(" ")
        if len(pair) != 2:
            raise CheckpointError(f"{path}, line {number}: expected two tokens, got {line[:80]!r}")
        merges.append((pair[0], pair[1]))
    return merges


def _listed_tokens(config: dict[str, Any], config_path: Path,
                   added_path: Path) -> tuple[dict[int, AddedToken], Path]:
    """Added tokens by id, and the file that lists them."""
    listed = config.get("added_tokens_decoder")
    try:
        if isinstance(listed, dict):
            return {int(id_): _added_token(entry) for id_, entry in listed.items()}, config_path
        if not added_path.is_file():
            return {}, config_path
        special = {*roles_of(config).values(), *_extra_special_tokens(config)}
        return {int(id_): AddedToken(name, special=name in special, normalized=False)
                for name, id_ in read_json(added_path).items()}, added_path
    except (KeyError, TypeError, ValueError, AttributeError):
        path = config_path if isinstance(listed, dict) else added_path
        raise CheckpointError(f"{path}: expected added tokens with their ids") from None


def _extra_special_tokens(config: dict[str, Any]) -> list[str]:
    extra = config.get("additional_special_tokens") or config.get("extra_special_tokens") or []
    entries = extra.values() if isinstance(extra, dict) else extra
    return [entry["content"] if isinstance(entry, dict) else entry for entry in entries]


def _added_token(entry: dict[str, Any]) -> AddedToken:
    flags = ("single_word", "lstrip", "rstrip", "normalized", "special")
    return AddedToken(entry["content"], **{name: bool(entry.get(name, False)) for name in flags})


def _add_tokens(backend: Tokenizer, tokens: dict[int, AddedToken], source: Path) -> None:
    """Add what is missing in ascending order of ids, the order in which they were given out."""
    known = backend.get_added_tokens_decoder()
    for id_, token in sorted(tokens.items()):
        if id_ not in known or known[id_].content != token.content:
            (backend.add_special_tokens if token.special else backend.add_tokens)([token])
        if backend.token_to_id(token.content) != id_:
            raise CheckpointError(f"{source}: token {token.content!r} is listed with id {id_}, "
                                  f"the vocabulary gives {backend.token_to_id(token.content)}")
