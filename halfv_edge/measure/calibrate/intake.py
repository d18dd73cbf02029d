"""What pictures may lose before the language model: how small they are made, what the encoder's later layers see.

Each is run alone first. What stays within a bound then is among the moves of the search.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from halfv_edge.measure.calibrate.search import FIRST_HEAT, Check
from halfv_edge.profile.profile import Profile

LOSSES = (0.1, 0.15, 0.2, 0.25, 0.3)  # halfv.image.loss
DEPTHS = (1 / 4, 1 / 3, 1 / 2, 2 / 3)  # of the encoder's layers, where halfv.encoder.layer may be
SHARES = (0.35, 0.5, 0.7)  # halfv.encoder.keep

Measure = Callable[[Profile, int | None], Check]  # on the first so many samples, None: on all


@dataclass(frozen=True, slots=True)
class Admitted:
    """What may be tried before the language model, each alone, ever cheaper."""

    smaller: tuple[Check, ...]
    reduced: tuple[Check, ...]

    @property
    def checks(self) -> tuple[Check, ...]:
        return self.smaller + self.reduced

    @property
    def losses(self) -> list[float]:
        return [check.profile.image_loss for check in self.smaller]

    @property
    def reductions(self) -> list[tuple[int, float]]:
        return [(check.profile.encoder_layer, check.profile.encoder_keep) for check in self.reduced]

    def __str__(self) -> str:
        parts = [f"halfv.image.loss {check.profile.image_loss:g} ({check.divergence:.3g})" for check in self.smaller]
        parts += [
            f"halfv.encoder.layer {check.profile.encoder_layer} with halfv.encoder.keep "
            f"{check.profile.encoder_keep:g} ({check.divergence:.3g})"
            for check in self.reduced
        ]
        return ", ".join(parts) or "nothing"


def smaller(own: Profile) -> list[Profile]:
    """Ever smaller pictures; none where a loss is given."""
    return [dataclasses.replace(own, image_loss=loss) for loss in LOSSES] if own.image_loss == 0 else []


def reductions(own: Profile, n_layer: int, last_cut: int) -> list[Profile]:
    """What an encoder of so many layers may leave out, ever cheaper; none where it cannot, or one is given."""
    if own.encoder_keep < 1:
        return []
    layers = {min(max(1, round(depth * n_layer)), last_cut) for depth in DEPTHS} - {0}
    pairs = [(layer, share) for layer in layers for share in SHARES]
    pairs.sort(key=lambda pair: (pair[0] + (n_layer - pair[0]) * pair[1], pair), reverse=True)
    return [dataclasses.replace(own, encoder_layer=layer, encoder_keep=share) for layer, share in pairs]


def admit(own: Profile, n_layer: int, last_cut: int, limit: float, measure: Measure, n_samples: int) -> Admitted:
    """Those that stay within a divergence, alone.

    own: nothing left out but what is given.
    n_layer, last_cut: the encoder's layers, and the last with which a reduction may begin.
    """
    heat = -(-n_samples // FIRST_HEAT)
    return Admitted(
        _within(smaller(own), measure, limit, heat), _within(reductions(own, n_layer, last_cut), measure, limit, heat)
    )


def _within(profiles: Iterable[Profile], measure: Measure, limit: float, heat: int) -> tuple[Check, ...]:
    """On a share of the samples first, so that what is hopeless costs little."""
    found = []
    for profile in profiles:
        if _surely_above(measure(profile, heat).each, limit):
            continue
        check = measure(profile, None)
        # one that changes no picture, as all are of one size or too small, diverges by nothing at all
        if 0 < check.divergence <= limit:
            found.append(check)
    return tuple(found)


def _surely_above(each: Sequence[float], limit: float) -> bool:
    """By more than the mean's standard error."""
    error = statistics.stdev(each) / math.sqrt(len(each)) if len(each) > 1 else 0.0
    return statistics.fmean(each) - error > limit
