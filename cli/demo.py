"""`polynya demo`: both experiments on the embedded oceans, and the page about them."""

from __future__ import annotations

import time
from importlib.metadata import version
from pathlib import Path

from rich.console import Console

from ..diagnostics import Report
from ..emulators import samples
from . import demo_channel, demo_globe

SUMMARY = (
    "Everything on this page was computed on this machine by one command, from what comes with the package: two "
    "small oceans that serve as truth, and two small neural emulators trained on them. It shows the three things "
    "polynya is for: ensembles and ocean heat uptake, assimilation experiments, and honest ensemble skill."
)


def run(out: Path, *, members: int, days: int, overwrite: bool, console: Console) -> Path:
    """Run the demo; returns the path of the page.

    Args:
        out: folder for `report.html` and the Zarr stores.
        members: members of the warming ensemble.
        days: length of the warming runs.
        overwrite: replace the stores of an earlier run.
        console: where to say what is being done.

    Raises StoreExistsError if the folder holds stores and `overwrite` is false.
    """
    out.mkdir(parents=True, exist_ok=True)
    report = Report("An ocean emulator, an ensemble, an analysis", SUMMARY)
    for chapter in (demo_globe, demo_channel):
        began = time.perf_counter()
        chapter.chapter(report, out, members, days, overwrite, console)
        console.print(f"{chapter.NAME}: {time.perf_counter() - began:.0f} s")
    report.provenance(
        {
            "command": f"polynya demo --members {members} --days {days}",
            "versions": {p: version(p) for p in ("polynya", "torch", "numpy", "xarray", "zarr", "gsw")},
            "emulators": {n: repr(samples.emulator(n)) for n in samples.OCEANS},
            "stores": "each holds its own provenance: polynya info STORE",
        }
    )
    return report.write(out / "report.html")
