"""Train a Samudra 2 on a store in the OM4 layout, on one device or under torchrun; run it again to continue.

    python examples/train_samudra.py OM4.zarr run --start 1975-01-03 --end 2013-10-05
    torchrun --nproc-per-node=8 examples/train_samudra.py OM4.zarr run --batch 32

The folder `run` gets the statistics of the training years, `restart.pt`, `training.csv` and, at the end,
`emulator.safetensors`, which `polynya.emulators.load` reads with nothing else at hand.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from polynya.diagnostics.learning import learning_curves
from polynya.emulators import (
    Field,
    Layout,
    Samudra,
    layout_of,
    open_statistics,
    open_store,
    save_statistics,
    scaling_from,
    statistics_of,
)
from polynya.emulators.training import Recipe, train, windows_of

STATE = ("uo", "vo", "thetao", "so", "zos")
FORCING = ("tauuo", "tauvo", "hfds", "hfds_anomalies")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", help="Zarr store")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--start", help="first training date")
    parser.add_argument("--end", help="last training date")
    parser.add_argument("--validate", help="last date of validation, which begins at --end")
    parser.add_argument("--widths", type=int, nargs="+", default=[280, 380, 480, 520])
    parser.add_argument("--dilations", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--updates", type=int, default=49_000, help="70 epochs of 39 years in batches of 4")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--bf16", action="store_true")
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)

    training = open_store(given.store).sel(time=slice(given.start, given.end))
    constants = given.folder / "statistics.zarr.zip"
    if not constants.exists() and os.environ.get("WORLD_SIZE", "1") != "1":
        raise SystemExit(
            f"make the statistics before many processes need them: polynya stats {given.store} {constants}"
        )
    if not constants.exists():
        save_statistics(statistics_of(training, progress=True), constants)
    statistics = open_statistics(constants)

    layout = layout_of(training, STATE, slots=(-1, 0))
    forcing = Layout(tuple(Field(n) for n in FORCING), layout.grid, layout.slots, layout.interval)
    emulator = Samudra.untrained(
        layout, forcing, scaling_from(statistics, layout, forcing), increments=False,
        widths=tuple(given.widths), dilations=tuple(given.dilations), bf16=given.bf16,
    )  # fmt: skip
    windows = windows_of(emulator, [training], climatology=statistics)
    after = open_store(given.store).sel(time=slice(given.end, given.validate)) if given.validate else None
    validation = None if after is None else windows_of(emulator, [after], climatology=statistics)
    train(emulator, windows, Recipe.samudra2(given.updates, batch=given.batch), folder=given.folder, resume=True,
          validation=validation, progress=True)  # fmt: skip
    if os.environ.get("RANK", "0") == "0":
        learning_curves(given.folder).savefig(given.folder / "training.png", dpi=150)


if __name__ == "__main__":
    main()
