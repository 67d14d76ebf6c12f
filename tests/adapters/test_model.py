"""What both adapters share: options as plain values, and sampling as frameworks spell it."""

from __future__ import annotations

import logging

import pytest

from pydstp import DSTP, OptionError, PromptError, PruningConfig, SketchReturn
from pydstp.adapters.model import AdapterModel, AdapterOptions, text_or_picture
from pydstp.tasks import make_example

EXAMPLE = make_example("trail", 5)


@pytest.fixture(scope="module")
def model():
    model = AdapterModel(AdapterOptions(batch_size=2, max_new_tokens=64, max_visual_tokens=256,
                                        max_text_tokens=256))
    yield model
    model.engine.close()


def prompt(example=EXAMPLE):
    return [{"role": "user", "content": [text_or_picture("image", example.images[0]),
                                         text_or_picture("text", example.prompt)]}]


def test_plain_values_become_a_method_and_a_policy() -> None:
    options = AdapterOptions(pruning="fastv", retention_ratio="1/3", pruning_options='{"layer": 1}',
                             shift="dstp", shift_options={"threshold": 0.6})
    assert options.pruning_config() == PruningConfig("fastv", 1 / 3, layer=1)
    assert options.policy() == DSTP(threshold=0.6)
    assert AdapterOptions(shift="sketch", pruning="random", num_kept=3).policy() == SketchReturn()
    assert AdapterOptions().policy() is None and AdapterOptions().pruning_config() is None


def test_the_policy_may_be_a_file(tmp_path) -> None:
    DSTP(threshold=0.5).save(tmp_path / "mine.json")
    assert AdapterOptions(shift=str(tmp_path / "mine.json")).policy() == DSTP(threshold=0.5)


@pytest.mark.parametrize("options, says", [
    ({"prunning": "fastv"}, "AdapterOptions: expected options among model, batch_size"),
    ({"pruning": "nonsense", "retention_ratio": 0.5}, "expected a pruning method among"),
    ({"pruning": "fastv", "retention_ratio": "0.5,0.3"}, "retention_ratio: expected one ratio"),
    ({"pruning": 3}, "pruning: expected a text"), ({"model": 3}, "model: expected a text"),
    ({"pruning": "fastv"}, "retention_ratio, num_kept: expected one of the two"),
    ({"pruning": "fastv", "retention_ratio": "2"}, r"expected numbers in \(0, 1\]"),
    ({"retention_ratio": 0.5}, "pruning: expected a method"),
    ({"pruning": "fastv", "retention_ratio": 0.5, "pruning_options": "{"},
     "pruning_options: expected a JSON object"),
    ({"pruning": "fastv", "retention_ratio": 0.5, "pruning_options": {"depth": 1}},
     "expected options of 'fastv'"),
    ({"shift": "dstp,sketch"}, "shift: expected one policy"), ({"shift": 1}, "shift: expected"),
    ({"shift": "none", "shift_options": {"threshold": 1}}, "shift: expected a policy with"),
    ({"shift": "dstp", "shift_options": "[]"}, "shift_options: expected a JSON object"),
    ({"shift": "dstp", "shift_options": {"tau": 1}}, "DSTP: expected options among"),
    ({"batch_size": 0}, "max_batch: expected"), ({"max_new_tokens": 0}, "max_new_tokens: expected"),
    ({"max_visual_tokens": 0}, "max_visual_tokens: expected"), ({"weights": "int3"}, "weights:"),
])
def test_options_are_checked(options, says) -> None:
    with pytest.raises(OptionError, match=says):
        AdapterOptions(**options)


def test_the_answer_is_the_engines_own(model) -> None:
    others = [make_example("trail", seed) for seed in range(3)]
    answers = model.answer([prompt(), *map(prompt, others)], 4 * [{"do_sample": False}])
    assert [answer.text for answer in answers] == [example.answer for example in (EXAMPLE, *others)]


def test_the_system_message_comes_first(model) -> None:
    with_system = AdapterModel.__new__(AdapterModel)
    with_system.options = AdapterOptions(system="Be brief.")
    own = [{"role": "system", "content": "x"}, *prompt()]
    assert with_system._with_system(own) is own
    assert with_system._with_system(prompt())[0] == {"role": "system", "content": "Be brief."}
    assert model._with_system(own) is own


@pytest.mark.parametrize("asked, temperature, stop, longest", [
    ({}, 0.0, (), 64), ({"temperature": 0, "max_new_tokens": 5}, 0.0, (), 5),
    ({"temperature": None, "until": None}, 0.0, (), 64),
    ({"temperature": 0.7, "do_sample": False}, 0.0, (), 64),
    ({"temperature": 0.7, "until": "###"}, 0.7, ("###",), 64),
    ({"until": ["\n\n", "Q:", " "]}, 0.0, ("Q:",), 64),
    ({"num_beams": 1, "top_p": None}, 0.0, (), 64)])
def test_sampling(asked, temperature, stop, longest, model) -> None:
    found = model.sampling(asked)
    assert (found.temperature, found.stop, found.max_new_tokens) == (temperature, stop, longest)
    assert found.top_p is None


def test_sampling_with_chance(model) -> None:
    found = model.sampling({"temperature": 0.5, "top_p": 0.9, "top_k": 20, "seed": 3})
    assert (found.top_p, found.top_k, found.seed) == (0.9, 20, 3)


def test_unknown_generation_options_are_named_once(model, caplog) -> None:
    with caplog.at_level(logging.WARNING, "pydstp"):
        model.sampling({"image_aspect_ratio": "original"})
        model.sampling({"image_aspect_ratio": "original"})
    assert [record.getMessage() for record in caplog.records] == [
        "generation option image_aspect_ratio is not known and is ignored"]


@pytest.mark.parametrize("asked, says", [
    ({"num_beams": 4}, "num_beams: expected 1"), ({"temperature": -1}, "temperature: expected"),
    ({"max_new_tokens": 0}, "max_new_tokens: expected"), ({"until": [""]}, "stop: expected"),
    ({"temperature": 1.0, "top_p": 2}, "top_p: expected")])
def test_sampling_is_checked(asked, says, model) -> None:
    with pytest.raises(OptionError, match=says):
        model.sampling(asked)


@pytest.mark.parametrize("kind", ["video", "audio", None, 3])
def test_other_items_are_refused(kind) -> None:
    with pytest.raises(PromptError, match="expected text and image items"):
        text_or_picture(kind, "x")
