"""How good are ensemble forecasts of a small ocean, and how honest is their spread? Twelve dates, and a page."""

import sys
from pathlib import Path

from polynya.diagnostics import EnsembleSkill, Region, report
from polynya.emulators import Noise, Persistence, Source, samples
from polynya.ensembles import Correlated, hindcasts, perturb, rollout, verifying

out = Path(sys.argv[1] if len(sys.argv) > 1 else "skill_report")
MEMBERS, DATES, STEPS, TRUTH = 12, 12, 8, 100  # steps of 5 days; the truth is a member of its own, number 100
nature, emulator, noise = samples.nature("globe"), samples.emulator("globe"), Noise(3)
forcing = nature.forcing(noise=noise.stream("weather"))  # each member has its own weather, and so has the truth

# Beyond the sample, where no training has been: a year of the nature run, the model that the emulator learnt from.
start = Source.open(samples.sample("globe"), nature.layout).state().spread_to((TRUTH,))
run = rollout(nature, start, forcing, steps=6 * DATES + STEPS, store=out / "truth.zarr", noise=noise,
              title="nature run", resume=True, progress=True)  # fmt: skip
source = Source.open(run, emulator.layout)
dates = source.times[: 6 * DATES : 6]
analyses = [source.state(date, (TRUTH,)) for date in dates]
perturbed = [perturb(state, MEMBERS, amplitude={"thetao": 0.05, "zos": 0.002}, noise=noise.stream(str(state.time)),
                     kind=Correlated(1e6)) for state in analyses]  # fmt: skip

names, layout = ("thetao", "so", "zos"), emulator.layout
forecast = hindcasts(emulator, perturbed, forcing, steps=STEPS, noise=noise, names=names)
references = {name: hindcasts(model, analyses, steps=STEPS, names=names).squeeze("member", drop=True)
              for name, model in (("persistence", Persistence(layout, layout.interval)),
                                  ("climatology", samples.climatology("globe", layout)))}  # fmt: skip
truth = verifying(run[list(names)].squeeze("member", drop=True), forecast).load()
study = EnsembleSkill(forecast, truth, references, depths=(0, 170), about="climatology",
                      region=Region(180, 280, -60, -24), name="emulator")  # fmt: skip
print(report(study, out / "report.html", title="Forecasts of an ocean with unknown weather", progress=True))
