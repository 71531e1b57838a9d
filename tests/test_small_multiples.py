"""Small multiples: a panel of curves for each variable, a row of maps for each variable."""

import io

import numpy as np
import pytest
import xarray as xr

from polynya.diagnostics import style
from polynya.diagnostics.figures import curve_panels, map_rows


def curve(level, units="m", members=None):
    lead = xr.DataArray(np.arange(1.0, 5.0), dims="lead", name="lead")
    values = xr.DataArray(level * lead.values, dims="lead", coords={"lead": lead}, attrs={"units": units})
    return values * xr.DataArray(np.linspace(0.5, 1.5, members), dims="member") if members else values


def test_every_panel_has_its_curves_and_one_legend_serves_all():
    panels = {"thickness": {"a": curve(1), "b": curve(2, members=3)}, "speed": {"b": curve(0.001, "m s-1")}}
    fig = curve_panels(panels, title="Errors", from_zero=True)
    left, right = fig.axes
    assert left.get_title(loc="left") == "thickness [m]" and right.get_title(loc="left") == "speed [10⁻³ m s⁻¹]"
    assert left.get_ylim()[0] == right.get_ylim()[0] == 0 and left.get_ylim()[1] > 12
    assert left.get_xlabel() == "lead time [days]"
    np.testing.assert_allclose(left.lines[0].get_ydata(), [1, 2, 3, 4])
    assert left.lines[-1].get_color() == right.lines[0].get_color() == style.PALETTE[1]
    assert [t.get_text() for t in fig.legends[0].get_texts()] == ["a", "b", "range of members"]
    fig.savefig(io.BytesIO())


def test_spectra_are_drawn_on_logarithmic_axes_without_the_mean():
    k = xr.DataArray(np.arange(5) / 1e5, dims="wavenumber", attrs={"units": "m-1"})
    line = xr.DataArray(1.0 + np.arange(5.0), dims="wavenumber", coords={"wavenumber": k}, attrs={"units": "m3"})
    fig = curve_panels({str(n): {"run": line} for n in range(3)}, title="Spectra", columns=2)
    ax, *_, empty = fig.axes
    assert ax.get_xscale() == ax.get_yscale() == "log" and not empty.axison
    np.testing.assert_allclose(ax.lines[0].get_xdata(), [0.01, 0.02, 0.03, 0.04])
    fig.savefig(io.BytesIO())


def test_panels_that_cannot_be_drawn_are_refused():
    with pytest.raises(ValueError, match="nothing to draw"):
        curve_panels({}, title="None")
    with pytest.raises(ValueError, match="two panels"):
        curve_panels({"mixed": {"a": curve(1), "b": curve(1, "K")}}, title="Mixed")


def test_a_row_of_maps_has_one_scale():
    y, x = np.mgrid[:6, :8]
    fields = {n: xr.DataArray(f * (x + 10.0 * y), dims=("y", "x"), attrs={"units": "m"}) for n, f in
              (("truth", 1), ("run", 2))}  # fmt: skip
    fields = {n: f.assign_coords(y=np.arange(6), x=np.arange(8)) for n, f in fields.items()}
    fig = map_rows({"thickness": fields, "twice": {n: 2 * f for n, f in fields.items()}}, title="Maps")
    assert len(fig.axes) == 6
    limits = [ax.collections[0].get_clim() for ax in fig.axes if ax.collections and not ax.yaxis.get_ticklabels()]
    assert len(limits) == 4 and limits[0] == limits[1] and limits[2] == limits[3] != limits[0]
    assert {t.get_text() for t in fig.texts} >= {"thickness [m]", "truth", "run"}
    fig.savefig(io.BytesIO())
    with pytest.raises(ValueError, match="the same columns"):
        map_rows({"a": fields, "b": {"truth": fields["truth"]}}, title="Uneven")
    with pytest.raises(ValueError, match="the same columns"):
        map_rows({}, title="Empty")
