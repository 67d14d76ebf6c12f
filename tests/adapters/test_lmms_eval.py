"""pydstp as a model of lmms-eval, on a task of the project's own pictures."""

from __future__ import annotations

from importlib import metadata
from types import SimpleNamespace

import pytest

from pydstp import OptionError, PromptError, PydstpError
from pydstp.tasks import is_correct, make_example
from tests.adapters.frameworks import LMMS_EVAL, framework, is_installed
from tests.house.source_tree import ROOT

EXAMPLES = [make_example("trail", seed) for seed in range(5)]
SIZES = "max_new_tokens=64,max_visual_tokens=256,max_text_tokens=256"
GREEDY = {"max_new_tokens": 64, "do_sample": False, "until": ["\n\n"], "num_beams": 1}


@pytest.fixture(scope="module")
def adapter():
    with framework("lmms_eval", "pydstp.adapters.lmms_eval", LMMS_EVAL) as module:
        yield module


def messages_of(document: dict) -> list[dict]:
    """What a task's `doc_to_messages` gives."""
    example = EXAMPLES[document["number"]]
    return [{"role": "user", "content": [{"type": "image", "url": example.images[0]},
                                         {"type": "text", "text": example.prompt}]}]


def requests(count: int = len(EXAMPLES)) -> list[SimpleNamespace]:
    """Requests as lmms-eval makes them for a task of type generate_until."""
    return [SimpleNamespace(args=(f"context {number}", messages_of, dict(GREEDY), number, "toy",
                                  "test")) for number in range(count)]


def opened(adapter, options: str = "", **extra):
    model = adapter.Pydstp.create_from_arg_string(f"{SIZES}{options}", extra)
    model.task_dict["toy"] = {"test": [{"number": number} for number in range(len(EXAMPLES))]}
    return model


def texts(results: list) -> list[str]:
    return [getattr(result, "text", result) for result in results]


def test_a_task_from_end_to_end(adapter) -> None:
    model = opened(adapter, batch_size="2", max_batch_size=None, device=None)
    entries = []
    model.cache_hook = SimpleNamespace(add_partial=lambda *entry: entries.append(entry))
    answers = texts(model.generate_until(requests()))
    assert answers == [example.answer for example in EXAMPLES]
    assert entries == [("generate_until", (f"context {number}", GREEDY), answer)
                       for number, answer in enumerate(answers)]
    assert not model.is_simple and model.batch_size == 2


def test_pruning_and_its_return_are_model_arguments(adapter) -> None:
    base, back = (texts(opened(adapter, f",pruning=divprune,retention_ratio=0.333,shift={shift}",
                               batch_size=5).generate_until(requests()))
                  for shift in ("none", "recommended"))
    right = [[is_correct(example, text) for example, text in zip(EXAMPLES, answers, strict=True)]
             for answers in (base, back)]
    assert sum(right[0]) < sum(right[1]) == len(EXAMPLES)


def test_texts_alone_and_several_turns_are_understood(adapter) -> None:
    system = {"role": "system", "content": [{"type": "text", "text": "Be brief."}]}
    turns = [system, {"role": "user", "content": "Hello."}]
    assert adapter.to_messages(turns) == turns


@pytest.mark.parametrize("messages", [
    [], None, [{"role": "user", "content": [{"type": "video", "url": "x.mp4"}]}],
    [{"role": "user", "content": [{"type": "audio", "url": {}}]}]])
def test_messages_are_checked(messages, adapter) -> None:
    with pytest.raises(PromptError, match="messages: expected"):
        adapter.to_messages(messages)


@pytest.mark.parametrize("options, extra, says", [
    (",prunning=fastv", {}, "expected options among"), ("", {"batch_size": "auto"}, "batch_size"),
    (",retention_ratio=0.5", {}, "pruning: expected a method")])
def test_model_arguments_are_checked(options, extra, says, adapter) -> None:
    with pytest.raises(OptionError, match=says):
        opened(adapter, options, **extra)


def test_what_is_not_supported_is_said(adapter) -> None:
    model = opened(adapter)
    for method in (model.loglikelihood, model.generate_until_multi_round):
        with pytest.raises(PydstpError, match="expected a task of type generate_until"):
            method([])


def test_the_entry_point_leads_to_the_model(adapter) -> None:
    line = 'pydstp = "pydstp.adapters.lmms_eval:manifest"'
    text = (ROOT / "pyproject.toml").read_text()
    assert f'[project.entry-points."lmms_eval.models"]\n{line}' in text
    found = adapter.manifest()
    assert found.model_id == "pydstp"
    assert found.chat_class_path == "pydstp.adapters.lmms_eval.Pydstp"


def test_the_framework_itself_runs_a_task(adapter, tmp_path) -> None:
    if not is_installed("lmms_eval"):  # the adapter's part is tested above in any case
        pytest.skip("lmms-eval is not installed: its own evaluator is not run")
    from tests.adapters.lmms_eval_task import run

    assert metadata.version("lmms_eval")
    results = run(adapter, tmp_path, EXAMPLES, SIZES)
    assert results["results"]["pydstp_toy"]["exact,none"] == 1.0
    assert len(results["samples"]["pydstp_toy"]) == len(EXAMPLES)
