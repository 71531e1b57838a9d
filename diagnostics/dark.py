"""The same figure for a dark page: greys change places, hues and colour maps stay.

A grey of lightness l becomes one of 0.93 - 0.86 l, so white is the paper of the page's dark style and black nearly
white; a colour that tells lines apart keeps its hue, mixed with white if it is dark; values of a map keep theirs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, to_rgba_array
from matplotlib.figure import Figure

PAPER = 0.07
"""Lightness of the dark page, as the template's."""

_GREY = 0.12  # the most that red, green and blue of a grey differ
_DARK, _WHITE = 0.45, 0.25  # luma below which a hue is mixed with so much white
_LUMA = np.array([0.2126, 0.7152, 0.0722])
_PARTS = ("color", "facecolor", "edgecolor", "markerfacecolor", "markeredgecolor")


def turned(colors: Any) -> Any:
    """The colours, RGBA (n, 4), for a dark page; what is invisible stays as it was."""
    rgba = to_rgba_array(colors)
    rgb = rgba[:, :3]
    grey = np.ptp(rgb, axis=1, keepdims=True) <= _GREY
    hue = rgb + (_WHITE * (rgb @ _LUMA < _DARK))[:, None] * (1 - rgb)
    seen = np.where(grey, (1 - PAPER) - (1 - 2 * PAPER) * rgb.mean(1, keepdims=True), hue)
    rgba[:, :3] = np.where(rgba[:, 3:] > 0, seen, rgb)
    return rgba


def _parts(artist: Artist) -> Iterator[tuple[Callable[[], Any], Callable[[Any], Any], bool]]:
    """Getter and setter of each colour of an artist, and whether it holds many."""
    if isinstance(artist, ScalarMappable) and artist.get_array() is not None:
        return
    for part in _PARTS:
        get, put = getattr(artist, f"get_{part}", None), getattr(artist, f"set_{part}", None)
        # The colour of patches, collections and spines is that of face and edge.
        if get is None or put is None or (part == "color" and hasattr(artist, "get_facecolor")):
            continue
        yield get, put, hasattr(artist, "get_offsets")


@contextmanager
def darkened(fig: Figure) -> Iterator[Figure]:
    """The figure in dark while the context lasts, and as it was afterwards; it has to have been drawn before."""
    changes: list[tuple[Callable[[Any], Any], Any, Any]] = []
    # All are read before one is changed: figure and axes pass on the colours of their patches.
    for artist in fig.findobj(include_self=True):
        if isinstance(artist, ScalarMappable) and artist.get_array() is not None and artist.get_cmap().N == 1:
            cmap = artist.get_cmap()
            changes.append((artist.set_cmap, cmap, ListedColormap(turned(cmap(0)))))
        for get, put, many in _parts(artist):
            old = get()
            if (isinstance(old, str) and old in ("none", "auto")) or not len(new := turned(old)):
                continue
            changes.append((put, old, new if many else tuple(new[0])))
    for put, _, new in changes:
        put(new)
    try:
        yield fig
    finally:
        for put, old, _ in changes:
            put(old)
