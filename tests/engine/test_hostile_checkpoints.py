"""Checkpoints that open and are not what they seem: typed errors, at the latest with a request."""

import json

import pytest
from PIL import Image

from pydstp.config import EngineConfig, SamplingParams
from pydstp.engine import Engine
from pydstp.errors import CapacityError, CheckpointError, PromptError, UnsupportedModelError
from tests.checkpoints import tiny_qwen3_vl

SMALL = EngineConfig(max_batch=1, max_text_tokens=200, num_threads=1)
SHORT = SamplingParams(temperature=0, max_new_tokens=2)


def change(file, *keys, value):
    content = json.loads(file.read_text())
    inner = content
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    file.write_text(json.dumps(content))


@pytest.mark.parametrize("template", ["", "{# nothing #}", "{{ messages[0].content.x.y }}",
                                      "{{ raise_exception('no') }}"])
def test_a_template_that_writes_nothing_or_fails_is_a_prompt_error(tmp_path, template):
    path = tiny_qwen3_vl(tmp_path)
    (path / "chat_template.jinja").write_text(template)
    with Engine(path, config=SMALL) as engine:
        for _ in range(2):
            with pytest.raises(PromptError, match="template"):
                engine.generate(None, "Hello.", SHORT)
            with engine.chat() as chat, pytest.raises(PromptError, match="template"):
                chat.send("Hello.", None, SHORT)
        assert engine._cache.num_free == 1


def test_a_tokenizer_that_makes_its_library_panic_is_a_checkpoint_error(tmp_path):
    path = tiny_qwen3_vl(tmp_path)
    change(path / "tokenizer.json", "model", "continuing_subword_prefix", value="hot")
    with pytest.raises(CheckpointError, match="tokenizer.json"):
        Engine(path, config=SMALL)


def test_a_tokenizer_of_another_kind_is_refused_by_name(tmp_path):
    path = tiny_qwen3_vl(tmp_path)
    vocab = json.loads((path / "tokenizer.json").read_text())["model"]["vocab"]
    change(path / "tokenizer.json", "model",
           value={"type": "WordLevel", "vocab": vocab, "unk_token": "<unk>"})
    with pytest.raises(UnsupportedModelError, match="WordLevel"):
        Engine(path, config=SMALL)


def test_a_picture_that_would_grow_beyond_all_room_is_refused_before_it_does(tmp_path):
    path = tiny_qwen3_vl(tmp_path)
    change(path / "preprocessor_config.json", "size",
           value={"shortest_edge": 10**14, "longest_edge": 10**15})
    with pytest.raises(CapacityError, match="max_visual_tokens"):
        with Engine(path, config=SMALL) as engine:
            engine.generate(Image.new("RGB", (40, 40)), "What?", SHORT)
