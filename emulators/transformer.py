"""GenSIM's network: a transformer on patches of ocean whose land costs nothing.

Finn et al. (2025, arXiv:2508.14984).  A map of n_input channels and a channel of ones, times the mask, is cut into
patches of p x p cells, each a token.  With e the embedding of pseudo-time, labels and resolution, N(x) = x / rms(x),
m the token's mask (1 where any cell is ocean) and r its position, every block computes

    x <- x + m Attention(N(x) g1) + m MLP(N(x) g2)            (g1, g2) = e W + 1
    q = N(x_q) w_q,  k = N(x_v) w_k,  v = x_v;   q and k turned by the angles r . f_h (rotary position embedding)
    MLP(x) = W2 (a * SiLU(b)),  (a, b) = W1 x

The key is made of the *value*: so the published weights were trained, and the rows of `qkv_layer` that belong to keys
act on nothing; they are loaded and saved, but not multiplied.  Blocks before the middle are remembered, and blocks
after it start from x <- s + G (x - s) with the remembered s and a gate G linear in e; so does the head, with the first
tokens.

Tokens on land are 0 and stay 0, but attention is not masked: each takes part in every softmax with logit 0 and value 0.
They may be left out if one key of value 0 and logit log(n_land) stands for all of them, and the result is the same to
rounding (`tokens` with `skipped`).

State-dict keys are those of the published files; `gensim.load_network` reads them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional as F  # noqa: N812
from torch.nn.attention import SDPBackend, sdpa_kernel

from .embedding import Embedder

__all__ = ["LogScale", "Transformer", "TransformerConfig", "patches", "unpatched", "weight_decay_groups"]


@dataclass(frozen=True)
class TransformerConfig:
    """Everything that shapes a `Transformer`; names as in the original's files, defaults as released.

    Args:
        n_input: channels in, without the channel of ones.
        n_output: channels out.
        n_features: width of a token.
        n_blocks: blocks in all, (n_blocks - 1) // 2 of them on each side of the middle.
        n_heads, n_features_head: heads of an attention and their width.
        n_rope_features: angles of a head, half of `n_features_head`.
        n_embedding: width of e; half of it is the number of Fourier features.
        n_time_in, n_res_in, n_augment_in: numbers of pseudo-times, resolutions and labels.
        mult: hidden width of an MLP in widths of a token.
        patch_size: cells along the side of a patch.
        dropout_mlp: after each MLP, in training mode.
        lengthscale: cells to one unit of position.
        long_skips: always true; kept because configurations have it.

    Raises:
        ValueError: for fields that do not make a network.
    """

    n_input: int = 24
    n_output: int = 6
    n_features: int = 512
    n_blocks: int = 8
    n_heads: int = 8
    n_features_head: int = 64
    n_rope_features: int = 32
    n_embedding: int = 512
    n_time_in: int = 1
    n_res_in: int = 1
    n_augment_in: int = 3
    mult: int = 2
    patch_size: int = 2
    dropout_mlp: float = 0.0
    lengthscale: float = 10.0
    long_skips: bool = True

    def __post_init__(self) -> None:
        counts = {k: v for k, v in vars(self).items() if k.startswith("n_") or k in ("mult", "patch_size")}
        bad = [f"{k} = {v!r}" for k, v in counts.items() if not isinstance(v, int) or v < 1]
        if bad:
            raise ValueError(f"sizes of a transformer are whole numbers of at least 1, got {', '.join(bad)}")
        if 2 * self.n_rope_features != self.n_features_head or self.n_embedding % 2:
            raise ValueError(
                f"wanted n_rope_features half of n_features_head and an even n_embedding, got "
                f"{self.n_rope_features}, {self.n_features_head} and {self.n_embedding}"
            )
        if self.n_blocks < 3 or not self.long_skips:
            raise ValueError(
                f"wanted at least 3 blocks with long_skips, the only networks GenSIM has, got "
                f"{self.n_blocks} blocks and long_skips {self.long_skips}"
            )

    @property
    def n_skips(self) -> int:
        """Number of blocks on each side of the middle."""
        return (self.n_blocks - 1) // 2


class Transformer(nn.Module):
    """The network as a function of tensors; differentiable, without state of its own.

    Args:
        config: its shape.

    Attributes:
        plain_attention: attention as written, which can be differentiated twice; forward-mode differentiation
            chooses it by itself, fused kernels know first derivatives only.

    Source: Finn et al. (2025); see the module's docstring for the equations.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config, self.plain_attention, c = config, False, config
        self.embedder = _embedder(c)
        self.tokenizer = _Tokenizer(c)
        self.in_blocks = nn.ModuleList(_Block(c) for _ in range(c.n_skips))
        self.bottleneck = nn.ModuleList(_Block(c) for _ in range(c.n_blocks - 2 * c.n_skips))
        self.out_blocks = nn.ModuleList(_Block(c) for _ in range(c.n_skips))
        self.skip_embedding = nn.Linear(c.n_embedding, (c.n_skips + 1) * c.n_features, bias=False)
        self.head = _Head(c)

    def forward(
        self, x: Tensor, mesh: Tensor, mask: Tensor, time: Tensor, labels: Tensor, resolution: Tensor
    ) -> Tensor:
        """Map a whole map, land and all, to velocities.

        Args:
            x: normalised input (batch, n_input, y, x).
            mesh: position of the cells in km (batch, 2, y, x).
            mask: 1 for ocean and 0 for land (batch, 1, y, x).
            time: pseudo-time, 0 noise to 1 data (batch, n_time_in).
            labels: of augmentation, 0 in forecasts (batch, n_augment_in).
            resolution: size of a cell in km (batch, n_res_in).

        Returns:
            Velocity, normalised (batch, n_output, y, x), 0 on land.

        Raises:
            ValueError: for a wrong number of channels, or a map that patches cannot tile.
        """
        p = self.config.patch_size
        if x.shape[1] != self.config.n_input or x.shape[2] % p or x.shape[3] % p:
            raise ValueError(
                f"wanted (batch, {self.config.n_input}, y, x) with y and x multiples of {p}, got {tuple(x.shape)}"
            )
        cut = patches(torch.cat((x, torch.ones_like(x[:, :1])), 1) * mask, p)
        ocean = patches(mask, p).amax(-1, keepdim=True)
        position = self.position(patches(mesh, p), resolution)
        out = self.tokens(cut, position, ocean, self.embedder(time, labels, resolution))
        return unpatched(out, x.shape[2:], p) * mask

    def position(self, cells: Tensor, resolution: Tensor) -> Tensor:
        """Return the positions of tokens, (batch, token, 2), from those of their cells in km, (batch, token, 2 p²)."""
        mean = cells.reshape(*cells.shape[:2], 2, -1).mean(-1)
        return mean / self.config.lengthscale / resolution[:, :1, None]

    def tokens(
        self, cut: Tensor, position: Tensor, ocean: Tensor, e: Tensor, skipped: int = 0, wanted: int | None = None
    ) -> Tensor:
        """Map patches to patches, all of them or those with ocean.

        Args:
            cut: patches, flattened (channel, row, column), 0 on land, the last channel the mask itself
                (batch, token, (n_input + 1) p²).
            position: of the tokens, in `lengthscale` cells (batch, token, 2).
            ocean: 1 where a token has ocean, else 0 (batch, token, 1).
            e: embedding, from `embedder` (batch, n_embedding).
            skipped: number of land tokens that were left out of each of the batch.
            wanted: number of tokens, the first ones, whose velocities are wanted; None for all.

        Returns:
            Velocities of the patches wanted, flattened (channel, row, column) (batch, wanted, n_output p²).
        """
        sight = _Sight.of(position, ocean, skipped, self.plain_attention)
        x = self.tokenizer(cut)
        stack = [x]
        for block in self.in_blocks:
            stack.append(block(stack[-1], e, sight))
        x = stack[-1]
        for block in self.bottleneck:
            x = block(x, e, sight)
        gates = self.skip_embedding(e)[:, None].chunk(len(stack), -1)
        for i, (block, gate) in enumerate(zip(self.out_blocks, gates[:-1], strict=True), 1):
            x = torch.lerp(*_same(stack.pop(), x, gate))
            x = block(x, e, sight, wanted if i == len(self.out_blocks) else None)
        out: Tensor = self.head(torch.lerp(*_same(stack.pop()[:, :wanted], x, gates[-1])), e)
        return out


@dataclass(frozen=True)
class _Sight:
    """What all blocks know of the tokens: where they are, which are ocean, what was left out."""

    position: Tensor
    ocean: Tensor
    bias: Tensor | None
    plain: bool

    @classmethod
    def of(cls, position: Tensor, ocean: Tensor, skipped: int, plain: bool) -> _Sight:
        bias = None
        if skipped:
            bias = F.pad(ocean.new_zeros(1, 1, 1, ocean.shape[1]), (0, 1), value=math.log(skipped))
        return cls(position, ocean, bias, plain)


class LogScale(nn.Module):
    """The logarithm of each variable's error scale, learnt beside the network as a function of pseudo-time.

    Args:
        config: sizes of the embedding and number of variables; starts at 0.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.embedder = _embedder(config)
        self.out_layer = nn.Linear(config.n_embedding, config.n_output)
        nn.init.zeros_(self.out_layer.weight)
        nn.init.zeros_(self.out_layer.bias)

    def forward(self, time: Tensor, labels: Tensor, resolution: Tensor) -> Tensor:
        """Return the log-scale (batch, n_output); arguments as `Transformer.forward`."""
        s: Tensor = self.out_layer(self.embedder(time, labels, resolution))
        return s


class _Tokenizer(nn.Module):
    def __init__(self, c: TransformerConfig) -> None:
        super().__init__()
        self.in_encoder = nn.Linear((c.n_input + 1) * c.patch_size**2, c.n_features, bias=False)

    def forward(self, cut: Tensor) -> Tensor:
        """Map (batch, token, (n_input + 1) p²) to (batch, token, n_features)."""
        x: Tensor = self.in_encoder(cut)
        return x


class _Block(nn.Module):
    """Attention and MLP side by side on the same input."""

    def __init__(self, c: TransformerConfig) -> None:
        super().__init__()
        self.gate_layer = nn.Linear(c.n_embedding, 2 * c.n_features, bias=False)
        self.self_attention = _Attention(c)
        self.mlp_layer = _GatedMLP(c)

    def forward(self, x: Tensor, e: Tensor, sight: _Sight, wanted: int | None = None) -> Tensor:
        """Map (batch, token, n_features) to (batch, wanted, n_features): what later blocks do not see is not made."""
        g1, g2 = (self.gate_layer(e) + 1)[:, None].chunk(2, -1)
        n = _normed(x)
        change = self.self_attention(n * g1, sight, wanted) + self.mlp_layer(n[:, :wanted] * g2)
        out: Tensor = x[:, :wanted] + sight.ocean[:, :wanted] * change
        return out


class _Attention(nn.Module):
    """Self-attention whose keys are made of its values."""

    def __init__(self, c: TransformerConfig) -> None:
        super().__init__()
        self.heads, self.width = c.n_heads, c.n_features_head
        self.qkv_layer = nn.Linear(c.n_features, 3 * c.n_heads * c.n_features_head, bias=False)
        self.q_norm, self.k_norm = nn.RMSNorm(c.n_features_head), nn.RMSNorm(c.n_features_head)
        self.rope_layer = _Rotary(c)
        self.out_layer = nn.Linear(c.n_heads * c.n_features_head, c.n_features, bias=False)

    def forward(self, x: Tensor, sight: _Sight, wanted: int | None = None) -> Tensor:
        """Map (batch, token, n_features) to (batch, wanted, n_features)."""
        to_q, _, to_v = self.qkv_layer.weight.chunk(3)
        q, v = self._split(F.linear(x[:, :wanted], to_q)), self._split(F.linear(x, to_v))
        cos, sin = self.rope_layer(sight.position)
        exact = self.k_norm.weight.dtype  # not autocast's: angles need it
        q = _turned(self.q_norm(q.to(exact)), cos[:, :, :wanted], sin[:, :, :wanted])
        k = _turned(self.k_norm(v.to(exact)), cos, sin)
        q, k = q.to(v.dtype), k.to(v.dtype)
        if sight.bias is not None:
            none = v.new_zeros(*v.shape[:2], 1, v.shape[3])
            k, v = torch.cat((k, none), 2), torch.cat((v, none), 2)
        bias = None if sight.bias is None else sight.bias.to(v.dtype)
        seen = _attend(q, k, v, bias, sight.plain)
        out: Tensor = self.out_layer(seen.transpose(1, 2).flatten(2))
        return out

    def _split(self, x: Tensor) -> Tensor:
        """Map (batch, token, head width) to (batch, head, token, width)."""
        return x.reshape(*x.shape[:2], self.heads, self.width).transpose(1, 2)


class _Rotary(nn.Module):
    """Learnt angles per distance, a vector for each pair of features of each head (Heo et al. 2024)."""

    def __init__(self, c: TransformerConfig) -> None:
        super().__init__()
        half = -(-c.n_rope_features // 2)
        size = 10 ** -torch.linspace(0, 1 / 3, half)
        theta = 2 * math.pi * torch.rand(c.n_heads, 1)
        angle = torch.cat((theta.expand(-1, half), theta.expand(-1, half) + math.pi / 2), 1)
        f = torch.stack((angle.cos(), angle.sin())) * torch.cat((size, size))
        self.freqs = nn.Parameter(f[..., : c.n_rope_features].clone())

    def forward(self, position: Tensor) -> tuple[Tensor, Tensor]:
        """Map positions (batch, token, 2) to cosines and sines (batch, head, token, n_rope_features)."""
        r = position[:, None, :, :, None]
        phase = r[..., 0, :] * self.freqs[0, :, None] + r[..., 1, :] * self.freqs[1, :, None]
        return phase.cos(), phase.sin()


class _GatedMLP(nn.Module):
    def __init__(self, c: TransformerConfig) -> None:
        super().__init__()
        self.in_layer = nn.Linear(c.n_features, 2 * c.mult * c.n_features, bias=False)
        # In a Sequential, because the published key is `out_layer.0.weight`.
        last = nn.Linear(c.mult * c.n_features, c.n_features, bias=False)
        self.out_layer = nn.Sequential(last, nn.Dropout(c.dropout_mlp))

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, token, n_features) to itself."""
        branch, gate = self.in_layer(x).chunk(2, -1)
        out: Tensor = self.out_layer(branch * F.silu(gate))
        return out


class _Head(nn.Module):
    def __init__(self, c: TransformerConfig) -> None:
        super().__init__()
        self.gate_layer = nn.Linear(c.n_embedding, c.n_features, bias=False)
        self.out_layer = nn.Linear(c.n_features, c.n_output * c.patch_size**2, bias=False)
        one = torch.empty(c.n_output, c.n_features)
        nn.init.kaiming_uniform_(one, a=math.sqrt(5))
        self.out_layer.weight.data.copy_(one.repeat_interleave(c.patch_size**2, 0))  # a patch starts out uniform

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        """Map (batch, token, n_features) to (batch, token, n_output p²)."""
        out: Tensor = self.out_layer(F.relu(_normed(x) * (self.gate_layer(e) + 1)[:, None]))
        return out


def _embedder(c: TransformerConfig) -> Embedder:
    return Embedder(c.n_embedding, c.n_time_in, c.n_augment_in, c.n_res_in)


def patches(x: Tensor, p: int) -> Tensor:
    """Cut (batch, channel, y, x) into patches of p x p cells, (batch, token, channel p²), row by row."""
    b, c, height, width = x.shape
    cut = x.reshape(b, c, height // p, p, width // p, p)
    return cut.permute(0, 2, 4, 1, 3, 5).reshape(b, -1, c * p * p)


def unpatched(tokens: Tensor, size: tuple[int, ...], p: int) -> Tensor:
    """Put patches back, the inverse of `patches` for a map of `size` (y, x)."""
    grid = tokens.reshape(len(tokens), size[0] // p, size[1] // p, -1, p, p)
    return grid.permute(0, 3, 1, 4, 2, 5).reshape(len(tokens), -1, size[0], size[1])


def weight_decay_groups(network: Transformer) -> tuple[list[str], list[str]]:
    """Names of the parameters with weight decay and without: matrices have it, but for embedder, skips and angles."""
    free = ("embedder.", "skip_embedding.")
    with_decay: list[str] = []
    without: list[str] = []
    for name, parameter in network.named_parameters():
        decays = parameter.ndim == 2 and not name.startswith(free)
        (with_decay if decays else without).append(name)
    return with_decay, without


def _attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, plain: bool) -> Tensor:
    """softmax(q k^T / sqrt(width) + bias) v, (batch, head, token, width)."""
    if plain or _has_tangent(q):  # fused kernels have no forward derivative
        with sdpa_kernel(SDPBackend.MATH):
            return F.scaled_dot_product_attention(q, k, v, bias)
    return F.scaled_dot_product_attention(q, k, v, bias)


def _has_tangent(x: Tensor) -> bool:
    return forward_ad.unpack_dual(x).tangent is not None  # type: ignore[no-untyped-call]


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the pairs (first half, second half) of features by their angles."""
    a, b = x.chunk(2, -1)
    return torch.cat((a * cos - b * sin, a * sin + b * cos), -1)


def _normed(x: Tensor) -> Tensor:
    return F.rms_norm(x, x.shape[-1:])


def _same(start: Tensor, end: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Give lerp's arguments one dtype, which autocast does not."""
    dtype = torch.promote_types(start.dtype, end.dtype)
    return start.to(dtype), end.to(dtype), weight.to(dtype)
