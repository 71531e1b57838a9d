"""Observing networks for twin experiments: what instruments read off a truth.

    y[k] = H(x[k]) + b[k] + error · C^½ η[k],   η ~ N(0, 1)

with the instrument's own offset b and the correlations C of errors within groups. A network is an instrument, or a
tuple of instruments (`instruments.py`, `satellites.py`; `faults.py` for what is wrong with them). Positions and errors
are drawn from `noise.stream("observe")` by the time of the observation and the instrument's place in the tuple, so that
an experiment that is continued sees what it would have seen without the break.

Instruments whose observations lie between two analyses (`offset` < 0) see the truth at their own time, linearly
interpolated between its states.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from datetime import timedelta

import numpy as np
import torch

from ..emulators import Noise, State
from .correlation import coloured
from .observations import ObservationError, Observations
from .operators import newest, operator_for
from .places import Instrument, errors_of, reported_by

Network = Instrument | Sequence[Instrument]


def observe_state(truth: State, network: Network, noise: Noise) -> Observations:
    """What a network reads off a truth of one member, in its newest time slot.

    Raises ObservationError for several members, a variable that the truth has not, or instruments that look at times
    before that of the state: those need `observe`.
    """
    return _observed((truth,), network, noise)


def observe(
    truth: State | Iterable[State], network: Network, noise: Noise, *, every: int = 1, skip_first: bool = True
) -> Iterator[Observations]:
    """Observations of a truth as it goes by, lazily.

    Args:
        truth: states of one member, such as `trajectory(...)` or `states_of(store, layout)`; or one state,
            which is observed once. The last `every` + 1 are kept, for instruments that look between them.
        network: an instrument, or several.
        noise: of the experiment; positions and errors are functions of it and of time.
        every: observe every so many states, counted from the first.
        skip_first: do not observe the first state, where a cycle begins.

    Raises ObservationError as `observe_state`, or for an instrument that looks back beyond the observation time before.
    """
    if every < 1:
        raise ValueError(f"observe: wanted every >= 1, got {every}")
    if isinstance(truth, State):
        yield observe_state(truth, network, noise)
        return
    kept: deque[State] = deque(maxlen=every + 1)
    for k, state in enumerate(truth):
        kept.append(state)
        if k % every == 0 and not (k == 0 and skip_first):
            yield _observed(tuple(kept), network, noise)


def _observed(states: Sequence[State], network: Network, noise: Noise) -> Observations:
    """What a network reads off the last of some states of the truth, and between them."""
    truth = states[-1]
    if len(truth.members) != 1:
        raise ObservationError(f"wanted a truth of one member, got members {truth.members}; choose with `state.sel`")
    time, drawn = newest(truth), noise.stream("observe")
    instruments = network if isinstance(network, Sequence) else (network,)
    parts = []
    for k, instrument in enumerate(instruments):
        own = drawn.stream(str(k))
        places = instrument.places(truth.layout, time, own)
        exact = _exact(states, places)
        error = np.asarray(errors_of(instrument, places, exact), float)
        eta = own.stream("error").normal((0,), time, (len(places),), dtype=torch.float64)[0].numpy()
        seen = np.isfinite(error)
        places = places.replace(error=np.where(seen, error, 1.0)).select(seen)
        value = exact[seen] + places.value + places.error * coloured(places, eta[seen])
        parts.append(reported_by(instrument, places.replace(value=value), own))
    return Observations.concat(parts)


def _exact(states: Sequence[State], places: Observations) -> np.ndarray:
    """H of the truth at the observations' own times, (observation,)."""
    if not places.offset.any():
        return _seen(states[-1], places)
    now = newest(states[-1])
    at = np.array([(newest(s) - now).total_seconds() for s in states])
    _require_reach(at, places)
    after = np.clip(np.searchsorted(at, places.offset), 1, len(at) - 1)
    exact = np.zeros(len(places))
    for j in np.unique(after):
        rows = after == j
        part = places.select(rows)
        share = (part.offset - at[j - 1]) / (at[j] - at[j - 1])
        exact[rows] = (1 - share) * _seen(states[j - 1], part) + share * _seen(states[j], part)
    return exact


def _require_reach(at: np.ndarray, places: Observations) -> None:
    """Raise ObservationError if observations are earlier than the first of the states at some seconds."""
    early = places.offset < at[0]
    if len(at) == 1:
        raise ObservationError(
            f"observations taken up to {timedelta(seconds=-places.offset.min())} before {places.time} need the truth "
            "at that time, and there is only one state; give `observe` the states from the time before on, and let it "
            "skip the first (`skip_first=True`)"
        )
    if early.any():
        raise ObservationError(
            f"wanted observations after {places.time + timedelta(seconds=at[0])}, the observation time before, or the "
            f"first state; {int(early.sum())} of {len(places)} are earlier, by up to "
            f"{timedelta(seconds=float((at[0] - places.offset).max()))}. Shorten the instrument's window, or observe "
            "less often (`every`)"
        )


def _seen(state: State, places: Observations) -> np.ndarray:
    exact = operator_for(state.layout, places).apply(state.to(torch.float64))[0].detach().cpu().numpy()
    return np.asarray(exact)
