"""The command as a user types it."""

from __future__ import annotations

import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rich.console import Console
from small import random_state, small_layout

from polynya.cli import main as cli
from polynya.cli.info import describe
from polynya.cli.run import Begin, Ensemble, Kept, prepared
from polynya.cli.run import run as run_emulator
from polynya.da import open_twin
from polynya.emulators import SourceError, StoreExistsError, open_statistics, open_store
from polynya.ensembles import DamagedError, ensemble_statistics, record


def told(path: Path) -> str:
    console = Console(record=True, width=160)
    describe(path, console)
    return console.export_text()


def test_info_tells_what_a_store_is_and_how_it_was_made(tmp_path: Path) -> None:
    record([random_state(small_layout(), (4, 5))], tmp_path / "s.zarr", title="two members", provenance={"seed": 3})
    text = told(tmp_path / "s.zarr")
    for wanted in ("two members", "noleap", "2: 4 to 5", "thetao", "[degC]", "made by: seed", "made by: versions"):
        assert wanted in text, wanted


@pytest.mark.parametrize("name", ["globe", "channel"])
def test_info_tells_what_an_emulator_is(name: str) -> None:
    from importlib.resources import files

    text = told(Path(str(files("polynya.emulators") / "embedded" / f"{name}.safetensors")))
    assert "Samudra family" in text and "thetao, so, uo, vo, zos" in text and "sha256" in text


def test_info_tells_what_a_published_checkpoint_holds_and_what_not() -> None:
    text = told(Path(__file__).parent / "data" / "samudra" / "v2_tiny.pt")
    assert "233,874 parameters" in text and "50 in (state and forcing), 42 out" in text
    assert "(12, 16, 20), expansion 2, norm batch" in text and "variables, grid, mask" in text


def test_mistakes_are_one_sentence_and_exit_1(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "polynya.cli.main", "info", str(tmp_path / "none.zarr")], capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "FileNotFoundError: no store at" in done.stderr and "Traceback" not in done.stderr


def test_info_refuses_an_incomplete_store(tmp_path: Path) -> None:
    import zarr

    record([random_state(small_layout())], tmp_path / "s.zarr")
    zarr.open_group(tmp_path / "s.zarr").attrs["status"] = "recording"
    zarr.consolidate_metadata(tmp_path / "s.zarr")
    with pytest.raises(SourceError, match="incomplete"):
        describe(tmp_path / "s.zarr", Console(quiet=True))


class Page(HTMLParser):
    """Counts what a reader would see."""

    def __init__(self) -> None:
        super().__init__()
        self.images: list[dict[str, str | None]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "img":
            self.images.append(dict(attrs))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_demo_writes_a_page_and_stores(tmp_path: Path) -> None:
    from polynya.cli.demo import run

    out = tmp_path / "demo"
    page = run(out, members=3, days=40, overwrite=False, console=Console(quiet=True))
    seen = Page()
    seen.feed(page.read_text(encoding="utf-8"))
    assert len(seen.images) >= 14
    assert all(i["src"].startswith("data:image/") and i["alt"] for i in seen.images)
    for wanted in ("heat uptake", "W m", "sea level", "CRPS", "better than running free", "variance ratio"):
        assert wanted in seen.text, wanted
    for name in ("globe_ensemble_warm", "globe_nature_warm", "channel/truth"):
        assert open_store(out / f"{name}.zarr").sizes["time"] == 9
    assert (open_twin(out / "channel").summary(skip=4).gain.sel(run="LETKF") > 0).all()
    with pytest.raises(FileExistsError, match="nothing was written"):
        run(out, members=3, days=40, overwrite=False, console=Console(quiet=True))


def test_stats_writes_a_file_and_shows_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store, out = Path(__file__).parent / "data" / "om4" / "OM4.zarr.zip", tmp_path / "s.zarr.zip"
    arguments = ["stats", str(store), str(out), "--start", "1976-11-08", "--variables", "thetao,zos"]
    cli.app(arguments, standalone_mode=False)
    shown = capsys.readouterr().out
    for wanted in ("7 records, 1976-11-08 12:00:00 to 1976-12-08", "thetao", "22.5 m", "degC", "zos", "s.zarr.zip"):
        assert wanted in shown.replace("\n", ""), wanted
    saved = open_statistics(out)
    assert set(saved.data_vars) == {f"{v}_{k}" for v in ("thetao", "zos") for k in ("mean", "std", "increment")}
    with pytest.raises(StoreExistsError, match="nothing was read or written"):
        cli.app(arguments, standalone_mode=False)
    cli.app(["stats", str(store), str(out), "--overwrite"], standalone_mode=False)
    assert "hfds_climatology" in open_statistics(out)
    with pytest.raises(ValueError, match=r"wanted an OUT that ends in .zarr.zip"):
        cli.app(["stats", str(store), str(tmp_path / "s.txt")], standalone_mode=False)


def test_help_lists_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.app(["--help"])
    shown = capsys.readouterr().out
    assert all(command in shown for command in ("demo", "info", "stats"))


def ensemble(emulator: str = "channel", days: float = 15, members: int = 2) -> Ensemble:
    return prepared(emulator, Begin(), forcing=None, days=days, members=members, seed=3, device="cpu")


def test_a_run_is_continued_to_the_same_bits(tmp_path: Path) -> None:
    how = {"resume": True, "overwrite": False, "console": Console(quiet=True)}
    kept = Kept("zos", statistics="thetao")
    whole = run_emulator(ensemble(), tmp_path / "whole.zarr", kept, **how)
    run_emulator(ensemble(days=5), tmp_path / "parts.zarr", kept, **how)
    parts = run_emulator(ensemble(), tmp_path / "parts.zarr", kept, **how)
    assert whole.sizes["time"] == 4 and whole.sizes["member"] == 2 and set(whole.data_vars) == {"zos"}
    assert whole.zos.identical(parts.zos)
    assert "thetao_variance" in ensemble_statistics(tmp_path / "parts.zarr")


def test_a_run_is_planned_and_its_store_verified(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = tmp_path / "run.zarr"
    for more in (["--plan"], []):
        given = ["run", "channel", str(store), "--days", "10", "--members", "3", "--every", "2", *more]
        cli.app(given, standalone_mode=False)
        assert store.exists() == (not more)
    shown = capsys.readouterr().out
    assert "bound by" in shown and "member-years a day" in shown
    cli.app(["verify", str(store)], standalone_mode=False)
    assert "are what was written" in capsys.readouterr().out
    next((store / "zos").glob("c.*")).unlink()
    with pytest.raises(DamagedError, match="missing"):
        cli.app(["verify", str(store)], standalone_mode=False)


def test_a_run_of_an_unknown_emulator_says_what_it_needs(tmp_path: Path) -> None:
    mine = tmp_path / "mine.safetensors"
    with pytest.raises(FileNotFoundError, match="one that comes along: globe, channel, arctic"):
        ensemble(str(mine))
    mine.touch()
    with pytest.raises(ValueError, match="--state STORE --forcing STORE"):
        ensemble(str(mine))
    with pytest.raises(StoreExistsError, match="--resume"):
        run_emulator(ensemble(), tmp_path, Kept(), resume=False, overwrite=False, console=Console(quiet=True))
