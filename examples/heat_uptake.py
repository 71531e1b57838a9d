"""How much heat does an ocean take up when the air warms by 2 K? Sixteen members beside their control, and a page."""

import sys
from pathlib import Path

from polynya.diagnostics import HeatUptake, Region, report
from polynya.emulators import Noise, Source, samples
from polynya.emulators.nature_forcing import Warming
from polynya.emulators.nature_ocean import RHO0
from polynya.ensembles import Correlated, Output, perturb, rollout

out = Path(sys.argv[1] if len(sys.argv) > 1 else "heat_uptake")
MEMBERS, STEPS, JUMP = 16, 73, 2.0  # steps of 5 days
ocean, emulator, noise = samples.nature("globe"), samples.emulator("globe"), Noise(seed=1)
weather = noise.stream("weather")  # of each member its own, the same in both cases
cases = {"forced": ocean.forcing(warming=Warming(step=JUMP), noise=weather), "control": ocean.forcing(noise=weather)}
start = Source.open(samples.sample("globe"), ocean.layout).state()
ensemble = perturb(
    start.select(emulator.layout), MEMBERS, amplitude={"thetao": 0.05}, noise=noise, kind=Correlated(length=1e6)
)
keep = {"emulator": Output(variables=("thetao", "so", "zos")), "nature run": None}

# The nature run is the model that the emulator learnt from, under weather that no member has.
runs = {
    name: {
        case: rollout(model, state, forcing, steps=STEPS, store=out / f"{name} {case}.zarr", noise=noise,
                      output=keep[name], title=f"{name}, {case}", resume=True, progress=True)
        for case, forcing in cases.items()
    }
    for name, model, state in (("emulator", emulator, ensemble), ("nature run", ocean, start.spread_to((100,))))
}  # fmt: skip

nature = HeatUptake(**runs["nature run"], name="nature run", rho0=RHO0)
box = Region(west=180, east=280, south=-60, north=-24)
study = HeatUptake(**runs["emulator"], reference=nature, name="emulator", rho0=RHO0, region=box)
print(report(study, out / "report.html", title=f"Heat uptake of an ocean under air {JUMP:g} K warmer", progress=True))
