"""The Samudra network: a dilated ConvNeXt-style U-Net that steps the global ocean by ten days.

Dheeshjith et al. (2025), "Samudra: an AI global ocean emulator for climate", Geophys. Res. Lett., and
its successor Samudra 2 (arXiv:2606.02610).  On normalised tensors with zeros on land it computes

    y = where(mask, D(U([prognostic, boundary])), 0)

with a decoder D (one 3x3 convolution) and a U-Net U of L levels with widths w and dilations d: blocks at
the even entries of one flat list of 4L + 1 entries, 2x2 mean pooling between the first L + 1 of them and
bilinear upsampling between the rest.  The map that enters each pooling is *added* after the upsampling
that mirrors it.  One block, with h = e c_in hidden channels for an expansion e:

    r = x,  or a 1x1 convolution of x where c_in != c_out
    y = r + conv1x1(a(N(conv3x3_d(a(N(conv3x3_d(x)))))))        a = min(GELU, 10),  N = normalisation

Longitude is periodic in every 3x3 convolution, latitude is padded by zeros; land is known to the network
by its zeros alone.  The last, full-resolution block has the *second* dilation: so the published models
were trained.  State-dict keys are those of the published files: `checkpoint.load_network` reads them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.utils.checkpoint import checkpoint

__all__ = ["NetworkConfig", "Norm", "SamudraNet", "Seam", "Upsample", "statistics_kept"]

Norm: TypeAlias = Literal["batch", "instance", "none"]
Upsample: TypeAlias = Literal["periodic", "plain"]
Seam: TypeAlias = Literal["published", "periodic"]

_CAP = 10.0


@dataclass(frozen=True)
class NetworkConfig:
    """Everything that shapes a `SamudraNet`; the defaults are those of new models.

    Args:
        in_channels: prognostic plus boundary channels.
        out_channels: channels predicted.
        widths: channels of each level, full resolution first.
        dilations: dilation of each level's 3x3 convolutions, in grid cells of that level.
        expansion: hidden channels of a block per input channel: 4 in version 1, 2 in version 2.
        norm: "batch" (1 degree), "instance" (1/2 and 1/4 degree; statistics over the map, land
            included) or "none".
        upsample: "periodic" in longitude (version 2), or "plain" with edges repeated (version 1).
        seam: pooling drops the last column of an odd width.  After upsampling it is filled with zeros in
            the published models, a seam at the map's edge, or by the column east of it ("periodic").
        bf16: run the U-Net, but not the decoder, under bfloat16 autocast.
        residual: add the last `out_channels` prognostic channels, predicting a change.

    Raises:
        ValueError: for fields that do not make a network.
    """

    in_channels: int
    out_channels: int
    widths: tuple[int, ...] = (280, 380, 480, 520)
    dilations: tuple[int, ...] = (1, 2, 4, 8)
    expansion: int = 2
    norm: Norm = "batch"
    upsample: Upsample = "periodic"
    seam: Seam = "periodic"
    bf16: bool = False
    residual: bool = False

    def __post_init__(self) -> None:
        if not self.widths or len(self.widths) != len(self.dilations):
            raise ValueError(
                f"a network needs one dilation per width and at least one level, "
                f"got widths {self.widths} and dilations {self.dilations}"
            )
        sizes = (self.in_channels, self.out_channels, self.expansion, *self.widths, *self.dilations)
        if min(sizes) < 1:
            raise ValueError(f"channels, widths, dilations and expansion are at least 1, got {self}")
        for name, kinds in (("norm", Norm), ("upsample", Upsample), ("seam", Seam)):
            if getattr(self, name) not in get_args(kinds):
                raise ValueError(f"{name} is one of {get_args(kinds)}, got {getattr(self, name)!r}")


class SamudraNet(nn.Module):
    """The network as a function of normalised tensors; differentiable, without state of its own.

    Convolutions choose their algorithm by batch size, so that a sample's last bits depend on what it ran
    with (by 1e-6 of its size).  In eval mode samples therefore run one after another: the same bits in
    any batch, free of cost on a CPU from some 37 x 90 cells upwards.  Small maps on a GPU may prefer a
    whole batch.  On a CPU `.to(memory_format=torch.channels_last)` saves a quarter of the time.

    Args:
        config: its shape.
        one_at_a_time: run samples singly in eval mode; in training mode the batch is always whole.

    Attributes:
        recompute: where gradients are wanted, keep no activations inside blocks and compute them again in
            the backward pass (Chen et al. 2016, arXiv:1604.06174): a third more work, a fraction of the memory.

    Source: Dheeshjith et al. (2025); see the module's docstring for the equations.
    """

    def __init__(self, config: NetworkConfig, *, one_at_a_time: bool = True) -> None:
        super().__init__()
        self.config, self.one_at_a_time, self.recompute = config, one_at_a_time, False
        self.unet = _UNet(config)
        self.decoder = _ZonalConv(config.widths[0], config.out_channels)

    def forward(self, prognostic: Tensor, boundary: Tensor, mask: Tensor) -> Tensor:
        """Predict the next prognostic channels.

        Args:
            prognostic: normalised, 0 on land (batch, prognostic channel, y, x); x is cyclic longitude.
            boundary: normalised forcing, 0 on land (batch, boundary channel, y, x).
            mask: True where an output channel is wet (output channel, y, x), bool.

        Returns:
            Normalised prediction (batch, output channel, y, x), exactly 0 where `mask` is False.

        Raises:
            ValueError: for a wrong number of channels, a mask of another shape, or a grid too small for
                the levels and dilations.
        """
        self._check(prognostic, boundary, mask)
        x = torch.cat((prognostic, boundary), 1)
        if self.training or not self.one_at_a_time or len(x) < 2:
            y = self._decode(x)
        else:
            y = torch.cat([self._decode(x[i : i + 1]) for i in range(len(x))])
        if self.config.residual:
            y = y + prognostic[:, -self.config.out_channels :]
        # Selected, not multiplied: nothing on land, not even NaN, may reach the ocean.
        return torch.where(mask, y, torch.zeros((), dtype=y.dtype, device=y.device))

    def _decode(self, x: Tensor) -> Tensor:
        """Map (batch, in channel, y, x) to (batch, out channel, y, x), the decoder in full precision."""
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.config.bf16):
            hidden = self.unet(x, self.recompute and torch.is_grad_enabled())
        y: Tensor = self.decoder(hidden.to(x.dtype))
        return y

    def _check(self, prognostic: Tensor, boundary: Tensor, mask: Tensor) -> None:
        config, channels = self.config, (prognostic.shape[1], boundary.shape[1])
        if sum(channels) != config.in_channels:
            raise ValueError(
                f"the network takes {config.in_channels} prognostic plus boundary channels, "
                f"got {channels[0]} + {channels[1]}"
            )
        height, width = prognostic.shape[-2:]
        if mask.shape != (config.out_channels, height, width):
            raise ValueError(
                f"mask must be (output channel, y, x) = {(config.out_channels, height, width)}, got {tuple(mask.shape)}"
            )
        levels = len(config.widths)
        reach = [*config.dilations, config.dilations[-1]]
        reach[0] = max(reach[0], _last_dilation(config))
        if height >> levels < 1 or any(width >> i < d for i, d in enumerate(reach)):
            raise ValueError(
                f"a map of {height} x {width} is too small for {levels} halvings and dilations "
                f"{config.dilations}: each level needs as many columns as its dilation; "
                f"use a finer grid, fewer levels or smaller dilations"
            )


class _UNet(nn.Module):
    """Encoder, bottleneck and decoder as one flat list, in the order and numbering of the published keys."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        w, d, levels = config.widths, config.dilations, len(config.widths)
        self.levels, self.seam = levels, config.seam
        channels = (config.in_channels, *w, *w[::-1], w[0])
        dilations = (*d, d[-1], *d[:0:-1], _last_dilation(config))
        blocks = [_Block(channels[i], channels[i + 1], dilation, config) for i, dilation in enumerate(dilations)]
        pool = nn.AvgPool2d(2)
        layers: list[nn.Module] = [blocks[0]]
        for i, block in enumerate(blocks[1:]):
            layers += [pool if i < levels else _Upsample(config.upsample), block]
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor, recompute: bool = False) -> Tensor:
        """Map (batch, in channel, y, x) to (batch, widths[0], y, x)."""
        run = _recomputed if recompute else _run
        x = run(self.layers[0], x)
        skips = []
        for i in range(1, len(self.layers), 2):
            resample, block = self.layers[i], self.layers[i + 1]
            if i < 2 * self.levels:
                skips.append(x)
                x = resample(x)
            else:
                skip = skips.pop()
                x = skip + _pad_to(resample(x), skip, self.seam)
            x = run(block, x)
        return x


def _run(block: nn.Module, x: Tensor) -> Tensor:
    y: Tensor = block(x)
    return y


def _recomputed(block: nn.Module, x: Tensor) -> Tensor:
    """A block that forgets its activations; only its first run may touch batch-norm statistics."""
    y: Tensor = checkpoint(block, x, use_reentrant=False, context_fn=lambda: (nullcontext(), statistics_kept(block)))
    return y


@contextmanager
def statistics_kept(module: nn.Module) -> Iterator[None]:
    """Run batch normalisation in train mode, on the batch's own statistics, without changing the running ones."""
    norms = [m for m in module.modules() if isinstance(m, nn.BatchNorm2d | nn.SyncBatchNorm)]
    before = [(m.momentum, m.num_batches_tracked.clone()) for m in norms if m.num_batches_tracked is not None]
    try:
        for m in norms:
            m.momentum = 0.0  # not `track_running_stats`, which would save fewer tensors than the first run did
        yield
    finally:
        for m, (momentum, count) in zip(norms, before, strict=True):
            m.momentum = momentum
            m.num_batches_tracked.copy_(count)  # type: ignore[union-attr]


class _Block(nn.Module):
    """Two dilated 3x3 convolutions and a 1x1 projection beside a skip path."""

    def __init__(self, channels_in: int, channels_out: int, dilation: int, config: NetworkConfig) -> None:
        super().__init__()
        hidden = config.expansion * channels_in
        if channels_in != channels_out:
            self.skip_module: nn.Module = nn.Conv2d(channels_in, channels_out, 1)
        else:
            self.skip_module = nn.Identity()
        self.convblock = nn.Sequential(
            _ZonalConv(channels_in, hidden, dilation),
            _norm(config.norm, hidden),
            _CappedGELU(),
            _ZonalConv(hidden, hidden, dilation),
            _norm(config.norm, hidden),
            _CappedGELU(),
            nn.Conv2d(hidden, channels_out, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, channels_in, y, x) to (batch, channels_out, y, x)."""
        y: Tensor = self.skip_module(x) + self.convblock(x)
        return y


class _ZonalConv(nn.Conv2d):
    """3x3 convolution, cyclic in x and padded by zeros in y."""

    def __init__(self, channels_in: int, channels_out: int, dilation: int = 1) -> None:
        super().__init__(channels_in, channels_out, 3, padding=(dilation, 0), dilation=dilation)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, channels_in, y, x) to (batch, channels_out, y, x)."""
        return super().forward(_wrap(x, self.dilation[0]))


class _CappedGELU(nn.Module):
    """min(GELU(x), cap) with the exact, erf form; the cap is a buffer because published files hold it."""

    cap: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("cap", torch.tensor(_CAP))

    def forward(self, x: Tensor) -> Tensor:
        """Map any shape to itself."""
        return torch.clamp(F.gelu(x), max=self.cap)


class _Upsample(nn.Module):
    """Bilinear doubling of both axes; rows repeat at their edges, columns too or are cyclic."""

    def __init__(self, kind: Upsample) -> None:
        super().__init__()
        self.periodic = kind == "periodic"

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, channel, y, x) to (batch, channel, 2 y, 2 x)."""
        if not self.periodic:
            return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
        x = F.interpolate(_wrap(x, 1), scale_factor=2, mode="bilinear", align_corners=False)
        return x[..., 2:-2]


def _last_dilation(config: NetworkConfig) -> int:
    """Return the dilation of the full-resolution output block: the second one, as published."""
    return config.dilations[min(1, len(config.dilations) - 1)]


def _norm(kind: Norm, channels: int) -> nn.Module:
    if kind == "batch":
        return nn.BatchNorm2d(channels)
    return nn.InstanceNorm2d(channels) if kind == "instance" else nn.Identity()


def _wrap(x: Tensor, columns: int) -> Tensor:
    """Continue x (..., x) by `columns` on both sides of the cyclic axis."""
    return torch.cat((x[..., -columns:], x, x[..., :columns]), -1)


def _pad_to(x: Tensor, like: Tensor, seam: Seam) -> Tensor:
    """Pad the last row and column that pooling dropped: rows by zeros, columns as `seam` says."""
    rows, columns = like.shape[-2] - x.shape[-2], like.shape[-1] - x.shape[-1]
    if columns and seam == "periodic":
        x, columns = torch.cat((x, x[..., :columns]), -1), 0
    return F.pad(x, (0, columns, 0, rows)) if rows or columns else x
