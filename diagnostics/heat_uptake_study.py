"""A heat uptake study: what a forced ensemble gains over its control, by depth, in time, on the map, as sea level.

    response(t) = [H_forced(t) - H_forced(0)] - [H_control(t) - H_control(0)],     uptake = d response / dt / A

for pairs of members that share weather and initial state, so that what both do alike (the seasons, drift) falls out;
without a control it is the change itself. Every number is that of a plain function: `global_heat_content`,
`heat_uptake`, `trend_with_error`, `global_steric`, `steric`, `dynamic_sea_level`, `heat_closure`,
`isotropic_spectrum`, `sign_agreement`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import dask
import numpy as np
import xarray as xr

from .conventions import RHO0, area_mean, described, thickness_of, vertical_dim, wet_area
from .heat import CP0, global_heat_content, heat_content, heat_uptake, tendency
from .heat_budget import heat_closure, trend_with_error
from .regions import Region, select_region
from .robustness import sign_agreement
from .sea_level import dynamic_sea_level, global_steric, steric
from .slabs import by_slab
from .spectra import isotropic_spectrum
from .study_inputs import require, same_index, with_members

if TYPE_CHECKING:
    from .page import Report

BANDS: Mapping[str, tuple[float, float]] = MappingProxyType(
    {
        "0-300 m": (0.0, 300.0),
        "300-700 m": (300.0, 700.0),
        "700-2000 m": (700.0, 2000.0),
        "below 2000 m": (2000.0, np.inf),
    }
)
"""Layers of the study, m."""

WHOLE = "whole depth"
_PARTS = ("steric", "thermosteric", "halosteric")


@dataclass(frozen=True, eq=False)
class HeatUptake:
    """A heat uptake study of an ensemble, for `report`.

    Attributes:
        forced: runs with `thetao` (member, time, lev, lat|y, lon|x) in degC, and `so` (0.001), `zos` (m), `hfds`
            (W m-2, mean over the interval that ends at its time) where there; single runs need no `member`.
        control: the same members and times without the forcing; None to study the change itself.
        reference: the same study of another model, such as the one an emulator was trained on; its own `reference`
            and `bands` do not count.
        bands: layers by name, (top, bottom) in m; those that the grid has are used.
        area: what "per square metre" refers to, m2; default the ocean's own surface. The Earth's is 5.1e14.
        window: records at the end whose mean is mapped; default a fifth of them.
        region: box, or its name in `REGIONS`, for spectra of `spectrum`; None for no spectra.
        spectrum: variable of the spectra, at its uppermost level.
        name: of the runs, for legends.
        cp: specific heat capacity, J kg-1 K-1, and `rho0`, reference density, kg m-3: the model's own.

    Raises ValueError for a variable that is missing or in other units, members or times that differ from those of
    the control, fewer than five records, or no layer that the grid has.
    """

    forced: xr.Dataset
    control: xr.Dataset | None = None
    reference: HeatUptake | None = None
    bands: Mapping[str, tuple[float, float]] = field(default_factory=lambda: BANDS)
    area: float | None = None
    window: int | None = None
    region: str | Region | None = None
    spectrum: str = "zos"
    name: str = "ensemble"
    cp: float = CP0
    rho0: float = RHO0

    def __post_init__(self) -> None:
        for what, run in self._runs():
            require(run, {"thetao": "degC"} | self._optional(run), f"HeatUptake: {what}")
            if run.sizes.get("time", 0) < 5:
                raise ValueError(f"HeatUptake: {what} needs five records or more, got {dict(run.sizes)}")
        if self.control is not None:
            members = ["member"] if "member" in {*self.forced.dims, *self.control.dims} else []
            pair = with_members(self.forced), with_members(self.control)
            same_index(*pair, ["time", *members], ("forced", "control"))
        if self.region is not None:
            for what, run in self._runs():
                if self.spectrum not in run:
                    raise ValueError(
                        f"HeatUptake: {what} lacks {self.spectrum!r} for its spectra: choose with spectrum="
                    )
        if not self.layers():
            raise ValueError(f"HeatUptake: no layer of {dict(self.bands)} lies in the grid: give bands=")

    @staticmethod
    def _optional(run: xr.Dataset) -> dict[str, str]:
        return {n: u for n, u in {"so": "0.001", "zos": "m", "hfds": "W m-2"}.items() if n in run}

    def _runs(self) -> list[tuple[str, xr.Dataset]]:
        runs = [("forced", self.forced), ("control", self.control)]
        return [(name, with_members(run)) for name, run in runs if run is not None]

    def layers(self) -> dict[str, tuple[float, float]]:
        """The layers of `bands` that the grid reaches, by name."""
        dz = thickness_of(self.forced.thetao)
        bottom = float(dz.sum(vertical_dim(self.forced.thetao)).max())
        return {name: depth for name, depth in self.bands.items() if depth[0] < bottom}

    def surface(self) -> float:
        """The area that uptake is per, m2."""
        return float(wet_area(self.forced.thetao)) if self.area is None else self.area

    def report(self, title: str = "", *, progress: bool = False) -> Report:
        """The study as a page, to be added to and written; `title` instead of the study's own."""
        from .heat_uptake_page import page  # here, because figures need matplotlib, and workers of a cluster do not

        return page(self, title, progress=progress)

    def results(self, *, progress: bool = False) -> xr.Dataset:
        """The numbers of the study, in memory, float64.

        Along band (the layers, and the whole depth), member and time: `heat`, of the control `heat_control`, and
        their `response`, J; `uptake` (band, member) and `rate` (member, time), W m-2; `trend`, `low`, `high` (band),
        the trend of the ensemble mean with its 95 % interval, W m-2. With `so`: the responses `steric`,
        `thermosteric`, `halosteric` (member, time), m, global means. With `hfds`: `change`, `accumulated`, `residual`
        (member, time), J m-2 of ocean, of the forced runs, see `heat_closure`.
        """
        found: dict[str, xr.Dataset] = {}
        start = self._start()
        for what, run in self._runs():
            read = run[["thetao", *(["so"] if start is not None else []), *(["hfds"] if "hfds" in run else [])]]
            title = f"{self.name}, {what}"
            found[what] = by_slab(lambda slab: self._series(slab, start), read, title=title, progress=progress)
        forced, control = found["forced"], found.get("control")
        response = _response(forced.heat, None if control is None else control.heat)
        response = described(response, "response", units="J", long_name="heat content change")
        out = {"heat": forced.heat, "response": response}
        if control is not None:
            out["heat_control"] = control.heat
        area = self.surface()
        out["uptake"] = heat_uptake(response, area=area)
        out["rate"] = heat_uptake(response.sel(band=WHOLE, drop=True), area=area, rate=tendency)
        fit = trend_with_error(response.mean("member", keep_attrs=True))
        for name in ("trend", "low", "high"):
            out[name] = described(fit[name] / area, name, units="W m-2", long_name=str(fit[name].attrs["long_name"]))
        for part in _PARTS if start is not None else ():
            rise = _response(forced[part], None if control is None else control[part])
            out[part] = described(rise, part, units="m", long_name=f"{part} sea level change")
        if "flux" in forced:
            whole = out["heat"].sel(band=WHOLE, drop=True) / float(wet_area(self.forced.thetao))
            closed = heat_closure(described(whole, "ohc", units="J m-2"), forced.flux)
            out |= {str(n): v for n, v in closed.data_vars.items()}
        attrs = {"area": area, "cp": self.cp, "rho0": self.rho0}
        return xr.Dataset({n: v.reset_coords(drop=True) for n, v in out.items()}, attrs=attrs)

    def _start(self) -> xr.Dataset | None:
        """State that steric height is relative to: mean of the members at the first time, of the control if any."""
        first = with_members(self.forced if self.control is None else self.control)
        if "so" not in first or "so" not in self.forced:
            return None
        return first[["thetao", "so"]].isel(time=0, drop=True).mean("member", keep_attrs=True).load()

    def _series(self, run: xr.Dataset, start: xr.Dataset | None) -> xr.Dataset:
        constants: dict[str, Any] = {"cp": self.cp, "rho0": self.rho0}
        layers = {**self.layers(), WHOLE: (0.0, np.inf)}
        heat = [global_heat_content(run.thetao, depth=d, **constants) for d in layers.values()]
        band = xr.DataArray([*layers], dims="band", name="band")
        joined = xr.concat(heat, band, coords="minimal", compat="override", combine_attrs="drop_conflicts")
        out = {"heat": joined.assign_attrs(units="J", long_name="ocean heat content")}
        if start is not None:
            rise = global_steric(run.thetao, run.so, reference=start)
            out |= {part: rise[part] for part in _PARTS}
        if "hfds" in run:
            out["flux"] = area_mean(run.hfds)
        return xr.Dataset(out)

    def patterns(self) -> dict[str, tuple[xr.DataArray, xr.DataArray]]:
        """Maps of the response, mean of the members over the window, and of the part of them that agrees in sign.

        By name: heat content of the whole depth (J m-2), and, of what is there, steric, thermosteric and halosteric
        height and dynamic sea level (m). Without a control: the last window minus the first.
        """
        runs = dict(self._runs())
        late, early = slice(-self.records(), None), slice(None, self.records())
        after = runs["forced"].isel(time=late)
        before = runs["control"].isel(time=late) if "control" in runs else runs["forced"].isel(time=early)
        constants: dict[str, Any] = {"cp": self.cp, "rho0": self.rho0}
        content = [heat_content(r.thetao, depth=(0.0, np.inf), **constants).mean("time") for r in (after, before)]
        fields = {"heat content": (content[0] - content[1], "J m-2")}
        if (start := self._start()) is not None:
            # Of the mean state, not the mean over states: one equation of state for each member, not for each record.
            states = [r[["thetao", "so"]].mean("time", keep_attrs=True) for r in (after, before)]
            heights = [steric(s.thetao, s.so, reference=start) for s in states]
            fields |= {f"{part} height": (heights[0][part] - heights[1][part], "m") for part in _PARTS}
        if all("zos" in r for r in (after, before)):
            level = [dynamic_sea_level(r.zos).mean("time") for r in (after, before)]
            fields["dynamic sea level"] = (level[0] - level[1], "m")
        maps = {n: (x.mean("member"), sign_agreement(x), units) for n, (x, units) in fields.items()}
        compute: Any = dask.compute  # type: ignore[attr-defined,unused-ignore]  # dask has no types
        (done,) = compute({n: (x, share) for n, (x, share, _) in maps.items()})
        return {
            n: (described(x, "change", units=maps[n][2], long_name=f"{n} change"), share)
            for n, (x, share) in done.items()
        }

    def records(self) -> int:
        """Records in the window of the maps."""
        return self.window or max(1, self.forced.sizes["time"] // 5)

    def spectra(self) -> dict[str, xr.DataArray]:
        """Spectra of `spectrum` in the region, (member, wavenumber), by run: mean over the window."""
        if self.region is None:
            return {}
        found = {}
        for what, run in self._runs():
            box = select_region(run[self.spectrum].isel(time=slice(-self.records(), None)), self.region)
            if "lev" in box.dims:
                box = box.isel(lev=0, drop=True)
            box = box.load()
            land = "taper" if bool(box.isnull().any()) else "refuse"
            found[what] = isotropic_spectrum(box, land=land).mean("time", keep_attrs=True)
        return found

    def compared(self) -> HeatUptake | None:
        """The reference study, with the layers of this one."""
        return None if self.reference is None else replace(self.reference, bands=self.bands, reference=None)


def _response(forced: xr.DataArray, control: xr.DataArray | None) -> xr.DataArray:
    """Change since the first record, beyond that of the control."""
    change = forced - forced.isel(time=0, drop=True)
    return change if control is None else change - (control - control.isel(time=0, drop=True))
