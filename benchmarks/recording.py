"""What recording costs: our stores beside earth2studio's, and beside the run they are of.

    python benchmarks/recording.py io [--rounds 3] [--record]         CPU seconds per logical GB, interleaved
    python benchmarks/recording.py overlap [--record]                 how much of its time is hidden behind a device
    python benchmarks/recording.py overhead [--record]                rollout against the bare network loop, 1 degree
    python benchmarks/recording.py memory --gigabytes 30 [--record]   peak memory of a run larger than memory

`io` writes 8 members x 19 levels x 180 x 360 at each of 50 steps, 29 % of it land. The peer needs
`pip install earth2studio --no-deps` and what its `io` module imports (loguru, netCDF4, certifi); without it its rows
are left out. A GB is what the values take as float32.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import tempfile
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import cftime
import numpy as np
import scipy.ndimage
import torch
from machine import RESULTS, processor

from polynya.emulators import Draws, Field, Layout, Samudra, State, gaussian_grid
from polynya.emulators.samudra import NetworkConfig, SamudraNet
from polynya.emulators.scaling import Scaling
from polynya.ensembles import Exact, Moments, Output, Packed, Rounded, plan, rollout, trajectory
from polynya.ensembles.packing import Packing

DATE = cftime.DatetimeNoLeap(2000, 1, 1)


def ocean(fields: tuple[Field, ...], rows: int = 180, columns: int = 360) -> Layout:
    """A layout of the size of the 1 degree ocean with 29 % land."""
    rng = np.random.default_rng(0)
    blobs = scipy.ndimage.gaussian_filter(rng.standard_normal((rows, columns)), rows / 20, mode="wrap")
    wet = blobs > np.quantile(blobs, 0.29)
    levels = max(f.levels for f in fields) or 1
    lev = np.linspace(5.0, 5000.0, levels)
    grid = gaussian_grid(rows, columns)
    dims = tuple(grid["areacello"].dims)
    grid = grid.assign_coords(
        lev=("lev", lev),
        dz=("lev", np.gradient(lev) if levels > 1 else lev),
        wetmask=(("lev", *dims), np.repeat(wet[None], levels, 0)),
    )
    return Layout(fields, grid)


@dataclass(frozen=True, eq=False)
class Playback:
    """An emulator that costs nothing, as it plays what was made before; or one that waits for a device."""

    layout: Layout
    made: tuple[State, ...]
    seconds: float = 0.0
    forcing_layout: Layout | None = None
    dt: timedelta = timedelta(days=5)

    def step(self, state: State, forcing: State | None, noise: Draws) -> State:
        """One step."""
        time.sleep(self.seconds)
        which = round((state.time - DATE) / self.dt) % len(self.made)
        return state.replace(data=self.made[which].data[: len(state.members)], time=state.time + self.dt)


def start(layout: Layout, members: int) -> State:
    """Fields as smooth as an ocean's, about 10 degC."""
    rng = np.random.default_rng(0)
    rough = rng.standard_normal((members, *layout.shape)).astype("f4")
    smooth = scipy.ndimage.gaussian_filter(rough, (0, 0, 2, 2)) * 10 + 10
    return State(torch.from_numpy(smooth) * layout.mask, DATE, layout, tuple(range(members)))


def made(layout: Layout, members: int, count: int = 5) -> tuple[State, ...]:
    """States to play, a little warmer each."""
    first = start(layout, members)
    return tuple(first.replace(data=first.data * (1 + 1e-3 * k)) for k in range(count))


# --- io ------------------------------------------------------------------------------------------

Write = Callable[[list[State], Path], None]


def ours(packing: Packing) -> Write:
    """Our writer, with commits and checksums."""

    def write(states: list[State], path: Path) -> None:
        emulator = Playback(states[0].layout, tuple(states))
        rollout(emulator, states[0], steps=len(states) - 1, store=path, output=Output(packing=packing))

    return write


def theirs(kind: str) -> Write:
    """earth2studio's backends as its ensemble workflow uses them: one array a level, one write a step."""
    from earth2studio.io import AsyncZarrBackend, ZarrBackend  # type: ignore[import-not-found, unused-ignore]

    def write(states: list[State], path: Path) -> None:
        layout, members = states[0].layout, states[0].members
        names = layout.channel_labels()
        place = OrderedDict(lat=layout.grid["lat"].values[:, 0], lon=layout.grid["lon"].values[0])
        leads = np.array([np.timedelta64(5 * k, "D") for k in range(len(states))])
        whole = OrderedDict(
            ensemble=np.asarray(members), time=np.array([np.datetime64("2000-01-01")]), lead_time=leads, **place
        )
        if kind == "ZarrBackend":
            io = ZarrBackend(str(path))
        else:
            parallel = OrderedDict((k, whole[k]) for k in ("ensemble", "time", "lead_time"))
            io = AsyncZarrBackend(str(path), parallel, blocking=False, pool_size=4)
        io.add_array(whole, names)
        nan = torch.where(layout.mask, 0.0, torch.nan)
        for k, state in enumerate(states):
            at = OrderedDict(whole, lead_time=leads[k : k + 1])
            values = (state.data + nan)[:, None, None]
            io.write([values[:, :, :, c] for c in range(len(names))], at, names)
        if kind != "ZarrBackend":
            io.close()

    return write


def io(rounds: int) -> list[str]:
    """CPU seconds per GB, median over interleaved rounds."""
    layout = ocean((Field("thetao", 19),))
    states = [*made(layout, 8)] * 10  # long enough that making the store, 0.2 s, is a small part
    gigabytes = len(states) * states[0].data.numel() * 4 / 1e9
    tasks: dict[str, Write] = {
        "polynya, float32": ours(Exact()),
        "polynya, 10 bits": ours(Rounded(10)),
        "polynya, int16": ours(Packed()),
    }
    try:
        tasks |= {f"earth2studio {kind}": theirs(kind) for kind in ("ZarrBackend", "AsyncZarrBackend")}
    except ImportError as error:
        print(f"the peer is left out: {error}")
    spent: dict[str, list[float]] = {name: [] for name in tasks}
    walls: dict[str, list[float]] = {name: [] for name in tasks}
    sizes = {}
    for k in range(rounds + 1):  # the first warms up
        for name, task in tasks.items():
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "store.zarr"
                cpu, wall = time.process_time(), time.perf_counter()
                task(states, path)
                cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
                files = [f for f in path.rglob("*") if f.is_file()]
                sizes[name] = sum(f.stat().st_size for f in files) / 1e9 / gigabytes, len(files)
            if k:
                spent[name].append(cpu / gigabytes)
                walls[name].append(wall / gigabytes)
    first = statistics.median(spent["polynya, float32"])
    lines = [
        "| writer | CPU s / GB | over ours, float32 | wall s / GB | compression | files |",
        "|---|---|---|---|---|---|",
    ]
    for name, each in spent.items():
        cpu, (size, count) = statistics.median(each), sizes[name]
        wall = statistics.median(walls[name])
        lines.append(f"| {name} | {cpu:.2f} | {cpu / first:.2f} | {wall:.2f} | {1 / size:.2f} | {count} |")
    for name, most in (("polynya, float32", 1.0), ("polynya, int16", 0.8)):
        cpu = statistics.median(spent[name])
        lines += ["", f"- {'PASS' if cpu <= most else 'FAIL'}  {name}: {cpu:.2f}, at most {most} CPU s / GB"]
    return lines


# --- the run beside it ---------------------------------------------------------------------------


def overlap() -> list[str]:
    """A step that waits for a device, as a host does: how much of the time of writing is hidden."""
    layout = ocean((Field("thetao", 19),))
    played, steps = made(layout, 8), 80
    waiting, state, idle = Playback(layout, played, 0.6), played[0], ([*played] * 17)[: steps + 1]
    found = {}
    for name, packing in (("float32", Exact()), ("int16", Packed())):
        with tempfile.TemporaryDirectory() as folder:
            begin = time.perf_counter()
            ours(packing)(idle, Path(folder) / "a.zarr")  # the writing alone
            alone = time.perf_counter() - begin
            begin = time.perf_counter()
            rollout(waiting, state, steps=steps, store=Path(folder) / "b.zarr", output=Output(packing=packing))
            both = time.perf_counter() - begin
        begin = time.perf_counter()
        for _ in islice(trajectory(waiting, state), steps + 1):
            pass
        bare = time.perf_counter() - begin
        found[name] = (alone, bare, both, 1 - (both - bare) / alone)
    lines = ["| numbers | writing alone, s | steps alone, s | both, s | hidden |", "|---|---|---|---|---|"]
    lines += [f"| {n} | {a:.2f} | {b:.2f} | {c:.2f} | {h:.0%} |" for n, (a, b, c, h) in found.items()]
    for name, (*_, hidden) in found.items():
        lines += ["", f"- {'PASS' if hidden >= 0.8 else 'FAIL'}  {name}: {hidden:.0%} hidden, at least 80 %"]
    return lines


def network(layout: Layout) -> Samudra:
    """A network of the size of Samudra 2 at 1 degree, with random weights."""
    channels, forcing = layout.shape[0], Layout((Field("hfds"), Field("tauuo"), Field("tauvo")), layout.grid)
    config = NetworkConfig(channels + 3, channels, (280, 520, 520, 520), (1, 2, 4, 8), 2, "none")
    ones = torch.ones(channels)
    scaling = Scaling(10 * ones, 5 * ones, 0.1 * ones, torch.zeros(3), torch.ones(3))
    torch.manual_seed(0)
    return Samudra(SamudraNet(config).eval(), layout, forcing, scaling, True, ())


@dataclass(frozen=True, eq=False)
class Calm:
    """No wind, no heat."""

    layout: Layout
    shift: None = None
    _known: dict[int, torch.Tensor] = field(default_factory=dict)

    def at(self, time: cftime.datetime, members: tuple[int, ...]) -> State:
        """Zeros."""
        zeros = torch.zeros(1, *self.layout.shape).expand(len(members), -1, -1, -1)
        return State(zeros, time, self.layout, tuple(members))


def overhead(steps: int = 8) -> list[str]:
    """The whole driver - checks, forcing, recording, statistics - against the network alone."""
    fields = (Field("thetao", 19), Field("so", 19), Field("uo", 19), Field("vo", 19), Field("zos"))
    layout = ocean(fields)
    emulator, state = network(layout), start(layout, 1)
    calm = Calm(emulator.forcing_layout)  # type: ignore[arg-type]
    bare, driven = [], []
    with torch.no_grad():
        for _ in range(1):
            begin = time.process_time()
            for _ in islice(trajectory(emulator, state, calm), steps + 1):  # type: ignore[arg-type]
                pass
            bare.append(time.process_time() - begin)
            with tempfile.TemporaryDirectory() as folder:
                begin = time.process_time()
                rollout(
                    emulator,
                    state,
                    calm,
                    steps=steps,
                    store=Path(folder) / "a.zarr",
                    statistics=[Moments("thetao")],  # type: ignore[arg-type]
                )
                driven.append(time.process_time() - begin)
    a, b = min(bare), min(driven)
    return [
        f"Network of {sum(p.numel() for p in emulator.network.parameters()) / 1e6:.0f} million parameters, {steps} "
        "steps of one member with recording of every value and a statistic, one round:",
        "",
        f"- {'PASS' if b / a <= 1.05 else 'FAIL'}  bare {a:.2f} CPU s, driven {b:.2f} CPU s: {b / a - 1:+.1%}, at most "
        "+5 %",
    ]


def memory(gigabytes: float) -> list[str]:
    """Peak memory of a run whose values would not fit."""
    layout, members = ocean((Field("thetao", 19), Field("zos"))), 64
    each = members * int(np.prod(layout.shape)) * 4 / 1e9
    steps = int(gigabytes / each)
    one = start(layout, 1)
    emulator = Playback(layout, made(layout, members, 2))

    def begin(numbers: tuple[int, ...]) -> State:
        data = torch.cat([one.data + 0.01 * m * layout.mask for m in numbers])
        return State(data, DATE, layout, numbers)

    planned = plan(emulator, one, members=members, steps=steps, memory=int(1.2e9), probe=False)
    with tempfile.TemporaryDirectory(dir=".") as folder:
        started = time.perf_counter()
        run = rollout(
            emulator, begin, steps=steps, store=Path(folder) / "a.zarr", members=range(members), plan=planned,
            output=Output(packing=Packed({"thetao": (-10.0, 60.0), "zos": (-50.0, 50.0)})), statistics=[Moments("zos")],
        )  # fmt: skip
        wall = time.perf_counter() - started
        size = sum(f.stat().st_size for f in (Path(folder) / "a.zarr").rglob("*") if f.is_file()) / 1e9
        logical = sum(v.size for v in run.data_vars.values()) * 4 / 1e9
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e9
    have = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    return [
        f"- {'PASS' if logical > have and peak < 3 else 'FAIL'}  {members} members x {steps + 1} records, "
        f"{logical:.1f} GB of values (memory {have:.1f} GB) in {len(planned.waves)} waves: peak {peak:.2f} GB, "
        f"{size:.1f} GB on disk, {wall:.0f} s"
    ]


def main() -> None:
    """Run one part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("io", "overlap", "overhead", "memory"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--gigabytes", type=float, default=30.0)
    parser.add_argument("--record", action="store_true", help="keep the table under benchmarks/results/")
    given = parser.parse_args()
    torch.set_num_threads(1)
    load = os.getloadavg()[0]
    parts: dict[str, Callable[[], list[str]]] = {
        "io": lambda: io(given.rounds), "overlap": overlap, "overhead": overhead,
        "memory": lambda: memory(given.gigabytes),
    }  # fmt: skip
    text = "\n".join(parts[given.part]())
    print(text)
    if given.record:
        about = f"{processor()}, 1 thread for tensors, load {load:.1f} before, {datetime.now(UTC).date().isoformat()}."
        command = f"`python benchmarks/recording.py {given.part}`"
        (RESULTS / f"recording_{given.part}.md").write_text(
            f"# Recording: {given.part}\n\n{command}, {about}\n\n{text}\n"
        )


if __name__ == "__main__":
    main()
