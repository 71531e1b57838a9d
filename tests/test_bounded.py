"""Analyses of bounded variables: bounds hold, Gaussian ones are left alone, untouched values keep their bits."""

from __future__ import annotations

import cftime
import numpy as np
import pytest
import torch
from scipy import stats
from toys import row_layout

from polynya.da import (
    ETKF,
    LETKF,
    Above,
    Anamorphosis,
    Bounded,
    EnOI,
    HybridGain,
    Logit,
    Observations,
    operator_for,
)
from polynya.emulators import LayoutError, State

torch.set_num_threads(1)
DAY = cftime.DatetimeNoLeap(2000, 1, 1)
LAYOUT = row_layout(20, "siconc", "sithick", "siu")
TRANSFORMS = {"siconc": Logit(), "sithick": Above(scale=0.2)}


def ice(members=12, seed=0):
    """Concentrations with many zeros and ones, thickness zero where there is none, and drift."""
    g = torch.Generator().manual_seed(seed)
    raw = torch.randn(members, 3, 1, 20, generator=g, dtype=torch.float64)
    wave = torch.linspace(-2, 2, 20, dtype=torch.float64)
    concentration = (0.5 + 0.4 * raw[:, 0] + wave / 2).clamp(0, 1)
    concentration[..., :3], concentration[..., -3:] = 0.0, 1.0
    thickness = (0.5 + 0.3 * raw[:, 1]).clamp(min=0) * (concentration > 0)
    return State(torch.stack([concentration, thickness, raw[:, 2]], 1), DAY, LAYOUT, tuple(range(members)))


def seen(variable, value, lon, error=0.05):
    return Observations.from_table(DAY, {"variable": variable, "lat": 0.0, "lon": lon, "value": value, "error": error})


@pytest.mark.parametrize("transform", [Logit(), Logit(-2.0, 3.0, 0.1), Above(), Above(-1.0, 2.0)])
def test_a_transform_and_its_inverse_undo_each_other_and_rise(transform):
    top = getattr(transform, "upper", 30.0)
    x = torch.linspace(transform.lower, top, 1001, dtype=torch.float64)
    y = transform.forward(x)
    assert (y.diff() > 0).all() and y.isfinite().all()
    assert torch.allclose(transform.inverse(y), x, atol=1e-12, rtol=0)
    far = transform.inverse(torch.tensor([-1e6, 1e6], dtype=torch.float64))
    assert far[0] == transform.lower and far[1] >= top - 1e-9
    outside = torch.tensor([transform.lower - 1.0], dtype=torch.float64)
    assert transform.forward(outside) == transform.forward(torch.full_like(outside, transform.lower))


def test_above_is_the_identity_far_from_the_bound():
    x = torch.tensor([2.0, 5.0], dtype=torch.float64)
    y = Above(scale=0.1).forward(x)
    assert torch.allclose(y.diff(), x.diff(), rtol=1e-6)


def test_an_anamorphosis_makes_a_skewed_sample_gaussian():
    sample = np.random.default_rng(0).gamma(2.0, 0.5, 20000)
    transform = Anamorphosis.of(sample, 100, lower=0.0)
    y = transform.forward(torch.from_numpy(sample)).numpy()
    assert stats.kstest(y, "norm").statistic < 0.02 and abs(stats.skew(y)) < 0.15 < stats.skew(sample)
    x = torch.linspace(0.05, 3.0, 50, dtype=torch.float64)
    assert torch.allclose(transform.inverse(transform.forward(x)), x, atol=1e-12)
    assert transform.inverse(torch.tensor([-50.0])) == 0
    with pytest.raises(ValueError, match="different values"):
        Anamorphosis.of(np.ones(10))


@pytest.mark.parametrize("method", [ETKF(), LETKF(5e6), ETKF(inflation=1.5, rtpp=0.3)])
def test_bounds_hold_where_the_plain_analysis_leaves_them(method):
    forecast = ice()
    observations = seen(["siconc", "siconc", "sithick"], [0.02, 0.99, 0.02], [110.0, 250.0, 180.0])
    plain, bounded = (a.analysis(forecast, observations) for a in (method, Bounded(method, TRANSFORMS)))
    assert plain["siconc"].min() < 0 or plain["siconc"].max() > 1
    assert bounded["siconc"].min() >= 0 and bounded["siconc"].max() <= 1 and bounded["sithick"].min() >= 0
    assert bounded.data.isfinite().all() and bounded.members == forecast.members
    # It is drawn to the observations: they see through the inverse transform.
    before, after = (operator_for(LAYOUT, observations).apply(s).mean(0) for s in (forecast, bounded))
    value = torch.tensor(observations.value)
    assert ((after - value).abs() < (before - value).abs()).all()


def test_what_is_the_same_in_all_members_keeps_its_bits():
    forecast = ice()
    after = Bounded(ETKF(), TRANSFORMS).analysis(forecast, seen("siconc", 0.9, 180.0))
    assert torch.equal(after["siconc"][..., :3], forecast["siconc"][..., :3])
    assert torch.equal(after["siconc"][..., -3:], forecast["siconc"][..., -3:])
    assert not torch.equal(after["siconc"][..., 10], forecast["siconc"][..., 10])
    nothing = seen([], [], [])
    assert Bounded(ETKF(), TRANSFORMS).analysis(forecast, nothing) is forecast


def test_far_from_the_bounds_it_is_the_plain_analysis():
    forecast = ice()
    forecast = forecast.replace(data=forecast.data + 10)
    observations = seen("sithick", 10.3, 180.0)
    plain = ETKF().analysis(forecast, observations)
    bounded = Bounded(ETKF(), {"sithick": Above(scale=0.1)}).analysis(forecast, observations)
    assert torch.allclose(plain.data, bounded.data, atol=1e-8)


def test_what_cannot_be():
    with pytest.raises(LayoutError, match="thetao"):
        Bounded(ETKF(), {"thetao": Logit()}).analysis(ice(), seen("siconc", 0.9, 180.0))
    with pytest.raises(ValueError, match="static"):
        Bounded(EnOI(ice(), 1.0), TRANSFORMS)
    with pytest.raises(ValueError, match="static"):
        Bounded(HybridGain(ETKF(), EnOI(ice(), 1.0)), TRANSFORMS)
    for wrong in (lambda: Logit(1.0, 0.0), lambda: Above(scale=0.0)):
        with pytest.raises(ValueError, match="wanted"):
            wrong()
