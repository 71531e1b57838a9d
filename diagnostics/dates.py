"""Dates of any calendar in words."""

from __future__ import annotations

from typing import Any

import numpy as np


def date_words(moment: Any) -> str:
    """A date, cftime or datetime64, as 2000-01-31."""
    if isinstance(moment, np.datetime64):
        return str(moment.astype("datetime64[D]"))
    return f"{moment.year:04d}-{moment.month:02d}-{moment.day:02d}"
