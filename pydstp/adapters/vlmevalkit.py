"""pydstp as a model of VLMEvalKit.

VLMEvalKit takes models from a table in its own `vlmeval/config.py`; `register` adds to it from
outside. Written against the interface of `vlmeval.vlm.base.BaseModel`. Importing this module needs
VLMEvalKit.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from vlmeval.vlm.base import BaseModel

from pydstp.adapters.model import AdapterModel, AdapterOptions, Messages, text_or_picture
from pydstp.errors import PromptError, show


class PydstpVLM(BaseModel):
    """A VLMEvalKit model.

    Args:
        model_path: the checkpoint folder; None takes the embedded checkpoint.
        temperature: 0 is greedy.
        options: of `AdapterOptions`, `max_new_tokens` among them. VLMEvalKit asks one question at a
            time, so `batch_size` stays 1.

    Raises:
        OptionError: an option that is not known or a value that cannot be used.
    """

    INTERLEAVE = True  # texts and pictures in any order
    is_api = False

    def __init__(self, model_path: str | None = None, temperature: float = 0.0,
                 **options: Any) -> None:
        super().__init__()
        self.model = AdapterModel(AdapterOptions(model=model_path, **options))
        self.asked = {"temperature": temperature}
        self.model.sampling(self.asked)  # refuses what cannot be used

    def generate_inner(self, message: list[Mapping[str, Any]], dataset: str | None = None) -> str:
        """Answer one message, a list of `{"type": "text" or "image", "value": ...}`."""
        return self._answer([{"role": "user", "content": _content(message)}])

    def chat_inner(self, message: list[Mapping[str, Any]], dataset: str | None = None) -> str:
        """Answer the last of several turns, `{"role": ..., "content": a message as above}`."""
        return self._answer([{"role": turn["role"], "content": _content(turn["content"])}
                             for turn in message])

    def _answer(self, messages: Messages) -> str:
        answer, = self.model.answer([messages], [self.asked])
        return answer.text


def _content(message: Any) -> Any:
    if isinstance(message, str):
        return message
    if not isinstance(message, list) or not message:
        raise PromptError(f"message: expected a list of text and image items, got {show(message)}")
    return [text_or_picture(item.get("type"), item.get("value")) for item in message]


def register(name: str, **options: Any) -> None:
    """Make a model known to VLMEvalKit as `name`; `options` are those of `PydstpVLM`."""
    from vlmeval.config import supported_VLM

    supported_VLM[name] = partial(PydstpVLM, **options)
