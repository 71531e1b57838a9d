"""Merging of online statistics: any blocks in any order are the whole; gaps, one member, none."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from test_ensemble_statistics import SHAPES, context_of, ensemble, every, parts_of, results, splits
from torch import Tensor

from polynya.ensembles.histograms import Quantiles
from polynya.ensembles.statistics import Parts, Statistic


def assert_close(a: Parts, b: Parts, scale: Parts) -> None:
    """The same: to the bit what is counted or compared, to 1e-12 of the size of the sums otherwise."""
    assert list(a) == list(b)
    for name in a:
        assert a[name].dtype == b[name].dtype
        if a[name].dtype != torch.float64 or name in ("min", "max"):
            assert torch.equal(a[name], b[name]), name
        else:
            torch.testing.assert_close(a[name], b[name], rtol=1e-12, atol=1e-12 * float(scale[name].abs().max()))


@every
@pytest.mark.parametrize("seed", range(12))
def test_merged_blocks_are_the_whole_however_cut_and_grouped(statistic: Statistic, seed: int) -> None:
    n = 10 + 7 * seed
    values = (10.0 ** (seed % 5 - 1)) * ensemble(n, SHAPES[seed % 2], seed, torch.float64) + (seed % 3) * 20
    whole, blocks = parts_of(statistic, values), splits(n, seed)
    assert min(map(len, blocks)) == 1 < len(blocks)
    assert_close(parts_of(statistic, values, blocks), whole, whole)
    each = [parts_of_block(statistic, values, b) for b in blocks]
    left, right = each[0], each[-1]
    for parts in each[1:]:
        left = statistic.merged(left, parts)
    for parts in each[-2::-1]:
        right = statistic.merged(parts, right)
    assert_close(left, right, whole)
    swapped = statistic.merged(each[1], each[0])
    assert_close(statistic.merged(each[0], each[1]), swapped, whole)


def parts_of_block(statistic: Statistic, values: Tensor, rows: list[int]) -> Parts:
    return statistic.parts(values[rows], {k: v[rows] for k, v in context_of(values).items()}, rows)


@every
def test_the_same_blocks_give_the_same_bits_and_leave_their_input_alone(statistic: Statistic) -> None:
    values = ensemble(33)
    kept, blocks = values.clone(), splits(33, 8)
    first, again = (parts_of(statistic, values, blocks) for _ in range(2))
    assert all(torch.equal(first[m], again[m]) for m in first)
    a, b = (parts_of_block(statistic, values, x) for x in blocks[:2])
    before = {m: t.clone() for m, t in a.items()}
    statistic.merged(a, b)
    assert torch.equal(values, kept) and all(torch.equal(a[m], before[m]) for m in a)


@every
def test_parts_go_through_numpy(statistic: Statistic) -> None:
    parts = parts_of(statistic, ensemble(9))
    back = {m: torch.from_numpy(np.array(t.numpy())) for m, t in parts.items()}
    assert all(torch.equal(back[m], parts[m]) and back[m].dtype == parts[m].dtype for m in parts)


@every
def test_an_empty_block_changes_nothing(statistic: Statistic) -> None:
    values = ensemble(6)
    some, none = parts_of(statistic, values), parts_of(statistic, values[:0])
    for merged in (statistic.merged(some, none), statistic.merged(none, some)):
        assert all(torch.equal(merged[m], some[m]) and merged[m].dtype == some[m].dtype for m in some)


@every
def test_no_member_and_one_member(statistic: Statistic) -> None:
    values = ensemble(1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        nothing, one = results(statistic, values[:0]), results(statistic, values)
    for name, result in nothing.items():
        whole = np.issubdtype(result.dtype, np.integer)
        assert (result == (-1 if "member" in name else 0)).all() if whole else np.isnan(result).all(), name
    for name, result in one.items():
        undefined = any(w in name for w in ("variance", "skewness", "kurtosis", "correlation", "covariance"))
        assert np.isnan(result).all() == undefined, name


@every
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_shapes_of_parts_are_known_before_the_first_step(
    statistic: Statistic, shape: tuple[int, int, int], dtype: torch.dtype
) -> None:
    wanted = statistic.part_shapes(shape)
    for n in (0, 1, 8):
        parts = parts_of(statistic, ensemble(n, shape, dtype=dtype))
        assert {m: (tuple(t.shape), t.dtype) for m, t in parts.items()} == wanted
        assert list(parts) and all(s[-3:] == shape for s, _ in wanted.values() if s)
        coords = statistic.coords()
        for name, (values, leading, attrs) in statistic.finished(parts).items():
            sizes = [len(coords[d][1]) for d in leading]
            assert tuple(values.shape) in ((*sizes, *shape), (*sizes,)), name
            assert attrs["long_name"] and attrs["units"]


@every
def test_a_member_that_is_not_a_number_is_not_hidden(statistic: Statistic) -> None:
    values = ensemble(9)
    values[4, :, 2, 2] = torch.nan
    for blocks in (None, [[0, 1, 2], [3, 4], [5, 6, 7, 8]], [[4], [0, 1, 2, 3], [5, 6, 7, 8]]):
        got = results(statistic, values, blocks)
        for name, result in got.items():
            if name.endswith("_member"):
                assert (result[..., 2, 2] == 4).all()
            elif result.ndim >= 3 and "outside" not in name:
                assert np.isnan(result[..., 2, 2]).all(), name
                if "somewhere" not in name:  # whose index is of that cell as well
                    assert not np.isnan(result[..., 2, 3]).any()


def test_every_quantile_is_unknown_where_a_member_is() -> None:
    values = ensemble(9)
    values[4, :, 2, 2] = torch.nan
    statistic = Quantiles("thetao", (0.0, 0.5, 1.0), range=(-3.0, 3.0))
    got = results(statistic, values, [[0, 1], [4], [2, 3, 5, 6, 7, 8]])["thetao_quantiles"]
    assert np.isnan(got[:, :, 2, 2]).all() and np.isnan(got).sum() == 9
