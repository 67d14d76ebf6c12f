"""What callers pass as a prompt, brought into one form: plain messages and a list of pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydstp.errors import PromptError, show

Message = dict[str, Any]

ROLES = ("system", "user", "assistant")
_MESSAGE_KEYS = {"role", "content", "reasoning_content"}
_PICTURE_KEYS = ("image", "path", "url", "image_url")
_VIDEO_TYPES = ("video", "video_url")
_ITEM_TYPES = ("text", *_PICTURE_KEYS, *_VIDEO_TYPES)
_THINK_START, _THINK_END = "<think>", "</think>"


def to_messages(prompt: str | Sequence[Mapping[str, Any]],
                images: Sequence[Any] = ()) -> tuple[list[Message], list[Any]]:
    """Messages that a chat template can read, and the pictures in the order they appear.

    Args:
        prompt: a text, which becomes one user message with the pictures in front; or messages
            `{"role": "system" | "user" | "assistant", "content": text or list of items}`. An item
            is `{"type": "text", "text": ...}` or a picture: `{"type": "image"}`, which takes the
            next of `images`, or one that brings its own under "image", "path" or "url" (anything
            `load_image` takes), or `{"type": "image_url", "image_url": {"url": data URL}}`.
        images: pictures for the items that bring none.

    Returns:
        messages: new dictionaries, picture items reduced to `{"type": "image"}`.
        images: one source per picture item.

    Raises:
        PromptError: a malformed or empty prompt, or items and pictures that do not pair up.
    """
    if isinstance(prompt, str):
        if not prompt.strip():
            raise PromptError("prompt: expected a text, got an empty string")
        pictures = [{"type": "image"} for _ in images]
        content = [*pictures, {"type": "text", "text": prompt}] if pictures else prompt
        return [{"role": "user", "content": content}], list(images)
    if not isinstance(prompt, Sequence) or isinstance(prompt, bytes | bytearray):
        raise PromptError(f"prompt: expected a text or a list of messages, "
                          f"got {type(prompt).__name__}")
    if not prompt:
        raise PromptError("prompt: expected at least one message, got an empty list")
    reader = _MessageReader(images)
    messages = [reader.message(f"messages[{i}]", message) for i, message in enumerate(prompt)]
    if messages[-1]["role"] != "user":
        raise PromptError(f"messages[{len(messages) - 1}].role: expected the last message to be "
                          f"the user's, got {messages[-1]['role']!r}")
    return messages, reader.finish()


class _MessageReader:
    """Checks messages one by one, and hands the given pictures to the items that ask for one."""

    def __init__(self, images: Sequence[Any]) -> None:
        self._given = list(images)
        self._num_taken = 0
        self._sources: list[Any] = []

    def message(self, where: str, message: Any) -> Message:
        if not isinstance(message, Mapping):
            raise PromptError(f"{where}: expected a dictionary with 'role' and 'content', "
                              f"got {type(message).__name__}")
        for key in message:
            if key not in _MESSAGE_KEYS:
                raise PromptError(f"{where}: unknown key {show(key)}, expected "
                                  f"{', '.join(sorted(_MESSAGE_KEYS))}")
        role = message.get("role")
        if not isinstance(role, str) or role not in ROLES:
            raise PromptError(f"{where}.role: expected one of {', '.join(ROLES)}, got {show(role)}")
        clean = {"role": role, "content": self._content(where, role, message.get("content"))}
        if message.get("reasoning_content") is not None:
            reasoning = message["reasoning_content"]
            clean["reasoning_content"] = _text(f"{where}.reasoning_content", reasoning)
        return clean

    def finish(self) -> list[Any]:
        if self._num_taken < len(self._given):
            raise PromptError(f"image: expected one picture per image item without its own, that "
                              f"is {self._num_taken}, got {len(self._given)}")
        return self._sources

    def _content(self, where: str, role: str, content: Any) -> str | list[Message]:
        if not isinstance(content, list | tuple):
            items: Any = _text(f"{where}.content", content, "a text or a list of items")
            is_empty = not items.strip()
        else:
            items = [self._item(f"{where}.content[{i}]", role, item)
                     for i, item in enumerate(content)]
            is_empty = all(not item.get("text", "image").strip() for item in items)
        if is_empty and role == "user":
            raise PromptError(f"{where}.content: expected a text or a picture, got an empty one")
        return items

    def _item(self, where: str, role: str, item: Any) -> Message:
        if not isinstance(item, Mapping):
            raise PromptError(f"{where}: expected a dictionary with 'type', "
                              f"got {type(item).__name__}")
        kind = item.get("type")
        if kind is None:
            kind = next((key for key in ("text", *_PICTURE_KEYS) if key in item), None)
        if not isinstance(kind, str) or kind not in _ITEM_TYPES:
            raise PromptError(f"{where}.type: expected 'text', 'image' or 'image_url', "
                              f"got {show(kind)}")
        if kind == "text":
            return {"type": "text", "text": _text(f"{where}.text", item.get("text"))}
        if kind in _VIDEO_TYPES:
            raise PromptError(f"{where}: video is not supported; expected text or image items")
        if role != "user":
            raise PromptError(f"{where}: expected pictures in user messages only, got one in a "
                              f"message of role {role!r}")
        self._sources.append(self._picture(where, item))
        return {"type": "image"}

    def _picture(self, where: str, item: Mapping[str, Any]) -> Any:
        own = [key for key in _PICTURE_KEYS if item.get(key) is not None]
        if len(own) > 1:
            raise PromptError(f"{where}: expected one picture, got {' and '.join(own)}")
        if own:
            return _own_picture(where, own[0], item[own[0]])
        if self._num_taken == len(self._given):
            raise PromptError(f"{where}: expected a picture for this image item, got only "
                              f"{len(self._given)} in all")
        self._num_taken += 1
        return self._given[self._num_taken - 1]


def _own_picture(where: str, key: str, value: Any) -> Any:
    if key != "image_url":
        return value
    url = value.get("url") if isinstance(value, Mapping) else value
    # The form of web requests: a path in it would let a stranger read local files.
    if not isinstance(url, str) or not url.lower().startswith("data:"):
        raise PromptError(f"{where}.image_url: expected a data URL (nothing is fetched, no file "
                          f"is opened), got {show(url, 80)}")
    return url


def _text(where: str, value: Any, expected: str = "a text") -> str:
    if not isinstance(value, str):
        raise PromptError(f"{where}: expected {expected}, got {type(value).__name__}")
    return value


def split_thinking(text: str) -> tuple[str | None, str]:
    """What a thinking model wrote, as (reasoning, answer).

    Reasoning ends at the first `</think>`; `<think>` in front of it is optional, because the
    prompt of thinking models ends with it. A text that opens it and never closes it is all
    reasoning. Reasoning is None where neither tag says there is any.
    """
    before, closing, after = text.partition(_THINK_END)
    is_opened = text.lstrip().startswith(_THINK_START)
    if not closing and not is_opened:
        return None, text
    reasoning = before.lstrip().removeprefix(_THINK_START) if is_opened else before
    return reasoning.strip(), after.lstrip("\n")
