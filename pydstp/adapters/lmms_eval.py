"""pydstp as a model of lmms-eval (chat interface): `lmms-eval --model pydstp --tasks ...`.

lmms-eval finds `manifest` through the entry point group "lmms_eval.models", so that nothing has to
be copied into it. Its tasks hand over chat messages; their pictures go to the engine as they are.
Written for lmms-eval 0.7. Importing this module needs lmms-eval.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lmms_eval.api.model import lmms
from tqdm import tqdm

from pydstp.adapters.model import AdapterModel, AdapterOptions, Messages, text_or_picture
from pydstp.errors import OptionError, PromptError, PydstpError, show
from pydstp.generation import Generation

MODEL_ID = "pydstp"


class Pydstp(lmms):
    """An lmms-eval model.

    Args:
        pretrained: the checkpoint folder; None takes the embedded checkpoint.
        batch_size: prompts at once; a number, also as a text.
        max_batch_size: of lmms-eval's search for a batch size, which this model does not do.
        options: of `AdapterOptions`, as in `--model_args pretrained=...,pruning=fastv,...`.

    Raises:
        OptionError: an option that is not known or a value that cannot be used.
    """

    is_simple = False  # messages, not a text with a list of pictures

    def __init__(self, pretrained: str | None = None, batch_size: int | str = 1,
                 max_batch_size: int | None = None, **options: Any) -> None:
        super().__init__()
        if isinstance(batch_size, str):
            if not batch_size.isdecimal():
                raise OptionError(f"batch_size: expected a number, got {show(batch_size)}")
            batch_size = int(batch_size)
        self.batch_size = batch_size
        self.model = AdapterModel(
            AdapterOptions(model=pretrained, batch_size=batch_size, **options))

    def generate_until(self, requests: list[Any]) -> list[Any]:
        """Answer requests in their order.

        Args:
            requests: of lmms-eval, whose `args` are (context, doc_to_messages, generation options,
                document number, task, split).

        Returns:
            Texts with their numbers of tokens, where lmms-eval has a type for both.
        """
        results: list[Any] = []
        with tqdm(total=len(requests), unit=" answers", leave=False, disable=None) as bar:
            for start in range(0, len(requests), self.batch_size):
                batch = [request.args for request in requests[start:start + self.batch_size]]
                answers = self.model.answer([self._messages(args) for args in batch],
                                            [args[2] for args in batch])
                for args, answer in zip(batch, answers, strict=True):
                    self.cache_hook.add_partial("generate_until", (args[0], args[2]), answer.text)
                    results.append(_result(answer))
                bar.update(len(batch))
        return results

    def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
        """Not supported: the engine returns no probabilities of given texts."""
        raise PydstpError("lmms-eval: expected a task of type generate_until, got loglikelihood, "
                          "which pydstp does not support")

    def generate_until_multi_round(self, requests: list[Any]) -> list[str]:
        """Not supported."""
        raise PydstpError("lmms-eval: expected a task of type generate_until, got "
                          "generate_until_multi_round, which pydstp does not support")

    def _messages(self, args: tuple[Any, ...]) -> Messages:
        _, doc_to_messages, _, doc_id, task, split = args
        return to_messages(doc_to_messages(self.task_dict[task][split][doc_id]))


def to_messages(messages: list[Mapping[str, Any]]) -> Messages:
    """Messages of lmms-eval, whose items are `{"type": "text", "text": ...}` and `{"type": "image",
    "url": picture}`, as `Engine.generate` takes them.

    Raises:
        PromptError: no messages, or video or audio in them.
    """
    if not isinstance(messages, list) or not messages:
        raise PromptError(f"messages: expected a list of messages, got {show(messages)}")
    return [{"role": message["role"], "content": _content(message["content"])}
            for message in messages]


def _content(content: Any) -> Any:
    if isinstance(content, str):
        return content
    return [text_or_picture(item.get("type"), item.get("text" if item.get("type") == "text"
                                                       else "url")) for item in content]


def _result(answer: Generation) -> Any:
    """The text, with the number of its tokens where lmms-eval can take it."""
    try:
        from lmms_eval.api.instance import GenerationResult, TokenCounts
    except ImportError:  # before 0.7
        return answer.text
    return GenerationResult(answer.text, TokenCounts(
        input_tokens=answer.prompt_tokens, output_tokens=len(answer.token_ids)))


def manifest() -> Any:
    """What the entry point hands to lmms-eval: the name and the class of the model."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(MODEL_ID, chat_class_path=f"{__name__}.{Pydstp.__name__}")
