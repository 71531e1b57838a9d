"""The `polynya` command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

app = typer.Typer(
    help="Ensembles, data assimilation and diagnostics for neural ocean emulators.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
console = Console()


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the page and the stores.")] = Path("demo"),
    members: Annotated[int, typer.Option(min=2, help="Members of the warming ensemble.")] = 32,
    days: Annotated[int, typer.Option(min=30, help="Length of the warming runs.")] = 365,
    overwrite: Annotated[bool, typer.Option(help="Replace the stores of an earlier demo.")] = False,
) -> None:
    """Run an ensemble, an assimilation experiment and their diagnostics on the embedded oceans; write a page."""
    from .demo import run

    page = run(out, members=members, days=days, overwrite=overwrite, console=console)
    console.print(f"The page is at [bold]{escape(str(page.resolve()))}[/bold]", soft_wrap=True)


@app.command()
def info(
    path: Annotated[Path, typer.Argument(help="A Zarr store, an emulator's .safetensors, or a published .pt file.")],
) -> None:
    """Print what a store or an emulator is and how it was made."""
    from .info import describe

    describe(path, console)


@app.command()
def stats(
    store: Annotated[Path, typer.Argument(help="A Zarr store with a record of the ocean.")],
    out: Annotated[Path, typer.Argument(help="File to write, .zarr.zip, or folder, .zarr.")],
    start: Annotated[
        str | None,
        typer.Option(help="First date, 1975-01-03. Give the training years only, or the test period leaks in."),
    ] = None,
    end: Annotated[str | None, typer.Option(help="Last date, 2013-10-05.")] = None,
    variables: Annotated[str | None, typer.Option(help="Names, with commas between. Default: all known ones.")] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace OUT.")] = False,
) -> None:
    """Compute mean, spread and typical change of every variable, and the heat-flux climatology."""
    from .stats import write

    names = None if variables is None else [v.strip() for v in variables.split(",")]
    path = write(store, out, start=start, end=end, variables=names, overwrite=overwrite, console=console)
    console.print(f"The statistics are at [bold]{escape(str(path.resolve()))}[/bold]", soft_wrap=True)


@app.command()
def run(
    emulator: Annotated[str, typer.Argument(help="A file, or one that comes along: globe, channel, arctic.")],
    out: Annotated[Path, typer.Argument(help="Zarr store to write.")],
    days: Annotated[float, typer.Option(min=0, help="Length of the run.")] = 360,
    members: Annotated[int, typer.Option(min=1, help="Members, each with noise and weather of its own.")] = 1,
    state: Annotated[Path | None, typer.Option(help="A Zarr store with the initial state.")] = None,
    date: Annotated[str | None, typer.Option(help="Date of the initial state. Default: the last one.")] = None,
    forcing: Annotated[Path | None, typer.Option(help="A Zarr store with the forcing.")] = None,
    seed: Annotated[int, typer.Option(help="Of noise and weather.")] = 0,
    device: Annotated[str, typer.Option(help="Where the network runs: cpu, cuda.")] = "cpu",
    variables: Annotated[str | None, typer.Option(help="To keep, with commas between. Default: all.")] = None,
    every: Annotated[int, typer.Option(min=1, help="Keep one record of so many.")] = 1,
    mean: Annotated[bool, typer.Option(help="Keep the mean of every so many records instead.")] = False,
    packed: Annotated[bool, typer.Option(help="Keep 16-bit integers.")] = False,
    statistics: Annotated[
        str | None, typer.Option(help="Variables whose mean and variance over members to keep.")
    ] = None,
    plan: Annotated[bool, typer.Option(help="Say how it would be done and how long it would take, and stop.")] = False,
    resume: Annotated[bool, typer.Option(help="Continue a run that was cut short, or lengthen it.")] = False,
    overwrite: Annotated[bool, typer.Option(help="Replace OUT.")] = False,
) -> None:
    """Roll out an ensemble of an emulator for days or years, and record it."""
    from .run import Begin, Kept, planned, prepared, run

    ensemble = prepared(
        emulator, Begin(state, date), forcing=forcing, days=days, members=members, seed=seed, device=device
    )
    kept = Kept(variables, every, mean, packed, statistics)
    if plan:
        planned(ensemble, out, kept, console)
        return
    run(ensemble, out, kept, resume=resume, overwrite=overwrite, console=console)
    console.print(f"The run is at [bold]{escape(str(out.resolve()))}[/bold]", soft_wrap=True)


@app.command()
def verify(store: Annotated[Path, typer.Argument(help="A Zarr store of a run.")]) -> None:
    """Read every file of a run's store and compare it with its checksums."""
    from ..ensembles import verify

    count = verify(store, progress=console.is_terminal)
    console.print(f"{count} shards are there, and are what was written.")


@app.command()
def steps(
    emulator: Annotated[Path, typer.Argument(help="A generative sea-ice emulator's file.")],
    store: Annotated[Path, typer.Argument(help="A Zarr store with its states, of dates it was not trained on.")],
    forcing: Annotated[Path | None, typer.Option(help="A Zarr store with its forcing. Default: STORE.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for scores and figure.")] = Path("steps"),
    starts: Annotated[int, typer.Option(min=1, help="Forecasts, spread over the record.")] = 8,
    leads: Annotated[int, typer.Option(min=1, help="Steps of each forecast.")] = 10,
    members: Annotated[int, typer.Option(min=2, help="Members of each forecast.")] = 16,
    seed: Annotated[int, typer.Option(help="Of the noise, the same for every sampler.")] = 0,
    device: Annotated[str, typer.Option(help="Where the network runs: cpu, cuda.")] = "cpu",
    overwrite: Annotated[bool, typer.Option(help="Replace scores and figure in OUT.")] = False,
) -> None:
    """Score forecasts with fewer network calls a step: how much quality does speed cost?"""
    from .steps import run

    given = {"starts": starts, "steps": leads, "members": members, "seed": seed}
    path = run(emulator, store, out, forcing=forcing, **given, device=device, overwrite=overwrite, console=console)
    console.print(f"Scores and figure are in [bold]{escape(str(path.resolve()))}[/bold]", soft_wrap=True)


def main() -> None:
    """Run the command; errors of the user's making are one sentence, not a traceback."""
    try:
        app()
    except (ValueError, KeyError, OSError) as error:
        Console(stderr=True).print(
            f"[red]{type(error).__name__}[/red]: {escape(str(error))}", soft_wrap=True, highlight=False
        )
        raise SystemExit(1) from error


if __name__ == "__main__":
    main()
