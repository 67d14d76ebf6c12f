"""The checkpoints that benchmarks run on have the real shape, and load."""

from __future__ import annotations

import json
import math
import sys

import pytest

from benchmarks import bench_generate, make_random_checkpoint
from pydstp import weights


def test_the_2b_shape_is_the_released_one() -> None:
    config = make_random_checkpoint.model_config("2b")
    tensors = dict(make_random_checkpoint.text_tensors(config["text_config"]))
    tensors.update(make_random_checkpoint.vision_tensors(config["vision_config"]))
    assert len(tensors) == 625  # tensors and parameters of Qwen3-VL-2B-Instruct
    assert sum(map(math.prod, tensors.values())) == 2_127_532_032


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("random") / "tiny"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["make", str(folder), "--shape", "tiny"])
        patch.setattr(make_random_checkpoint, "SHARD_BYTES", 8 << 20)
        make_random_checkpoint.main()
    return folder


def test_it_would_be_loaded(checkpoint) -> None:
    report = weights.inspect(checkpoint)
    assert report.problems == [] and report.dtypes.keys() == {"BF16"} and report.num_files > 1


def test_special_tokens_have_the_released_ids(checkpoint) -> None:
    tokens = json.loads((checkpoint / "tokenizer.json").read_text())["added_tokens"]
    ids = {token["content"]: token["id"] for token in tokens}
    config = json.loads((checkpoint / "config.json").read_text())
    assert ids["<|image_pad|>"] == config["image_token_id"] == 151655
    assert ids["<|vision_start|>"] == config["vision_start_token_id"]
    assert ids["<|im_end|>"] == config["text_config"]["eos_token_id"]


def test_the_cost_model_counts_every_weight_of_the_decoder() -> None:
    config = make_random_checkpoint.model_config("2b")
    tensors = dict(make_random_checkpoint.text_tensors(config["text_config"]))
    matrices = sum(math.prod(shape) for shape in tensors.values() if len(shape) > 1)
    parts = bench_generate.decode_bytes(config, num_cached=1000, value_bytes=2)
    assert parts == {"weights": 2 * matrices, "cache": 1000 * 114_688}


def test_agreement_counts_leading_tokens() -> None:
    results = {"a": {"token_ids": [1, 2, 3, 4]}, "b": {"token_ids": [1, 2, 9, 4]}}
    assert bench_generate.agreement(results) == 2
