"""From messages to token ids, with one token for each row that the vision tower will deliver.

Text in messages is text: wherever it spells the name of a control token (`<|im_end|>`,
`<|image_pad|>`, ...), also across the border of two texts, it is read as plain characters. No text
can end a turn, open another one, or stand in for a picture. For all other text the ids are those
of transformers. One exception: in assistant messages, added tokens that are not special (`<think>`,
`<tool_call>`, ...) stay tokens, because there the model wrote them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydstp.chat_messages import split_thinking, to_messages
from pydstp.chat_template import ChatTemplate
from pydstp.errors import PromptError
from pydstp.tokenizer import Tokenizer

__all__ = ["ChatTemplate", "EncodedPrompt", "build_prompt", "split_thinking", "texts_in",
           "to_messages"]


@dataclass(frozen=True)
class PictureMarks:
    """How a family of models writes a picture into its prompts.

    Attributes:
        token: stands for one visual token.
        written: what chat templates write for a whole picture, any one of these.
        before, after: tokens around the visual ones, where templates do not write them.
    """

    token: str
    written: tuple[str, ...]
    before: str = ""
    after: str = ""

    @property
    def tokens(self) -> list[str]:
        """All tokens that the tokenizer must know."""
        return [name for name in (self.token, self.before, self.after) if name]


QWEN3_VL = PictureMarks("<|image_pad|>", ("<|image_pad|>",))
# Of the two, templates of transformers write the first and original ones the second.
INTERNVL = PictureMarks("<IMG_CONTEXT>", ("<IMG_CONTEXT>", "<image>"), "<img>", "</img>")
PICTURE_MARKS = {"qwen3_vl": QWEN3_VL, "qwen3_vl_moe": QWEN3_VL,
                 "internvl": INTERNVL, "internvl_chat": INTERNVL}


@dataclass(frozen=True)
class EncodedPrompt:
    """A prompt as the model reads it.

    Attributes:
        input_ids: token ids, each picture's placeholder repeated once per visual token.
        text: what the template wrote, with one placeholder per picture.
        image_spans: (start, length) of each picture in `input_ids`, in order.
    """

    input_ids: list[int]
    text: str
    image_spans: list[tuple[int, int]]


def build_prompt(template: ChatTemplate, tokenizer: Tokenizer,
                 messages: Sequence[Mapping[str, Any]], num_image_tokens: Sequence[int],
                 marks: PictureMarks = QWEN3_VL, **variables: Any) -> EncodedPrompt:
    """Render messages and encode them.

    Args:
        template, tokenizer: of the same checkpoint.
        messages: as `to_messages` returns them.
        num_image_tokens: visual tokens of each picture, in order.
        marks: how pictures are written for the model.
        variables: for the template.

    Raises:
        PromptError: the template fails, or writes more or fewer placeholders than there are
            pictures.
    """
    marker = _unused_character([template.source, *texts_in(messages)])
    marked = [_mark_message(message, tokenizer, marks, marker) for message in messages]
    rendered = _with_tokens(template.render(marked, **variables), marks)
    input_ids = _encode(rendered, tokenizer, marker)
    if not input_ids:
        raise PromptError("prompt: expected a text from the chat template, got an empty one")
    image_id = tokenizer.token_id(marks.token)
    if input_ids.count(image_id) != len(num_image_tokens):
        raise PromptError(f"prompt: expected one {marks.token} per picture, that is "
                          f"{len(num_image_tokens)}, the template wrote "
                          f"{input_ids.count(image_id)}")
    expanded, image_spans = _expand(input_ids, image_id, num_image_tokens)
    return EncodedPrompt(expanded, rendered.replace(marker, ""), image_spans)


def _expand(input_ids: list[int], image_id: int,
            num_image_tokens: Sequence[int]) -> tuple[list[int], list[tuple[int, int]]]:
    """Repeat each placeholder once per visual token of its picture."""
    expanded: list[int] = []
    spans: list[tuple[int, int]] = []
    for token_id in input_ids:
        if token_id == image_id:
            spans.append((len(expanded), num_image_tokens[len(spans)]))
            expanded += [image_id] * spans[-1][1]
        else:
            expanded.append(token_id)
    return expanded, spans


def _with_tokens(rendered: str, marks: PictureMarks) -> str:
    """The text of a template with the tokens of a picture where it wrote one; texts of messages
    hold a marker wherever they would fit."""
    pattern = "|".join(map(re.escape, marks.written))
    return re.sub(pattern, lambda _: marks.before + marks.token + marks.after, rendered)


def _mark_message(message: Mapping[str, Any], tokenizer: Tokenizer, marks: PictureMarks,
                  marker: str) -> dict[str, Any]:
    """Put a marker into every name of a control token that the texts of a message spell.

    Where a text ends with the beginning of such a name it gets a marker too, so that texts which
    the template joins do not spell one together. Templates see their text otherwise unchanged.
    """
    is_answer = message["role"] == "assistant"
    tokens = tokenizer.special_tokens if is_answer else tokenizer.added_tokens
    names = {*tokens, *marks.written}
    starts = re.compile("(?=" + "|".join(map(re.escape, names)) + ")") if names else None

    def mark(text: str) -> str:
        ends = [length for length in range(1, min(len(text), max(map(len, names), default=0)) + 1)
                if any(name.startswith(text[-length:]) for name in names)]
        points = {len(text) - length + 1 for length in ends}
        points |= {match.start() + 1 for match in starts.finditer(text)} if starts else set()
        cuts = [0, *sorted(points), len(text)]
        return marker.join(text[begin:end] for begin, end in zip(cuts, cuts[1:]))

    return {key: value if key == "role" else _map_texts(value, mark)
            for key, value in message.items()}


def _map_texts(content: Any, function: Callable[[str], str]) -> Any:
    if isinstance(content, str):
        return function(content)
    return [{**item, "text": function(item["text"])} if item["type"] == "text" else item
            for item in content]


def texts_in(messages: Iterable[Mapping[str, Any]]) -> list[str]:
    """All texts of messages, in order."""
    texts: list[str] = []
    for message in messages:
        for key, value in message.items():
            if key != "role":
                _map_texts(value, lambda text: texts.append(text) or text)
    return texts


def _unused_character(texts: Sequence[str]) -> str:
    """A private-use character that occurs in none of the texts."""
    used = set().union(*texts)
    for code in range(0x10FFFD, 0xFFFFF, -1):
        if chr(code) not in used:
            return chr(code)
    raise PromptError("prompt: expected a text, got one that holds every private-use character")


def _encode(rendered: str, tokenizer: Tokenizer, marker: str) -> list[int]:
    """Encode what a template wrote; stretches with a marker in them are plain text.

    Names of added tokens cut a text apart in any case, so no other token changes.
    """
    longest_first = sorted(tokenizer.added_tokens, key=len, reverse=True)
    pattern = re.compile("(" + "|".join(map(re.escape, longest_first)) + ")")
    pieces = pattern.split(rendered) if longest_first else [rendered]
    input_ids: list[int] = []
    written = ""
    for piece in pieces:
        if marker in piece:
            input_ids += tokenizer.encode(written)
            input_ids += tokenizer.encode(piece.replace(marker, ""), parse_added=False)
            written = ""
        else:
            written += piece
    input_ids += tokenizer.encode(written)
    num_special = sum(piece in tokenizer.special_tokens for piece in pieces[1::2])
    if sum(token_id in tokenizer.special_ids for token_id in input_ids) != num_special:
        raise PromptError("prompt: a text in it would be read as control tokens")
    return input_ids
