"""Arguments of wrong types and absurd sizes: typed errors that name them, and no addresses."""

import re

import numpy as np
import pytest

from pydstp.config import EngineConfig, SamplingParams
from pydstp.engine import Engine
from pydstp.errors import OptionError, PydstpError
from tests.checkpoints import tiny_qwen3_vl

SHORT = SamplingParams(temperature=0, max_new_tokens=3, ignore_eos=True)


@pytest.fixture(scope="module")
def engine():
    with Engine(tiny_qwen3_vl(), config=EngineConfig(max_batch=1)) as engine:
        yield engine


@pytest.mark.parametrize("options", [
    dict(temperature=10**400), dict(temperature=object()), dict(max_new_tokens=10**5000),
    dict(repetition_penalty=1e-300), dict(repetition_penalty=1e300), dict(ignore_eos=[1, 2]),
    dict(ignore_eos=object()), dict(stop=object()), dict(stop=[object()]), dict(seed=-10**5000)])
def test_sampling_values_of_any_kind_are_refused_by_name(options):
    name = next(iter(options))
    with pytest.raises(OptionError, match=rf"^{name}: expected") as caught:
        SamplingParams(**options)
    assert not re.search("0x[0-9a-f]{6}", str(caught.value))


@pytest.mark.parametrize("options", [
    dict(config={"max_batch": 1}), dict(config={}), dict(dtype=["float32"]), dict(dtype=object()),
    dict(dtype=np.array(["auto", "float32"])),
    dict(device=object()), dict(device=["cpu"]), dict(progress=5), dict(path=object())])
def test_engine_arguments_of_any_kind_are_refused_by_name(options):
    with pytest.raises(OptionError, match=rf"^{next(iter(options))}: expected") as caught:
        Engine(**{"path": tiny_qwen3_vl(), **options})
    assert not re.search("0x[0-9a-f]{6}", str(caught.value))


def test_a_callback_that_cannot_be_called_is_refused_before_anything_runs(engine):
    with pytest.raises(OptionError, match="^callback: expected"):
        engine.generate(None, "Hello.", SHORT, callback=5)


@pytest.mark.parametrize("message", [
    {"role": object(), "content": "x"}, {"role": "user", "content": "x", object(): 1},
    {"role": "user", "content": [{"type": object()}]},
    {"role": np.array(["user", "x"]), "content": "x"},
    {"role": "user", "content": [{"type": np.array([1, 2])}]},
    {"role": "user", "content": [{"type": "image_url", "image_url": {"url": object()}}]}])
def test_messages_of_any_kind_are_refused_without_addresses(engine, message):
    with pytest.raises(PydstpError, match=r"^messages\[0\]") as caught:
        engine.generate(None, [message], SHORT)
    assert not re.search("0x[0-9a-f]{6}", str(caught.value))


def test_a_system_message_that_is_no_text_takes_no_place(engine):
    with pytest.raises(OptionError, match="^system: expected"):
        engine.chat(system=5)
    assert engine._cache.num_free == 1


@pytest.mark.parametrize("image, prompt", [
    (memoryview(b"not contiguous")[::2], "x"),
    (None, "".join(map(chr, range(0x100000, 0x10FFFE))))])
def test_odd_bytes_and_texts_are_typed_errors(engine, image, prompt):
    with pytest.raises(PydstpError):
        engine.generate(image, prompt, SHORT)
