"""Names: every spelling that is out there ends at the same parameter, by whole dotted parts."""

from __future__ import annotations

import pytest

from pydstp.models.name_map import (
    QWEN3_VL,
    NameMap,
    Placement,
    is_ignored,
    normalise,
    placements,
    refusal,
)
from pydstp.weights import open_checkpoint
from tests.checkpoints import tiny_qwen3_vl
from tests.loader.raw_files import config_of

CONFIG = config_of(open_checkpoint(tiny_qwen3_vl(moe=True)))  # H 64, E 8, I 24


@pytest.mark.parametrize(("spelled", "ours"), [
    ("model.language_model.layers.0.input_layernorm.weight",
     "language_model.layers.0.input_layernorm.weight"),
    ("model.model.model.language_model.norm.weight", "language_model.norm.weight"),
    ("language_model.norm.weight", "language_model.norm.weight"),
    ("model.layers.11.mlp.gate_proj.weight", "language_model.layers.11.mlp.gate_proj.weight"),
    ("model.embed_tokens.weight", "language_model.embed_tokens.weight"),
    ("model.norm.weight", "language_model.norm.weight"),
    ("visual.pos_embed.weight", "visual.pos_embed.weight"),
    ("model.visual.blocks.3.norm1.bias", "visual.blocks.3.norm1.bias"),
    ("lm_head.weight", "language_model.lm_head.weight"),
    ("model.lm_head.weight", "language_model.lm_head.weight"),
    ("model.language_model.lm_head.weight", "language_model.lm_head.weight"),
    ("model.visuals.pos_embed.weight", "visuals.pos_embed.weight"),  # fits no rule
    ("model", "model"),
    ("visual", "visual"),
    ("", ""),
])  # fmt: skip
def test_prefixes(spelled: str, ours: str) -> None:
    assert normalise(spelled, QWEN3_VL) == ours


def test_a_star_in_a_rename_stands_for_one_part() -> None:
    renames = (("tower.*.ls1", "vision.layers.*.scale1"), ("tower", "vision"))
    names = NameMap("head", renames, {}, "")
    assert normalise("tower.7.ls1.weight", names) == "vision.layers.7.scale1.weight"
    assert normalise("tower.7.8.ls1.weight", names) == "vision.7.8.ls1.weight"


def test_buffers_are_ignored_and_their_neighbours_are_not() -> None:
    assert is_ignored("model.visual.rotary_pos_emb.inv_freq")
    assert is_ignored("model.layers.0.self_attn.rotary_emb.cos_cached")
    assert is_ignored("vision_model.embeddings.position_ids")
    assert not is_ignored("model.visual.pos_embed.weight")
    assert not is_ignored("model.position_ids_proj.weight")


@pytest.mark.parametrize(("name", "what"), [
    ("model.layers.0.mlp.down_proj.weight_scale_inv", "FP8"),
    ("model.layers.0.mlp.down_proj.qweight", "quantised"),
    ("model.layers.0.mlp.down_proj.weight_scale", "quantised"),
    ("base.layers.0.q_proj.lora_A.weight", "adapter"),
])
def test_what_is_refused_by_name(name: str, what: str) -> None:
    assert what in refusal(name)


def test_ordinary_names_are_not_refused() -> None:
    assert not [name for moe in (False, True)
                for name in open_checkpoint(tiny_qwen3_vl(moe=moe)).tensors if refusal(name)]


def test_fused_parameters_stack_rows_in_order() -> None:
    target = "language_model.layers.0.self_attn.qkv_proj.weight"
    placed = placements(CONFIG, QWEN3_VL, {target: (128, 64)}, {})
    stem = target.removesuffix("qkv_proj.weight")
    assert placed == [
        Placement(stem + "q_proj.weight", (64, 64), target, (slice(0, 64),)),
        Placement(stem + "k_proj.weight", (32, 64), target, (slice(64, 96),)),
        Placement(stem + "v_proj.weight", (32, 64), target, (slice(96, 128),)),
    ]


STEM = "language_model.layers.2.mlp.experts"


@pytest.mark.parametrize(("hidden", "inter"), [(64, 24), (64, 32), (64, 64)], ids=str)
@pytest.mark.parametrize("turned", [False, True])
def test_expert_layout_is_told_by_both_shapes(hidden: int, inter: int, turned: bool) -> None:
    ours = {f"{STEM}.gate_up_proj": (8, 2 * inter, hidden), f"{STEM}.down_proj": (8, hidden, inter)}
    found = {name: (e, b, a) if turned else (e, a, b) for name, (e, a, b) in ours.items()}
    placed = placements(CONFIG, QWEN3_VL, ours, found)
    assert {p.name: p.shape for p in placed} == found
    assert all(p.transposed == turned and p.target == p.name for p in placed)


def test_experts_in_tensors_of_their_own() -> None:
    ours = {f"{STEM}.gate_up_proj": (8, 48, 64), f"{STEM}.down_proj": (8, 64, 24)}
    found = {f"{STEM}.{e}.down_proj.weight": (64, 24) for e in range(8)}
    by_name = {p.name: p for p in placements(CONFIG, QWEN3_VL, ours, found)}
    assert len(by_name) == 24
    up = by_name[f"{STEM}.5.up_proj.weight"]
    assert (up.shape, up.target, up.index) == ((24, 64), f"{STEM}.gate_up_proj", (5, slice(24, 48)))
    down = by_name[f"{STEM}.7.down_proj.weight"]
    assert (down.shape, down.index) == ((64, 24), (7, slice(0, 64)))
