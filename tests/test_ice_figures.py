"""The scaling figure: what is drawn is what was computed, and what cannot be drawn is refused."""

import io

import numpy as np
import pytest
import xarray as xr

from polynya.diagnostics import scaling_exponents
from polynya.diagnostics.ice_figures import scaling_curves


def power_law(beta, members=None, average="gradients"):
    """Moments (1 day-1)^q (L / 10 km)^-beta_q, member by member a little apart."""
    scale = 1e4 * 2.0 ** np.arange(5)
    factor = (np.linspace(0.9, 1.1, members) if members else np.ones(1))[:, None, None]
    beta = factor * np.asarray(beta, dtype="f8")[:, None]
    order = np.arange(1.0, beta.shape[1] + 1)
    values = 86400 ** -order[:, None] * (scale / 1e4) ** -beta
    coords = {"order": order, "box": 2 ** np.arange(5), "scale": ("box", scale)}
    moments = xr.DataArray(values, dims=("member", "order", "box"), coords=coords, attrs={"average": average})
    return moments if members else moments.isel(member=0)


def test_curves_and_exponents_are_those_of_the_moments():
    fig = scaling_curves({"truth": power_law([0.2, 0.5]), "many": power_law([0.1, 0.3], 4).chunk()}, title="Two laws")
    left, right = fig.axes
    lines = [line for line in left.lines if line.get_xdata().size == 5]
    assert len(lines) == 4
    np.testing.assert_allclose(lines[0].get_xdata(), 10 * 2.0 ** np.arange(5))
    np.testing.assert_allclose(lines[1].get_ydata(), 2.0 ** (-0.25 * np.arange(5)))
    np.testing.assert_allclose(right.lines[0].get_ydata(), scaling_exponents(power_law([0.2, 0.5]))["exponent"])
    assert [t.get_text() for t in left.get_legend().get_texts()] == ["q = 1", "q = 2"]
    assert [t.get_text() for t in fig.legends[0].get_texts()] == ["truth", "many"]
    fig.savefig(io.BytesIO())


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(ValueError, match="two figures"):
        scaling_curves({"a": power_law([0.2]), "b": power_law([0.2], average="rates")}, title="Mixed")
    with pytest.raises(ValueError, match="use deformation_moments"):
        scaling_curves({"a": power_law([0.2]).isel(box=0)}, title="No box")
    with pytest.raises(ValueError, match="nothing to draw"):
        scaling_curves({}, title="None")
