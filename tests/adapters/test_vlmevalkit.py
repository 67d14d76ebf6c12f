"""pydstp as a model of VLMEvalKit, on a task of the project's own pictures."""

from __future__ import annotations

import sys

import pytest

from pydstp import OptionError, PromptError
from pydstp.tasks import is_correct, make_example
from tests.adapters.frameworks import VLMEVAL, framework

EXAMPLES = [make_example("trail", seed) for seed in range(4)]
SIZES = {"max_new_tokens": 64, "max_visual_tokens": 256, "max_text_tokens": 256}


@pytest.fixture(scope="module")
def adapter():
    with framework("vlmeval", "pydstp.adapters.vlmevalkit", VLMEVAL) as module:
        yield module


@pytest.fixture(scope="module")
def paths(tmp_path_factory) -> list[str]:
    """Picture files: VLMEvalKit hands over paths."""
    folder = tmp_path_factory.mktemp("pictures")
    for number, example in enumerate(EXAMPLES):
        example.images[0].save(folder / f"{number}.png")
    return [str(folder / f"{number}.png") for number in range(len(EXAMPLES))]


def messages(paths: list[str]) -> list[list[dict]]:
    """What a data set's `build_prompt` gives."""
    return [[{"type": "image", "value": path}, {"type": "text", "value": example.prompt}]
            for path, example in zip(paths, EXAMPLES, strict=True)]


def test_a_task_from_end_to_end(adapter, paths) -> None:
    adapter.register("pydstp-demo", **SIZES)
    model = sys.modules["vlmeval.config"].supported_VLM["pydstp-demo"]()
    answers = [model.generate(message, dataset="toy") for message in messages(paths)]
    assert answers == [example.answer for example in EXAMPLES]
    assert model.INTERLEAVE and not model.is_api


def test_pruning_and_its_return_are_model_arguments(adapter, paths) -> None:
    rights = []
    for shift in ("none", "recommended"):
        model = adapter.PydstpVLM(pruning="divprune", retention_ratio="1/3", shift=shift, **SIZES)
        rights.append(sum(is_correct(example, model.generate(message)) for example, message in
                          zip(EXAMPLES, messages(paths), strict=True)))
    assert rights[0] < rights[1] == len(EXAMPLES)


def test_several_turns_and_plain_texts(adapter, paths) -> None:
    model = adapter.PydstpVLM(**SIZES)
    first, second = messages(paths)[:2]
    turns = [{"role": "user", "content": first}, {"role": "assistant", "content": "Yes."},
             {"role": "user", "content": second}]
    assert model.chat_inner(turns) and isinstance(model.generate("Hello."), str)
    assert model.chat_inner(turns[:1]) == EXAMPLES[0].answer


@pytest.mark.parametrize("message", [
    [], None, [{"type": "video", "value": "x.mp4"}], [{"value": "x"}]])
def test_messages_are_checked(message, adapter) -> None:
    model = adapter.PydstpVLM.__new__(adapter.PydstpVLM)
    with pytest.raises(PromptError, match="expected"):
        model.generate_inner(message)


@pytest.mark.parametrize("options, says", [
    ({"prunning": "fastv"}, "expected options among"), ({"shift": "nonsense"}, "JSON file"),
    ({"retention_ratio": 0.5}, "pruning: expected a method"),
    ({"temperature": -1}, "temperature: expected")])
def test_options_are_checked(options, says, adapter) -> None:
    with pytest.raises(OptionError, match=says):
        adapter.PydstpVLM(**SIZES, **options)
