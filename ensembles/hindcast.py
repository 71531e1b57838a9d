"""Hindcasts: one forecast from each of many dates, laid out by initial time and lead for verification."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import timedelta
from itertools import islice

import numpy as np
import torch
import xarray as xr

from ..emulators import Draws, Emulator, Forcing, State
from .dates import slot_times
from .rollout import trajectory


def hindcasts(
    emulator: Emulator,
    starts: Iterable[State],
    forcing: Forcing | None = None,
    *,
    steps: int,
    noise: Draws | None = None,
    names: Sequence[str] | None = None,
) -> xr.Dataset:
    """Forecasts from every start, in memory.

    Args:
        emulator: what is tested; gradients are off.
        starts: initial conditions, of one or many members, all with the same members.
        forcing: as for `rollout`.
        steps: steps of each forecast.
        noise: for stochastic emulators.
        names: variables to keep; default all.

    Returns:
        Dataset `(init, member, lead, [lev], y, x)` with `lead` in days (0 is the start; steps of `emulator.dt`) and
        `valid_time (init, lead)`, which over a stored forcing is the date of its record; of states with several
        time slots the newest.

    Raises ValueError if there is no start.
    """
    runs = []
    for start in starts:
        with torch.no_grad():
            states = list(islice(trajectory(emulator, start, forcing, noise), steps + 1))
        records = [s.to_xarray()[list(names or s.layout.names)].isel(time=-1) for s in states]
        run = xr.concat([r.drop_vars("time") for r in records], "lead", coords="minimal", compat="override")
        times = np.array([slot_times(s, forcing)[-1] for s in states], dtype=object)
        runs.append(run.assign_coords(valid_time=("lead", times), init=times[0]))
    if not runs:
        raise ValueError("hindcasts need at least one start, got none")
    days = [k * emulator.dt / timedelta(days=1) for k in range(steps + 1)]
    out = xr.concat(runs, "init", coords="minimal", compat="override")
    out["valid_time"] = (("init", "lead"), np.stack([r["valid_time"].values for r in runs]))
    out = out.assign_coords(lead=("lead", days, {"units": "days", "standard_name": "forecast_period"}))
    return out.set_coords("valid_time").transpose("init", "member", "lead", ...)


def verifying(truth: xr.Dataset, forecasts: xr.Dataset) -> xr.Dataset:
    """The truth at the valid times of hindcasts, `(init, lead, [lev], y, x)`.

    Raises KeyError if the truth lacks one of these times.
    """
    flat = forecasts["valid_time"].values.ravel()
    known = {t: i for i, t in enumerate(truth["time"].values)}
    missing = sorted({t for t in flat if t not in known})
    if missing:
        raise KeyError(f"the truth has no record of {missing[0]} and {len(missing) - 1} other valid times")
    at = xr.DataArray(np.array([known[t] for t in flat]).reshape(forecasts["valid_time"].shape), dims=("init", "lead"))
    found = truth.isel(time=at).drop_vars("time")
    return found.assign_coords({c: forecasts[c] for c in ("init", "lead", "valid_time")})
