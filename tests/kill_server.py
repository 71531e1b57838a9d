"""A process that runs an ensemble over and over in forked children and kills each at a random moment.

    python tests/kill_server.py FOLDER KILLS SEED

Waves, batches, shards of several records, packed numbers, time means of forcing, statistics, growth, and a cycle of
assimilation: what is written is compared, file by file and byte by byte, with a run that nobody killed. Prints what it
did; exits 1 on a difference.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import time
from dataclasses import replace
from itertools import islice
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import torch
from small import random_state, small_layout
from test_rollout import Wanderer

from polynya.da import LETKF, Adaptive, Debiased, Quality, SurfaceField, assimilate, observe
from polynya.emulators import Noise
from polynya.ensembles import Moments, Output, Packed, Quantiles, plan, rollout, shards, trajectory, verify
from polynya.ensembles.plan import Plan

LAYOUT, MEMBERS = small_layout(), tuple(range(7))
OUTPUTS = (
    Output(),
    Output(("zos", "thetao"), every=3, packing=Packed({"zos": (-9.0, 9.0), "thetao": (-9.0, 9.0)})),
    Output(("zos",), every=4, mean=True),
)
NETWORK = SurfaceField("thetao", 0.5, stride=2, kind="sst")
FILTER = Adaptive(LETKF(2e6, rtpp=0.3), 3e6)
ASSIMILATION = len(OUTPUTS)
STATISTICS = (Moments("zos"), Quantiles("zos", bins=8, range=(-3.0, 3.0)))


def run(store: Path, case: int, made: Plan) -> None:
    """The whole of a case: with `resume`, so that it may be called again and again."""
    if case == ASSIMILATION:
        model, noise = Wanderer(LAYOUT), Noise(3)
        truth = islice(trajectory(model, random_state(LAYOUT, (0,), seed=9), None, Noise(8)), 13)
        assimilate(
            model, random_state(LAYOUT, MEMBERS), None, observe(truth, NETWORK, noise), FILTER, noise, store=store,
            quality=Quality(), bias=Debiased(("sst",), ("thetao",)), resume=True, restart_minutes=0.0002,
        )  # fmt: skip
        return
    for steps in (14, 20):  # a run that is later made longer
        done = store / "zarr.json"
        if steps == 14 and done.exists() and json.loads(done.read_text())["attributes"].get("long"):
            continue
        rollout(
            Wanderer(LAYOUT), random_state(LAYOUT, MEMBERS), steps=steps, store=store, noise=Noise(3), resume=True,
            output=OUTPUTS[case], statistics=STATISTICS, statistics_every=2, plan=made, restart_minutes=0.0002,
        )  # fmt: skip
        if steps == 14:
            meta = json.loads(done.read_text())
            meta["attributes"]["long"] = True
            part = done.with_name("zarr.json.test")
            part.write_text(json.dumps(meta))
            part.replace(done)


def files(store: Path) -> dict[str, bytes]:
    """Everything but when it was made."""
    found = {}
    for path in sorted(p for p in store.rglob("*") if p.is_file()):
        content = path.read_bytes()
        if path.name == "zarr.json":
            meta = json.loads(content)
            meta["attributes"].pop("history", None)
            meta.pop("consolidated_metadata", None)
            content = json.dumps(meta, sort_keys=True).encode()
        found[str(path.relative_to(store))] = content
    return found


def child(store: Path, case: int, made: Plan) -> int:
    """Start a run in a process of its own."""
    number = os.fork()
    if number:
        return number
    try:
        run(store, case, made)
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", flush=True)
        os._exit(1)
    os._exit(0)


def main(folder: Path, kills: int, seed: int) -> int:
    """Kill, resume, compare."""
    shards._SHARD_BYTES = shards._CHUNK_BYTES = 3000.0  # shards of a few records
    torch.set_num_threads(1)
    chance, killed, runs, started = random.Random(seed), 0, 0, time.monotonic()
    made = plan(Wanderer(LAYOUT), random_state(LAYOUT, (0,)), members=MEMBERS, steps=1, probe=False)
    made = replace(made, batch=2, waves=((0, 1, 2), (3, 4, 5), (6,)))
    wanted, lasts = [], []
    for case in range(ASSIMILATION + 1):
        begin = time.monotonic()
        if os.waitpid(child(folder / f"whole-{case}", case, made), 0)[1]:
            return 1
        lasts.append(time.monotonic() - begin)
        wanted.append(files(folder / f"whole-{case}"))
    while killed < kills:
        case, store = runs % (ASSIMILATION + 1), folder / "killed"
        shutil.rmtree(store, ignore_errors=True)
        for path in folder.glob("killed.*"):
            shutil.rmtree(path)
        while True:
            number = child(store, case, made)
            end = time.monotonic() + chance.uniform(0, 0.7 * lasts[case])
            status = 0
            while time.monotonic() < end and not (done := os.waitpid(number, os.WNOHANG))[0]:
                time.sleep(0.001)
            if done[0]:
                status = done[1]
            else:
                os.kill(number, signal.SIGKILL)
                status = os.waitpid(number, 0)[1]
            if status == 0:
                break
            if not os.WIFSIGNALED(status):
                print(f"kill {killed} of case {case}: the run that went on failed")
                return 1
            killed += 1
        runs += 1
        for part in [store / "analysis", store / "background"] if case == ASSIMILATION else [store]:
            verify(part)
        have = files(store)
        if have != wanted[case]:
            differ = sorted(k for k in have.keys() | wanted[case].keys() if have.get(k) != wanted[case].get(k))
            print(f"case {case} differs after kill {killed}: {differ}")
            return 1
    print(f"{killed} kills in {runs} runs, {time.monotonic() - started:.0f} s: every file is the same")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])))
