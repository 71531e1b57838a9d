"""Small regional sea-ice emulators, and a truth that they can learn."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import torch
import xarray as xr
from small import START, small_grid

from polynya.emulators import Field, Layout, Noise, regional
from polynya.emulators.ice_constants import fitted
from polynya.emulators.regional_objectives import Denoising, Increment
from polynya.emulators.training import windows_of
from polynya.emulators.uvit import UViTConfig
from polynya.emulators.windows import Place

DAY = timedelta(hours=12)
SIZES = UViTConfig(
    n_features=8, n_bottleneck=1, n_down_blocks=(1,), n_up_blocks=(1,), channel_mul=(2,), n_heads=2, n_embedding=8
)
KINDS = ("deterministic", "diffusion", "residual")
MEAN = torch.tensor([1.0, 0.8, 0.5, 0.0, 0.0])
SIZE = torch.tensor([0.2, 0.05, 0.1, 0.05, 0.05])
SINGLE = {"batch": 4, "steps": (1,), "learning_rate": 1e-2, "decay": 0.9}


def layouts(land=True):
    grid = small_grid(16, 16, levels=1)
    if not land:
        grid = grid.assign_coords(wetmask=grid.wetmask | True)
    forcing = Layout(tuple(Field(n) for n in regional.FORCINGS), grid, (0, 1), DAY)
    return Layout(tuple(Field(n) for n in regional.STATES), grid, interval=DAY), forcing


def truth(records=24, land=True, seed=0):
    """States that decay towards what the weather of both ends of a step pushes to."""
    layout, forcing = layouts(land)
    weather = Noise(seed).stream("weather").normal(range(records), None, (4, 16, 16))
    x, states = Noise(seed).stream("ice").normal((0,), None, (5, 16, 16))[0], []
    for k in range(records):
        states.append(MEAN[:, None, None] + SIZE[:, None, None] * x)
        push = weather[k, [0, 1, 1, 2, 3]] + weather[min(k + 1, records - 1), [0, 1, 1, 2, 3]]
        x = 0.7 * x + 0.3 * push
    wet = layout.mask[0]
    data = torch.where(wet, torch.cat((torch.stack(states), weather), 1), torch.nan).numpy()
    names = (*layout.names, *forcing.names)
    fields = {n: (("time", "lat", "lon"), data[:, i]) for i, n in enumerate(names)}
    return xr.Dataset(fields, coords={"time": [START + k * DAY for k in range(records)]}).assign_coords(
        layout.grid.coords
    )


def config(**changes):
    given = {"n_steps": 2, "sees_mask": True} | changes
    extra = int(given["sees_mask"])
    sizes = {"deterministic": replace(SIZES, n_input=13 + extra)}
    sizes["diffusion"] = replace(SIZES, n_input=18 + extra, n_time_hidden=8)
    return fitted(regional.RegionalConfig(**(sizes | given)), *layouts(), [truth()])


def emulator(kind, land=True, **changes):
    c = config(**changes)
    made = regional.Regional.untrained(*layouts(land), c, "deterministic", seed=1)
    if kind == "residual":
        sizes = replace(c.diffusion, n_input=c.diffusion.n_input + 5)
        guess, mean, scale = made.network, (0.01,) * 5, (0.15, 0.04, 0.08, 0.04, 0.04)
        c = replace(c, diffusion=sizes, residual_mean=mean, residual_scale=scale)
        made = regional.Regional.untrained(*layouts(land), c, first_guess=guess, seed=2)
    elif kind == "diffusion":
        made = regional.Regional.untrained(*layouts(land), c, seed=2)
    for net in filter(None, (made.network, made.first_guess)):
        for name, p in net.named_parameters():
            if name.endswith("gamma"):
                torch.nn.init.constant_(p, 0.5)
    return made


def objective_of(kind, **how):
    return Increment(**how) if kind == "deterministic" else Denoising(**how)


def batch_of(model, places=(0, 5, 9), land=True):
    return windows_of(model, [truth(land=land)], in_memory=True).batch([Place(k) for k in places], 1, 1)
