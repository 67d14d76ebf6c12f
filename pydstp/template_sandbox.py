"""Where the Jinja2 of a checkpoint's chat template runs: it is code written by strangers.

The sandbox of Jinja2 keeps it away from Python's internals, and there is no loader that could reach
a file. What that sandbox leaves open is work: nested loops, texts that double. Here work is paid
out of one budget per rendering, which an honest template never notices. (A bound on what templates
ordinarily do; it does not make a checkpoint from a hostile source safe to use.)

Helpers and whitespace rules are those of transformers 5.23, utils/chat_template_utils.py.
"""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from functools import wraps
from typing import Any, NoReturn

from jinja2 import Template, nodes
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.ext import Extension, LoopControlExtension
from jinja2.parser import Parser
from jinja2.runtime import Context, LoopContext, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment

BUDGET = 20_000_000  # one for each character that is read or written
STEP, CALL = 50, 500  # what an iteration and a call cost

_REFUSED_FILTERS = ("format", "sum", "pprint", "xmlattr", "urlize")
_REFUSED_METHODS = {"format", "format_map", "translate", "to_bytes"}
_MULTIPLYING = {"center", "ljust", "rjust", "zfill", "expandtabs", "replace", "join", "indent",
                "batch", "slice"}
_PRINTING = {"tojson", "string", "escape", "e", "forceescape", "urlencode", "join"}
_ITERATED, _JOINED = "|iterated", "|joined"  # no template can spell these filters
_SIZED = str | bytes | list | tuple | dict | range


class TemplateSandbox(ImmutableSandboxedEnvironment):
    """Compiles and renders one chat template; renderings may run in several threads."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self, source: str) -> None:
        """Compile a template; mistakes raise Jinja2's `TemplateSyntaxError`."""
        super().__init__(trim_blocks=True, lstrip_blocks=True, finalize=self._pay_for_output,
                         extensions=[LoopControlExtension, _GenerationTag])
        self._budget = threading.local()
        del self.globals["lipsum"]
        self.globals |= {"raise_exception": _raise_exception, "strftime_now": _strftime_now}
        self.filters["tojson"] = _to_json
        for name in _REFUSED_FILTERS:
            del self.filters[name]
        for name, function in self.filters.items():
            self.filters[name] = self._paid(name, function)
        self.filters |= {_ITERATED: self._iterated, _JOINED: self._joined}
        tree = self.parse(source)
        self._text_len = _text_len(tree)
        self._template: Template = self.from_string(self._metered(tree))

    def render(self, variables: dict[str, Any]) -> str:
        """The text; raises Jinja2's `TemplateError` or what the template's expressions raise."""
        self._budget.left = BUDGET
        return self._template.render(variables)

    def _metered(self, tree: nodes.Template) -> nodes.Template:
        """Send what each loop runs over, and each `~`, through a filter that pays for it."""
        for loop in list(tree.find_all(nodes.For)):
            cost = nodes.Const(STEP + _text_len(loop))
            loop.iter = nodes.Filter(loop.iter, _ITERATED, [cost], [], None, None)
        for node in list(tree.find_all(nodes.Node)):
            for field, value in node.iter_fields():
                setattr(node, field, _join_with_filter(value))
        return tree.set_environment(self)

    def _pay(self, cost: float) -> None:
        left = getattr(self._budget, "left", BUDGET) - cost
        if left < 0:
            raise SecurityError("the template does far more work than a chat template needs")
        self._budget.left = left

    def _iterated(self, items: Iterable[Any], cost: int) -> list[Any]:
        items = list(items)
        self._pay(cost * len(items))
        return items

    def _joined(self, values: list[Any]) -> str:
        for value in values:
            self._pay_for_output(value)
        return "".join(map(str, values))

    def _pay_for_output(self, value: Any) -> Any:
        """Pay for every text inside a value, however nested, before it is printed."""
        pending = [value]
        while pending:
            item = pending.pop()
            self._pay(len(item) if isinstance(item, str) else STEP)
            if isinstance(item, dict):
                pending += [*item.keys(), *item.values()]
            elif isinstance(item, list | tuple):
                pending += item
        return value

    def _paid(self, name: str, function: Callable) -> Callable:
        @wraps(function)
        def filter_(*args: Any, **kwargs: Any) -> Any:
            args = tuple(list(a) if isinstance(a, Iterator) else a for a in args)
            self._pay_for_operands(name, [*args, *kwargs.values()])
            return function(*args, **kwargs)
        return filter_

    def _pay_for_operands(self, name: str, operands: list[Any]) -> None:
        if name in _MULTIPLYING:
            self._pay(math.prod(_extent(operand) for operand in operands))
        else:
            self._pay(sum(len(operand) for operand in operands if isinstance(operand, _SIZED)))
        if name in _PRINTING:
            for operand in operands:
                self._pay_for_output(operand)

    def call(self, context: Context, obj: Any, *args: Any, **kwargs: Any) -> Any:
        """A call in the template: `namespace(...)`, a macro, `text.split(...)`."""
        name, owner = getattr(obj, "__name__", ""), getattr(obj, "__self__", None)
        if name in _REFUSED_METHODS:
            raise SecurityError(f"chat templates may not call {name}")
        operands = [*args, *kwargs.values(), *([owner] if isinstance(owner, str) else [])]
        self._pay_for_operands(name, operands)
        self._pay(CALL + (self._text_len if isinstance(obj, Macro | LoopContext) else 0))
        if isinstance(obj, LoopContext):  # the next level of a recursive loop
            args = tuple(self._iterated(arg, STEP + self._text_len) for arg in args)
        result = super().call(context, obj, *args, **kwargs)
        self._pay(len(result) if isinstance(result, _SIZED) else 0)
        return result

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """`+`, `*`, `**` and `%`: the operators that can make much out of little."""
        if operator == "**" or (operator == "%" and isinstance(left, str)):
            raise SecurityError(f"chat templates may not use {operator} here")
        if isinstance(left, _SIZED) or isinstance(right, _SIZED):
            extents = (_extent(left), _extent(right))
            self._pay(math.prod(extents) if operator == "*" else sum(extents))
        elif isinstance(left, int) and isinstance(right, int):
            self._pay(left.bit_length() * right.bit_length() // 64)
        return super().call_binop(context, operator, left, right)


class _GenerationTag(Extension):
    """`{% generation %}` marks what a model wrote, for training; here it shows its content."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _join_with_filter(value: Any) -> Any:
    """The same field of a syntax tree, each `a ~ b` in it written as `[a, b] | joined`."""
    if isinstance(value, list):
        return [_join_with_filter(item) for item in value]
    if isinstance(value, nodes.Concat):
        parts = nodes.List(_join_with_filter(value.nodes))
        return nodes.Filter(parts, _JOINED, [], [], None, None)
    return value


def _text_len(node: nodes.Node) -> int:
    return sum(len(text.data) for text in node.find_all(nodes.TemplateData))


def _extent(operand: Any) -> int:
    """How often an operand can multiply another: its length, or its value."""
    if isinstance(operand, _SIZED):
        return max(1, len(operand))
    return max(1, abs(operand)) if isinstance(operand, int) else 1


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)


def _strftime_now(format: str) -> str:
    return datetime.now().strftime(format)


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None,
             separators: tuple[str, str] | None = None, sort_keys: bool = False) -> str:
    """Without the HTML escapes of Jinja2's own filter."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators,
                      sort_keys=sort_keys)
