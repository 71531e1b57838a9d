"""Numbers as they are stored: rounded and packed, in shards that Zarr reads, on disk."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec

from polynya.ensembles import Packed, Rounded
from polynya.ensembles.durable import Durable
from polynya.ensembles.packing import Exact, Packing, PackingError
from polynya.ensembles.shards import Series


def rounded_by_hand(x: np.ndarray, bits: int) -> np.ndarray:
    """To nearest, ties to even: exact in float64 by way of frexp."""
    mantissa, exponent = np.frexp(x.astype("f8"))
    return np.ldexp(np.round(np.ldexp(mantissa, bits + 1)), exponent - bits - 1).astype(x.dtype)


@pytest.mark.parametrize("bits", [1, 7, 10, 22])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rounding_is_to_nearest_even(bits: int, dtype: torch.dtype) -> None:
    x = torch.randn(2, 3, 40, 50, generator=torch.Generator().manual_seed(0), dtype=dtype) * 100
    x[0, 0, 0, :6] = torch.tensor([0.0, 1.5, 2.5, -3.5, 1 + 3 * 2.0 ** -(bits + 1), 1 + 2.0 ** -(bits + 1)])
    wet = torch.rand(3, 40, 50) > 0.3
    out = torch.empty_like(x)
    Rounded(bits).pack("zos", x, wet, out)
    wanted = np.where(wet.numpy(), rounded_by_hand(x.numpy(), bits), np.nan)
    assert np.array_equal(out.numpy(), wanted, equal_nan=True)
    away = ((out - x).abs() / x.abs())[:, wet]
    assert float(away.nan_to_num().max()) <= 2.0 ** -(bits + 1)


class Elsewhere(torch.Tensor):
    """Numbers that are not where compiled loops can go."""

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return torch.device("meta")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("packing", [Exact(), Rounded(7), Packed({"zos": (-3.0, 5.0)})])
def test_loops_on_a_cpu_pack_the_same_bits_as_tensor_operations(packing: Packing, dtype: torch.dtype) -> None:
    x = torch.randn(3, 2, 17, 5, dtype=dtype, generator=torch.Generator().manual_seed(0)).clamp(-3, 4)
    x[1, 0, :3, 0] = torch.tensor([-0.0, 1e-40, 1.0 + 2.0**-8], dtype=dtype)
    wet = torch.rand(2, 17, 5, generator=torch.Generator().manual_seed(1)) > 0.3
    x[:, ~wet] = torch.nan  # whatever a model leaves on land
    kind = torch.from_numpy(np.empty(0, packing.dtype(dtype))).dtype
    series = torch.empty(3, 4, 2, 17, 5, dtype=kind)  # as records go into a shard
    packing.pack("zos", x, wet, series[:, 2])
    there = torch.empty(3, 2, 17, 5, dtype=kind)
    packing.pack("zos", x.as_subclass(Elsewhere), wet, there)
    assert there.contiguous().numpy().tobytes() == series[:, 2].contiguous().numpy().tobytes()
    twisted = x.to(memory_format=torch.channels_last)
    packing.pack("zos", twisted, wet, there)
    assert there.numpy().tobytes() == series[:, 2].contiguous().numpy().tobytes()
    if isinstance(packing, Packed):
        wrong = x.clone()
        wrong[2, 1][wet[1]] = torch.inf
        for given in (wrong, wrong.as_subclass(Elsewhere)):
            with pytest.raises(PackingError, match="of the 2th member"):
                packing.pack("zos", given, wet, there)


def test_a_value_that_would_become_the_fill_value_does_not_fit() -> None:
    low = Packed({"zos": (0.0, 1.0)})
    scale, offset = (low.attributes("zos")[key] for key in ("scale_factor", "add_offset"))
    x, out = torch.full((1, 1, 1, 1), -(2**15) * scale + offset), torch.empty(1, 1, 1, 1, dtype=torch.int16)
    with pytest.raises(PackingError, match="do not fit"):
        low.pack("zos", x, torch.ones(1, 1, 1, dtype=torch.bool), out)


@pytest.mark.parametrize("depth", [6, 1])
@pytest.mark.parametrize(("members", "times"), [(8, 9), (7, 10)])
def test_shards_are_zarrs_own(tmp_path: Path, members: int, times: int, depth: int) -> None:
    """Every number that Zarr reads is the one that was put, also in chunks and shards that are not full."""
    files = Durable(tmp_path / "s.zarr")
    group = zarr.create_group(files)
    group.create_array(
        "x", shape=(members, times, 5), chunks=(2, min(3, depth), 5), shards=(4, depth, 5), dtype="f4",
        fill_value=np.nan,
        compressors=[BloscCodec(cname="lz4", shuffle="shuffle"), Crc32cCodec()],
    )  # fmt: skip
    values = np.random.default_rng(0).random((members, times, 5), "f4")
    for rows in (slice(0, 4), slice(4, members)):
        series = Series(group["x"], rows, 0)  # type: ignore[arg-type]
        for k in range(times):
            series.put(lambda here, out, record=values[rows, k]: np.copyto(out, record[here]))  # type: ignore[misc]
        series.flush()
    files.sync()
    assert np.array_equal(zarr.open_array(tmp_path / "s.zarr/x")[...], values)
    lone = Series(group["x"], slice(1, 3), 2)  # type: ignore[arg-type]
    lone.put(lambda _, out: out.fill(7.0))
    lone.flush()
    files.sync()
    values[1:3, 2] = 7.0
    assert np.array_equal(zarr.open_array(tmp_path / "s.zarr/x")[...], values), "others in the shard stay"


def test_what_is_written_is_on_disk_when_sync_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file, and every folder that names it, once; and a disk that says late that it is full is heard."""
    settled, fsync = set[int](), os.fsync

    def heard(number: int) -> None:
        settled.add(os.fstat(number).st_ino)
        fsync(number)

    monkeypatch.setattr(os, "fsync", heard)
    files = Durable(tmp_path / "s.zarr")
    group = zarr.create_group(files)
    for k in range(9):  # more than may be under way
        files.write(f"x/deep/c.{k}", [b"some", b"thing"])
    group.attrs["k"] = 1
    files.sync()
    assert (tmp_path / "s.zarr/x/deep/c.8").read_bytes() == b"something"
    assert {p.stat().st_ino for p in [tmp_path / "s.zarr", *(tmp_path / "s.zarr").rglob("*")]} <= settled

    def full(number: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    files.write("x/deep/c.9", [b"no"])
    with pytest.raises(OSError, match="no space is left for .*c.9; what was written before is safe"):
        files.sync()


def test_exact_is_exact_even_for_negative_zero() -> None:
    x = torch.tensor([[[[-0.0, 1e-40, torch.inf, 2.0]]]])
    out = torch.empty_like(x)
    Exact().pack("zos", x, torch.tensor([[[True, True, True, False]]]), out)
    assert np.array_equal(out.numpy().view("i4")[..., :3], x.numpy().view("i4")[..., :3]) and out[..., 3].isnan()
