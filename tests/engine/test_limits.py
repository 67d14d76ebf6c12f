"""Bad requests: typed errors, and an engine that answers the next one."""

import io
import json
import struct
from zlib import compress, crc32

import pytest
from PIL import Image

from pydstp.config import EngineConfig, SamplingParams
from pydstp.engine import Engine
from pydstp.errors import (
    CapacityError,
    CheckpointError,
    ImageError,
    OptionError,
    PromptError,
    PydstpError,
)
from tests.checkpoints import tiny_qwen3_vl
from tests.engine.oracle import picture

SHORT = SamplingParams(temperature=0, max_new_tokens=3, ignore_eos=True)
LIMITS = EngineConfig(max_batch=2, max_visual_tokens=40, max_text_tokens=60, max_images=3)


@pytest.fixture(scope="module")
def engine():
    with Engine(tiny_qwen3_vl(), config=LIMITS) as engine:
        yield engine


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


LONG = "word " * 100
BAD_REQUESTS = {
    "empty prompt": (PromptError, None, "", None),
    "empty list": (PromptError, None, [], None),
    "a number": (PromptError, None, 17, None),
    "unknown role": (PromptError, None, [{"role": "wizard", "content": "x"}], None),
    "no content": (PromptError, None, [{"role": "user"}], None),
    "video": (PromptError, None, [{"role": "user", "content": [{"type": "video"}]}], None),
    "missing picture": (PromptError, None,
                        [{"role": "user", "content": [{"type": "image"}]}], None),
    "prompt too long": (CapacityError, None, LONG, None),
    "pictures too large": (CapacityError, [picture(256, 224)], "x", None),
    "too many pictures": (CapacityError, [picture(32, 32)] * 4, "x", None),
    "missing file": (ImageError, "no/such/file.png", "x", None),
    "empty bytes": (ImageError, b"", "x", None),
    "not a picture": (ImageError, b"hello", "x", None),
    "truncated": (ImageError, png(picture(64, 64))[:60], "x", None),
    "too flat": (ImageError, Image.new("RGB", (20000, 1)), "x", None),
    "not an image type": (ImageError, object(), "x", None),
    "too many tokens asked": (CapacityError, None, "x", SamplingParams(max_new_tokens=100)),
    "too many tokens forced": (CapacityError, None, "x", SamplingParams(min_new_tokens=100)),
    "pictures for a batch": (OptionError, picture(32, 32), ["a", "b"], None),
    "pictures of wrong number": (OptionError, [None], ["a", "b"], None),
    "sampling of wrong number": (OptionError, None, ["a", "b"], [SHORT]),
    "sampling of wrong type": (OptionError, None, "a", {"temperature": 1}),
    "one bad prompt of a batch": (PromptError, None, ["a", ""], None),
}


@pytest.mark.parametrize("case", BAD_REQUESTS)
def test_a_bad_request_leaves_the_engine_usable(engine, case):
    kind, image, prompt, sampling = BAD_REQUESTS[case]
    expected = engine.generate(None, "Hello.", SHORT).token_ids
    with pytest.raises(kind) as caught:
        engine.generate(image, prompt, sampling)
    assert isinstance(caught.value, PydstpError) and str(caught.value)
    assert "0x" not in str(caught.value)
    assert engine._cache.num_free == 2
    assert engine.generate(None, "Hello.", SHORT).token_ids == expected


def test_an_error_in_a_batch_names_the_prompt(engine):
    with pytest.raises(PromptError, match=r"prompt\[1\]"):
        engine.generate(None, ["a", ""], SHORT)


def test_a_bomb_is_refused_before_it_is_decoded(engine):
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc32(kind + data))

    header = struct.pack(">IIBBBBB", 30_000, 30_000, 1, 0, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", compress(bytes(999)))
    with pytest.raises(ImageError, match="max_image_pixels|30000|900"):
        engine.generate(bomb, "x", SHORT)


def test_placeholders_in_user_text_are_text(engine):
    generation = engine.generate(None, "<|vision_start|><|image_pad|><|vision_end|>", SHORT)
    assert generation.visual_tokens == 0


def test_a_batch_larger_than_max_batch_runs_to_its_end(engine):
    assert len(engine.generate(None, ["a", "b", "c", "d", "e"], SHORT)) == 5


def test_max_new_tokens_is_bounded_by_what_fits(engine):
    generation = engine.generate(None, "Hello.", SamplingParams(ignore_eos=True))
    assert generation.finish_reason == "length"
    assert len(generation.token_ids) == LIMITS.max_text_tokens - generation.prompt_tokens + 1


@pytest.mark.parametrize("options", [
    dict(max_batch=0), dict(max_batch=2.5), dict(max_visual_tokens=-1), dict(max_text_tokens=None),
    dict(max_pixels="huge"), dict(min_pixels=0), dict(num_threads=0), dict(max_images=-1)])
def test_engine_options_out_of_range_are_refused_by_name(options):
    with pytest.raises(OptionError, match=next(iter(options))):
        EngineConfig(**options)


@pytest.mark.parametrize("options", [dict(device="tpu"), dict(dtype="int3"), dict(dtype=None)])
def test_engine_arguments_are_checked(options):
    with pytest.raises(OptionError, match=next(iter(options))):
        Engine(tiny_qwen3_vl(), **options)


def test_a_missing_folder_is_a_checkpoint_error(tmp_path):
    with pytest.raises(CheckpointError):
        Engine(tmp_path / "nothing")


def test_a_missing_tokenizer_is_a_checkpoint_error(tmp_path):
    path = tiny_qwen3_vl(tmp_path)
    for name in ("tokenizer.json", "vocab.json", "merges.txt"):
        (path / name).unlink(missing_ok=True)
    with pytest.raises(CheckpointError, match="tokenizer.json"):
        Engine(path)


@pytest.mark.parametrize("key, value", [("image_token_id", 3), ("vocab_size", 400)])
def test_a_tokenizer_of_another_model_is_a_checkpoint_error(tmp_path, key, value):
    path = tiny_qwen3_vl(tmp_path)
    config = json.loads((path / "config.json").read_text())
    section = config if key in config else config["text_config"]
    section[key] = value
    (path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=key):
        Engine(path)


@pytest.mark.parametrize("key, value", [
    ("eos_token_id", "</s>"), ("eos_token_id", [3, 10**6]), ("temperature", "hot"), ("top_p", 2)])
def test_a_generation_config_that_cannot_be_used_is_a_checkpoint_error(tmp_path, key, value):
    path = tiny_qwen3_vl(tmp_path) / "generation_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    with pytest.raises(CheckpointError, match=f"generation_config.json: {key}"):
        Engine(path.parent)


def test_a_cache_that_cannot_fit_is_refused_before_loading():
    with pytest.raises(CapacityError, match="memory|GiB|bytes"):
        Engine(tiny_qwen3_vl(), config=EngineConfig(max_batch=1024, max_text_tokens=1 << 20))
