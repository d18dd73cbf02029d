"""95% confidence intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from halfv_edge.measure.arrays import Floats

Z = 1.959963984540054
SAMPLES = 2000
SEED = 20

Interval = tuple[float, float]


def wilson(right: float, count: int) -> Interval:
    """Of a share of answers that are right or wrong."""
    if not count:
        return 0.0, 1.0
    share = right / count
    centre = share + Z * Z / (2 * count)
    half = Z * math.sqrt(share * (1 - share) / count + Z * Z / (4 * count * count))
    low, high = ((centre + sign * half) / (1 + Z * Z / count) for sign in (-1, 1))
    return max(low, 0.0), min(high, 1.0)


def weights(n_groups: int) -> Floats:
    """[SAMPLES, n_groups]: how often each group is in each sample of the bootstrap. Always the same."""
    rng = np.random.default_rng(SEED)
    return rng.multinomial(n_groups, [1 / n_groups] * n_groups, size=SAMPLES).astype(np.float64)


def by_group(values: Sequence[float], groups: Sequence[int], n_groups: int) -> Floats:
    """Sums of values per group."""
    sums: Floats = np.bincount(np.asarray(groups), np.asarray(values, dtype=np.float64), n_groups).astype(np.float64)
    return sums


def quantiles(samples: Floats) -> Interval:
    """The middle 95% of bootstrap samples; those that could not be computed are left out."""
    usable = samples[np.isfinite(samples)]
    if not usable.size:
        return math.nan, math.nan
    low, high = np.quantile(usable, (0.025, 0.975))
    return float(low), float(high)
