"""Figures: what they say on their axes, where their limits lie, how many things they draw, and whom they refuse."""

import subprocess
import sys

import cftime
import numpy as np
import pytest
import scipy.stats
import xarray as xr
from matplotlib.colors import to_rgb, to_rgba
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.text import Text

from polynya.diagnostics import event_table, figures, isotropic_spectrum, rank_histogram, reliability_diagram
from polynya.diagnostics.abscissa import abscissae
from polynya.diagnostics.bars import flat_band, rank_shape
from polynya.diagnostics.dark import darkened, turned
from polynya.diagnostics.panels import panel_of, place
from polynya.diagnostics.style import colormap_name, colors_of, pretty_units

TITLE = "The ocean warms"

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:cmocean")


def field(ny=20, nx=40, *, lat=(-57, 57), lon=(4.5, 355.5), name="thetao", units="degC", seed=0):
    values = np.random.default_rng(seed).normal(10, 3, (ny, nx))
    values[:3, :5] = np.nan
    coords = {"lat": np.linspace(*lat, ny), "lon": np.linspace(*lon, nx)}
    attrs = {"units": units, "long_name": "potential temperature"}
    return xr.DataArray(values, dims=("lat", "lon"), coords=coords, name=name, attrs=attrs)


def line(members=4, n=30, *, calendar="noleap", year=2000, step=5, units="degC"):
    values = np.random.default_rng(year).normal(15, 1, (members, n))
    time = xr.date_range(f"{year}-01-01", periods=n, freq=f"{step}D", calendar=calendar, use_cftime=True)
    attrs = {"units": units, "long_name": "mean temperature"}
    return xr.DataArray(values, dims=("member", "time"), coords={"time": time}, name="thetao", attrs=attrs)


def drawn(fig):
    """The figure after drawing, as text positions and tick labels exist only then."""
    fig.draw_without_rendering()
    return fig


def every_figure(title):
    waves = isotropic_spectrum(field(32, 32, lat=(-50, -45), lon=(0, 6)).fillna(10.0))
    ranks = xr.DataArray([9, 11, 10, 12.0], dims="rank", coords={"rank": range(4)}, attrs={"units": "1"})
    scores = xr.DataArray([1.0, 2.0], dims="lead", coords={"lead": [5, 10]}, attrs={"units": "degC"})
    return [
        figures.maps({"a": field()}, title=title),
        figures.series({"a": line()}, title=title),
        figures.spectra({"a": waves}, title=title),
        figures.rank_bars(ranks, title=title),
        figures.lead_curves({"a": scores}, title=title, ylabel="RMSE"),
        figures.bars({"a": {"x": 1.0}}, title=title, ylabel="RMSE [m]"),
    ]


def test_every_figure_has_its_title_and_readable_text():
    for fig in every_figure(TITLE):
        assert drawn(fig).get_suptitle() == TITLE
        assert fig.get_figwidth() == 7
        for ax in fig.axes:
            texts = [ax.title, ax.xaxis.label, ax.yaxis.label, *ax.get_xticklabels(), *ax.get_yticklabels()]
            assert min(t.get_fontsize() for t in texts) >= 10
            box = ax.get_tightbbox().transformed(fig.transFigure.inverted())
            assert box.x0 > -0.01 and box.x1 < 1.01 and box.y0 > -0.01, "something is cut off"


def test_a_title_is_needed_and_long_ones_are_broken():
    with pytest.raises(ValueError, match="title that says what to see"):
        figures.series({"a": line()}, title=" ")
    fig = figures.series({"a": line()}, title="word " * 30)
    assert fig.get_suptitle().count("\n") == 2


def test_figures_need_neither_pyplot_nor_global_state():
    code = (
        "import sys; import polynya.diagnostics; assert 'matplotlib' not in sys.modules\n"
        "import matplotlib; before = matplotlib.rcParams.copy()\n"
        "from polynya.diagnostics import figures\n"
        "figures.bars({'a': {'x': 1.0}}, title='t', ylabel='y').savefig('/dev/null', format='png')\n"
        "assert 'matplotlib.pyplot' not in sys.modules and matplotlib.rcParams.copy() == before\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_maps_are_in_shape_with_land_grey_and_robust_limits():
    spiky = field(lat=(-54, -45), lon=(0, 28))
    spiky[10, 10] = 1e6
    fig = drawn(figures.maps({"truth": spiky, "emulator": spiky}, title=TITLE))
    *panels, bar = fig.axes
    low, high = np.nanpercentile(np.stack([spiky, spiky]), [2, 98])
    for ax, name in zip(panels, ("truth", "emulator"), strict=True):
        assert ax.get_title("left") == name
        assert ax.get_aspect() == pytest.approx(1 / np.cos(np.deg2rad(49.5)), rel=1e-3)
        mesh = ax.collections[0]
        assert mesh.get_clim() == pytest.approx((low, high))
        assert mesh.get_cmap().name == "thermal"
        assert np.ma.getmaskarray(mesh.get_array()).sum() == 15
    assert bar.get_xlabel() == "potential temperature [°C]"
    assert {"50°S"} <= {t.get_text() for t in panels[0].get_yticklabels()}
    assert "10°E" in {t.get_text() for t in panels[0].get_xticklabels()}


def test_anomalies_are_symmetric_and_say_so():
    fig = figures.maps({"a": field() - 9}, title=TITLE, anomaly=True)
    mesh = fig.axes[0].collections[0]
    low, high = mesh.get_clim()
    assert low == -high
    assert mesh.get_cmap().name == "balance"
    fig = figures.maps({"a": field().assign_attrs(units="degC")}, title=TITLE, anomaly=True)
    assert fig.axes[1].get_xlabel() == "potential temperature anomaly [°C]"


def test_maps_with_own_scales_take_several_units():
    fields = {"t": field(), "s": field(name="so", units="0.001"), "z": field(name="zos", units="m")}
    with pytest.raises(ValueError, match="shared_scale=False"):
        figures.maps(fields, title=TITLE)
    fig = figures.maps(fields, title=TITLE, shared_scale=False)
    assert len(fig.axes) == 6
    assert {ax.get_xlabel() for ax in fig.axes} >= {"potential temperature [°C]", "potential temperature [m]"}


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("own_bars", [False, True])
def test_panels_do_not_overlap(count, own_bars):
    page = place([panel_of("a", field())] * count, min(count, 2), own_bars=own_bars, outer=True)
    assert len(page.maps) == count
    assert len(page.bars) == (count if own_bars else 1)
    boxes = page.maps + page.bars
    for i, (x, y, w, h) in enumerate(boxes):
        assert x >= 0 and x + w <= 7 and y >= 0 and y + h <= page.height
        for a, b, c, d in boxes[:i]:
            assert x + w <= a or a + c <= x or y + h <= b or b + d <= y


def test_maps_draw_lazily_held_curvilinear_and_unlabelled_fields():
    lat, lon = np.meshgrid(np.linspace(-60, 60, 25), np.linspace(-30, 60, 37), indexing="ij")
    values = np.where((lat > 0) & (lon > 40), np.nan, lat)
    coords = {"lat": (("y", "x"), lat), "lon": (("y", "x"), lon)}
    curvilinear = xr.DataArray(values, dims=("y", "x"), coords=coords, name="tos", attrs={"units": "degC"})
    panel = panel_of("a", curvilinear)
    assert np.ptp(panel.x) == pytest.approx(90) and panel.box[2:] == pytest.approx((-60, 60), abs=2)
    rows, _ = np.meshgrid(panel.y, panel.x, indexing="ij")
    inside = np.isfinite(panel.values)
    assert np.abs(panel.values - rows)[inside].max() < 3
    assert not panel.outside.any()
    assert (~inside).mean() == pytest.approx(np.isnan(values).mean(), abs=0.02)
    plain = curvilinear.drop_vars(["lat", "lon"])
    fig = figures.maps({"a": plain.chunk(y=5)}, title=TITLE)
    assert fig.axes[0].get_xlabel() == "x"
    with pytest.raises(ValueError, match="two dimensions"):
        figures.maps({"a": plain.expand_dims(time=2)}, title=TITLE)


def test_a_curvilinear_grid_ends_where_it_ends():
    east, north = np.meshgrid(np.linspace(-10, 10, 30), np.linspace(-10, 10, 30))
    coords = {"lat": (("y", "x"), north + east), "lon": (("y", "x"), east - north)}  # a square on its corner
    panel = panel_of("a", xr.DataArray(np.ones((30, 30)), dims=("y", "x"), coords=coords))
    assert panel.outside.mean() == pytest.approx(0.5, abs=0.06)


def test_longitudes_that_pass_zero_stay_together():
    across = field(10, 20).assign_coords(lon=np.linspace(350, 369, 20) % 360)
    panel = panel_of("a", across)
    assert np.all(np.diff(panel.x) > 0)


@pytest.mark.parametrize(
    ("name", "attrs", "expected"),
    [
        ("so", {}, "haline"),
        ("tos", {}, "thermal"),
        ("x", {"standard_name": "sea_water_potential_temperature"}, "thermal"),
        ("thetao", {"long_name": "trend of potential temperature"}, "balance"),
        ("rmse", {"long_name": "root mean square error"}, "amp"),
        ("speed", {"long_name": "surface speed"}, "speed"),
        ("zeta", {"long_name": "relative vorticity"}, "curl"),
        ("uo", {"long_name": "zonal velocity"}, "balance"),
        ("siconc", {}, "ice"),
        ("soil", {}, "deep"),
    ],
)
def test_colours_follow_the_variable(name, attrs, expected):
    assert colormap_name(xr.DataArray(0.0, name=name, attrs=attrs)) == expected


def test_dots_stand_where_they_are_wanted():
    wanted = field() > 12
    fig = figures.maps({"a": field(), "b": field()}, title=TITLE, dots={"b": wanted})
    assert not fig.axes[0].lines
    (dots,) = fig.axes[1].lines
    lat, lon = (wanted[d].values for d in ("lat", "lon"))
    row, column = np.nonzero(wanted.values)
    np.testing.assert_allclose(
        np.sort(dots.get_xydata(), axis=0), np.sort(np.stack([lon[column], lat[row]], 1), axis=0)
    )
    with pytest.raises(ValueError, match="dots belong to panels"):
        figures.maps({"a": field()}, title=TITLE, dots={"c": wanted})


def test_a_fan_holds_half_and_nine_tenths_of_the_members():
    many = line(members=101)
    (ax,) = figures.fan({"emulator": many, "nature": many.isel(member=0, drop=True)}, title=TITLE).axes
    bands = [c.get_paths()[0].get_extents() for c in ax.collections[:2]]
    for box, (low, high) in zip(bands, ((0.05, 0.95), (0.25, 0.75)), strict=True):
        assert box.y0 == pytest.approx(float(many.quantile(low, "member").min()))
        assert box.y1 == pytest.approx(float(many.quantile(high, "member").max()))
    assert len(ax.lines) == 2, "no members singly"
    assert "5–95 and 25–75 % of members" in [t.get_text() for t in ax.get_legend().get_texts()]


def test_reliability_shows_frequencies_and_how_often_each_was_forecast():
    rng = np.random.default_rng(0)
    obs = xr.DataArray(rng.normal(size=2000), dims="case")
    ens = xr.DataArray(rng.normal(size=(9, 2000)), dims=("member", "case"))
    diagram = reliability_diagram(event_table(obs, ens, threshold=0.5))
    top, bottom = figures.reliability({"a": diagram}, title=TITLE).axes
    np.testing.assert_allclose(top.lines[2].get_ydata(), diagram.observed_frequency)
    assert top.lines[1].get_ydata()[0] == pytest.approx(float((obs >= 0.5).mean()))
    assert sum(bar.get_height() for bar in bottom.patches) == pytest.approx(1)
    assert (top.get_ylabel(), bottom.get_xlabel()) == ("observed frequency [1]", "forecast probability [1]")
    with pytest.raises(ValueError, match="sum the table"):
        figures.reliability({"a": diagram.expand_dims(lead=2)}, title=TITLE)
    with pytest.raises(ValueError, match="nothing to draw"):
        figures.reliability({}, title=TITLE)


def test_a_figure_is_dark_for_a_while_and_then_as_it_was():
    for fig in every_figure(TITLE):
        before = colours(drawn(fig))
        with darkened(fig):
            during = colours(drawn(fig))
            assert np.mean(fig.get_facecolor()[:3]) < 0.1
            assert all(np.mean(to_rgb(t.get_color())) > 0.4 for t in fig.findobj(Text) if t.get_text())
        assert colours(fig) == before != during


def colours(fig):
    lines = [to_rgb(a.get_color()) for kind in (Text, Line2D) for a in fig.findobj(kind)]
    return lines + [tuple(a.get_facecolor()) for a in fig.findobj(Patch)]


def test_greys_are_turned_and_hues_stay_themselves():
    (white, black, clear, blue), orange = turned([(1, 1, 1), (0, 0, 0), (1, 1, 1, 0), "#0072B2"]), turned("#E69F00")[0]
    np.testing.assert_allclose(white, (0.07, 0.07, 0.07, 1))
    np.testing.assert_allclose(black, (0.93, 0.93, 0.93, 1))
    np.testing.assert_allclose(clear, (1, 1, 1, 0))
    assert blue[2] > blue[1] > blue[0] > 0.2
    np.testing.assert_allclose(orange, to_rgba("#E69F00"))


def test_unknown_colour_map():
    with pytest.raises(ValueError, match="no colour map 'jetset'"):
        figures.maps({"a": field()}, title=TITLE, cmap="jetset")


def test_series_draws_mean_members_and_spread():
    few, many = line(members=4), line(members=40)
    fig = drawn(figures.series({"few": few, "many": many}, title=TITLE, spread="std", zero_line=True))
    (ax,) = fig.axes
    thick = [x for x in ax.lines if x.get_linewidth() == 2]
    thin = [x for x in ax.lines if x.get_linewidth() < 1]
    assert (len(thick), len(thin)) == (2, 4)
    np.testing.assert_allclose(thick[0].get_ydata(), few.mean("member"))
    shade = ax.collections[0].get_paths()[0].vertices[:, 1]
    assert shade.max() == pytest.approx(float((few.mean("member") + few.std("member", ddof=1)).max()))
    assert ax.get_ylabel() == "mean temperature [°C]"
    assert ax.get_xlabel() == "time [days since 2000-01-01]"
    names = [t.get_text() for t in ax.get_legend().get_texts()]
    assert names == ["few", "many", "mean ± 1 standard deviation"]


@pytest.mark.parametrize("spread", [None, "range", "5-95%", "std"])
def test_lazy_series_are_as_those_in_memory(spread):
    there, lazy = (figures.series({"a": x}, title=TITLE, spread=spread) for x in (line(), line().chunk(time=7)))
    for a, b in zip(there.axes[0].lines, lazy.axes[0].lines, strict=True):
        np.testing.assert_array_equal(a.get_xydata(), b.get_xydata())


def test_colours_may_be_chosen_and_are_not_given_twice():
    colors = colors_of(["a", "b", "c"], {"b": "#0072B2"})
    assert list(colors) == ["a", "b", "c"]
    assert len(set(colors.values())) == 3
    fig = figures.series({"a": line(), "b": line()}, title=TITLE, colors={"b": "#000000"})
    assert "#000000" in {x.get_color() for x in fig.axes[0].lines}


@pytest.mark.parametrize("calendar", ["noleap", "360_day", "julian", "standard"])
def test_years_are_those_of_the_calendar(calendar):
    times = {"a": line(n=5, step=1, calendar=calendar).time.copy()}
    years = [cftime.datetime(2000 + i, 1, 1, calendar=calendar) for i in range(5)]
    at, words = abscissae({"a": xr.DataArray(years, dims="time", name="time")})
    np.testing.assert_allclose(at["a"], range(5), atol=3e-3)
    assert words == "time [years since 2000-01-01]"
    at, words = abscissae(times)
    np.testing.assert_allclose(at["a"], range(5))


def test_lines_share_one_origin_and_one_calendar():
    early, late = line(year=2000), line(year=2001)
    at, _ = abscissae({"late": late.time, "early": early.time})
    assert at["late"][0] == 365 and at["early"][0] == 0
    with pytest.raises(ValueError, match="one kind of time"):
        figures.series({"a": early, "b": line(calendar="360_day")}, title=TITLE)
    at, words = abscissae({"a": xr.DataArray(np.array(["2000-01-01", "2000-01-03"], "M8[ns]"), dims="time")})
    assert at["a"].tolist() == [0, 2] and words == "time [days since 2000-01-01]"


def test_series_refuse_what_cannot_be_drawn():
    with pytest.raises(ValueError, match="units must agree"):
        figures.series({"a": line(), "b": line(units="m")}, title=TITLE)
    with pytest.raises(ValueError, match="one dimension besides 'member'"):
        figures.series({"a": line().expand_dims(lev=2)}, title=TITLE)
    with pytest.raises(ValueError, match="spread must be one of"):
        figures.series({"a": line()}, title=TITLE, spread="iqr")
    with pytest.raises(ValueError, match="nothing to draw"):
        figures.series({}, title=TITLE)


def test_powers_of_ten_go_to_the_units_and_data_stay():
    heat = line(units="J") * 1e21
    fig = drawn(figures.series({"a": heat.assign_attrs(units="J", long_name="heat")}, title=TITLE))
    (ax,) = fig.axes
    assert ax.get_ylabel() == "heat [10²¹ J]"
    assert ax.lines[-1].get_ydata().max() > 1e21
    ticks = [float(t.get_text().replace("−", "-")) for t in ax.get_yticklabels()]
    assert 5 < max(ticks) < 30
    assert ax.yaxis.get_offset_text().get_text() == ""


def test_lead_curves_begin_at_zero():
    for lead in ([5.0, 10.0, 15.0], np.array([5, 10, 15], "m8[D]").astype("m8[ns]")):
        scores = xr.DataArray([0.2, 0.3, 0.5], dims="lead", coords={"lead": lead}, attrs={"units": "degC"})
        (ax,) = figures.lead_curves({"emulator": scores}, title=TITLE, ylabel="RMSE").axes
        assert ax.get_ylim()[0] == 0
        assert (ax.get_xlabel(), ax.get_ylabel()) == ("lead time [days]", "RMSE [°C]")
        assert ax.lines[0].get_xdata().tolist() == [5, 10, 15]
        assert ax.get_legend() is None


def test_spectra_leave_out_ring_zero_and_show_wavelengths():
    spectrum = isotropic_spectrum(field(48, 48, lat=(-50, -45), lon=(0, 7)).fillna(10.0).chunk())
    fig = drawn(figures.spectra({"a": spectrum}, title=TITLE))
    (ax,) = fig.axes
    (top,) = ax.child_axes
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")
    k = ax.lines[0].get_xdata()
    assert k.size == spectrum.wavenumber.size - 1
    np.testing.assert_allclose(k, spectrum.wavenumber.values[1:] * 1e3)
    assert top.get_xlabel() == "wavelength [km]"
    np.testing.assert_allclose(sorted(1 / np.array(top.get_xlim())), ax.get_xlim())
    # A wave of 100 km stands at 0.01 cycles per km on either axis.
    here = ax.transData.transform((0.01, 1))[0], top.transData.transform((100, 0))[0]
    assert here[0] == pytest.approx(here[1])
    slopes = [np.polyfit(np.log(x.get_xdata()), np.log(x.get_ydata()), 1)[0] for x in ax.lines[1:]]
    assert slopes == pytest.approx([-3, -5 / 3])
    with pytest.raises(ValueError, match="'wavenumber'"):
        figures.spectra({"a": line()}, title=TITLE)


@pytest.mark.parametrize(("members", "samples"), [(9, 100), (19, 2000), (1, 50)])
def test_the_band_of_a_flat_histogram_is_binomial(members, samples):
    low, high = flat_band(members, samples)
    flat = scipy.stats.binom(samples, 1 / (members + 1))
    expected = samples / (members + 1)
    assert flat.cdf(high * expected) - flat.cdf(low * expected - 1) >= 0.95
    # One bar wider on either side than needed would be too much.
    assert flat.cdf(high * expected - 1) < 0.975
    assert flat.cdf(low * expected - 1) < 0.025 <= flat.cdf(low * expected)


def ranks_of(spread, bias=0.0, cases=3000, members=10, seed=0):
    rng = np.random.default_rng(seed)
    obs = xr.DataArray(rng.normal(bias, 1, cases), dims="case")
    return rank_histogram(obs, xr.DataArray(rng.normal(0, spread, (members, cases)), dims=("member", "case")))


@pytest.mark.parametrize(
    ("histogram", "words"),
    [
        (ranks_of(0.5), "spread too small"),
        (ranks_of(2.0), "spread too large"),
        (ranks_of(1.0, bias=0.5), "members too low"),
        (ranks_of(1.0, bias=-0.5), "members too high"),
        (ranks_of(1.0), "flat"),
    ],
)
def test_the_shape_of_a_histogram_is_told(histogram, words):
    (ax,) = figures.rank_bars(histogram, title=TITLE).axes
    assert words in ax.get_title("right")
    heights = [bar.get_height() for bar in ax.patches if bar.get_width() == pytest.approx(0.9)]
    assert np.mean(heights) == pytest.approx(1)
    assert len(heights) == 11


def test_a_flat_histogram_is_called_flat_as_often_as_it_should():
    rng = np.random.default_rng(1)
    counts = rng.multinomial(500, np.full(11, 1 / 11), size=400)
    called = np.mean([rank_shape(c.astype("f8"), 500) == "flat within sampling error" for c in counts])
    assert called == pytest.approx(0.95**2, abs=0.04)


def test_fewer_independent_cases_widen_the_band():
    histogram = ranks_of(1.0)
    narrow, wide = flat_band(10, 3000), flat_band(10, 100)
    assert wide[0] < narrow[0] < 1 < narrow[1] < wide[1]
    weighted = histogram.assign_attrs(units="m2")
    with pytest.raises(ValueError, match="samples="):
        figures.rank_bars(weighted, title=TITLE)
    (ax,) = figures.rank_bars(weighted, title=TITLE, samples=100).axes
    assert ax.patches[0].get_height() == pytest.approx(wide[1] - wide[0])


def test_bars_are_grouped_and_gaps_stay_gaps():
    table = {"emulator": {"sea level": 0.5, "temperature": 0.4}, "persistence": {"temperature": 1.2}}
    (ax,) = figures.bars(table, title=TITLE, ylabel="RMSE [1]", reference=1).axes
    assert ax.get_ylabel() == "RMSE [1]"
    assert [t.get_text() for t in ax.get_xticklabels()] == ["sea level", "temperature"]
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["emulator", "persistence"]
    heights = [bar.get_height() for bar in ax.patches]
    np.testing.assert_array_equal(heights, [0.5, 0.4, np.nan, 1.2])
    assert ax.lines[0].get_ydata()[0] == 1
    with pytest.raises(ValueError, match="no bars"):
        figures.bars({}, title=TITLE, ylabel="y")


@pytest.mark.parametrize(
    ("units", "expected"),
    [("m s-1", "m s⁻¹"), ("W m-2", "W m⁻²"), ("1", ""), ("degC", "°C"), ("(m)2 m", "m² m"), ("0.001", "10⁻³")],
)
def test_units_as_printed(units, expected):
    assert pretty_units(units) == expected
