"""Cycled 4D-Var of the embedded sea ice: windows of 16 days, thickness every two days, two emulators.

    python benchmarks/ice_window.py --out FOLDER [--windows 4] [--emulators deterministic generative] [--record]

The truth is the embedded sea ice under weather of its own; forecasts are the emulators', driven by the same weather.
The first background is the ice of another date. Every two days a quarter of the cells reports its thickness with an
error of 0.1 m, and a window of 32 steps is fitted through the emulator's adjoint; the next background is the forecast
from its end. The deterministic emulator is also fitted under a weak constraint, with errors of thickness every fourth
step. The generative one makes one member, with the noise of each step as it was drawn; its sampler takes 5 network
calls. Prints root mean square errors over the ocean for the free run, background and analysis. Experiments that are
there already are gone on with; `--record` writes `benchmarks/results/ice_window.md`, the figure is beside the stores.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from machine import processor

from polynya.da import LBFGS, Above, DiffusedRoot, FourDVar, Logit, RandomPoints, Repeated, Twin, twin
from polynya.emulators import Noise, Source, samples
from polynya.ensembles import states_of

STEPS, DAYS = 32, 16
STD = {"sithick": 0.2, "siconc": 0.5}  # the second in logits


def experiment(kind: str, folder: Path, windows: int) -> Twin:
    """Run what is not there yet."""
    torch.set_num_threads(1)
    ice, sample = samples.nature("arctic"), samples.sample("arctic")
    emulator = samples.emulator("arctic_deterministic")
    if kind == "generative":
        emulator = samples.emulator("arctic").tuned(n_steps=3)
    truth = Source.open(sample, ice.layout).state()
    other = list(states_of(sample, emulator.layout))[-1]
    layout = emulator.layout
    network = Repeated(
        RandomPoints("sithick", error=0.1, count=int(layout.mask[0].sum()) // 4),
        timedelta(days=2), timedelta(days=DAYS),
    )  # fmt: skip
    root = DiffusedRoot(layout, STD, 3e4, normalisation="local")
    strong = FourDVar(root, LBFGS(3e-2, evaluations=25), transforms={"sithick": Above(0.0), "siconc": Logit()})
    error = DiffusedRoot(layout, {"sithick": 0.03}, 3e4, normalisation="local")
    methods = {"4D-Var": strong}
    if kind == "deterministic":
        methods["weak constraint"] = replace(strong, model_error=error, error_every=4)
    return twin(
        ice, truth, emulator, other.replace(time=truth.time), network, methods, cycles=windows, every=STEPS,
        store=folder / kind, forcing=ice.forcing(Noise(11)), noise=Noise(3), resume=True, progress=True,
    )  # fmt: skip


def methods_of(runs: dict[str, Twin]) -> list[tuple[str, str, Twin]]:
    """All methods of all emulators but the free runs."""
    return [(kind, name, done) for kind, done in runs.items() for name in done.runs if name != "free run"]


def table(runs: dict[str, Twin]) -> list[str]:
    """Errors at the ends of the windows, root mean squares over windows, as Markdown."""
    lines = ["| emulator, method | variable | unit | free run | background | analysis | analysis / free |"]
    lines += ["|---" * 7 + "|"]
    for kind, method, done in methods_of(runs):
        free, ours = (done.runs[name].cycles.error.compute() for name in ("free run", method))
        for k, name in enumerate(map(str, free["variable"].values)):
            unit = done.runs["4D-Var"].analysis[name].attrs["units"]
            both = [free.sel(state="analysis"), ours.sel(state="background"), ours.sel(state="analysis")]
            a, b, c = (float(np.sqrt((e.isel(channel=k) ** 2).mean())) for e in both)
            lines.append(f"| {kind}, {method} | {name} | {unit} | {a:.4f} | {b:.4f} | {c:.4f} | {c / a:.2f} |")
    return lines


def picture(runs: dict[str, Twin], path: Path) -> None:
    """Thickness at the end of the last window, and errors of all windows."""
    figure, axes = plt.subplots(len(runs) + 1, 3, figsize=(10, 3.1 * (len(runs) + 1)), layout="constrained")
    for row, (kind, done) in zip(axes, runs.items(), strict=False):
        truth = done.truth.sithick.isel(member=0).sel(time=done.runs["4D-Var"].analysis.time[-1]).compute()
        fields = {"truth": truth}
        shown = list(done.runs.items())[:2]
        fields |= {n: r.analysis.sithick.isel(member=0, time=-1).compute() for n, r in shown}
        for ax, (name, field) in zip(row, fields.items(), strict=True):
            image = ax.pcolormesh(field.where(truth.notnull()), vmin=0, vmax=4, cmap="viridis")
            ax.set_title(f"{kind}: {name}", loc="left", fontsize=9)
            ax.set_axis_off()
        figure.colorbar(image, ax=row, label="thickness [m]", shrink=0.8)
    names = ("sithick", "siconc", "siu")
    for ax, name in zip(axes[-1], names, strict=True):
        for c, (kind, done) in enumerate(runs.items()):
            for style, run in zip(("--", "-", ":"), done.runs, strict=False):
                error = done.runs[run].cycles.error.compute().sel(state="analysis")
                one = error.isel(channel=int(np.flatnonzero(error["variable"].values == name)[0]))
                ax.plot(DAYS * (1 + np.arange(one.size)), one, style, color=f"C{c}", label=f"{kind}, {run}")
        ax.set_ylim(bottom=0)
        ax.set_xlabel("days")
        ax.set_title(f"RMSE of {name}", loc="left", fontsize=9)
    axes[-1][0].legend(fontsize=7, frameon=False)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Run, print, and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--windows", type=int, default=4)
    parser.add_argument("--emulators", nargs="+", default=["deterministic", "generative"])
    parser.add_argument("--record", action="store_true")
    asked = parser.parse_args()
    runs = {kind: experiment(kind, asked.out, asked.windows) for kind in asked.emulators}
    lines = table(runs)
    for kind, method, done in methods_of(runs):
        found = done.runs[method].cycles.compute()
        count, first, last = (found[n].values.ravel().round().tolist() for n in ("evaluations", "cost_first", "cost"))
        lines += ["", f"{kind}, {method}: evaluations per window {count}, J from {first} to {last}."]
    print("\n".join(lines))
    picture(runs, asked.out / "ice_window.png")
    if asked.record:
        head = ["# 4D-Var of the embedded sea ice", "",
                f"{asked.windows} windows of {DAYS} days, `python benchmarks/ice_window.py --out FOLDER --windows "
                f"{asked.windows} --record`; errors at the ends of the windows; {processor()}.", ""]  # fmt: skip
        (Path(__file__).parent / "results" / "ice_window.md").write_text("\n".join(head + lines) + "\n")


if __name__ == "__main__":
    main()
