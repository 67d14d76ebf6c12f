"""The checkpoints that benchmarks run on have the real shape, and load."""

from __future__ import annotations

import json
import math
import shutil
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from benchmarks import make_random_checkpoint
from pydstp import demo_checkpoint, weights
from pydstp.bench import random_checkpoint
from pydstp.bench.shapes import SHAPES, model_config
from pydstp.errors import CapacityError, OptionError
from pydstp.models.config import VLMConfig
from pydstp.weights.loading import plan_loading

# Tensors and parameters of the releases: Qwen3-VL-2B-Instruct and -4B-Instruct.
RELEASED = {"qwen3-vl-2b": (625, 2_127_532_032), "qwen3-vl-4b": (713, 4_437_815_808)}


@pytest.mark.parametrize("shape", RELEASED)
def test_the_shapes_are_the_released_ones(shape) -> None:
    shapes = random_checkpoint.tensor_shapes(model_config(shape))
    assert (len(shapes), sum(map(math.prod, shapes.values()))) == RELEASED[shape]
    assert shapes["model.language_model.layers.3.self_attn.q_proj.weight"][0] % 2048 == 0
    assert "model.visual.blocks.7.attn.qkv.bias" in shapes and "lm_head.weight" not in shapes


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_has_a_place_for_every_tensor(shape) -> None:
    plan = random_checkpoint.planned_checkpoint(shape, Path("nowhere"))
    found = plan_loading(plan, VLMConfig.from_dict(plan.config))
    assert found.problems == [] and len(found.tensors) == len(plan.tensors)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("random") / "tiny"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["make", str(folder), "--shape", "tiny"])
        patch.setattr(random_checkpoint, "SHARD_BYTES", 8 << 20)
        make_random_checkpoint.main()
    return folder


def test_it_would_be_loaded(checkpoint) -> None:
    report = weights.inspect(checkpoint)
    assert report.problems == [] and report.dtypes.keys() == {"BF16"} and report.num_files > 1


def test_layers_differ(checkpoint) -> None:
    """Exporters merge equal constants, which would make a model smaller than it is."""
    tensors = {name: tensor for file in checkpoint.glob("*.safetensors")
               for name, tensor in load_file(file).items()}
    first, second = (tensors[f"model.language_model.layers.{layer}.mlp.up_proj.weight"]
                     for layer in (0, 1))
    assert not first.equal(second) and 0.5 < float(first.float().std()) * 128**0.5 < 2


def test_special_tokens_have_the_released_ids(checkpoint) -> None:
    tokens = json.loads((checkpoint / "tokenizer.json").read_text())["added_tokens"]
    ids = {token["content"]: token["id"] for token in tokens}
    config = json.loads((checkpoint / "config.json").read_text())
    assert ids["<|image_pad|>"] == config["image_token_id"] == 151655
    assert ids["<|vision_start|>"] == config["vision_start_token_id"]
    assert ids["<|im_end|>"] == config["text_config"]["eos_token_id"]


def test_a_full_disk_is_found_before_anything_is_written(tmp_path, monkeypatch) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1 << 20)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(CapacityError, match="0.07 GiB are needed .* 0.00 GiB are free"):
        random_checkpoint.write_checkpoint(tmp_path / "new", "tiny", demo_checkpoint())
    assert not (tmp_path / "new").exists()


def test_an_unknown_shape_is_named() -> None:
    with pytest.raises(OptionError, match="shape: expected one of qwen3-vl-4b.*got '7b'"):
        model_config("7b")
