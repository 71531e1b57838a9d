"""Does an ensemble that sees satellites and floats stay near the truth? Twelve cycles in the embedded channel, and a page.

    python examples/twin_experiment.py [OUT]
"""

import sys
from pathlib import Path

import torch

from polynya.da import LETKF, Adaptive, Floats, Quality, RandomPoints, SurfaceField, twin
from polynya.diagnostics import Report
from polynya.diagnostics.figures import series
from polynya.emulators import Corrected, GridNoise, Noise, Source, State, samples
from polynya.ensembles import states_of

out = Path(sys.argv[1] if len(sys.argv) > 1 else "twin")
nature, sample = samples.nature("channel"), samples.sample("channel")
emulator = Corrected(samples.emulator("channel"), GridNoise(0.2))
truth = Source.open(sample, nature.layout).state()
past = list(states_of(sample, emulator.layout))[:24]  # states of other dates
ensemble = State(torch.cat([s.data for s in past]), truth.time, emulator.layout, tuple(range(24)))
network = (
    SurfaceField("thetao", error=0.3, coverage=0.5, stride=2, kind="SST swath"),
    RandomPoints("zos", error=0.02, count=300, kind="altimeter"),
    Floats(80, {"thetao": 0.05, "so": 0.01}, kind="float"),
)
letkf = Adaptive(LETKF(half_width=1e5, rtpp=0.6), half_width=2e5, variance=0.01)
done = twin(nature, truth, emulator, ensemble, network, {"LETKF": letkf}, cycles=12, store=out, quality=Quality(),
            forcing=nature.forcing(), noise=Noise(2), resume=True, progress=True)  # fmt: skip

summary, scores = done.summary(skip=4).compute(), done.scores().sel(state="analysis").compute()
report = Report("An assimilation experiment with synthetic observations")
for k in range(scores.sizes["band"]):
    if str(scores.depth.values[k]) == "surface":
        lines = {f"{run}: {what}": scores[what].sel(run=run).isel(band=k, drop=True)
                 .assign_attrs(units=str(scores.units.values[k]), long_name=str(scores.variable.values[k]))
                 for run in scores.run.values for what in ("error", "spread")}  # fmt: skip
        report.figure(series(lines, title=f"{scores.variable.values[k]} at the surface"), "RMSE of the mean, and spread.")
rows = summary.sel(run="LETKF").to_dataframe().reset_index()
report.table(rows[["variable", "depth", "units", "error", "ratio", "gain"]].to_dict("records"), "LETKF, after 4 cycles")
print(report.write(out / "report.html"))
