"""Text to token ids and back, with the byte-level BPE of Qwen's checkpoints.

Source: transformers 5.23, models/qwen2/tokenization_qwen2.py; ids are equal to it, from
tokenizer.json as well as from vocab.json and merges.txt.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

import tokenizers
from tokenizers import decoders

from pydstp import tokenizer_files
from pydstp.errors import OptionError, PromptError, UnsupportedModelError


class Tokenizer:
    """The tokenizer of one checkpoint; truncation and padding are always off.

    Attributes:
        added_tokens: names and ids of the tokens that stand beside the BPE vocabulary.
        special_tokens: the part of them that is flagged special. `<think>`, for example, is an
            added token of Qwen's that is not special, so that it stays in decoded text.
        roles: the names tokenizer_config.json gives to tokens: "eos_token", "pad_token", ...
    """

    def __init__(self, backend: tokenizers.Tokenizer, roles: dict[str, str] | None = None) -> None:
        if not isinstance(backend.decoder, decoders.ByteLevel):
            raise UnsupportedModelError(f"tokenizer: decoder {type(backend.decoder).__name__} is "
                                        f"not supported (supported: ByteLevel)")
        self._backend = backend
        # Shares the vocabulary, and knows no added tokens.
        self._plain = tokenizers.Tokenizer(backend.model)
        self._plain.normalizer = backend.normalizer
        self._plain.pre_tokenizer = backend.pre_tokenizer
        added = backend.get_added_tokens_decoder()
        self.added_tokens = {token.content: id_ for id_, token in sorted(added.items())}
        self.special_tokens = {token.content: id_ for id_, token in sorted(added.items())
                               if token.special}
        self.roles = dict(roles or {})
        self._bytes_of: dict[int, bytes] = {}

    @classmethod
    def from_checkpoint(cls, path: str | Path) -> Tokenizer:
        """Read tokenizer.json, or vocab.json, merges.txt and the added tokens beside them.

        Raises:
            CheckpointError: none of these files is there, one is damaged, or an added token does
                not come out with the id that is listed for it.
            UnsupportedModelError: not a byte-level tokenizer.
        """
        return cls(*tokenizer_files.load(Path(path)))

    @cached_property
    def vocab_size(self) -> int:
        """One more than the largest id; a model's embedding may have more rows."""
        return max(self._backend.get_vocab(with_added_tokens=True).values(), default=-1) + 1

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """Ids that `decode` leaves out by default."""
        return frozenset(self.special_tokens.values())

    def token_id(self, token: str) -> int:
        """The id of a token, for example `token_id("<|image_pad|>")`.

        Raises:
            OptionError: there is no such token.
        """
        id_ = self._backend.token_to_id(token)
        if id_ is None:
            raise OptionError(f"token: expected a token of the vocabulary, got {token!r}")
        return id_

    def encode(self, text: str, *, parse_added: bool = True) -> list[int]:
        """Token ids of a text, nothing put in front or behind.

        Args:
            text: any text.
            parse_added: False reads the names of added tokens as plain text too.

        Raises:
            PromptError: the text is no valid Unicode (a lone surrogate).
        """
        backend = self._backend if parse_added else self._plain
        try:
            return backend.encode(text, add_special_tokens=False).ids
        except (UnicodeEncodeError, TypeError):
            raise PromptError("prompt: expected Unicode text, got a string with a lone "
                              "surrogate") from None

    def decode(self, ids: Iterable[int], *, skip_special_tokens: bool = True) -> str:
        """The text of token ids; bytes that form no character become U+FFFD.

        Ids outside the vocabulary (an embedding may have spare rows) stand for no text.
        """
        kept = [id_ for id_ in ids if not (skip_special_tokens and id_ in self.special_ids)]
        return b"".join(map(self.token_bytes, kept)).decode("utf-8", errors="replace")

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that one token stands for: part of a character, or several."""
        found = self._bytes_of.get(token_id)
        if found is None:
            token = self._backend.id_to_token(token_id) if token_id >= 0 else None
            found = self._bytes_of[token_id] = _to_bytes(token or "")
        return found


class StreamDecoder:
    """Decodes token by token; what it returns is joined to exactly `Tokenizer.decode` of all ids.

    Bytes that begin a character are held back until the character is complete or cannot become
    so. Work per token does not depend on how much came before.
    """

    def __init__(self, tokenizer: Tokenizer, *, skip_special_tokens: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skipped = tokenizer.special_ids if skip_special_tokens else frozenset()
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token_id: int) -> str:
        """The text that became certain with this token; often empty inside a character."""
        if token_id in self._skipped:
            return ""
        return self._utf8.decode(self._tokenizer.token_bytes(token_id))

    def finish(self) -> str:
        """The end of the text: U+FFFD if a character was left incomplete, else empty.

        The decoder is then ready for another text.
        """
        rest = self._utf8.decode(b"", final=True)
        self._utf8.reset()
        return rest


def _byte_of_char() -> dict[str, int]:
    """The byte-level alphabet of GPT-2: printable bytes stand for themselves, others from U+0100.

    The tokenizers library has the set of characters; their order gives the bytes.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {**{chr(byte): byte for byte in printable},
            **{chr(0x100 + index): byte for index, byte in enumerate(others)}}


_BYTE_OF_CHAR = _byte_of_char()


def _to_bytes(token: str) -> bytes:
    """Byte-level characters to bytes; a token with any other character stands for itself."""
    try:
        return bytes(_BYTE_OF_CHAR[char] for char in token)
    except KeyError:
        return token.encode("utf-8")
