"""The network of the regional sea-ice models: a ConvNeXt U-Net with a transformer where the map is coarsest.

Finn et al. (2024), "Generative diffusion for regional surrogate models from sea-ice simulations", J. Adv. Model. Earth
Syst., doi:10.1029/2024MS004395; ConvNeXt blocks of Liu et al. (2022, arXiv:2201.03545), transformer blocks of Peebles
and Xie (2023, arXiv:2212.09748).  With e the embedding of noise level and labels, N a normalisation without parameters
over channels and cells (over channels, in the transformer), and c a learnt scale of each channel that starts at 1e-6:

    e = GELU(W2 GELU(W1 [sin 1000 g f, cos 1000 g f]) + W labels),  f_k = 10000^(-k / (h - 1)),  k = 0 ... h - 1
    M(x, e) = N(x) (1 + scale) + shift,                             (scale, shift) = W e
    ConvNeXt     x + c Linear(GELU(Linear(M(DepthwiseConv7(x), e))))
    transformer  x + c Attention(M(x, e)),  then  x + c Linear(GELU(Linear(M(x, e))))

Maps are halved by convolutions of 2 x 2 cells; doubled, joined with what was there before halving, and convolved.  The
published networks drop attention weights at random even when they forecast; here only training does.

State-dict keys are those of the published files; `regional.load_network` reads them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

__all__ = ["UVIT_L", "UVIT_S", "UViT", "UViTConfig", "weight_decay_groups"]

_SMALL = 1e-6  # of a layer's scale at first


@dataclass(frozen=True)
class UViTConfig:
    """Everything that shapes a `UViT`; names as in the original's files, defaults those of its deterministic network.

    Args:
        n_input, n_output: channels in and out.
        n_features: channels of the finest level.
        n_bottleneck: blocks of the transformer.
        n_down_blocks, n_up_blocks: ConvNeXt blocks of each level, from the finest down and from the coarsest up.
        channel_mul: channels of the coarser levels in `n_features`; each level halves the map.
        n_heads: of an attention.
        n_embedding: width of e.
        n_augment_hidden: number of labels.
        n_mesh_hidden: always 0; kept because configurations have it.
        n_time_hidden: sines and cosines of the noise level; 0 for a deterministic network, which has none.
        mult: hidden width of a block in its channels.
        dropout_attn, dropout_mlp: of attention weights and in the transformer's MLPs, in training mode.

    Raises:
        ValueError: for fields that do not make a network.
    """

    n_input: int = 13
    n_output: int = 5
    n_features: int = 64
    n_bottleneck: int = 2
    n_down_blocks: tuple[int, ...] = (2, 2, 2)
    n_up_blocks: tuple[int, ...] = (2, 2, 2)
    channel_mul: tuple[int, ...] = (2, 4, 8)
    n_heads: int = 8
    n_embedding: int = 64
    n_augment_hidden: int = 3
    n_mesh_hidden: int = 0
    n_time_hidden: int = 0
    mult: int = 1
    dropout_attn: float = 0.2
    dropout_mlp: float = 0.2

    def __post_init__(self) -> None:
        for f in fields(self):
            if isinstance(getattr(self, f.name), list):
                object.__setattr__(self, f.name, tuple(getattr(self, f.name)))
        sizes = ("n_input", "n_output", "n_features", "n_bottleneck", "n_heads", "n_embedding", "n_augment_hidden")
        counts = {k: (getattr(self, k),) for k in (*sizes, "mult")}
        counts |= {k: getattr(self, k) for k in ("n_down_blocks", "n_up_blocks", "channel_mul")}
        bad = [f"{k} = {v}" for k, v in counts.items() if not all(isinstance(n, int) and n > 0 for n in v)]
        if bad or not self.n_down_blocks or {len(self.n_up_blocks), len(self.channel_mul)} != {len(self.n_down_blocks)}:
            raise ValueError(
                f"sizes of a UViT are whole numbers of at least 1, and n_down_blocks, n_up_blocks and channel_mul have "
                f"one for each level, got {', '.join(bad) or self}"
            )
        if (
            self.widths[-1] % self.n_heads
            or self.n_time_hidden % 2
            or self.n_time_hidden < 0
            or self.n_time_hidden == 2
        ):
            raise ValueError(
                f"wanted {self.widths[-1]} features in heads of equal width and an even n_time_hidden, 0 or at least "
                f"4, got n_heads {self.n_heads} and n_time_hidden {self.n_time_hidden}"
            )
        if self.n_mesh_hidden:
            raise ValueError(f"networks that embed positions are not known: n_mesh_hidden is {self.n_mesh_hidden}")

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level, the finest first."""
        return tuple(self.n_features * m for m in (1, *self.channel_mul))

    @property
    def factor(self) -> int:
        """Cells along the side of a token."""
        return int(2 ** len(self.channel_mul))


UVIT_S = UViTConfig()
UVIT_L = UViTConfig(n_input=18, n_bottleneck=8, n_embedding=128, n_time_hidden=512)


class UViT(nn.Module):
    """The network as a function of tensors; differentiable, without state of its own.

    Args:
        config: its shape.

    Source: Finn et al. (2024); see the module's docstring for the equations.
    """

    def __init__(self, config: UViTConfig) -> None:
        super().__init__()
        self.config, c, w = config, config, config.widths
        levels = range(len(c.channel_mul))
        if c.n_time_hidden:
            embed = (nn.Linear(c.n_time_hidden, c.n_embedding), nn.GELU(), nn.Linear(c.n_embedding, c.n_embedding))
            self.time_embedder = nn.Sequential(_Sinusoid(c.n_time_hidden // 2), *embed)
        self.augment_embedder = nn.Sequential(nn.Linear(c.n_augment_hidden, c.n_embedding))
        self.in_encoder = nn.Conv2d(c.n_input, w[0], 1)
        self.down_blocks = nn.ModuleList(_Down(w[k], w[k + 1], c.n_down_blocks[k], c) for k in levels)
        self.bottleneck = nn.ModuleList(_Block(w[-1], c) for _ in range(c.n_bottleneck))
        up = reversed(levels)
        self.up_blocks = nn.ModuleList(_Up(w[k + 1], w[k], n, c) for k, n in zip(up, c.n_up_blocks, strict=True))
        self.out_decoder = nn.Sequential(nn.GroupNorm(1, w[0]), nn.ReLU(), nn.Conv2d(w[0], c.n_output, 1))

    def embed(self, labels: Tensor, level: Tensor | None = None) -> Tensor:
        """Embed labels (batch, n_augment_hidden) and noise level (batch, 1), as (batch, n_embedding)."""
        e = self.augment_embedder(labels)
        if (level is None) == bool(self.config.n_time_hidden):
            raise ValueError("a network of a diffusion model needs a noise level, and a deterministic one takes none")
        return F.gelu(e if level is None else self.time_embedder(level) + e)

    def forward(self, x: Tensor, labels: Tensor, level: Tensor | None = None) -> Tensor:
        """Map maps to maps.

        Args:
            x: normalised input (batch, n_input, y, x).
            labels: of augmentation, 0 in forecasts (batch, n_augment_hidden).
            level: noise level g between 0 (noise) and 1 (data) (batch, 1); None for a deterministic network.

        Returns:
            Normalised output (batch, n_output, y, x).

        Raises:
            ValueError: for a wrong number of channels, a map that cannot be halved as often as there are levels, or
                a noise level where there should be none or the reverse.
        """
        c, e = self.config, self.embed(labels, level)
        if x.shape[1] != c.n_input or x.shape[2] % c.factor or x.shape[3] % c.factor:
            raise ValueError(
                f"wanted (batch, {c.n_input}, y, x) with y and x multiples of {c.factor}, got {tuple(x.shape)}"
            )
        x, skips = self.in_encoder(x), []
        for down in self.down_blocks:
            x, kept = down(x, e)
            skips.append(kept)
        tokens = x.flatten(2).transpose(1, 2)
        for block in self.bottleneck:
            tokens = block(tokens, e)
        x = tokens.transpose(1, 2).reshape(x.shape)
        for up in self.up_blocks:
            x = up(x, skips.pop(), e)
        out: Tensor = self.out_decoder(x)
        return out


class _Sinusoid(nn.Module):
    """Sines and cosines of a noise level (Vaswani et al. 2017), with frequencies that published files hold."""

    frequencies: Tensor

    def __init__(self, half: int) -> None:
        super().__init__()
        self.register_buffer("frequencies", 10_000.0 ** (-torch.arange(half) / (half - 1)))

    def forward(self, level: Tensor) -> Tensor:
        """Map (batch, 1) to (batch, 2 half)."""
        angles = 1000 * level * self.frequencies
        return torch.cat((angles.sin(), angles.cos()), -1)


class _ConvNeXt(nn.Module):
    def __init__(self, width: int, c: UViTConfig) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((width, 1, 1), _SMALL))
        self.embedding_layer = nn.Conv2d(c.n_embedding, 2 * width, 1)
        self.spatial_conv = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.mix_layer = nn.Sequential(nn.Linear(width, c.mult * width), nn.GELU(), nn.Linear(c.mult * width, width))

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        """Map (batch, width, y, x) to itself."""
        branch = _modulated(self.spatial_conv(x), e, self.embedding_layer)
        out: Tensor = x + self.gamma * self.mix_layer(branch.movedim(1, -1)).movedim(-1, 1)
        return out


class _Down(nn.Module):
    """Blocks, then half as many cells a side; what is before halving is kept."""

    def __init__(self, width: int, below: int, blocks: int, c: UViTConfig) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(_ConvNeXt(width, c) for _ in range(blocks))
        self.downscale = _Downscale(width, below, c)

    def forward(self, x: Tensor, e: Tensor) -> tuple[Tensor, Tensor]:
        """Map (batch, width, y, x) to (batch, below, y / 2, x / 2) and the (batch, width, y, x) to keep."""
        for block in self.blocks:
            x = block(x, e)
        return self.downscale(x, e), x


class _Downscale(nn.Module):
    def __init__(self, width: int, below: int, c: UViTConfig) -> None:
        super().__init__()
        self.embedding_layer = nn.Conv2d(c.n_embedding, 2 * width, 1)
        self.down_layer = nn.Conv2d(width, below, 2, stride=2)

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        """Map (batch, width, y, x) to (batch, below, y / 2, x / 2)."""
        out: Tensor = self.down_layer(_modulated(x, e, self.embedding_layer))
        return out


class _Up(nn.Module):
    """Twice as many cells a side, then blocks."""

    def __init__(self, below: int, width: int, blocks: int, c: UViTConfig) -> None:
        super().__init__()
        self.upscale = _Upscale(below, width, c)
        self.blocks = nn.ModuleList(_ConvNeXt(width, c) for _ in range(blocks))

    def forward(self, x: Tensor, kept: Tensor, e: Tensor) -> Tensor:
        """Map (batch, below, y / 2, x / 2) and the kept (batch, width, y, x) to (batch, width, y, x)."""
        x = self.upscale(x, kept, e)
        for block in self.blocks:
            x = block(x, e)
        return x


class _Upscale(nn.Module):
    def __init__(self, below: int, width: int, c: UViTConfig) -> None:
        super().__init__()
        self.embedding_layer = nn.Conv2d(c.n_embedding, 2 * below, 1)
        self.conv_layer = nn.Conv2d(below + width, width, 3, padding=1)

    def forward(self, x: Tensor, kept: Tensor, e: Tensor) -> Tensor:
        """Map (batch, below, y / 2, x / 2) and (batch, width, y, x) to (batch, width, y, x)."""
        x = _modulated(x, e, self.embedding_layer).repeat_interleave(2, -2).repeat_interleave(2, -1)
        out: Tensor = self.conv_layer(torch.cat((x, kept), 1))
        return out


class _Block(nn.Module):
    """Attention, then an MLP."""

    def __init__(self, width: int, c: UViTConfig) -> None:
        super().__init__()
        self.attention, self.mlp = _Attention(width, c), _MLP(width, c)

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        """Map (batch, token, width) to itself."""
        out: Tensor = self.mlp(self.attention(x, e), e)
        return out


class _Attention(nn.Module):
    def __init__(self, width: int, c: UViTConfig) -> None:
        super().__init__()
        self.heads, self.dropout = c.n_heads, c.dropout_attn
        self.gamma = nn.Parameter(torch.full((width,), _SMALL))
        self.embedding_layer = nn.Linear(c.n_embedding, 2 * width)
        self.qkv_layer = nn.Linear(width, 3 * width)
        self.out_layer = nn.Linear(width, width)

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        """Map (batch, token, width) to itself."""
        given = self.qkv_layer(_modulated(x, e, self.embedding_layer)).unflatten(-1, (3, self.heads, -1))
        q, k, v = given.permute(2, 0, 3, 1, 4)
        # Written out, because tokens are few, and fused kernels have neither tangents nor second derivatives.
        seen = torch.softmax(q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]), -1)
        seen = F.dropout(seen, self.dropout, self.training) @ v
        out: Tensor = x + self.gamma * self.out_layer(seen.transpose(1, 2).flatten(2))
        return out


class _MLP(nn.Module):
    def __init__(self, width: int, c: UViTConfig) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((width,), _SMALL))
        self.embedding_layer = nn.Linear(c.n_embedding, 2 * width)
        first, last = nn.Linear(width, c.mult * width), nn.Linear(c.mult * width, width)
        # Without dropout the original leaves its layer out, and the key of the last one is `branch_layer.2`, not `.3`.
        dropout = (nn.Dropout(c.dropout_mlp),) if c.dropout_mlp else ()
        self.branch_layer = nn.Sequential(first, nn.GELU(), *dropout, last)

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        """Map (batch, token, width) to itself."""
        out: Tensor = x + self.gamma * self.branch_layer(_modulated(x, e, self.embedding_layer))
        return out


def _modulated(x: Tensor, e: Tensor, layer: nn.Module) -> Tensor:
    """Normalise maps (batch, channel, y, x) or tokens (batch, token, channel), then scale and shift them by e."""
    if x.ndim == 3:
        normed, (scale, shift) = F.layer_norm(x, x.shape[-1:]), layer(e)[:, None].chunk(2, -1)
    else:
        normed, (scale, shift) = F.group_norm(x, 1), layer(e[:, :, None, None]).chunk(2, 1)
    out: Tensor = normed * (1 + scale) + shift
    return out


def weight_decay_groups(network: nn.Module) -> tuple[list[str], list[str]]:
    """Names of the parameters with weight decay and without: weights of matrices have it, but for embeddings."""
    with_decay: list[str] = []
    without: list[str] = []
    for name, parameter in network.named_parameters():
        decays = name.endswith(".weight") and parameter.ndim > 1 and "embedd" not in name
        (with_decay if decays else without).append(name)
    return with_decay, without
