"""Roll a published-style Samudra checkpoint out on a store in the OM4 layout, with four members, and diagnose it.

    python examples/om4_rollout.py PATH WEIGHTS

PATH holds OM4.zarr, OM4_means.zarr and OM4_stds.zarr; WEIGHTS is e.g. onedeg/ema_ckpt.pt of M2LInES/Samudra2.
"""

from __future__ import annotations

import sys
from pathlib import Path

from polynya.diagnostics import area_mean, crps_ensemble, global_heat_content, heat_uptake, rmse, spread_error, wet_area
from polynya.emulators import Noise, Source, load, open_store
from polynya.ensembles import Correlated, perturb, rollout

path, weights = Path(sys.argv[1]), sys.argv[2]
store = Path(sys.argv[3] if len(sys.argv) > 3 else "om4_rollout.zarr")

ocean = open_store(path / "OM4.zarr")
emulator = load(weights, data=ocean, means=path / "OM4_means.zarr", stds=path / "OM4_stds.zarr")
states, forcing = Source.open(ocean, emulator.layout), Source.open(ocean, emulator.forcing_layout)

noise, first = Noise(seed=1), states.state(states.times[1])
start = perturb(first, members=4, amplitude={"thetao": 0.1}, noise=noise, kind=Correlated(length=5e5))
run = rollout(emulator, start, forcing, steps=10, store=store, noise=noise, progress=True)
print(run)

truth = ocean[["thetao", "zos"]].sel(time=run.time).isel(lev=slice(0, run.sizes["lev"]))
area = wet_area(run.thetao.isel(lev=0, time=0, member=0))
content = global_heat_content(run.thetao, depth=(0, float(run.dz.sum())))
print("heat uptake of each member, W m-2:", heat_uptake(content, area=area).compute().values.round(3))
print("mean sea surface temperature, degC:", area_mean(run.thetao.isel(lev=0)).mean("member").compute().values.round(2))
obs, ens = truth.thetao.isel(lev=0), run.thetao.isel(lev=0)
over = {"dim": ("y", "x"), "weights": run.areacello}
for name, score in {
    "RMSE of the mean": rmse(obs, ens.mean("member", keep_attrs=True), **over),
    "CRPS": crps_ensemble(obs, ens, fair=True, **over),
    "spread": spread_error(obs, ens, **over).spread,
}.items():
    print(f"{name} of SST, K:", score.compute().values.round(3))
