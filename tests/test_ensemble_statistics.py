"""Statistics without stored members are those of the members, by numpy and scipy, however cut and merged."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from scipy import stats
from small import random_state, small_grid, small_layout
from torch import Tensor

from polynya.emulators import Field, Layout
from polynya.emulators.names import RANGES
from polynya.ensembles.histograms import Exceedance, Extremes, Quantiles
from polynya.ensembles.statistics import Covariance, Index, Moments, Parts, Statistic, merge_all, product_of_units

SHAPES = [(1, 4, 5), (3, 4, 5)]
INDEX = Index("somewhere", "zos", np.arange(20.0).reshape(4, 5))
ALL: list[Statistic] = [
    Moments("thetao"),
    Moments("thetao", order=4),
    Extremes("thetao"),
    Exceedance("thetao", (-0.5, 0.0, 1.0)),
    Exceedance("thetao", (-0.5,), below=True),
    Quantiles("thetao", range=(-3.0, 3.0)),
    Covariance("thetao", INDEX),
]
NAMES = [f"{type(s).__name__}{k}" for k, s in enumerate(ALL)]
every = pytest.mark.parametrize("statistic", ALL, ids=NAMES)


def ensemble(
    n: int, shape: tuple[int, int, int] = (3, 4, 5), seed: int = 0, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Skewed values, (member, level, y, x), with a cell of land: 0 for all."""
    normal = np.random.default_rng(seed).standard_normal((n, *shape))
    values = torch.from_numpy(normal + 0.3 * normal**2).to(dtype)
    values[:, :, 0, 0] = 0.0
    return values


def context_of(values: Tensor) -> dict[str, Tensor]:
    """A field that has to do with the values, and the values."""
    other = 0.5 * values[:, :1] + ensemble(len(values), (1, 4, 5), 1, values.dtype)
    return {"thetao": values, "zos": other}


def parts_of(statistic: Statistic, values: Tensor, blocks: Sequence[Sequence[int]] | None = None) -> Parts:
    """Parts of blocks of members, merged in their order; of all at once if not said."""
    context = context_of(values)
    rows = [list(range(len(values)))] if blocks is None else [list(b) for b in blocks]
    each = (statistic.parts(values[b], {k: v[b] for k, v in context.items()}, b) for b in rows)
    return merge_all(statistic, each)


def results(
    statistic: Statistic, values: Tensor, blocks: Sequence[Sequence[int]] | None = None
) -> dict[str, np.ndarray]:
    return {k: v[0].numpy() for k, v in statistic.finished(parts_of(statistic, values, blocks)).items()}


def splits(n: int, seed: int) -> list[list[int]]:
    """Some members after others, in blocks of unequal size, at least one of one member."""
    rng = np.random.default_rng(seed)
    cuts = np.sort(rng.choice(np.arange(2, n), size=rng.integers(1, 6), replace=False))
    return [b.tolist() for b in np.split(np.arange(n), [1, *cuts])]


# --- what they are -------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_moments_are_those_of_numpy_and_scipy(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    values = ensemble(50, shape, dtype=dtype)
    x, sea = values.double().numpy(), np.ones(shape, bool)
    sea[:, 0, 0] = False
    got = results(Moments("thetao", order=4), values, splits(50, 3))
    np.testing.assert_allclose(got["thetao_mean"], x.mean(0), rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(got["thetao_variance"], x.var(0, ddof=1), rtol=1e-12)
    np.testing.assert_allclose(got["thetao_skewness"][sea], stats.skew(x)[sea], rtol=1e-10)
    np.testing.assert_allclose(got["thetao_kurtosis"][sea], stats.kurtosis(x)[sea], rtol=1e-10)
    assert np.isnan(got["thetao_skewness"][~sea]).all() and np.isnan(got["thetao_kurtosis"][~sea]).all()
    assert (got["thetao_variance"][~sea] == 0).all()
    assert set(results(Moments("thetao"), values)) == {"thetao_mean", "thetao_variance"}


def test_a_small_variance_beside_a_large_offset_is_not_lost() -> None:
    values = (1e4 + 0.01 * ensemble(200).double()).float()
    x = values.double().numpy()[:, :, 1:]
    got = results(Moments("thetao", order=4), values, splits(200, 0))
    assert 1e-5 < x.var(0, ddof=1).min() < x.var(0, ddof=1).max() < 1e-3
    np.testing.assert_allclose(got["thetao_variance"][:, 1:], x.var(0, ddof=1), rtol=1e-9)
    np.testing.assert_allclose(got["thetao_skewness"][:, 1:], stats.skew(x), rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(got["thetao_kurtosis"][:, 1:], stats.kurtosis(x), rtol=1e-6, atol=1e-8)
    naive = (x**2).mean(0) - x.mean(0) ** 2
    assert np.abs(naive / x.var(0) - 1).max() > 1e-6  # what a sum of squares would have given
    single = values.numpy()[:, :, 1:]
    assert np.abs(single.var(0, ddof=1) / x.var(0, ddof=1) - 1).max() > 1e-6  # and float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_members_that_agree_have_no_variance_at_all(dtype: torch.dtype) -> None:
    values = torch.full((7, 1, 4, 5), 0.1, dtype=dtype)
    for blocks in (None, [[0, 1, 2], [3], [4, 5, 6]]):
        got = results(Moments("thetao", order=4), values, blocks)
        assert (got["thetao_variance"] == 0).all() and np.isnan(got["thetao_skewness"]).all()
        assert (got["thetao_mean"] == values[0].numpy()).all()
        assert np.isnan(results(Covariance("thetao", INDEX), values, blocks)["thetao_somewhere_correlation"]).all()


@pytest.mark.parametrize("shape", SHAPES)
def test_extremes_and_who_has_them(shape: tuple[int, int, int]) -> None:
    values = ensemble(40, shape)
    values[3], values[17] = values[29], values[30]  # ties go to the smaller number
    x = values.numpy()
    for blocks in (None, splits(40, 1), splits(40, 1)[::-1], [list(range(39, -1, -1))]):
        got = results(Extremes("thetao"), values, blocks)
        assert (got["thetao_min"] == x.min(0)).all() and (got["thetao_max"] == x.max(0)).all()
        assert (got["thetao_min_member"] == x.argmin(0)).all() and (got["thetao_max_member"] == x.argmax(0)).all()
    assert {3, 17} & set(np.unique(x.argmax(0)).tolist()), "no tie was decided: the test tests nothing"
    numbered = Extremes("thetao").parts(values[:3], {}, (70, 12, 900))
    assert (numbered["min_member"] == torch.tensor([70, 12, 900])[values[:3].argmin(0)])[:, 1:].all()
    assert (numbered["min_member"][:, 0, 0] == 12).all()


@pytest.mark.parametrize("below", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_exceedance_is_a_share(below: bool, dtype: torch.dtype) -> None:
    values, thresholds = ensemble(30, dtype=dtype), (-0.5, 0.0, 0.7)
    x, side = values.numpy(), "below" if below else "above"
    statistic = Exceedance("thetao", thresholds, below)
    got = results(statistic, values, splits(30, 2))[f"thetao_probability_{side}"]
    for k, threshold in enumerate(thresholds):
        np.testing.assert_allclose(got[k], ((x < threshold) if below else (x > threshold)).mean(0), rtol=1e-15)
    assert (got[1, :, 0, 0] == 0).all()  # 0 is neither above nor below 0
    (name,) = statistic.coords()
    leading = statistic.finished(parts_of(statistic, values))[f"thetao_probability_{side}"][1]
    assert leading == (name,) and statistic.coords()[name][1].tolist() == list(thresholds)
    assert name == ("thetao_threshold_below" if below else "thetao_threshold")
    assert statistic.coords()[name][2]["units"] == "degC"


@pytest.mark.parametrize("n", [1, 2, 3, 20, 21, 500])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_quantiles_are_within_a_bin_of_the_members(n: int, dtype: torch.dtype) -> None:
    levels = (0.0, 0.05, 0.3, 0.5, 0.95, 1.0)
    values = ensemble(n, dtype=dtype)
    statistic = Quantiles("thetao", levels, bins=64, range=(-6.0, 10.0))
    got = results(statistic, values, splits(n, 4) if n > 3 else None)
    exact = np.quantile(values.double().numpy(), levels, axis=0)
    assert statistic.bin_width == 0.25
    assert np.abs(got["thetao_quantiles"] - exact).max() <= 0.25
    assert (np.diff(got["thetao_quantiles"], axis=0) >= 0).all()
    assert (got["thetao_quantiles"][[0, -1]] == exact[[0, -1]]).all()  # the extremes are kept
    assert (got["thetao_outside"] == 0).all()
    assert (got["thetao_quantiles"][:, :, 0, 0] == 0).all()  # land, on which all agree


def test_quantiles_between_two_far_members_are_those_of_both() -> None:
    values = torch.tensor([0.1, 0.2, 9.3, 9.9])[:, None, None, None].expand(4, 1, 4, 5)
    got = results(Quantiles("thetao", (0.5,), bins=100, range=(0.0, 10.0)), values)["thetao_quantiles"]
    assert np.abs(got - 4.75).max() < 0.1


def test_quantiles_beyond_the_range_stay_between_the_extremes_and_are_counted() -> None:
    values = ensemble(400)
    x, levels = values.double().numpy(), (0.0, 0.01, 0.05, 0.5, 0.95, 0.99, 1.0)
    got = results(Quantiles("thetao", levels, bins=32, range=(-0.6, 0.8)), values, splits(400, 5))
    out = (x < -0.6) | (x > 0.8)
    assert (got["thetao_outside"] == out.sum(0)).all() and out.any(0)[:, 1:].all()
    found, exact = got["thetao_quantiles"], np.quantile(x, levels, axis=0)
    assert (found >= x.min(0)).all() and (found <= x.max(0)).all()
    assert (found[1][:, 1:] < -0.4).all() and (found[5][:, 1:] >= 0.8).all()
    within = (exact >= -0.6) & (exact <= 0.8)
    within[[0, 1, 2, 4, 5, 6]] = False  # the median lies between members in the range
    assert within.sum() == 60 and np.abs(found - exact)[within].max() <= 1.4 / 32


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ends_of_the_range_are_inside(dtype: torch.dtype) -> None:
    values = torch.tensor([0.1, 0.7, 0.7, 0.1, 0.4], dtype=dtype)[:, None, None, None].expand(5, 1, 4, 5)
    statistic = Quantiles("siconc", (0.5,), bins=6, range=(0.1, 0.7))
    got = results(statistic, values)
    assert (got["siconc_outside"] == 0).all() and np.abs(got["siconc_quantiles"] - 0.4).max() <= 0.1
    parts = statistic.parts(values, {}, range(5))
    assert parts["bins"][:, 0, 0, 0].tolist() == [0, 2, 0, 0, 1, 0, 2, 0] or dtype == torch.float32


def test_bins_are_those_of_numpy() -> None:
    values = ensemble(300, dtype=torch.float64)
    counts = Quantiles("thetao", bins=40, range=(-2.0, 3.0)).parts(values, {}, range(300))["bins"]
    for cell in ((0, 1, 1), (2, 3, 4), (1, 0, 0)):
        x = values[:, *cell].numpy()
        assert counts[1:-1, *cell].tolist() == np.histogram(x, 40, (-2.0, 3.0))[0].tolist()
        assert (int(counts[0, *cell]), int(counts[-1, *cell])) == ((x < -2).sum(), (x > 3).sum())


def test_the_table_has_ranges() -> None:
    assert Quantiles("siconc").bounds == RANGES["siconc"] == (0.0, 1.0)
    assert Quantiles("siconc", range=(0.1, 0.9)).bounds == (0.1, 0.9)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_covariances_are_those_of_numpy(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    values = ensemble(60, shape, dtype=dtype)
    got = results(Covariance("thetao", INDEX), values, splits(60, 6))
    w = np.arange(20.0).reshape(4, 5)
    series = np.average(context_of(values)["zos"].double().numpy()[:, 0], axis=(1, 2), weights=w)
    np.testing.assert_allclose(got["thetao_somewhere_index_mean"], series.mean(), rtol=1e-12)
    np.testing.assert_allclose(got["thetao_somewhere_index_variance"], series.var(ddof=1), rtol=1e-12)
    x = values.double().numpy()
    for cell in np.ndindex(*shape):
        pair = x[:, *cell], series
        if cell[1:] == (0, 0):
            assert got["thetao_somewhere_covariance"][cell] == 0
            assert np.isnan(got["thetao_somewhere_correlation"][cell])
            continue
        np.testing.assert_allclose(got["thetao_somewhere_covariance"][cell], np.cov(*pair)[0, 1], rtol=1e-10)
        np.testing.assert_allclose(got["thetao_somewhere_correlation"][cell], np.corrcoef(*pair)[0, 1], rtol=1e-10)


def test_a_cell_correlates_with_itself() -> None:
    values, weights = ensemble(30), np.zeros((4, 5))
    weights[2, 3] = 5.0
    own = Covariance("thetao", Index("point", "thetao", weights, level=1))
    got = results(own, values, splits(30, 0))
    assert abs(got["thetao_point_correlation"][1, 2, 3] - 1) < 1e-12
    assert np.nanmax(np.abs(got["thetao_point_correlation"])) <= 1
    np.testing.assert_allclose(got["thetao_point_covariance"][1, 2, 3], got["thetao_point_index_variance"], rtol=1e-12)


def test_rounding_makes_no_correlation_above_one() -> None:
    factors = torch.linspace(-3.0, 3.0, 2000, dtype=torch.float64).view(1, 40, 50)
    series = ensemble(7, dtype=torch.float64)[:, :1, 1:2, 1:2]
    statistic = Covariance("thetao", Index("i", "zos"))
    parts = statistic.parts(series * factors, {"zos": series}, range(7))
    raw = (parts["C"] / (parts["M2"].sqrt() * parts["index_M2"].sqrt())).abs()
    assert float(raw.max()) > 1, "nothing to cut off: the test tests nothing"
    got = statistic.finished(parts)["thetao_i_correlation"][0]
    assert float(got.abs().max()) == 1 and torch.allclose(got, factors.sign(), rtol=1e-14)


# --- indices -------------------------------------------------------------------------------------


def test_an_index_over_a_box_is_weighted_by_area_over_wet_cells() -> None:
    layout = small_layout()
    state = random_state(layout)
    index = Index.over_box("box", "thetao", layout, lat=(-30, -5), lon=(80, 160), level=0)
    lat, lon, wet = layout.grid["lat"].values, layout.grid["lon"].values, layout.grid["wetmask"].values[0]
    inside = wet & ((lat >= -30) & (lat <= -5))[:, None] & ((lon >= 80) & (lon <= 160))[None]
    assert 0 < inside.sum() < (inside | ~wet).sum()  # the island and the southern rim are in the box
    area = layout.grid["areacello"].values * inside
    wanted = (state["thetao"][:, 0].double().numpy() * area).sum((1, 2)) / area.sum()
    got = index.of({"thetao": state["thetao"]})
    assert got.dtype == torch.float64
    np.testing.assert_allclose(got.numpy(), wanted, rtol=1e-12)
    alone = index.of({"thetao": state["thetao"][1:2]})
    assert torch.equal(got[1:2], alone)


def test_longitudes_of_a_box_wrap() -> None:
    layout = small_layout()
    boxes = [
        Index.over_box("greenwich", "zos", layout, lat=(-10, 10), lon=lon)
        for lon in ((330.0, 30.0), (-30.0, 30.0), (330.0, 390.0))
    ]
    for box in boxes:
        assert box.weights is not None
        columns = np.flatnonzero(box.weights.any(0))
        assert columns.tolist() == [0, 1, 11]
    zonal = Index.over_box("zonal", "zos", layout, lat=(-10, 10), lon=(0.0, 360.0)).weights
    assert zonal is not None and (zonal[4:] > 0).any(0).all()


def test_an_index_without_weights_is_a_plain_mean() -> None:
    values = ensemble(5, dtype=torch.float64)
    got = Index("mean", "thetao", level=2).of({"thetao": values})
    np.testing.assert_allclose(got.numpy(), values[:, 2].numpy().mean((1, 2)), rtol=1e-12)
    frozen = np.broadcast_to(np.ones(5), (4, 5))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_allclose(Index("m", "thetao", frozen, 2).of({"thetao": values}).numpy(), got.numpy())


def test_corners_have_their_own_wet_cells() -> None:
    layout = Layout((Field("uo", 3, "corner"),), small_grid())
    weights = Index.over_box("drift", "uo", layout, lat=(-90, 90), lon=(0, 360)).weights
    assert weights is not None
    assert ((weights > 0) == layout.field_mask(layout.field("uo"))[0]).all()


# --- names and attributes ------------------------------------------------------------------------


def test_results_are_described() -> None:
    finished = {k: v for s in ALL for k, v in s.finished(parts_of(s, ensemble(5))).items()}
    mean, variance = finished["thetao_mean"][2], finished["thetao_variance"][2]
    assert mean["cell_methods"] == "realization: mean" and mean["units"] == "degC"
    assert mean["standard_name"] == variance["standard_name"] == "sea_water_potential_temperature"
    assert variance["units"] == "K2" and variance["cell_methods"] == "realization: variance"
    assert finished["thetao_somewhere_covariance"][2]["units"] == "K m"
    assert finished["thetao_somewhere_index_variance"][2]["units"] == "m2"
    assert "standard_name" not in finished["thetao_kurtosis"][2]
    assert finished["thetao_quantiles"][2]["bin_width"] == 6 / 128
    assert finished["thetao_quantiles"][1] == ("thetao_quantile",)
    unknown = Moments("nonsense").finished(Moments("nonsense").parts(ensemble(2), {}, (0, 1)))
    assert unknown["nonsense_mean"][2]["long_name"] == "mean over members of nonsense"
    assert "units" not in unknown["nonsense_variance"][2]


def test_results_of_one_run_have_names_of_their_own() -> None:
    several = [s for v in ("thetao", "so") for s in (Covariance(v, INDEX), Quantiles(v), Moments(v, 4), Extremes(v))]
    several += [Exceedance("so", (1.0,), below=side) for side in (False, True)]
    names = [n for s in several for n in (*s.coords(), *s.finished(parts_of(s, ensemble(3))))]
    assert len(names) == len(set(names))


def test_units_of_products() -> None:
    assert product_of_units("uo", "uo") == "m2 s-2" and product_of_units("so", "so") == "1e-06"
    assert product_of_units("so", "thetao") == "0.001 K" and product_of_units("siconc", "siconc") == "1"
    assert product_of_units("hfds", "hfds") == "W2 m-4" and product_of_units("siconc", "zos") == "m"
    assert product_of_units("nonsense", "zos") == ""


# --- errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Moments("thetao", order=3), "order 2 or 4"),
        (lambda: Exceedance("thetao", ()), "wanted thresholds"),
        (lambda: Exceedance("thetao", (1.0, 1.0)), "increasing"),
        (lambda: Exceedance("thetao", (float("nan"),)), "finite"),
        (lambda: Quantiles("thetao", (0.5, 0.1)), "increasing"),
        (lambda: Quantiles("thetao", (0.5, 1.5)), "from 0 to 1"),
        (lambda: Quantiles("thetao", ()), "levels"),
        (lambda: Quantiles("thetao", bins=0), "at least one bin"),
        (lambda: Quantiles("nonsense"), r"nonsense.*range=\(lowest, highest\)"),
        (lambda: Quantiles("thetao", range=(3.0, 3.0)), "range"),
        (lambda: Quantiles("thetao", range=(0.0, float("inf"))), "range"),
        (lambda: Quantiles("thetao", range=(0.0, 1.0, 2.0)), "range"),  # type: ignore[arg-type]
        (lambda: Index("", "zos"), "a name"),
        (lambda: Index("i", "zos", level=-1), "level >= 0"),
        (lambda: Index("i", "zos", np.ones(3)), "weights"),
        (lambda: Index("i", "zos", np.zeros((2, 2))), "not zero everywhere"),
        (lambda: Index("i", "zos", np.array([[1.0, -1.0]])), "not negative"),
        (lambda: Index("i", "zos", np.array([[1.0, np.nan]])), "1 not finite"),
    ],
)
def test_settings_that_make_no_sense(make: object, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make()  # type: ignore[operator]


def test_boxes_without_sea() -> None:
    layout = small_layout()
    with pytest.raises(ValueError, match="no wet cell of thetao"):
        Index.over_box("rim", "thetao", layout, lat=(-31, -29), lon=(0, 360))
    with pytest.raises(ValueError, match="no cell lies within"):
        Index.over_box("pole", "thetao", layout, lat=(80, 85), lon=(0, 360))
    with pytest.raises(ValueError, match="levels 0 to 2, got 3"):
        Index.over_box("deep", "thetao", layout, lat=(-10, 0), lon=(0, 360), level=3)
    with pytest.raises(KeyError, match="no field 'so'"):
        Index.over_box("salt", "so", layout, lat=(-10, 0), lon=(0, 360))


@every
def test_blocks_that_are_not_blocks(statistic: Statistic) -> None:
    values = ensemble(4)
    context = context_of(values)
    with pytest.raises(ValueError, match=r"thetao: wanted floating values \(member, level, y, x\) of 4 members"):
        statistic.parts(values[:, 0], context, range(4))
    with pytest.raises(ValueError, match="of 3 members"):
        statistic.parts(values, context, range(3))
    with pytest.raises(ValueError, match="floating"):
        statistic.parts(values.int(), context, range(4))
    with pytest.raises(ValueError, match="every member once"):
        statistic.parts(values, context, (0, 1, 1, 2))


@every
def test_parts_of_different_things_do_not_merge(statistic: Statistic) -> None:
    deep, flat = (parts_of(statistic, ensemble(3, shape)) for shape in reversed(SHAPES))
    with pytest.raises(ValueError, match=r"do not merge: .*3, 4, 5\) and .*1, 4, 5\)"):
        statistic.merged(deep, flat)
    other = Moments("thetao", order=4) if "M4" not in deep else Extremes("thetao")
    with pytest.raises(ValueError, match="missing"):
        statistic.merged(deep, parts_of(other, ensemble(3)))
    with pytest.raises(ValueError, match="no parts to merge"):
        merge_all(statistic, [])


def test_an_index_that_does_not_fit() -> None:
    values, box = ensemble(3), Covariance("thetao", INDEX)
    with pytest.raises(ValueError, match="somewhere needs zos; the state has thetao"):
        box.parts(values, {"thetao": values}, range(3))
    with pytest.raises(ValueError, match=r"wanted level 0 and \(y, x\) = \(4, 5\)"):
        box.parts(values, {"zos": values[..., :-1]}, range(3))
    with pytest.raises(ValueError, match="wanted level 5"):
        Index("deep", "thetao", level=5).of({"thetao": values})
    with pytest.raises(ValueError, match="wanted 3 members in the context, got 2"):
        box.parts(values, {"zos": values[:2]}, range(3))


def test_statistics_are_values() -> None:
    assert Quantiles("thetao", range=(0.0, 1.0)) == Quantiles("thetao", range=(0.0, 1.0)) != Quantiles("thetao")
    assert len({*ALL, *ALL}) == len(ALL)
    assert "array" not in repr(Covariance("thetao", INDEX)) and "somewhere" in repr(Covariance("thetao", INDEX))
