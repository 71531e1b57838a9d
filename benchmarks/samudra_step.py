"""One 10-day step of full-size Samudra 2 at 1 degree: ours and a plain eager forward, timed in turns.

    python benchmarks/samudra_step.py [--rounds 3] [--compile]

The plain forward is written here from the published description with stock torch modules, without anything of
ours, and loads the same weights. Prints seconds (median), ratios, differences and the peak memory of a process
that loads the exported emulator, opens nothing else and makes one step. Nothing else should be running.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cftime
import numpy as np
import torch
from machine import keep
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from polynya.emulators import Field, Layout, Noise, Samudra, State, export, gaussian_grid
from polynya.emulators.samudra import NetworkConfig, SamudraNet
from polynya.emulators.scaling import Scaling

WIDTHS, DILATIONS, EXPANSION = (280, 380, 480, 520), (1, 2, 4, 8), 2
MEMORY = """
import resource, sys, time, torch
from polynya.emulators import Noise, State, load
import cftime
emulator = load(sys.argv[1])
if sys.argv[2] == "bf16":
    emulator = emulator.tuned(bf16=True)
state, forcing = (
    State(torch.randn(1, *of.shape) * of.mask, cftime.DatetimeJulian(2014, 10, 15, 12), of, (0,))
    for of in (emulator.layout, emulator.forcing_layout)
)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
with torch.inference_mode():
    emulator.step(state, forcing, Noise(0))
print(before / 1e6, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6)
"""


class Pad(nn.Module):
    def __init__(self, n: int) -> None:
        super().__init__()
        self.n = n

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(F.pad(x, (self.n, self.n, 0, 0), mode="circular"), (0, 0, self.n, self.n))


class Cap(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("cap", torch.tensor(10.0))

    def forward(self, x: Tensor) -> Tensor:
        return torch.clamp(F.gelu(x), max=10.0)


class PlainBlock(nn.Module):
    """As described: pad, convolve, normalise, activate, twice; project; add the skip path."""

    def __init__(self, c: int, out: int, d: int) -> None:
        super().__init__()
        h = EXPANSION * c
        self.skip = nn.Conv2d(c, out, 1) if c != out else nn.Identity()
        conv = [nn.Conv2d(c, h, 3, dilation=d), nn.BatchNorm2d(h), Cap(), nn.Conv2d(h, h, 3, dilation=d)]
        self.block = nn.ModuleList([*conv, nn.BatchNorm2d(h), Cap(), nn.Conv2d(h, out, 1)])
        self.pad = Pad(d)

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for i, layer in enumerate(self.block):
            y = layer(self.pad(y)) if i in (0, 3) else layer(y)
        return self.skip(x) + y


class Plain(nn.Module):
    """The U-Net, encoder then decoder, in stock modules."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        w, d = WIDTHS, DILATIONS
        pairs = [(inputs, w[0], d[0]), *((w[i - 1], w[i], d[i]) for i in (1, 2, 3))]
        self.down = nn.ModuleList(PlainBlock(*p) for p in pairs)
        self.middle = PlainBlock(w[3], w[3], d[3])
        self.up = nn.ModuleList(PlainBlock(*p) for p in [(w[3], w[2], 8), (w[2], w[1], 4), (w[1], w[0], 2)])
        self.last = PlainBlock(w[0], w[0], 2)
        self.decoder = nn.Conv2d(w[0], outputs, 3)
        self.pad = Pad(1)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        skips = []
        for block in self.down:
            x = block(x)
            skips.append(x)
            x = F.avg_pool2d(x, 2)
        x = self.middle(x)
        for block in [*self.up, self.last]:
            wide = F.pad(x, (1, 1, 0, 0), mode="circular")
            x = F.interpolate(wide, scale_factor=2, mode="bilinear", align_corners=False)[..., 2:-2]
            skip = skips.pop()
            rows, columns = skip.shape[-2] - x.shape[-2], skip.shape[-1] - x.shape[-1]
            x = block(F.pad(x, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2)) + skip)
        return torch.where(mask, self.decoder(self.pad(x)), 0.0)

    def take(self, network: SamudraNet) -> Plain:
        """The same weights, in the order of the modules."""
        ours = [v for k, v in network.state_dict().items() if not k.endswith("cap")]
        mine = [k for k in self.state_dict() if not k.endswith("cap")]
        self.load_state_dict(dict(zip(mine, ours, strict=True)), strict=False)
        return self.eval()


def emulator_of_one_degree() -> Samudra:
    """Random weights, the published configuration, a Gaussian grid with a third of land."""
    torch.manual_seed(0)
    grid = gaussian_grid(180, 360)
    wet = np.ones((19, 180, 360), bool)
    wet[:, 60:130, 100:230] = False
    grid = grid.assign_coords(wetmask=(("lev", "y", "x"), wet))
    fields = (*(Field(n, 19) for n in ("uo", "vo", "thetao", "so")), Field("zos"))
    slots = (-1, 0)
    layout = Layout(fields, grid, slots)
    forcing = Layout(tuple(Field(n) for n in ("tauuo", "tauvo", "hfds", "hfds_anomalies")), grid, slots)
    network = SamudraNet(NetworkConfig(162, 154, WIDTHS, DILATIONS, EXPANSION, seam="published")).eval()
    one, few = torch.ones(154), torch.ones(8)
    return Samudra(network, layout, forcing, Scaling(0 * one, one, one, 0 * few, few))


def states(emulator: Samudra) -> tuple[State, State]:
    time_ = cftime.DatetimeJulian(2014, 10, 15, 12)
    made = (Noise(1).stream(str(k)).normal((0,), time_, of.shape) * of.mask for k, of in enumerate(layouts(emulator)))
    state, forcing = (State(data, time_, of, (0,)) for data, of in zip(made, layouts(emulator), strict=True))
    return state, forcing


def layouts(emulator: Samudra) -> tuple[Layout, Layout]:
    return emulator.layout, emulator.forcing_layout


def tasks(emulator: Samudra, compiled: bool) -> dict[str, Callable[[], Tensor]]:
    state, forcing = states(emulator)
    plain = Plain(162, 154).take(emulator.network)
    inputs = torch.cat([state.data, forcing.data], 1)
    half = emulator.tuned(bf16=True)
    found: dict[str, Callable[[], Tensor]] = {
        "polynya": lambda: emulator.step(state, forcing, Noise(0)).data,
        "plain eager": lambda: plain(inputs, emulator.layout.mask),
        "polynya bf16": lambda: half.step(state, forcing, Noise(0)).data,
    }
    if compiled:
        quick, quick_half = emulator.tuned(compiled=True), half.tuned(compiled=True)
        found["polynya compiled"] = lambda: quick.step(state, forcing, Noise(0)).data
        found["polynya bf16 compiled"] = lambda: quick_half.step(state, forcing, Noise(0)).data
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--compile", action="store_true", help="also torch.compile: needs a C++ compiler, minutes")
    given = parser.parse_args()
    emulator = emulator_of_one_degree()
    with tempfile.TemporaryDirectory() as folder:
        path = export(emulator, Path(folder) / "one_degree.safetensors")
        print(f"export: {path.stat().st_size / 1e6:.0f} MB")
        memory = {}
        for kind in ("fp32", "bf16"):
            told = subprocess.run(
                [sys.executable, "-c", MEMORY, str(path), kind], capture_output=True, text=True, check=True
            )
            memory[kind] = [float(v) for v in told.stdout.split()]
            print(f"{kind}: peak {memory[kind][1]:.2f} GB, {memory[kind][0]:.2f} GB of it before the step")
    run = tasks(emulator, given.compile)
    with torch.inference_mode():
        wanted = run["plain eager"]()
        for name, task in run.items():  # also warms up
            error = (task() - wanted).square().mean().sqrt() / wanted.square().mean().sqrt()
            print(f"{name}: relative difference from plain eager {error:.1e}")
        seconds: dict[str, list[float]] = {name: [] for name in run}
        for _ in range(given.rounds):
            for name, task in run.items():
                begin = time.perf_counter()
                task()
                seconds[name].append(time.perf_counter() - begin)
    median = {name: statistics.median(s) for name, s in seconds.items()}
    for name, value in median.items():
        print(f"  {name:24s} {value:7.2f} s   {median['plain eager'] / value:5.2f} x the speed of plain eager")
    rounded = {name: round(value, 3) for name, value in median.items()}
    keep("samudra_step", {"seconds": rounded, "peak_gb": memory}, ("torch",), torch.get_num_threads())


if __name__ == "__main__":
    main()
