"""InternViT, the vision tower of InternVL3.5, and the projector behind it.

Every picture comes as square tiles. Rows of every tensor here are patches in merge-block order, as
for Qwen3-VL: the patches of one visual token (2 x 2) stand next to each other, tiles one after the
other. The reference's pixel unshuffle (ps_version v2) is therefore a change of shape. Inside the
blocks each tile has one row more, its class token, which comes first.

Source: transformers 5.23, models/internvl/modeling_internvl.py.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pydstp.models.attention import attend
from pydstp.models.config import InternVisionConfig
from pydstp.models.gemm import Dense, gemm
from pydstp.models.plans import Context
from pydstp.models.vision_positions import merge_block_order
from pydstp.models.vision_statistics import class_attention, mean_keys
from pydstp.models.visual_tokens import VisionOutput, block_index

QK_NORM_EPS = 1e-6
PROJECTOR_NORM_EPS = 1e-5  # the library's default, not the tower's


class VisionRMSNorm(nn.Module):
    """Root mean square norm with fp32 statistics; the weight is applied in the model's dtype."""

    def __init__(self, hidden_size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(hidden_size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """x: [num_rows, hidden_size] -> same shape and dtype."""
        return F.rms_norm(x.float(), self.weight.shape, eps=self.eps).to(x.dtype) * self.weight


NORMS = {"layer_norm": nn.LayerNorm, "rms_norm": VisionRMSNorm}


class TilePatchEmbed(nn.Module):
    """A convolution whose kernel is its stride, hence one GEMM. weight: [V, C, P, P]."""

    def __init__(self, config: InternVisionConfig) -> None:
        super().__init__()
        patch = config.patch_size, config.patch_size
        self.weight = nn.Parameter(torch.empty(config.hidden_size, config.in_channels, *patch))
        self.bias = nn.Parameter(torch.empty(config.hidden_size))

    def forward(self, pixel_values: Tensor) -> Tensor:
        """pixel_values: [num_patches, patch_dim], on the host or beside the weights
        -> [num_patches, hidden_size], weight dtype."""
        return gemm(pixel_values.to(self.weight), self.weight.flatten(1), self.bias)


class InternAttention(nn.Module):
    """All rows of a tile, class token and patches, see each other. qkv rows: q, k, v."""

    def __init__(self, config: InternVisionConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.num_heads = config.num_heads
        self.qkv = Dense(width, 3 * width, bias=config.qkv_bias)
        self.q_norm = VisionRMSNorm(width, QK_NORM_EPS) if config.qk_norm else nn.Identity()
        self.k_norm = VisionRMSNorm(width, QK_NORM_EPS) if config.qk_norm else nn.Identity()
        self.proj = Dense(width, width)

    def forward(self, x: Tensor, num_tiles: int, ctx: Context) -> Tensor:
        """x: [num_rows, hidden_size] of equally many rows per tile -> same shape."""
        tiles = [len(x) // num_tiles] * num_tiles
        return self.proj(attend(*self.project(x), segments=tiles, pool=ctx.pool).flatten(1))

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x: [num_rows, hidden_size] -> q, k, v: [num_rows, num_heads, head_dim]."""
        q, k, v = self.qkv(x).chunk(3, dim=1)
        parts = self.q_norm(q), self.k_norm(k), v
        return tuple(part.unflatten(1, (self.num_heads, -1)) for part in parts)


class InternMLP(nn.Module):
    """fc2(gelu(fc1(x))) with the exact (erf) form of GELU."""

    def __init__(self, config: InternVisionConfig) -> None:
        super().__init__()
        self.fc1 = Dense(config.hidden_size, config.intermediate_size)
        self.fc2 = Dense(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """x: [num_rows, hidden_size] -> same shape."""
        return self.fc2(self.fc1(x, gelu="none"))


class InternBlock(nn.Module):
    """Attention and MLP, each behind a norm, scaled by channel and added to what came in."""

    def __init__(self, config: InternVisionConfig) -> None:
        super().__init__()
        norm = NORMS[config.norm]
        self.norm1 = norm(config.hidden_size, eps=config.norm_eps)
        self.norm2 = norm(config.hidden_size, eps=config.norm_eps)
        self.attn = InternAttention(config)
        self.mlp = InternMLP(config)
        self.ls1 = nn.Parameter(torch.empty(config.hidden_size))
        self.ls2 = nn.Parameter(torch.empty(config.hidden_size))

    def forward(self, x: Tensor, num_tiles: int, ctx: Context) -> Tensor:
        """x: [num_rows, hidden_size] -> same shape."""
        x = x + self.ls1 * self.attn(self.norm1(x), num_tiles, ctx)
        return x + self.ls2 * self.mlp(self.norm2(x))

    def observe(self, x: Tensor, num_tiles: int, merge_unit: int) -> tuple[Tensor, Tensor]:
        """The class token's attention to visual tokens, and their keys; see `VisionOutput`."""
        parts = self.attn.project(self.norm1(x))
        q, k = (part.unflatten(0, (num_tiles, -1)) for part in parts[:2])
        keys = mean_keys(k[:, 1:].flatten(0, 1), merge_unit)
        return class_attention(q[:, 0], k.transpose(1, 2), merge_unit), keys


class InternVisionTower(nn.Module):
    """Patch embedding, class token, position table, blocks; no norm behind them."""

    def __init__(self, config: InternVisionConfig) -> None:
        super().__init__()
        self.config = config
        self.patch_embed = TilePatchEmbed(config)
        self.cls_token = nn.Parameter(torch.empty(1, 1, config.hidden_size))
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + config.tile_side**2, config.hidden_size))
        self.blocks = nn.ModuleList(InternBlock(config) for _ in range(config.depth))

    def forward(
        self, pixel_values: Tensor, ctx: Context, observe: int | None = None
    ) -> VisionOutput:
        """pixel_values: [num_patches, patch_dim], whole tiles -> `VisionOutput` whose rows are
        [num_visual, 4 * hidden_size], what the projector reads.

        observe: a block, negative from the end, whose attention is reported. Raises OptionError for
        one that the tower does not have, and whatever ctx.check raises.
        """
        observed = block_index(observe, len(self.blocks))
        num_tiles = len(pixel_values) // self.config.tile_side**2
        x, seen = self.embed(pixel_values, num_tiles), (None, None)
        for index, block in enumerate(self.blocks):
            ctx.check()
            if index == observed:
                seen = block.observe(x, num_tiles, self.config.merge_unit)
            x = block(x, num_tiles, ctx)
        patches = x.view(num_tiles, -1, self.config.hidden_size)[:, 1:]
        return VisionOutput(patches.reshape(-1, self.config.merge_unit * x.shape[1]), [], *seen)

    def embed(self, pixel_values: Tensor, num_tiles: int) -> Tensor:
        """-> [num_tiles * (1 + patches of a tile), hidden_size], weight dtype."""
        side, width = self.config.tile_side, self.config.hidden_size
        patches = self.patch_embed(pixel_values).view(num_tiles, -1, width)
        x = torch.cat((self.cls_token.expand(num_tiles, -1, -1), patches), dim=1)
        table = self.pos_embed[0, 1:].view(side, side, width)
        ordered = merge_block_order(table, self.config.spatial_merge_size)
        return (x + torch.cat((self.pos_embed[0, :1], ordered))).flatten(0, 1)


class Projector(nn.Module):
    """Norm, linear, exact (erf) GELU, linear: from joined patches to the decoder's width."""

    def __init__(self, config: InternVisionConfig) -> None:
        super().__init__()
        merged_size, width = config.merge_unit * config.hidden_size, config.out_hidden_size
        self.norm = nn.LayerNorm(merged_size, eps=PROJECTOR_NORM_EPS)
        self.fc1 = Dense(merged_size, width)
        self.fc2 = Dense(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """x: [num_visual, 4 * vision hidden_size] -> [num_visual, hidden_size]."""
        return self.fc2(self.fc1(self.norm(x), gelu="none"))
