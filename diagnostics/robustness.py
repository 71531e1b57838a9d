"""Where an ensemble agrees: the part of the members whose change has the sign of the mean change.

Maps of changes are dotted where fewer than 80 % of the members agree, the simple method of IPCC AR6 (2021, Working
Group I, Cross-Chapter Box Atlas.1).
"""

from __future__ import annotations

import xarray as xr

from .conventions import described


def sign_agreement(change: xr.DataArray, *, member_dim: str = "member") -> xr.DataArray:
    """Part of the members whose change has the sign of the ensemble mean, 0 to 1.

    `change` (member, …), such as forced minus control; returns (…), dimensionless, float64, lazy for lazy input, NaN
    where a member is missing or the mean is 0. Raises ValueError without `member_dim`.
    """
    if member_dim not in change.dims:
        raise ValueError(f"agreement is of members, got dimensions {change.dims}: name theirs with member_dim=")
    mean = change.astype("f8").mean(member_dim, skipna=False)
    agreeing = (change * mean > 0).mean(member_dim)
    result = agreeing.where(mean.notnull() & (mean != 0))
    return described(result, "sign_agreement", units="1", long_name="part of the members with the sign of the mean")
