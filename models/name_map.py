"""Checkpoint tensor names -> our parameters, per family, as data.

Modules carry the names that the checkpoints use, so little is left to say: what stands in front of
a name, which tensors one of our parameters stacks, and what is ignored or refused. Names are
compared by whole dotted parts.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from pydstp.models.config import DENSE, INTERNVL, INTERNVL_CHAT, MOE, VLMConfig

Shape = tuple[int, ...]


@dataclass(frozen=True)
class NameMap:
    """How the files of one family spell what our modules hold.

    head: our parameter of the output head; a file without it has a tied head.
    renames: what stands in front of a name in a file (leading `model.` parts taken off), and what
        stands there in ours; the first that fits counts. `*` is any one part, carried over.
    stacked: end of a parameter -> the tensors that it stacks along its rows, in order.
    published: what release files write in front of all names; for messages.
    """

    head: str
    renames: tuple[tuple[str, str], ...]
    stacked: Mapping[str, tuple[str, ...]]
    published: str


@dataclass(frozen=True)
class Placement:
    """The place that one tensor of a file fills.

    name: normalised name. shape: what the file must hold. target: our parameter, `index` the part
    of it. transposed: the last two dimensions are the other way round in the file.
    """

    name: str
    shape: Shape
    target: str
    index: tuple[int | slice, ...] = ()
    transposed: bool = False


QWEN3_STACKED = {
    "self_attn.qkv_proj.weight": ("q_proj", "k_proj", "v_proj"),
    "mlp.gate_up_proj.weight": ("gate_proj", "up_proj"),
}
QWEN3_VL = NameMap(
    head="language_model.lm_head.weight",
    renames=(
        ("visual", "visual"),
        ("language_model", "language_model"),
        ("lm_head", "language_model.lm_head"),
        ("layers", "language_model.layers"),
        ("embed_tokens", "language_model.embed_tokens"),
        ("norm", "language_model.norm"),
    ),
    stacked=QWEN3_STACKED,
    published="model.",
)
# With and without `model.` in front; without it, the decoder's names hold one in the middle.
_INTERNVL_DECODER = (
    ("language_model.lm_head", "language_model.lm_head"),
    ("lm_head", "language_model.lm_head"),
    ("language_model.model", "language_model"),
    ("language_model", "language_model"),
)
INTERNVL_HF = NameMap(
    head="language_model.lm_head.weight",
    renames=(
        *_INTERNVL_DECODER,
        ("vision_tower.embeddings.cls_token", "visual.cls_token"),
        ("vision_tower.embeddings.position_embeddings", "visual.pos_embed"),
        ("vision_tower.embeddings.patch_embeddings.projection", "visual.patch_embed"),
        ("vision_tower.encoder.layer.*.layernorm_before", "visual.blocks.*.norm1"),
        ("vision_tower.encoder.layer.*.layernorm_after", "visual.blocks.*.norm2"),
        ("vision_tower.encoder.layer.*.attention.projection_layer", "visual.blocks.*.attn.proj"),
        ("vision_tower.encoder.layer.*.attention", "visual.blocks.*.attn"),
        ("vision_tower.encoder.layer.*.lambda_1", "visual.blocks.*.ls1"),
        ("vision_tower.encoder.layer.*.lambda_2", "visual.blocks.*.ls2"),
        ("vision_tower.encoder.layer", "visual.blocks"),
        ("multi_modal_projector.layer_norm", "projector.norm"),
        ("multi_modal_projector.linear_1", "projector.fc1"),
        ("multi_modal_projector.linear_2", "projector.fc2"),
    ),
    stacked={
        **QWEN3_STACKED,
        "attn.qkv.weight": ("q_proj", "k_proj", "v_proj"),
        "attn.qkv.bias": ("q_proj", "k_proj", "v_proj"),
    },
    published="",
)
INTERNVL_ORIGINAL = NameMap(
    head="language_model.lm_head.weight",
    renames=(
        *_INTERNVL_DECODER,
        ("vision_model.embeddings.class_embedding", "visual.cls_token"),
        ("vision_model.embeddings.position_embedding", "visual.pos_embed"),
        ("vision_model.embeddings.patch_embedding", "visual.patch_embed"),
        ("vision_model.encoder.layers", "visual.blocks"),
        ("mlp1.0", "projector.norm"),
        ("mlp1.1", "projector.fc1"),
        ("mlp1.3", "projector.fc2"),
    ),
    stacked=QWEN3_STACKED,
    published="",
)
NAME_MAPS = {
    DENSE: QWEN3_VL,
    MOE: QWEN3_VL,
    INTERNVL: INTERNVL_HF,
    INTERNVL_CHAT: INTERNVL_ORIGINAL,
}

# Buffers that old files hold and that are computed here.
IGNORED_PARTS = ("inv_freq", "*rotary_emb*", "position_ids")
# Parts of names that tell what a file is, where that is not supported.
REFUSED_PARTS = (
    ("*_scale_inv", "FP8 weights"),
    ("*qweight*", "quantised weights"),
    ("*qzeros*", "quantised weights"),
    ("weight_scale*", "quantised weights"),
    ("input_scale*", "quantised weights"),
    ("absmax", "quantised weights"),
    ("quant_map", "quantised weights"),
    ("lora_*", "an adapter (LoRA), not a whole model"),
    ("mlp2", "InternVL3.5-Flash (visual resolution router) weights"),
    ("gating", "InternVL3.5-Flash (visual resolution router) weights"),
    ("pooling_before_gating", "InternVL3.5-Flash (visual resolution router) weights"),
)


def is_ignored(name: str) -> bool:
    """True for a buffer that needs no place."""
    return any(fnmatchcase(part, p) for part in name.split(".") for p in IGNORED_PARTS)


def refusal(name: str) -> str | None:
    """What a file with this tensor holds, if that is not supported."""
    parts = name.split(".")
    return next((what for p, what in REFUSED_PARTS if any(fnmatchcase(x, p) for x in parts)), None)


def normalise(name: str, names: NameMap) -> str:
    """The name as our modules spell it; one that fits no rule comes back without `model.` parts."""
    parts = name.split(".")
    while len(parts) > 1 and parts[0] == "model":
        parts.pop(0)
    renamed = _rename(parts, names.renames)
    return ".".join(parts if renamed is None else renamed)


def published(name: str, names: NameMap) -> str:
    """One of our names as release files spell it; for messages."""
    back = [(new, old) for old, new in names.renames]
    renamed = _rename(name.split("."), back)
    return names.published + (name if renamed is None else ".".join(renamed))


def _rename(parts: list[str], renames: Iterable[tuple[str, str]]) -> list[str] | None:
    """The first rename that fits, applied; None where none does."""
    for pattern, replacement in renames:
        old, new = pattern.split("."), replacement.split(".")
        if len(parts) >= len(old) and all(p in ("*", part) for p, part in zip(old, parts)):
            carried = (part for p, part in zip(old, parts) if p == "*")
            return [next(carried) if p == "*" else p for p in new] + parts[len(old) :]
    return None


def placements(
    config: VLMConfig, names: NameMap, parameters: Mapping[str, Shape], found: Mapping[str, Shape]
) -> list[Placement]:
    """Every tensor that a file must hold, and where it goes.

    parameters: name -> shape of our model. found: normalised name -> shape of the file's tensors,
    read only to tell which layout its experts have.
    """
    placed = []
    for target, shape in parameters.items():
        stem, _, kind = target.rpartition(".experts.")
        tail = next((tail for tail in names.stacked if target.endswith("." + tail)), None)
        if stem:
            placed += _expert_placements(f"{stem}.experts", kind, shape, parameters, found)
        elif tail:
            parts = names.stacked[tail]
            stem = target.removesuffix(tail) + tail.split(".")[0]
            sources = [f"{stem}.{part}.{tail.split('.')[-1]}" for part in parts]
            placed += _stack(target, shape, sources, _rows(config, tail, shape[0], len(parts)))
        else:
            placed.append(Placement(target, shape, target))
    return placed


def _rows(config: VLMConfig, tail: str, total: int, num_parts: int) -> list[int]:
    """How many rows each part of a stacked parameter has: all the same, but of the decoder's q."""
    if not tail.startswith("self_attn.qkv_proj"):
        return [total // num_parts] * num_parts
    heads = config.text.num_heads, config.text.num_kv_heads, config.text.num_kv_heads
    return [num_heads * config.text.head_dim for num_heads in heads]


def _stack(
    target: str, shape: Shape, sources: list[str], rows: list[int], prefix: tuple[int, ...] = ()
) -> Iterator[Placement]:
    start = 0
    for source, count in zip(sources, rows):
        index = (*prefix, slice(start, start + count))
        yield Placement(source, (count, *shape[len(prefix) + 1 :]), target, index)
        start += count


def _expert_placements(
    stem: str,
    kind: str,
    shape: Shape,
    parameters: Mapping[str, Shape],
    found: Mapping[str, Shape],
) -> Iterator[Placement]:
    """One tensor for all experts, either way round, or separate tensors for every expert."""
    target = f"{stem}.{kind}"
    if f"{stem}.0.down_proj.weight" not in found:
        turned = all(
            found.get(f"{stem}.{name}") == _turned(parameters[f"{stem}.{name}"])
            for name in ("gate_up_proj", "down_proj")
        )  # of the two, at most one looks the same both ways round
        yield Placement(target, _turned(shape) if turned else shape, target, transposed=turned)
        return
    parts = ("gate_proj", "up_proj") if kind == "gate_up_proj" else (kind,)
    for expert in range(min(shape[0], len(found))):
        sources = [f"{stem}.{expert}.{part}.weight" for part in parts]
        yield from _stack(target, shape, sources, [shape[1] // len(parts)] * len(parts), (expert,))


def _turned(shape: Shape) -> Shape:
    return (*shape[:-2], shape[-1], shape[-2])
