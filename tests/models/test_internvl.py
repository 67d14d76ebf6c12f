"""InternVL3.5 against transformers in fp32: every stage, greedy tokens, both formats of files."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import InternVLVisionConfig, InternVLVisionModel

from pydstp.errors import OptionError, PromptError
from pydstp.models import internvl_vision
from pydstp.models.config import InternVisionConfig
from pydstp.models.internvl_vision import InternBlock, InternMLP, InternVisionTower, Projector
from pydstp.models.name_map import INTERNVL_HF, normalise
from pydstp.models.plans import Context
from tests.internvl_checkpoints import TOKENS_PER_TILE, internvl_reference, tiny_internvl
from tests.models.helpers import TOLERANCE, Runner, copy_weights, gap
from tests.models.internvl_inputs import in_blocks, loaded, tiled_prompt
from tests.models.stages import record
from tests.models.test_generate import oracle_greedy

CASES = {
    "text": ({}, ()),
    "one_tile": ({}, (1,)),
    "thirteen_tiles": ({"seed": 1}, (13,)),
    "three_pictures": ({"tied": True}, (1, 7, 5)),
    "6B": ({"tower": "6B"}, (5,)),
    "6B_three_pictures_tied": ({"tower": "6B", "tied": True, "seed": 1}, (3, 1, 13)),
    "moe": ({"moe": True}, (2,)),
    "moe_6B_tied": ({"moe": True, "tower": "6B", "tied": True}, (1, 4, 2)),
}
PAIRS = (("projector", "multi_modal_projector"), ("language_model.norm", "language_model.norm"))


def pairs_of(model: nn.Module, has_images: bool) -> list[tuple[str, str]]:
    """(our module, theirs) of every stage."""
    blocks = [(f"visual.blocks.{i}", f"vision_tower.encoder.layer.{i}")
              for i in range(len(model.visual.blocks))]
    layers = [(name := f"language_model.layers.{i}", name)
              for i in range(len(model.language_model.layers))]
    return ([*blocks, PAIRS[0]] if has_images else []) + [*layers, PAIRS[1]]


def in_our_order(name: str, theirs: Tensor) -> Tensor:
    """Rows of the tower: the class token, then patches in blocks, tile by tile."""
    if not name.startswith("visual.blocks"):
        return theirs.flatten(0, -2)
    return torch.cat([theirs[:, :1], in_blocks(theirs[:, 1:])], dim=1).flatten(0, 1)


@pytest.mark.parametrize(("options", "tiles"), CASES.values(), ids=CASES)
def test_every_stage_equals_transformers(options: dict, tiles: tuple, ctx: Context) -> None:
    path = tiny_internvl(**options)
    oracle, model, prompt = internvl_reference(path), loaded(path), tiled_prompt(tiles)
    pairs = pairs_of(model, bool(tiles))
    with record(model, [ours for ours, _ in pairs]) as ours:
        our_logits = Runner(model, ctx, capacity=256).prefill(prompt.ours)
    with record(oracle.model, [name for _, name in pairs]) as theirs, torch.inference_mode():
        their_logits = oracle(**prompt.theirs).logits
    gaps = {f"{name}{end}": gap(ours[f"{name}{end}"], in_our_order(name, theirs[f"{other}{end}"]))
            for name, other in pairs for end in (" in", " out")}
    gaps["logits"] = gap(our_logits, their_logits)
    print({stage: f"{value:.1e}" for stage, value in gaps.items()})
    assert not {stage: value for stage, value in gaps.items() if not value <= TOLERANCE}


@pytest.mark.parametrize("options", [{}, {"tower": "6B", "moe": True}, {"tied": True}], ids=str)
def test_greedy_tokens_equal_transformers_alone_and_in_a_batch(options: dict, ctx: Context) -> None:
    path = tiny_internvl(**options)
    oracle, model = internvl_reference(path), loaded(path)
    prompts = [tiled_prompt(tiles, seed) for seed, tiles in enumerate([(3,), (), (1, 2), (5,)])]
    expected = [oracle_greedy(oracle, prompt.theirs, 48) for prompt in prompts]
    assert len(set().union(*expected)) > 16, "greedy output must vary"
    ours = [prompt.ours for prompt in prompts]
    assert Runner(model, ctx, max_batch=4, capacity=128).generate(ours, 48) == expected


@pytest.mark.parametrize("options", [
    {}, {"tower": "6B"}, {"tied": True}, {"moe": True}, {"moe": True, "tower": "6B"}], ids=str)
def test_formats_of_the_same_weights_give_identical_logits(options: dict, ctx: Context) -> None:
    prompt = tiled_prompt((2, 5)).ours
    spellings = [{}, {"names": "model"}, {"names": "original"}, {"names": "original",
                                                                 "num_shards": 3}]
    if options.get("moe"):
        spellings.append({"names": "model", "experts": "fused"})
    models = [loaded(tiny_internvl(**options, **spelling)) for spelling in spellings]
    logits = [Runner(model, ctx, capacity=128).prefill(prompt) for model in models]
    assert all(torch.equal(logits[0], other) for other in logits[1:])


def test_the_class_token_is_what_is_observed(ctx: Context) -> None:
    for options in ({}, {"tower": "6B"}):
        path = tiny_internvl(**options)
        oracle, model, prompt = internvl_reference(path), loaded(path), tiled_prompt((3,))
        with torch.inference_mode():
            seen = oracle.model.vision_tower(prompt.tiles, output_attentions=True).attentions
            for block in (0, -2, 2):
                found = model.encode_images(prompt.ours.pixel_values, prompt.ours.grids, ctx, block)
                expected = in_blocks(seen[block][:, :, 0, 1:].mean(dim=1))
                expected = expected.reshape(-1, 4).mean(dim=1)
                assert gap(found.attention, expected) <= TOLERANCE
                assert found.keys.shape == (3 * TOKENS_PER_TILE, 12)
    with pytest.raises(OptionError, match="one of the 3 blocks"):
        model.encode_images(prompt.ours.pixel_values, prompt.ours.grids, ctx, observe=3)


def test_keys_are_those_that_attention_takes(ctx: Context) -> None:
    path = tiny_internvl(tower="6B")
    oracle, model, prompt = internvl_reference(path), loaded(path), tiled_prompt((2,))
    attention = oracle.model.vision_tower.encoder.layer[1].attention
    with record(attention, ["k_norm"]) as theirs, torch.inference_mode():
        oracle.model.vision_tower(prompt.tiles)
        found = model.encode_images(prompt.ours.pixel_values, prompt.ours.grids, ctx, 1)
    keys = in_blocks(theirs["k_norm out"][:, 1:]).reshape(-1, 4, 4, 12)
    assert gap(found.keys, keys.mean(dim=(1, 2))) <= TOLERANCE


@pytest.mark.parametrize(("heads", "head_dim", "norm"), [
    (16, 64, "layer_norm"), (3, 128, "rms_norm")], ids=["300M", "6B heads"])
def test_tiles_of_the_released_size_equal_transformers(
    heads: int, head_dim: int, norm: str, ctx: Context
) -> None:
    is_large = norm == "rms_norm"
    theirs = InternVLVisionModel(InternVLVisionConfig(
        hidden_size=heads * head_dim, num_hidden_layers=2, num_attention_heads=heads,
        intermediate_size=512, norm_type=norm, attention_bias=not is_large, use_qk_norm=is_large,
        attn_implementation="eager")).eval()  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    for name, weight in theirs.named_parameters():
        spread = 0.3 if weight.ndim == 1 or "embeddings" in name else heads**-0.5 / 4
        weight.data.normal_(0, spread, generator=generator).add_("norm" in name)
    config = InternVisionConfig(
        depth=2, hidden_size=heads * head_dim, intermediate_size=512, num_heads=heads,
        in_channels=3, image_size=448, patch_size=14, norm=norm, norm_eps=1e-6,
        qkv_bias=not is_large, qk_norm=is_large, out_hidden_size=64)  # fmt: skip
    with torch.device("meta"):
        ours = InternVisionTower(config)
    held = {normalise(f"vision_tower.{name}", INTERNVL_HF): tensor
            for name, tensor in theirs.state_dict().items()}
    copy_weights(ours, {name.removeprefix("visual."): held[name] for name in held}, torch.float32)
    tiles = torch.rand(2, 3, 448, 448, generator=generator) * 4 - 2
    cut = tiles.unfold(2, 14, 14).unfold(3, 14, 14).permute(0, 2, 3, 1, 4, 5)
    rows = cut.reshape(2, 16, 2, 16, 2, -1).transpose(2, 3).reshape(2048, 588)
    with torch.inference_mode():
        expected = theirs(tiles).last_hidden_state[:, 1:].reshape(2, 16, 2, 16, 2, -1)
        expected = expected.transpose(2, 3).reshape(512, -1)
        assert gap(ours(rows, ctx).rows, expected) <= TOLERANCE


def test_tiles_do_not_see_each_other(ctx: Context) -> None:
    model, prompt = loaded(tiny_internvl()), tiled_prompt((3,))
    grid, rows = prompt.ours.grids[:1], prompt.ours.pixel_values.chunk(3)
    alone = torch.cat([model.encode_images(tile, grid, ctx).rows for tile in rows])
    together = model.encode_images(prompt.ours.pixel_values, prompt.ours.grids, ctx).rows
    assert gap(together, alone) <= TOLERANCE


def test_other_grids_and_rows_are_refused(ctx: Context) -> None:
    model = loaded(tiny_internvl())
    with pytest.raises(PromptError, match="tiles of 6 x 6 patches"):
        model.encode_images(torch.zeros(24, 588), [(4, 6)], ctx)
    for pixels in (torch.zeros(35, 588), torch.zeros(36, 587)):
        with pytest.raises(PromptError, match=r"pixel_values: expected \(36, 588\)"):
            model.encode_images(pixels, [(6, 6)], ctx)


def test_bfloat16_stays_close(ctx: Context) -> None:
    path, prompt = tiny_internvl(tower="6B"), tiled_prompt((5,))
    with torch.inference_mode():
        exact = internvl_reference(path)(**prompt.theirs).logits
        half = internvl_reference(path, dtype="bfloat16")(**prompt.theirs).logits
    ours = Runner(loaded(path, torch.bfloat16), ctx, capacity=128).prefill(prompt.ours)
    assert gap(ours, exact) <= 2 * gap(half, exact)


Patch = pytest.MonkeyPatch


def tanh_gelu(patch: Patch) -> None:
    patch.setattr(InternMLP, "forward", lambda self, x: self.fc2(
        F.gelu(self.fc1(x), approximate="tanh")))


def tanh_gelu_in_the_projector(patch: Patch) -> None:
    patch.setattr(Projector, "forward", lambda self, x: self.fc2(
        F.gelu(self.fc1(self.norm(x)), approximate="tanh")))


def scale_on_the_sum(patch: Patch) -> None:
    def forward(self: InternBlock, x: Tensor, num_tiles: int, ctx: Context) -> Tensor:
        x = self.ls1 * (x + self.attn(self.norm1(x), num_tiles, ctx))
        return x + self.ls2 * self.mlp(self.norm2(x))

    patch.setattr(InternBlock, "forward", forward)


def table_row_by_row(patch: Patch) -> None:
    patch.setattr(internvl_vision, "merge_block_order", lambda grid, _: grid.flatten(0, 1))


def no_position_for_the_class_token(patch: Patch) -> None:
    embed = InternVisionTower.embed

    def without(self: InternVisionTower, pixels: Tensor, num_tiles: int) -> Tensor:
        x = embed(self, pixels, num_tiles).view(num_tiles, -1, 48).clone()
        x[:, 0] -= self.pos_embed[0, 0]
        return x.flatten(0, 1)

    patch.setattr(InternVisionTower, "embed", without)


FAULTS: list[Callable[[Patch], None]] = [
    tanh_gelu, tanh_gelu_in_the_projector, scale_on_the_sum, table_row_by_row,
    no_position_for_the_class_token]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_wrong_detail_is_seen(fault: Callable, monkeypatch: Patch, ctx: Context) -> None:
    path, prompt = tiny_internvl(), tiled_prompt((2, 1))
    with torch.inference_mode():
        theirs = internvl_reference(path)(**prompt.theirs).logits
    fault(monkeypatch)
    wrong = gap(Runner(loaded(path), ctx, capacity=128).prefill(prompt.ours), theirs)
    assert wrong > 3 * TOLERANCE, f"moved the logits by {wrong:.1e} only"


def test_the_projectors_eps_is_not_the_towers(ctx: Context) -> None:
    assert loaded(tiny_internvl()).projector.norm.eps == 1e-5
    assert loaded(tiny_internvl()).visual.blocks[0].norm1.eps == 1e-6
