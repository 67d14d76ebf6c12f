"""Where the Jinja2 of a checkpoint's chat template runs: it is code that came with a file.

Jinja2's immutable sandbox keeps it away from Python's internals and from the messages' contents,
there is no loader that could reach a file, and what it writes is bounded. Time is not: like its
weights, the template of a checkpoint is something its user has chosen.

Helpers and whitespace rules are those of transformers 5.23, utils/chat_template_utils.py.
"""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import nodes
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.ext import Extension, LoopControlExtension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

MAX_CHARACTERS = 10_000_000


class TemplateSandbox(ImmutableSandboxedEnvironment):
    """Compiles and renders one chat template; renderings may run in several threads."""

    def __init__(self, source: str) -> None:
        """Compile a template; mistakes raise Jinja2's `TemplateSyntaxError`."""
        super().__init__(trim_blocks=True, lstrip_blocks=True,
                         extensions=[LoopControlExtension, _GenerationTag])
        del self.globals["lipsum"]
        self.globals |= {"raise_exception": _raise_exception, "strftime_now": _strftime_now}
        self.filters["tojson"] = _to_json
        self._template = self.from_string(source)

    def render(self, variables: dict[str, Any]) -> str:
        """The text; raises Jinja2's `TemplateError` or what the template's expressions raise."""
        pieces, num_characters = [], 0
        for piece in self._template.generate(variables):
            num_characters += len(piece)
            if num_characters > MAX_CHARACTERS:
                raise SecurityError(f"the template writes more than {MAX_CHARACTERS} characters")
            pieces.append(piece)
        return "".join(pieces)


class _GenerationTag(Extension):
    """`{% generation %}` marks what a model wrote, for training; here it shows its content."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)


def _strftime_now(format: str) -> str:
    return datetime.now().strftime(format)


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None,
             separators: tuple[str, str] | None = None, sort_keys: bool = False) -> str:
    """Without the HTML escapes of Jinja2's own filter."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators,
                      sort_keys=sort_keys)
