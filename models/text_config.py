"""The decoder's part of a config.json, for all families: Qwen3, dense or sparse.

Key names are those of the releases and of the files that transformers 4.57 to 5.23 write.
"""

from dataclasses import dataclass

from pydstp.models.config_reader import Section


@dataclass(frozen=True)
class MoEConfig:
    """Sparse MLP: `num_experts_per_tok` of `num_experts` gated MLPs per token, in every layer."""

    num_experts: int
    num_experts_per_tok: int
    moe_intermediate_size: int


@dataclass(frozen=True)
class TextConfig:
    """The decoder. `mrope_section` is None where rope is 1-D, `moe` where the MLPs are dense."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    max_position_embeddings: int
    rope_theta: float
    mrope_section: tuple[int, int, int] | None
    moe: MoEConfig | None = None


def read_text_config(section: Section, *, sparse: bool, has_mrope: bool) -> TextConfig:
    """Read and check the section.

    sparse: the MLPs are mixtures of experts. has_mrope: positions have three axes.
    Raises CheckpointError and UnsupportedModelError, see `VLMConfig.from_dict`.
    """
    section.choice("hidden_act", ("silu",))
    section.refuse("attention_bias", unless=(False,), reason="q, k, v and o have no bias")
    if section.values.get("use_sliding_window") is not False:
        section.refuse("sliding_window", unless=(), reason="every layer attends to all tokens")
    theta, mrope_section = _rope(section, has_mrope)
    config = TextConfig(
        vocab_size=section.integer("vocab_size"),
        hidden_size=section.integer("hidden_size"),
        intermediate_size=section.integer("intermediate_size"),
        num_layers=section.integer("num_hidden_layers"),
        num_heads=section.integer("num_attention_heads"),
        num_kv_heads=section.integer("num_key_value_heads"),
        head_dim=section.integer("head_dim", minimum=2),
        rms_norm_eps=section.positive("rms_norm_eps"),
        max_position_embeddings=section.integer("max_position_embeddings"),
        rope_theta=theta,
        mrope_section=mrope_section,
        moe=_moe_config(section) if sparse else None,
    )
    _check_heads(config, section)
    return config


def _check_heads(config: TextConfig, section: Section) -> None:
    if config.num_heads % config.num_kv_heads:
        raise section.wrong("num_key_value_heads", f"a divisor of {config.num_heads} query heads")
    if config.mrope_section is None:
        if config.head_dim % 2:
            raise section.wrong("head_dim", "an even number")
    elif config.head_dim % 2 or sum(config.mrope_section) != config.head_dim // 2:
        expected = f"twice the sum of mrope_section {list(config.mrope_section)}"
        raise section.wrong("head_dim", expected)


def _rope(section: Section, has_mrope: bool) -> tuple[float, tuple[int, int, int] | None]:
    """Both spellings: rope_theta beside rope_scaling, or rope_parameters that holds everything."""
    key = "rope_parameters" if section.has("rope_parameters") else "rope_scaling"
    rope = section.section(key) if section.has(key) else Section({}, section.source)
    for name in ("rope_type", "type"):
        if rope.has(name):
            rope.choice(name, ("default",))
    theta = (rope if rope.has("rope_theta") else section).positive("rope_theta")
    if not has_mrope:
        rope.refuse("mrope_section", unless=(), reason="positions have one axis")
        return theta, None
    # The reference falls back to these sections too (modeling_qwen3_vl.py, text rotary embedding).
    sections = rope.integers("mrope_section") if rope.has("mrope_section") else (24, 20, 20)
    if len(sections) != 3:
        raise rope.wrong("mrope_section", "three integers (time, height, width)")
    _, height, width = sections
    if 3 * max(height, width) > sum(sections):
        raise rope.wrong("mrope_section", "height and width of at most a third of the frequencies")
    return theta, sections


def _moe_config(section: Section) -> MoEConfig:
    section.refuse("decoder_sparse_step", unless=(1,), reason="every layer is sparse")
    section.refuse("mlp_only_layers", unless=([], ()), reason="every layer is sparse")
    section.refuse("norm_topk_prob", unless=(True,), reason="expert weights are renormalised")
    experts_key = "num_experts" if section.has("num_experts") else "num_local_experts"
    config = MoEConfig(
        num_experts=section.integer(experts_key),
        num_experts_per_tok=section.integer("num_experts_per_tok"),
        moe_intermediate_size=section.integer("moe_intermediate_size"),
    )
    if config.num_experts_per_tok > config.num_experts:
        raise section.wrong("num_experts_per_tok", f"at most {config.num_experts} experts")
    return config


def read_token_id(section: Section, key: str, text: TextConfig) -> int:
    """An id that has a row in the embedding table."""
    token_id = section.integer(key, minimum=0)
    if token_id >= text.vocab_size:
        raise section.wrong(key, f"an id below vocab_size {text.vocab_size}")
    return token_id
