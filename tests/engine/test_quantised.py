"""weights="int8": answers of the embedded checkpoint, determinism, options and errors."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest

from pydstp import Engine, EngineConfig, PruningConfig, SamplingParams, demo_checkpoint
from pydstp import engine as engine_module
from pydstp.errors import CapacityError, OptionError, UnsupportedModelError
from pydstp.tasks import is_correct, make_example
from pydstp.weights import memory as memory_module
from tests.checkpoints import tiny_qwen3_vl
from tests.engine.selection import IMAGE, PROMPT, answer, dstp, method, reserve_rows, same
from tests.loader.raw_files import edit_json

CONFIG = EngineConfig(max_batch=8, max_visual_tokens=128, max_text_tokens=256, num_threads=2)
PROMPTS = [PROMPT, "Why?", "Count the stars.", "Is it red?", "One two three", "A" * 40, "B", "C?"]


def open_engine(dtype: str = "float32", **options: object) -> Engine:
    return Engine(tiny_qwen3_vl(), dtype=dtype, config=replace(CONFIG, **options), weights="int8")


@pytest.mark.parametrize("task", ["trail", "read"])
def test_the_embedded_checkpoint_answers_in_8_bits(task: str) -> None:
    examples = [make_example(task, seed) for seed in range(200, 216)]
    with Engine(demo_checkpoint(), weights="int8", config=EngineConfig(max_batch=16)) as engine:
        answers = engine.generate([example.images for example in examples],
                                  [example.prompt for example in examples])
    right = sum(is_correct(example, found.text)
                for example, found in zip(examples, answers, strict=True))
    assert right >= 15, [(e.answer, a.text) for e, a in zip(examples, answers, strict=True)]


@cache
def alone(dtype: str) -> list[list[int]]:
    """Each request by itself, on one thread."""
    with open_engine(dtype, max_batch=1, num_threads=1) as engine:
        return [engine.generate(image, prompt, params(i)).token_ids
                for i, (image, prompt) in enumerate(zip(images(), PROMPTS, strict=True))]


def images() -> list[object]:
    return [IMAGE if i % 2 else None for i in range(8)]


def params(index: int) -> SamplingParams:
    return SamplingParams(temperature=0.9, seed=index, max_new_tokens=12, ignore_eos=True)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_tokens_are_the_same_alone_and_in_a_batch_on_one_thread_and_two(dtype: str) -> None:
    for num_threads, max_batch in ((2, 8), (1, 3)):
        with open_engine(dtype, num_threads=num_threads, max_batch=max_batch) as engine:
            batch = engine.generate(images(), PROMPTS, [params(i) for i in range(8)])
        assert [generation.token_ids for generation in batch] == alone(dtype)


def test_a_late_reserve_equals_one_beside_the_prompt() -> None:
    found = []
    for reserve in ("side", "lazy"):
        with open_engine(max_batch=4) as engine:
            generation = answer(engine, pruning=method("divprune"), reserve=reserve,
                                shift=dstp(trigger="every", expand_steps=2))
            found.append((generation, reserve_rows(engine._cache)))
    assert same(found[0][0], found[1][0])
    assert found[0][1].equal(found[1][1])


def test_chat_and_pruning_run() -> None:
    with open_engine() as engine, engine.chat(pruning=PruningConfig("fastv", 0.5, layer=1)) as chat:
        sampling = SamplingParams(temperature=0.0, max_new_tokens=4, ignore_eos=True)
        chat.send("Look.", [IMAGE], sampling)
        assert len(chat.send("And now?", None, sampling).token_ids) == 4


def test_a_step_reads_fewer_bytes() -> None:
    def read(weights: str) -> float:
        with Engine(tiny_qwen3_vl(), dtype="float32", config=CONFIG, weights=weights) as engine:
            generation = answer(engine, pruning=method("divprune"))
            return generation.shift.bytes_per_token

    assert read("int8") < 0.7 * read("float")  # hidden 64 is padded to 128: half, not a quarter


def test_the_option_of_the_engine_counts_before_its_config() -> None:
    assert EngineConfig().weights == "float"
    in_config = replace(CONFIG, weights="int8")
    for options, expected in ((dict(config=in_config), "int8"),
                              (dict(config=in_config, weights="float"), "float"),
                              (dict(config=CONFIG, weights="int8"), "int8"),
                              (dict(config=CONFIG), "float")):
        with Engine(tiny_qwen3_vl(), **options) as engine:
            assert engine.config.weights == expected


@pytest.mark.parametrize("value", ["int4", "", "INT8", 8, ["int8"], object()])
def test_other_kinds_of_weights_are_refused(value: object) -> None:
    message = "^weights: expected 'float' or 'int8', got "
    with pytest.raises(OptionError, match=message):
        EngineConfig(weights=value)
    with pytest.raises(OptionError, match=message):
        Engine(tiny_qwen3_vl(), weights=value)


def test_a_quantised_checkpoint_is_refused_by_name(tmp_path) -> None:
    folder = tiny_qwen3_vl(tmp_path)
    edit_json(folder / "config.json", quantization_config={"quant_method": "gptq"})
    with pytest.raises(UnsupportedModelError, match="quantization_config"):
        Engine(folder, weights="int8")


def test_memory_is_checked_for_int8(monkeypatch: pytest.MonkeyPatch) -> None:
    needed = []
    check = engine_module.check_memory
    monkeypatch.setattr(engine_module, "check_memory",
                        lambda *a, **k: needed.append(check(*a, **k).total_bytes))
    for weights in ("int8", "float"):
        Engine(tiny_qwen3_vl(), config=CONFIG, weights=weights).close()
    assert needed[0] < needed[1]
    monkeypatch.undo()
    monkeypatch.setattr(memory_module, "available_memory", lambda: sum(needed) // 2)
    Engine(tiny_qwen3_vl(), config=CONFIG, weights="int8").close()
    with pytest.raises(CapacityError, match="or weights='int8'"):
        Engine(tiny_qwen3_vl(), config=CONFIG)
