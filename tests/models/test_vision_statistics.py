"""Statistics of one block of the vision tower: word for word, and never seen in its output."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.models.qwen3_vl import modeling_qwen3_vl

from pydstp.errors import OptionError, PromptError
from pydstp.models import vision_statistics
from pydstp.models.plans import Context
from pydstp.models.qwen3_vl_vision import VisionTower
from tests.checkpoints import reference_model, tiny_qwen3_vl
from tests.compare import assert_bitwise
from tests.models.helpers import TOLERANCE, copy_weights, gap, make_inputs, our_model
from tests.models.test_vision import build_towers, tower_config

# (height, width) in patches: of one token, of odd numbers of tokens, of several pictures.
PICTURES = [[(2, 2)], [(6, 10)], [(2, 2), (10, 6), (2, 14), (6, 6)]]


class Recorder:
    """Keeps the attention weights and keys of transformers' vision tower, block by block."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[tuple[Tensor, Tensor]] = []
        plain = modeling_qwen3_vl.eager_attention_forward

        def record(module, query, key, value, *args, **kwargs):
            output, weights = plain(module, query, key, value, *args, **kwargs)
            self.calls.append((weights[0].double(), key[0].double()))
            return output, weights
        monkeypatch.setattr(modeling_qwen3_vl, "eager_attention_forward", record)

    def statistics(self, block: int, num_pictures: int) -> tuple[Tensor, Tensor]:
        """(attention, keys) of the tokens, one number after the other."""
        attention, keys = [], []
        for weights, key in self.calls[block * num_pictures:][:num_pictures]:
            num_heads, num_patches, _ = weights.shape
            received = [sum(float(weights[head, query, patch]) for head in range(num_heads)
                            for query in range(num_patches)) / (num_heads * num_patches)
                        for patch in range(num_patches)]
            for first in range(0, num_patches, 4):
                attention.append(sum(received[first:first + 4]) / 4)
                keys.append(sum(key[head, patch] for head in range(num_heads)
                                for patch in range(first, first + 4)) / (4 * num_heads))
        return torch.tensor(attention, dtype=torch.float64), torch.stack(keys)


def pixels(grids: list[tuple[int, int]], tower: VisionTower) -> Tensor:
    generator = torch.Generator().manual_seed(len(grids))
    size = sum(height * width for height, width in grids), tower.config.patch_dim
    return torch.rand(size, generator=generator) * 4 - 2


@pytest.mark.parametrize("max_weights", [1, 1000, None])
@pytest.mark.parametrize("grids", PICTURES, ids=str)
@torch.inference_mode()
def test_equals_the_literal_computation(grids, max_weights, monkeypatch, ctx: Context) -> None:
    if max_weights:
        monkeypatch.setattr(vision_statistics, "MAX_WEIGHTS", max_weights)
    tower, oracle = build_towers(tower_config(head_dim=64, deepstack=(1,)))
    recorder, x = Recorder(monkeypatch), pixels(grids, tower)
    oracle(x, torch.tensor([(1, *grid) for grid in grids]))
    for block in (0, 1):
        attention, keys = recorder.statistics(block, len(grids))
        for observe in (block, block - 2):
            ours = tower(x, grids, ctx, observe)
            assert ours.attention.dtype == ours.keys.dtype == torch.float32
            assert ours.attention.shape == attention.shape
            assert float(((ours.attention - attention) / attention).abs().max()) <= TOLERANCE
            assert gap(ours.keys, keys) <= TOLERANCE


@torch.inference_mode()
def test_attention_received_is_a_share_of_each_picture(ctx: Context) -> None:
    path = tiny_qwen3_vl()
    model, grids = our_model(path, reference_model(path)), [(4, 6), (2, 2), (6, 6)]
    inputs = make_inputs(model.config, grids)
    attention = model.encode_images(inputs.pixel_values, grids, ctx, observe=-2).attention
    for part in attention.split([6, 1, 9]):
        assert float(part.sum()) == pytest.approx(0.25, rel=1e-5) and (part > 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@torch.inference_mode()
def test_the_output_does_not_show_that_someone_looked(dtype, ctx: Context) -> None:
    path = tiny_qwen3_vl()
    model = our_model(path, reference_model(path), dtype)
    grids = [(4, 6), (2, 2), (10, 2)]
    x = make_inputs(model.config, grids).pixel_values
    plain = model.encode_images(x, grids, ctx)
    assert plain.attention is None and plain.keys is None
    for observe in range(-4, 4):
        seen = model.encode_images(x, grids, ctx, observe=observe)
        assert_bitwise(seen.rows, plain.rows)
        for ours, expected in zip(seen.deepstack, plain.deepstack, strict=True):
            assert_bitwise(ours, expected)
        assert seen.attention.dtype == seen.keys.dtype == torch.float32
        assert seen.attention.isfinite().all() and seen.keys.isfinite().all()


@torch.inference_mode()
def test_pictures_do_not_show_in_each_others_statistics(ctx: Context) -> None:
    path = tiny_qwen3_vl()
    model, grids = our_model(path, reference_model(path)), [(4, 6), (6, 2), (2, 2)]
    x = make_inputs(model.config, grids).pixel_values
    together = model.encode_images(x, grids, ctx, observe=-1)
    alone = [model.encode_images(part, [grid], ctx, observe=-1)
             for part, grid in zip(x.split([24, 12, 4]), grids, strict=True)]
    assert gap(together.attention, torch.cat([one.attention for one in alone])) <= TOLERANCE
    assert gap(together.keys, torch.cat([one.keys for one in alone])) <= TOLERANCE


class Largest(TorchDispatchMode):
    """The largest tensor that any operation made, in elements, and how many operations ran."""

    elements = operations = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.operations += 1
        if isinstance(result, Tensor):
            self.elements = max(self.elements, result.numel())
        return result


@torch.inference_mode()
def test_the_map_of_all_heads_is_never_whole(monkeypatch) -> None:
    limit = 2 * 3000
    monkeypatch.setattr(vision_statistics, "MAX_WEIGHTS", limit)
    q, k = torch.randn(2, 300, 2, 4).unbind(0)
    with Largest() as largest:
        vision_statistics.attention_received(q, k, [300], 4, lambda: None)
    assert largest.elements <= limit < 2 * 300 * 300


@torch.inference_mode()
def test_nothing_is_computed_unless_asked(monkeypatch, ctx: Context) -> None:
    tower, _ = build_towers(tower_config(head_dim=64))
    grids = [(4, 6), (2, 2)]
    x = pixels(grids, tower)
    with Largest() as looking:
        tower(x, grids, ctx, -1)
    with Largest() as plain:
        tower(x, grids, ctx)
    monkeypatch.setattr("pydstp.models.qwen3_vl_vision.attention_received", None)
    with Largest() as without:
        tower(x, grids, ctx)
    assert plain.operations == without.operations < looking.operations


@pytest.mark.parametrize("observe", [2, -3, 1 << 20])
def test_a_block_that_is_not_there_is_refused(observe, ctx: Context) -> None:
    tower, _ = build_towers(tower_config(head_dim=64))
    with pytest.raises(OptionError, match=rf"block: .* 2 blocks .*-2\.\.1.*got {observe}"):
        tower(torch.zeros(4, tower.config.patch_dim), [(2, 2)], ctx, observe)


def test_it_can_be_cancelled_between_blocks_of_queries(monkeypatch, ctx: Context) -> None:
    monkeypatch.setattr(vision_statistics, "MAX_WEIGHTS", 1)
    tower, _ = build_towers(tower_config(head_dim=64))
    calls = []

    def check() -> None:
        calls.append(1)
        if len(calls) == 4:  # one for each of two blocks of the tower, the others while looking
            raise PromptError("cancelled")
    with pytest.raises(PromptError, match="cancelled"), torch.inference_mode():
        tower(torch.zeros(4, tower.config.patch_dim), [(2, 2)], replace(ctx, check=check), 1)
    assert len(calls) == 4


@torch.inference_mode()
def test_no_nan_from_extreme_activations(ctx: Context) -> None:
    tower, oracle = build_towers(tower_config(head_dim=64))
    weights = {name: value * 50 if "qkv" in name else value
               for name, value in oracle.state_dict().items()}
    copy_weights(tower, weights, torch.float32)
    seen = tower(pixels([(6, 6)], tower), [(6, 6)], ctx, -1)
    assert seen.attention.isfinite().all()
    assert float(seen.attention.sum()) == pytest.approx(0.25, rel=1e-5)
