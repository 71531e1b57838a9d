"""Tables of observations: to each analysis its own, exactly as written, and nothing left out in silence."""

from __future__ import annotations

import sys
from datetime import UTC, datetime, timedelta

import cftime
import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr

from polynya.da import ObservationError, Observations
from polynya.da.observations import Derived
from polynya.da.tables import read_observations, save_observations
from polynya.emulators.names import UnitsError

DAY = timedelta(days=1)
DATE = cftime.DatetimeNoLeap
TIMES = [DATE(2000, 2, 26) + 5 * k * DAY for k in range(4)]
COLUMNS = ("variable", "kind", "lat", "lon", "depth", "value", "error", "offset", "group", "length", "height")


def some(time, p=40, seed=0):
    rng = np.random.default_rng(seed)
    return Observations.from_table(time, {
        "variable": rng.choice(["thetao", "zos"], p), "kind": rng.choice(["", "Würm, a", "nan"], p),
        "lat": rng.uniform(-90, 90, p), "lon": rng.uniform(-180, 360, p), "depth": rng.uniform(0, 6000, p),
        "value": rng.normal(size=p) / 3, "error": rng.uniform(1e-9, 1, p), "offset": -rng.uniform(0, 432000, p),
        "group": rng.integers(0, 2**31 - 1, p), "length": rng.choice([np.inf, 1e5 / 3], p),
        "height": rng.choice([np.inf, 7.1], p),
    })  # fmt: skip


def rows(n=4, **changes):
    columns = {"time": [f"2000-02-2{k}T12:00:00" for k in range(2, 2 + n)], "variable": "zos", "lat": 1.0, "lon": 2.0}
    return columns | {"value": np.arange(float(n)), "error": 0.1} | changes


def read(table, **options):
    return read_observations(table, **({"times": TIMES} | options))


def same(a, b):
    return a.time == b.time and all(np.array_equal(getattr(a, n), getattr(b, n)) for n in COLUMNS)


@pytest.mark.parametrize("suffix", ["csv", "csv.gz", "nc"])
@pytest.mark.parametrize("calendar", ["noleap", "standard", "360_day"])
def test_what_is_written_is_read_again_to_the_bit(tmp_path, suffix, calendar):
    times = [cftime.datetime(2000, 2, 26, 6, calendar=calendar) + 5 * k * DAY for k in range(4)]
    observations = [some(t, seed=k) for k, t in enumerate(times)]
    observations[2] = observations[2].select(np.zeros(40, bool))
    path = tmp_path / f"table.{suffix}"
    save_observations(iter(observations), path)
    for given in (times, (times[0], 5 * DAY)):
        table = read_observations(path, times=given)
        assert len(table) == 4 and [len(o) for o in table] == [40, 40, 0, 40]
        assert all(same(a, b) for a, b in zip(observations, table, strict=True)) and not sum(table.rejected.values())
        assert list(table) == list(table), "again and again"
    assert repr(table) == f"ObservationTable(120 observations of 4 times, {times[0]} to {times[-1]}; rejected: none)"


@pytest.mark.parametrize("form", [dict, pd.DataFrame, "dataset", "csv"])
def test_all_forms_of_a_table_are_the_same(tmp_path, form):
    table = rows(4, depth=5.0, kind=["a", "b", "", "c"])
    if form == "csv":
        source = tmp_path / "t.csv"
        pd.DataFrame(table).to_csv(source, index=False)
    elif form == "dataset":
        source = xr.Dataset({n: ("row", np.broadcast_to(v, 4)) for n, v in table.items()})
    else:
        source = form(table)
    first, second, *others = read(source)
    assert first.value.tolist() == [0, 1, 2, 3] and first.kind.tolist() == ["a", "b", "", "c"]
    assert first.offset.tolist() == [-86400 * d for d in (3.5, 2.5, 1.5, 0.5)] and (first.depth == 5).all()
    assert not len(second) and not any(map(len, others))


def test_what_to_dataset_returns_is_a_table():
    obs = some(TIMES[1])
    assert same(read(obs.to_dataset()).parts[1], obs)


@pytest.mark.parametrize(
    "dates",
    [
        np.array(["2000-02-28T12", "2000-03-01T12"], "datetime64[ns]"),
        ["2000-02-28T12:00:00Z", "2000-03-01 12:00"],
        [DATE(2000, 2, 28, 12), DATE(2000, 3, 1, 12)],
        [cftime.datetime(2000, 2, 28, 12, calendar="julian"), cftime.datetime(2000, 3, 1, 12, calendar="360_day")],
        [datetime(2000, 2, 28, 12), datetime(2000, 3, 1, 12, tzinfo=UTC)],
        [datetime.fromisoformat("2000-02-28T14:30+02:30"), datetime.fromisoformat("2000-03-01T12:00")],
        pd.Series(pd.to_datetime(["2000-02-28 12:00", "2000-03-01 12:00"])),
        pd.Series(pd.to_datetime(["2000-02-28 12:00", "2000-03-01 12:00"], utc=True)),
    ],
    ids=["datetime64", "text", "cftime", "calendars", "datetime", "zone", "pandas", "utc"],
)
def test_dates_of_all_kinds_become_those_of_the_calendar(dates):
    table = read(rows(2, time=dates))
    assert table.parts[1].offset.tolist() == [-86400 * 2.5, -86400 * 1.5], "no 29 February between them"
    assert table.parts[1].times == [DATE(2000, 2, 28, 12), DATE(2000, 3, 1, 12)]


def test_fractions_of_seconds_are_kept():
    table = read(rows(2, time=["2000-02-25T23:59:59.25", np.str_("2000-02-25T23:59:59.000001")]))
    assert table.parts[0].offset.tolist() == pytest.approx([-0.75, -0.999999], abs=1e-9)


def test_windows_are_open_at_their_beginning_and_closed_at_their_end():
    dates = ["2000-02-21", "2000-02-21T00:00:01", "2000-02-26", "2000-02-26T00:00:01", "2000-03-13", "2000-03-14"]
    table = read(rows(6, time=dates))
    assert [o.value.tolist() for o in table] == [[1, 2], [3], [], [4]]
    assert table.rejected["outside all windows"] == 2
    table = read(rows(6, time=dates), window=timedelta(hours=12))
    assert [o.value.tolist() for o in table] == [[2], [], [], [4]] and table.rejected["outside all windows"] == 4
    table = read(rows(6, time=dates), times=[TIMES[0]], window=10 * DAY)
    assert [o.value.tolist() for o in table] == [[0, 1, 2]]
    table = read(rows(6, time=dates), times=(TIMES[0], DAY))
    assert len(table) == 17 and [len(o) for o in table][:2] == [1, 1], "29 February is missing, and until 14 March"
    uneven = read(rows(6, time=dates), times=[TIMES[0], TIMES[0] + DAY, TIMES[3] + DAY])
    assert [o.value.tolist() for o in uneven] == [[2], [3], [4, 5]]


def test_rejected_rows_are_counted_by_reason():
    bad = {
        "value": [1, np.nan, 1, 1, 1, 1, 1, 1, 1, np.inf, 1],
        "lat": [0, 0, np.nan, 91, 0, 0, 0, 0, 0, 0, 0],
        "depth": [0, 0, 0, 0, -1, 0, 0, 0, 0, 0, np.nan],
        "error": [1, 1, 1, 1, 1, 0, np.nan, 1, 1, 1, 1],
        "time": ["2000-02-25"] * 7 + ["yesterday", "2000-02-30"] + ["2000-02-25"] * 2,
        "variable": ["zos"] * 11,
    }
    table = read(rows(11, **bad))
    assert sum(map(len, table)) == 1
    used = {k: v for k, v in table.rejected.items() if v}
    assert used == {"no value": 2, "no position": 4, "no error": 2, "no time": 2}
    assert repr(table).endswith("rejected: 2 no value, 4 no position, 2 no error, 2 no time)")
    odd = rows(4, variable=["", None, "zos", "zos"], length=[1, 1, -1, np.nan], group=[1, 1, 1, np.nan])
    table = read(odd)
    assert table.rejected["no variable"] == 2 and table.rejected["no correlation"] == 1
    assert table.parts[0].length.tolist() == [np.inf] and table.parts[0].group.tolist() == [0], "blanks are defaults"
    assert sum(map(len, read(rows(1, time=[pd.NaT])))) == 0


def test_blanks_and_rubbish_in_a_file(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text(
        "Time,Latitude,longitude,observation,obs_error,variable,kind,depth_m,extra\n"
        "2000-02-25,1,2,0.1,0.5,zos,NA,0,x\n2000-02-25,1,2,oops,0.5,zos,,0,x\n2000-02-25,1,2,NA,0.5,zos,,0,x\n"
        "2000-02-25,1,2,0.30000000000000004,0.5,,,0,x\n,1,2,0.3,0.5,zos,,0,x\n2000-02-25,1,2,0.3,0.5,zos,,,x\n"
    )
    table = read(path)
    assert table.parts[0].kind.tolist() == ["NA"] and table.parts[0].value.tolist() == [0.1]
    assert {k: v for k, v in table.rejected.items() if v} == {
        "no variable": 1, "no value": 2, "no position": 1, "no time": 1,
    }  # fmt: skip


def test_columns_have_other_names_and_units():
    table = rows(4, sst=[280.0, 10.0, 5.0, 1.0], variable=["thetao", "thetao", "sit", "zos"], error=0.5)
    table |= {"units": ["K", "degC", "m", "cm"], "value": ["a"] * 4}
    obs = read(table, columns={"value": "sst"}).parts[0]
    np.testing.assert_allclose(obs.value, [6.85, 10.0, 5.0, 0.01])
    np.testing.assert_allclose(obs.error, [0.5, 0.5, 0.5, 0.005])
    assert obs.variable.tolist() == ["thetao", "thetao", "sithick", "zos"]
    with pytest.raises(UnitsError, match="zos: wanted units 'm'"):
        read(rows(4, units="furlong"))
    table.pop("error")
    with pytest.raises(ObservationError, match=r"lacks the column\(s\) error; .* or give `error`"):
        read(table, columns={"value": "sst"})
    given = read(table, columns={"value": "sst"}, error={"thetao": 0.3, "zos": 0.02})
    assert given.parts[0].error.tolist() == [0.3, 0.3, 0.02] and given.rejected["no error"] == 1
    assert read(table, columns={"value": "sst"}, error=0.7).parts[0].error.tolist() == [0.7] * 4


def test_definitions_of_derived_quantities_are_passed_on():
    speed = Derived("speed", ("uo", "vo"), torch.hypot)
    assert read(rows(2, variable="speed"), derived=(speed,)).parts[0].derived == (speed,)


def test_wrong_tables_are_named(tmp_path):
    lacking = rows()
    lacking.pop("lat")
    for make, message in (
        (lambda: read(lacking), r"lacks the column\(s\) lat; it has time, variable, lon, value, error"),
        (lambda: read(rows(), columns={"value": "sst"}), "a name in the table.*the table has time"),
        (lambda: read(rows(), columns={"colour": "value"}), "one of time, variable"),
        (lambda: read(rows(lat=[0.0, 1.0])), "columns of one length"),
        (lambda: read(rows(time=[1.0, 2.0, 3.0, 4.0])), "wanted dates"),
        (lambda: read(rows(), times=TIMES[::-1]), "ascending order"),
        (lambda: read(rows(), times=[]), "ascending order"),
        (lambda: read(rows(), times=TIMES[:1]), "wanted a window"),
        (lambda: read(rows(), times=(TIMES[0], timedelta(0))), "step > 0"),
        (lambda: read(rows(), window=timedelta(0)), "window > 0"),
        (lambda: save_observations([], tmp_path / "t.csv"), "none at all"),
    ):
        with pytest.raises(ObservationError, match=message):
            make()
    with pytest.raises(ValueError, match=r"ends with \.csv, \.parquet"):
        read(tmp_path / "t.xls")


def test_parquet_is_exact_or_says_what_it_needs(tmp_path, monkeypatch):
    path = tmp_path / "t.parquet"
    observations = [some(t) for t in TIMES]
    try:
        import pyarrow  # noqa: F401
    except ImportError:
        pass
    else:
        save_observations(observations, path)
        assert all(same(a, b) for a, b in zip(observations, read(path), strict=True))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    for use in (lambda: save_observations(observations, path), lambda: read(path)):
        with pytest.raises(ImportError, match="pip install pyarrow"):
            use()
