"""The chat template of a checkpoint: from messages to the text the model was trained on."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from pydstp.errors import CheckpointError, PromptError
from pydstp.json_file import parse_json, read_json, read_text
from pydstp.template_sandbox import TemplateSandbox
from pydstp.tokenizer_files import roles_of

FILES = ("chat_template.jinja", "chat_template.json", "tokenizer_config.json")


class ChatTemplate:
    """A compiled template; one object may render in several threads.

    Attributes:
        source: the Jinja2 text.
    """

    def __init__(self, source: str, *, roles: Mapping[str, str] | None = None,
                 origin: str = "chat template") -> None:
        """Compile a template.

        Args:
            source: Jinja2 text.
            roles: token names that templates may use: "bos_token", "eos_token", ...
            origin: what error messages call it, usually the file it came from.

        Raises:
            CheckpointError: not a valid template.
        """
        self.source = source
        self._origin = origin
        self._roles = dict(roles or {})
        try:
            self._sandbox = TemplateSandbox(source)
        except (jinja2.TemplateError, RecursionError) as error:
            line = getattr(error, "lineno", None)
            where = f"{origin}, line {line}" if line else origin
            raise CheckpointError(f"{where}: not a valid template ({error})") from None

    @classmethod
    def from_checkpoint(cls, path: str | Path) -> ChatTemplate:
        """Read the first of chat_template.jinja, chat_template.json and tokenizer_config.json.

        Raises:
            CheckpointError: no file holds a template, or it is damaged.
        """
        folder = Path(path)
        config_path = folder / FILES[-1]
        config = read_json(config_path) if config_path.is_file() else {}
        for name in FILES:
            file = folder / name
            if file.is_file() and (source := _template_in(file)) is not None:
                return cls(source, roles=roles_of(config), origin=str(file))
        raise CheckpointError(f"no chat template in {folder}: looked for {FILES[0]}, and for the "
                              f"key 'chat_template' in {FILES[1]} and {FILES[2]}")

    def render(self, messages: Sequence[Mapping[str, Any]], *,
               add_generation_prompt: bool = True, **variables: Any) -> str:
        """The prompt text of messages.

        Args:
            messages: as the template expects them, usually from `to_messages`.
            add_generation_prompt: end where the model's answer begins.
            variables: for the template, for example `add_vision_id=True`.

        Raises:
            PromptError: the template refuses the messages, fails on them, tries to leave its
                sandbox, or runs without end.
        """
        known = {"tools": None, "documents": None, **self._roles, **variables}
        try:
            return self._sandbox.render(
                {**known, "messages": messages, "add_generation_prompt": add_generation_prompt})
        except Exception as error:  # expressions of a template raise whatever Python raises
            kind = "" if type(error) is jinja2.TemplateError else f"{type(error).__name__}: "
            reason = re.sub(r" at 0x[0-9a-fA-F]+", "", kind + str(error))
            raise PromptError(f"prompt: the chat template refuses these messages or fails on "
                              f"them: {reason} ({self._origin})") from None


def _template_in(file: Path) -> str | None:
    if file.suffix == ".jinja":
        return read_text(file)
    content = parse_json(read_text(file), file)
    template = content.get("chat_template") if isinstance(content, dict) else content
    if template is None or isinstance(template, str):
        return template
    return _default_of(template, file)


def _default_of(template: Any, file: Path) -> str:
    """One of several named templates: the one named "default", or the only one."""
    try:
        named = {entry["name"]: entry["template"] for entry in template}
    except (TypeError, KeyError):
        named = {}
    source = next(iter(named.values())) if len(named) == 1 else named.get("default")
    if not isinstance(source, str):
        raise CheckpointError(f"{file}: chat_template: expected a text, or a list of names and "
                              f"templates with one named 'default', got names {list(named)}")
    return source
