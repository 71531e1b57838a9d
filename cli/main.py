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
