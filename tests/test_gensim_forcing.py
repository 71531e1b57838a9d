"""What drives and what trains GenSIM: positions, wind, humidity, degree days, patches and their symmetries."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from polynya.emulators import ice_forcing, ice_patches

DATA = Path(__file__).parent / "data" / "seaice"


@pytest.fixture(scope="module")
def grid():
    part = np.load(DATA / "grid_creg025_512_part.npz")
    return {k: torch.from_numpy(part[k]).double() for k in part.files if part[k].dtype == np.float32}


def test_positions_are_those_of_the_published_grid(grid):
    x, y = ice_forcing.polar_stereographic(grid["latitude"], grid["longitude"])
    assert float((x - grid["x_coord_m"] / 1e3).abs().max()) < 1e-4  # km; the file rounds to 0.06 m
    assert float((y - grid["y_coord_m"] / 1e3).abs().max()) < 1e-4


def test_the_projection_is_true_at_the_pole_and_stretches_as_said():
    lat = torch.tensor([90.0, 75.0, 65.0], dtype=torch.float64)
    north, south = (ice_forcing.polar_stereographic(lat + d, torch.full_like(lat, 90.0)) for d in (-1e-4, -2e-4))
    assert north[0, 0] > 0 and float(north[1].abs().max()) < 1e-10
    area = (lambda k: (k * k - 1) * 100)(2 / (1 + torch.deg2rad(lat).sin()))
    np.testing.assert_allclose(area, [0, 3.5, 10.0], atol=0.3)
    np.testing.assert_allclose(ice_forcing.true_area(torch.ones(3), lat), 1 / (1 + area / 100), rtol=1e-6)
    degree = (south - north)[0, 0] / 1e-4
    assert float(degree) == pytest.approx(111.694, abs=0.01)  # km of latitude at the pole, WGS84


def test_rotation_is_that_of_the_published_grid(grid):
    position = ice_forcing.polar_stereographic(grid["latitude"], grid["longitude"])
    sine, cosine = ice_forcing.rotation(position, grid["longitude"])
    # The crop's first row repeats a difference that the full grid has.
    assert float((sine - grid["wind_sin_rot"])[1:].abs().max()) < 1e-6
    assert float((cosine - grid["wind_cos_rot"])[1:].abs().max()) < 1e-6
    torch.testing.assert_close(sine.square() + cosine.square(), torch.ones_like(sine), rtol=1e-6, atol=1e-6)


def test_rotation_of_a_north_wind():
    """On a regular stereographic grid a wind to the north points at the pole."""
    line = torch.arange(-3.0, 4.0, dtype=torch.float64) * 100 + 37
    position = torch.stack(torch.meshgrid(line, line, indexing="xy"))
    lon = torch.rad2deg(torch.atan2(position[0], -position[1]))
    sine, cosine = ice_forcing.rotation(position, lon)
    u, v = ice_forcing.rotated(torch.zeros_like(lon), torch.ones_like(lon), sine, cosine)
    pole = -position / torch.linalg.vector_norm(position, dim=0)
    torch.testing.assert_close(torch.stack((u, v)), pole)
    east = torch.stack(ice_forcing.rotated(torch.ones_like(lon), torch.zeros_like(lon), sine, cosine))
    torch.testing.assert_close((east * pole).sum(0), torch.zeros_like(lon))
    torch.testing.assert_close(pole[0] * east[1] - pole[1] * east[0], -torch.ones_like(lon))  # east is right of north


def test_humidity():
    t = torch.tensor([273.16, 250.16, 240.16, 300.0], dtype=torch.float64)
    q = ice_forcing.specific_humidity(t, torch.tensor(1e5, dtype=torch.float64))
    eps = 287.0597 / 461.51
    e = q * 1e5 / (eps + q * (1 - eps))  # solved for vapour pressure
    assert float(e[0]) == pytest.approx(611.21)
    water, ice = (
        611.21 * np.exp(a * (t.numpy() - 273.16) / (t.numpy() - b)) for a, b in ((17.502, 32.19), (22.587, -0.7))
    )
    weight = (10 / 23) ** 2  # as published: water returns below 250.16 K
    wanted = [ice[1], weight * water[2] + (1 - weight) * ice[2], water[3]]
    np.testing.assert_allclose(e[1:], wanted, rtol=1e-12)


def test_degree_days():
    torch.manual_seed(0)
    t = 271.35 + 10 * torch.randn(30, 4, dtype=torch.float64)
    melting, freezing = ice_forcing.degree_days(t, 12)
    assert melting.shape == (19, 4) and (melting >= 0).all() and (freezing >= 0).all()
    torch.testing.assert_close(melting[7], (t[7:19] - 271.35).clamp(min=0).mean(0))
    torch.testing.assert_close(melting - freezing, (t - 271.35).unfold(0, 12, 1).mean(-1))
    with pytest.raises(ValueError, match="over 31 times need as many temperatures, got 30"):
        ice_forcing.degree_days(t, 31)


# --- patches ------------------------------------------------------------------------------------------


def test_patches_and_symmetries_are_the_originals():
    io = {k: torch.from_numpy(v) for k, v in np.load(DATA / "gensim_augmentation.npz").items()}
    assert torch.equal(ice_patches.vertical_flip(io["field"]), io["vflip"])
    assert torch.equal(ice_patches.horizontal_flip(io["field"]), io["hflip"])
    assert torch.equal(ice_patches.quarter_turn(io["field"]), io["rotate"])
    size, pad = (tuple(io[k].tolist()) for k in ("patch_size", "patch_pad"))
    for n, (top, left) in enumerate(zip(io["patch_top"].flatten(), io["patch_left"].flatten(), strict=True)):
        x = io["patch_in"][n % 2 : n % 2 + 1]
        got = ice_patches.cut_patch(x, (int(top), int(left)), int(io["patch_level"][n]), size, pad)
        torch.testing.assert_close(got[0], io["patch_out"][n], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("change", [ice_patches.vertical_flip, ice_patches.horizontal_flip, ice_patches.quarter_turn])
def test_vectors_follow_their_maps(change):
    """The gradient of a transformed scalar is the transformed gradient, and four turns or two flips are none."""
    torch.manual_seed(0)
    s = torch.randn(1, 1, 9, 9, dtype=torch.float64)

    def with_gradient(scalar):
        return torch.cat((*torch.gradient(scalar, dim=(3, 2)), scalar), 1)

    maps = with_gradient(s)
    got = change(maps, ((0, 1),))
    torch.testing.assert_close(got, with_gradient(got[:, 2:]))
    assert not torch.allclose(change(maps), got)
    again = got
    for _ in range(3 if change is ice_patches.quarter_turn else 1):
        again = change(again, ((0, 1),))
    torch.testing.assert_close(again, maps)


def test_corners_have_enough_ocean_and_coarse_ocean_has_no_land():
    mask = torch.zeros(12, 10)
    mask[3:9, 2:7] = 1
    for level in (1, 2):
        found = ice_patches.corners(mask, level, (4, 4), (2, 2), 0.3)
        shares = {
            (i, j): float(ice_patches.cut_patch(mask[None, None], (i, j), level, (4, 4), (2, 2)).mean())
            for i in range(16 - 4 * level + 1)
            for j in range(14 - 4 * level + 1)
        }
        assert {tuple(c) for c in found.tolist()} == {c for c, share in shares.items() if share > 0.3}
    coarse = ice_patches.coarse_mask(mask[None, None], (2, 2), 2, (4, 4), (2, 2))[0, 0]
    assert coarse.tolist() == [[0, 0, 0, 0], [0, 0, 0, 0], [0, 1, 1, 0], [0, 1, 1, 0]]
    assert len(ice_patches.corners(mask, 8, (4, 4), (2, 2))) == 0
    with pytest.raises(ValueError, match=r"got corner \(10, 0\) and level 2"):
        ice_patches.cut_patch(mask[None, None], (10, 0), 2, (4, 4), (2, 2))
