"""Stage boundaries from curves: pure functions of arrays. docs/calibration.md gives the reasons."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from halfv_edge.measure.arrays import Floats

EARLY = 0.25  # share of the depth in which stage II may start
ABRUPT = 0.25  # of a fall in one layer makes it a cliff and not a slope
STEEPER = 1.3  # times an even slope's step, the same
STAYS = 0.5  # of a cliff may come back, or it was a notch
NOTICEABLE = 0.1  # a fall smaller than this share of the curve's size says nothing
MARGIN = 0.05  # of the depth that stage III starts after the entropy's minimum
TURNED = 0.1  # of the fall must come back, or the curve has not turned
STEP = 0.1  # of a layer, in which the minimum is looked for
DEEP = 24  # layers from which stage II starts at 2 when nothing else is known


@dataclass(frozen=True, slots=True)
class Curves:
    """Means over samples, of a model of n layers."""

    visual: Floats  # [n + 1] entropy at each boundary
    text: Floats  # [n + 1]
    attention: Floats  # [n] share of the last token's attention that goes to the picture; NaN: the layer has none
    layer_kl: Floats  # [n] divergence when this layer leaves visual tokens as they are; NaN: it cannot be frozen

    @property
    def n_layer(self) -> int:
        return len(self.layer_kl)


@dataclass(frozen=True, slots=True)
class Pick:
    """A boundary and why it is there."""

    layer: int
    reason: str


def stage2(curves: Curves) -> Pick:
    """The first layer of stage II: where the cliffs of the first layers end, by the upper median of those there are."""
    n = curves.n_layer
    window = max(4, math.floor(EARLY * n)) + 1
    votes = {
        "text entropy": cliff_end(curves.text[:window]),
        "layer divergence": cliff_end(np.log10(np.maximum(curves.layer_kl[:window], 1e-12)), size=1.0),
        "attention to the picture": cliff_end(curves.attention[:window]),
    }
    cast = {name: vote for name, vote in votes.items() if vote is not None}
    if not cast:
        return Pick(_clip(2 if n >= DEEP else round(2 * n / 28), 1, n - 1), "no cliff in the first layers: by depth")
    layer = sorted(cast.values())[len(cast) // 2]
    listed = ", ".join(f"{name} {vote}" for name, vote in cast.items())
    return Pick(_clip(layer, 1, max(1, min(n - 1, math.ceil(EARLY * n)))), f"the cliffs end at: {listed}")


def stage3(curves: Curves, ivr_layer: int) -> Pick:
    """The first layer of stage III, a twentieth of the depth after the visual entropy's minimum; n: it never turns."""
    n = curves.n_layer
    lowest = valley(curves.visual, ivr_layer)
    if lowest is None:
        return Pick(n, "the visual entropy does not turn: no stage III by entropy")
    layer = _clip(math.floor(lowest + MARGIN * n + 0.5), ivr_layer + 1, n - 1)
    return Pick(layer, f"the visual entropy is lowest at {lowest:.1f}")


def cliff_end(values: Floats, size: float | None = None) -> int | None:
    """Where an abrupt fall at the start of a curve is over; None for a flat, rising or gently sloping one.

    size: what a fall has to be compared with; the largest value when not given.
    NaN where a layer says nothing.
    """
    values = np.asarray(values, np.float64)
    known = np.flatnonzero(np.isfinite(values))
    if len(known) < len(values):
        end = cliff_end(values[known], size) if len(known) > 2 else None
        return end if end is None else int(known[end])
    start = int(np.argmax(values[: max(2, len(values) // 2)]))
    low = values[start:].min()
    fall = values[start] - low
    steps = values[start:-1] - values[start + 1 :]
    least = max(ABRUPT, STEEPER / len(steps)) * fall
    if fall < NOTICEABLE * (size or np.abs(values).max()) or fall <= 0 or steps.max() < least:
        return None
    end = start + int(np.flatnonzero(steps >= least)[-1]) + 1
    return end if values[end:].max() - low <= STAYS * fall else None


def valley(visual: Floats, first: int) -> float | None:
    """Where, from boundary `first` on, a curve that falls and rises again is lowest; None when it does not."""
    visual = np.asarray(visual, np.float64)
    n = len(visual) - 1
    smooth = np.convolve(np.pad(visual, 1, mode="edge"), np.full(3, 1 / 3), mode="valid")
    low = first + int(np.argmin(smooth[first : n + 1]))
    fall = smooth[first : low + 1].max() - smooth[low]
    rise = smooth[low:].max() - smooth[low]
    if fall < NOTICEABLE * np.abs(smooth[first:]).max() or rise < TURNED * fall:
        return None
    return _vertex(visual, first, low)


def _vertex(values: Floats, first: int, low: int) -> float:
    """The bottom of a valley near `low`: a parabola for each side, as one can be steeper, by least squares."""
    n = len(values) - 1
    reach = max(2, round(n / 6))
    at = np.arange(max(first, low - reach), min(n, low + reach) + 1)
    best, place = np.inf, float(low)
    for x in np.arange(low - reach / 2, low + reach / 2 + STEP, STEP):
        off = (at - x) ** 2.0
        basis = np.stack([np.ones(len(at)), off * (at < x), off * (at > x)], axis=1)
        found = np.linalg.lstsq(basis, values[at], rcond=None)[0]
        error = float(((basis @ found - values[at]) ** 2).sum())
        if error < best and found[1] >= 0 and found[2] >= 0:
            best, place = error, float(x)
    return place


def _clip(value: int, low: int, high: int) -> int:
    return max(low, min(value, high))
