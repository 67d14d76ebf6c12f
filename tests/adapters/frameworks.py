"""The frameworks that the adapters serve: the real ones where they are installed, else stand-ins.

A stand-in holds what an adapter touches and no more, by the documented interface.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from types import ModuleType
from typing import Any

NEEDED = {"lmms_eval": "lmms_eval.evaluator", "vlmeval": "vlmeval.vlm.base"}


@cache
def is_installed(name: str) -> bool:
    """Whether a framework can be imported for real, with all that it needs itself."""
    if importlib.util.find_spec(name) is None:
        return False
    try:
        importlib.import_module(NEEDED[name])
    except ImportError as error:
        print(f"{name} is there and cannot be imported ({error}): a stand-in takes its place")
        return False
    return True


@contextmanager
def framework(name: str, adapter: str, stand_in: dict[str, dict[str, Any]]) -> Iterator[ModuleType]:
    """The adapter's module, over the real framework or over modules made of `stand_in`.

    Args:
        name: the framework's package.
        adapter: the module of the adapter.
        stand_in: for each module of the framework what it holds.
    """
    if is_installed(name):
        yield importlib.import_module(adapter)
        return
    print(f"{name} is not installed: its interface is a stand-in")
    modules = {}
    for path, content in stand_in.items():
        modules[path] = ModuleType(path)
        vars(modules[path]).update(content)
    before = {path: module for path, module in sys.modules.items()
              if path.split(".")[0] == name or path == adapter}
    for path in before:
        del sys.modules[path]
    sys.modules.update(modules)
    try:
        yield importlib.import_module(adapter)
    finally:
        for path in [*modules, adapter]:
            sys.modules.pop(path, None)
        sys.modules.update(before)


class CacheHook:
    """What lmms-eval hands finished answers to."""

    def __init__(self, _: Any) -> None:
        self.partial: list[tuple[Any, ...]] = []

    def add_partial(self, *entry: Any) -> None:
        self.partial.append(entry)


class Lmms:
    """The base class of lmms-eval models."""

    is_simple = True

    def __init__(self) -> None:
        self._rank, self._world_size = 0, 1
        self.cache_hook = CacheHook(None)
        self.task_dict: dict[str, Any] = {}

    @classmethod
    def create_from_arg_string(cls, text: str, extra: dict[str, Any] | None = None) -> Lmms:
        """`a=1,b=x` and what the command line says beside it; None says nothing."""
        own = dict(part.split("=", 1) for part in text.split(",") if part)
        own = {key: int(value) if value.isnumeric() else value for key, value in own.items()}
        return cls(**own, **{key: value for key, value in (extra or {}).items()
                             if value is not None})


class ModelManifest:
    """What an entry point of lmms-eval gives."""

    def __init__(self, model_id: str, simple_class_path: str | None = None,
                 chat_class_path: str | None = None) -> None:
        self.model_id, self.chat_class_path = model_id, chat_class_path


LMMS_EVAL = {
    "lmms_eval": {"__path__": []}, "lmms_eval.api": {"__path__": []},
    "lmms_eval.api.model": {"lmms": Lmms}, "lmms_eval.models": {"__path__": []},
    "lmms_eval.models.registry_v2": {"ModelManifest": ModelManifest},
}


class BaseModel:
    """The base class of VLMEvalKit models."""

    INTERLEAVE = False
    allowed_types = ["text", "image"]

    def generate(self, message: Any, dataset: str | None = None) -> str:
        """A text or a list of items; every item is of an allowed type."""
        if isinstance(message, str):
            message = [{"type": "text", "value": message}]
        assert all(item["type"] in self.allowed_types for item in message)
        return self.generate_inner(message, dataset)


VLMEVAL = {
    "vlmeval": {"__path__": []}, "vlmeval.vlm": {"__path__": []},
    "vlmeval.vlm.base": {"BaseModel": BaseModel}, "vlmeval.config": {"supported_VLM": {}},
}
