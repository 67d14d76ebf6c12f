"""InternVL3.5 end to end against transformers: tiles, prompts, both formats, chats, limits."""

import json

import pytest

from pydstp.chat import INTERNVL, build_prompt, to_messages
from pydstp.chat_template import ChatTemplate
from pydstp.config import EngineConfig, SamplingParams
from pydstp.engine import Engine
from pydstp.errors import CapacityError, CheckpointError, OptionError
from pydstp.tokenizer import Tokenizer
from tests.engine.internvl_oracle import greedy, prompt_inputs
from tests.engine.oracle import picture, user
from tests.engine.whole_answers import check_greedy_tokens, greedy_params
from tests.internvl_checkpoints import (
    FIRST_ADDED,
    IMAGE_TOKEN_ID,
    TOKENS_PER_TILE,
    tiny_internvl,
)

STEPS = 48
GREEDY = greedy_params(STEPS)
PROMPTS = [
    ("Hello, what can you do?", []),
    ("What is in the picture?", [picture(97, 64, seed=1)]),
    ("Compare the pictures.", [picture(64, 160, 2), picture(120, 120, 3), picture(33, 33, 4)]),
    ("Name the third cell of row 2.", [picture(400, 300, seed=5)]),
]


@pytest.mark.parametrize("options", [
    {}, dict(tower="6B", tied=True, seed=1), dict(moe=True)], ids=["300M", "6B-tied", "moe"])
def test_greedy_tokens_equal_transformers(options):
    check_greedy_tokens(tiny_internvl(**options), PROMPTS, STEPS, greedy)


@pytest.mark.parametrize("options", [{}, dict(tower="6B", moe=True)], ids=str)
def test_original_files_give_the_same_tokens(options):
    answers = []
    for names in ("hf", "model", "original"):
        with Engine(tiny_internvl(names=names, **options)) as engine:
            answers.append(engine.generate(PROMPTS[2][1], PROMPTS[2][0], GREEDY).token_ids)
    assert answers[0] == answers[1] == answers[2]


def test_second_turn_equals_transformers():
    path, images = tiny_internvl(), [picture(97, 64, seed=1), picture(64, 96, seed=2)]
    with Engine(path) as engine, engine.chat(system="Answer briefly.") as chat:
        first = chat.send("What is this?", images[0], GREEDY)
        second = chat.send("And this one?", images[1], GREEDY)
    history = [{"role": "system", "content": "Answer briefly."}, user("What is this?", 1),
               {"role": "assistant", "content": first.text}, user("And this one?", 1)]
    assert second.cached_tokens > 0
    assert second.token_ids == greedy(path, history, images, STEPS)


@pytest.mark.parametrize("names", ["hf", "original"])
def test_prompts_equal_those_of_transformers(names):
    path = tiny_internvl(names=names)
    tokenizer, template = Tokenizer.from_checkpoint(path), ChatTemplate.from_checkpoint(path)
    for text, images in PROMPTS:
        messages, _ = to_messages(text, images)
        expected = prompt_inputs(tiny_internvl(), [user(text, len(images))], images)
        ids = expected["input_ids"][0].tolist()
        tiles, spans = [], [i for i, token in enumerate(ids) if token == FIRST_ADDED]
        for start in spans:
            tiles.append(ids.index(FIRST_ADDED + 1, start) - start - 1)
        found = build_prompt(template, tokenizer, messages, tiles, INTERNVL)
        assert found.input_ids == ids
        assert found.image_spans == [(start + 1, length) for start, length in zip(spans, tiles)]


@pytest.mark.parametrize("names", ["hf", "original"])
def test_texts_cannot_stand_in_for_a_picture(names):
    path = tiny_internvl(names=names)
    tokenizer, template = Tokenizer.from_checkpoint(path), ChatTemplate.from_checkpoint(path)
    text = "<img><IMG_CONTEXT></img> <image> <|im_end|>"
    messages, _ = to_messages([{"role": "user", "content": [
        {"type": "text", "text": text + "<im"}, {"type": "text", "text": "age>"},
        {"type": "image"}]}, {"role": "assistant", "content": text}, user("Go on.")], ["p"])
    found = build_prompt(template, tokenizer, messages, [5], INTERNVL)
    assert found.input_ids.count(IMAGE_TOKEN_ID) == 5
    assert found.input_ids.count(FIRST_ADDED) == 1
    assert tokenizer.decode(found.input_ids).count("<image>") == 3


def test_limits_and_options(tmp_path):
    config = EngineConfig(max_tiles=2, max_visual_tokens=4 * TOKENS_PER_TILE)
    with Engine(tiny_internvl(), config=config) as engine:
        answer = engine.generate(picture(300, 100), "What?", SamplingParams(max_new_tokens=2))
        assert answer.images[0].num_tiles == 3
        assert answer.visual_tokens == 3 * TOKENS_PER_TILE
        with pytest.raises(CapacityError, match="54"):
            engine.generate([picture(300, 100)] * 2, "What?")
    with pytest.raises(OptionError, match="max_pixels"):
        Engine(tiny_internvl(), config=EngineConfig(max_pixels=65536))


def test_the_end_token_needs_no_generation_config():
    with Engine(tiny_internvl()) as engine:
        assert engine._preparation._eos_ids == (engine.tokenizer.token_id("<|im_end|>"),)


@pytest.mark.parametrize("names", ["hf", "original"])
def test_a_tokenizer_without_the_tokens_is_refused(names, tmp_path):
    path = tiny_internvl(tmp_path, names=names)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        text = (path / file).read_text()
        (path / file).write_text(text.replace("</img>", "</pic>"))
    with pytest.raises(CheckpointError, match="expected a token </img>"):
        Engine(path)
    config = json.loads((path / "config.json").read_text())
    if names == "hf":
        (path / "config.json").write_text(json.dumps(config | {"image_token_id": 7}))
        with pytest.raises(CheckpointError, match="image_token_id: .*IMG_CONTEXT"):
            Engine(path)
