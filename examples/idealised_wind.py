"""A storm nobody was trained on crosses the embedded sea ice: what do truth, ensemble and deterministic emulator do?

    python examples/idealised_wind.py                 # minutes; writes idealised_wind.png

A lone cyclone, as in the sea-ice benchmark of Mehlmann et al. (2021, J. Adv. Model. Earth Syst. 13), passes over ice
of the sample in cold, calm air. It tests whether an emulator has learnt how ice answers to wind or only its climate.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import cftime
import torch
import xarray as xr

from polynya.diagnostics import deformation
from polynya.diagnostics.figures import map_rows
from polynya.emulators import Emulator, Forcing, Noise, Source, State, samples
from polynya.ensembles import trajectory


@dataclass
class Cyclone:
    """Wind of a travelling vortex, added to the calm air of `calm`; positions in m, speeds in m s-1."""

    calm: Forcing
    start: cftime.datetime
    origin: tuple[float, float] = (-4e5, -3e5)
    travel: tuple[float, float] = (3.0, 2.0)
    strongest: float = 15.0
    radius: float = 2.5e5

    def at(self, time: cftime.datetime, members: Sequence[int] = (0,)) -> State:
        """The forcing at the start and the end of the step from `time`."""
        state = self.calm.at(time, members)
        grid, layout, data = state.layout.grid, state.layout, state.data.clone()
        for slot, date in enumerate(layout.times(time)):
            seconds = (date - self.start).total_seconds()
            x, y = (
                torch.tensor(grid[n].values - o - c * seconds)
                for n, o, c in zip(("x", "y"), self.origin, self.travel, strict=True)
            )
            square = (x**2 + y[:, None] ** 2) / self.radius**2
            spin = self.strongest / self.radius * torch.exp((1 - square) / 2)
            data[:, layout.channels("uas", slot)] -= (spin * y[:, None]).float()
            data[:, layout.channels("vas", slot)] += (spin * x).float()
        return state.replace(data=data * layout.mask)


def shown(state: State, name: str) -> dict[str, xr.DataArray]:
    """Concentration and shear of the first member, for a column of the figure."""
    run = state.to_xarray().isel(member=0, time=-1)
    shear = deformation(run.siu, run.siv, axes="grid")["shear"]
    return {"concentration": run.siconc.rename(name), "shear": shear.rename(name)}


def main() -> None:
    """Run all three and draw them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--members", type=int, default=16)
    parser.add_argument("--days", type=float, default=2.5)
    parser.add_argument("--out", type=Path, default=Path("idealised_wind.png"))
    given = parser.parse_args()
    ice = samples.nature("arctic")
    begin = Source.open(samples.sample("arctic"), ice.layout).state()
    storm = Cyclone(ice.forcing(anticyclone=0.0), begin.time)
    columns: dict[str, dict[str, xr.DataArray]] = {}

    def forecast(model: Emulator, members: int) -> State:
        first = begin.select(model.layout).spread_to(range(members))
        with torch.no_grad():
            return next(islice(trajectory(model, first, storm, Noise(0)), int(2 * given.days), None))

    columns["truth"] = shown(forecast(ice, 1), "truth")
    ensemble = forecast(samples.emulator("arctic"), given.members)
    columns["one member"] = shown(ensemble, "one member")
    mean = ensemble.mean()
    columns["ensemble mean"] = shown(mean, "ensemble mean")
    columns["deterministic"] = shown(forecast(samples.emulator("arctic_deterministic"), 1), "deterministic")
    plane = {
        row: {name: fields[row].drop_vars(["lat", "lon"], errors="ignore") for name, fields in columns.items()}
        for row in ("concentration", "shear")
    }
    map_rows(plane, title=f"A cyclone over sea ice, after {given.days:g} days").savefig(given.out, dpi=150)
    print(f"{given.out}: {given.members} members")


if __name__ == "__main__":
    main()
