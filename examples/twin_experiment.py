"""Does an ensemble that sees satellites and floats stay near the truth? Twelve cycles in a channel, and a page."""

import sys
from pathlib import Path

import torch

from polynya.da import LETKF, Adaptive, Floats, Quality, RandomPoints, SurfaceField, twin
from polynya.diagnostics import AssimilationSkill, report
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
    Floats(80, {"thetao": 0.1, "so": 0.02}, kind="float"),
)
letkf = Adaptive(LETKF(half_width=1e5, rtpp=0.6), half_width=2e5, variance=0.01)
done = twin(nature, truth, emulator, ensemble, network, {"LETKF": letkf}, cycles=12, store=out, quality=Quality(),
            forcing=nature.forcing(), noise=Noise(2), resume=True, progress=True)  # fmt: skip

study = AssimilationSkill(
    done.scores(),
    done.summary(skip=4),
    departures={"LETKF": done.runs["LETKF"].departures()},
    truth=done.truth,
    runs={name: run.analysis for name, run in done.runs.items()},
)
title = "An assimilation experiment with synthetic observations"
print(report(study, out / "report.html", title=title))
