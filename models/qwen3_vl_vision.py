"""The Qwen3-VL vision tower: patches to visual tokens, with features of inner blocks on the side.

Rows of every tensor here are patches in merge-block order: the patches of one visual token (2 x 2)
stand next to each other, images one after the other.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from pydstp import ops
from pydstp.models.attention import attend
from pydstp.models.config import VisionConfig
from pydstp.models.gemm import Dense, gemm
from pydstp.models.plans import Context
from pydstp.models.vision_positions import axial_rotary, interpolated_positions
from pydstp.models.vision_statistics import attention_received, mean_keys
from pydstp.models.visual_tokens import VisionOutput, block_index

NORM_EPS = 1e-6


class PatchEmbed(nn.Module):
    """A convolution whose kernel is its stride, hence one GEMM. proj.weight: [V, C, T, P, P]."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        kernel = (config.temporal_patch_size, config.patch_size, config.patch_size)
        self.proj = nn.Conv3d(config.in_channels, config.hidden_size, kernel, stride=kernel)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """pixel_values: [num_patches, patch_dim], on the host or beside the weights
        -> [num_patches, hidden_size], weight dtype."""
        weight = self.proj.weight.flatten(1)
        return gemm(pixel_values.to(weight), weight, self.proj.bias)


class VisionAttention(nn.Module):
    """Every patch of an image sees every other one. qkv rows: q, k, v."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.qkv = Dense(config.hidden_size, 3 * config.hidden_size)
        self.proj = Dense(config.hidden_size, config.hidden_size)

    def forward(self, x: Tensor, cos_sin: Tensor, segments: list[int], ctx: Context) -> Tensor:
        """x: [num_patches, hidden_size], segments: patches of each image -> same shape as x."""
        out = attend(*self.project(x, cos_sin, ctx), segments=segments, pool=ctx.pool)
        return self.proj(out.flatten(1))

    def project(self, x: Tensor, cos_sin: Tensor, ctx: Context) -> tuple[Tensor, ...]:
        """x: [num_patches, hidden_size] -> q, k, v: [num_patches, num_heads, head_dim]; q and k
        are rotated, with angles in fp32 whatever the dtype."""
        qkv, heads = self.qkv(x), self.num_heads
        ops.qk_norm_rope(qkv, None, None, cos_sin, num_heads=heads, num_kv_heads=heads, eps=0.0,
                         pool=ctx.pool, float_angles=True)
        return qkv.view(len(x), 3, heads, -1).unbind(1)


class VisionMLP(nn.Module):
    """fc2(gelu(fc1(x))) with the tanh form of GELU."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.linear_fc1 = Dense(config.hidden_size, config.intermediate_size)
        self.linear_fc2 = Dense(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """x: [num_patches, hidden_size] -> same shape."""
        return self.linear_fc2(self.linear_fc1(x, gelu="tanh"))


class VisionBlock(nn.Module):
    """Attention and MLP, each behind a LayerNorm and added to what came in."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.hidden_size, eps=NORM_EPS)
        self.norm2 = nn.LayerNorm(config.hidden_size, eps=NORM_EPS)
        self.attn = VisionAttention(config)
        self.mlp = VisionMLP(config)

    def forward(self, x: Tensor, cos_sin: Tensor, segments: list[int], ctx: Context) -> Tensor:
        """x: [num_patches, hidden_size] -> same shape."""
        x = x + self.attn(self.norm1(x), cos_sin, segments, ctx)
        return x + self.mlp(self.norm2(x))

    def observe(
        self,
        x: Tensor,
        cos_sin: Tensor,
        segments: list[int],
        merge_unit: int,
        ctx: Context,
    ) -> tuple[Tensor, Tensor]:
        """Attention received and keys of every visual token, see `VisionOutput`; x as `forward`."""
        q, k, _ = self.attn.project(self.norm1(x), cos_sin, ctx)
        return attention_received(q, k, segments, merge_unit, ctx.check), mean_keys(k, merge_unit)


class PatchMerger(nn.Module):
    """Four neighbouring patches become one visual token; GELU in its exact (erf) form.

    The main merger normalises patches, a DeepStack merger (`norm_after_merge`) the joined rows.
    """

    def __init__(self, config: VisionConfig, norm_after_merge: bool) -> None:
        super().__init__()
        self.merged_size = config.hidden_size * config.merge_unit
        norm_size = self.merged_size if norm_after_merge else config.hidden_size
        self.norm = nn.LayerNorm(norm_size, eps=NORM_EPS)
        self.linear_fc1 = Dense(self.merged_size, self.merged_size)
        self.linear_fc2 = Dense(self.merged_size, config.out_hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """x: [num_patches, hidden_size] -> [num_patches / merge_unit, out_hidden_size]."""
        x = self.norm(x.view(-1, *self.norm.normalized_shape)).view(-1, self.merged_size)
        return self.linear_fc2(self.linear_fc1(x, gelu="none"))


class VisionTower(nn.Module):
    """Patch embedding, position table, blocks, mergers (transformers: Qwen3VLVisionModel)."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.config = config
        taps = config.deepstack_visual_indexes
        self.patch_embed = PatchEmbed(config)
        self.pos_embed = nn.Embedding(config.num_position_embeddings, config.hidden_size)
        self.blocks = nn.ModuleList(VisionBlock(config) for _ in range(config.depth))
        self.merger = PatchMerger(config, norm_after_merge=False)
        self.deepstack_merger_list = nn.ModuleList(
            PatchMerger(config, norm_after_merge=True) for _ in taps
        )

    def forward(
        self,
        pixel_values: Tensor,
        grids: Sequence[tuple[int, int]],
        ctx: Context,
        observe: int | None = None,
    ) -> VisionOutput:
        """pixel_values: [num_patches, patch_dim]; grids: (height, width) in patches per image.

        observe: a block, negative from the end, whose attention is reported. Raises OptionError for
        one that the tower does not have, and whatever ctx.check raises.
        """
        observed = block_index(observe, len(self.blocks))
        taps, segments = self.config.deepstack_visual_indexes, [h * w for h, w in grids]
        x = self.embed(pixel_values, grids)
        cos_sin = axial_rotary(grids, self.config).to(x.device)
        deepstack, seen = [], (None, None)
        for block_idx, block in enumerate(self.blocks):
            ctx.check()
            if block_idx == observed:
                seen = block.observe(x, cos_sin, segments, self.config.merge_unit, ctx)
            x = block(x, cos_sin, segments, ctx)
            if block_idx in taps:
                deepstack.append(self.deepstack_merger_list[taps.index(block_idx)](x))
        return VisionOutput(self.merger(x), deepstack, *seen)

    def embed(self, pixel_values: Tensor, grids: Sequence[tuple[int, int]]) -> Tensor:
        """Patches plus their learned positions -> [num_patches, hidden_size], weight dtype."""
        x = self.patch_embed(pixel_values)
        table = interpolated_positions(self.pos_embed.weight, grids, self.config.spatial_merge_size)
        return x + table.to(x.dtype)
