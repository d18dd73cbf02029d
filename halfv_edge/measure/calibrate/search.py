"""From the picked boundaries to a profile: candidates are run, and what they cost decides. Pure but for `measure`."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from halfv_edge.errors import HalfVError
from halfv_edge.profile.profile import DROPPED, FROZEN, Profile, Rest

ANCHORS = 0.1
MAP_KEEPS = (0.5, 0.25)
MODES: tuple[tuple[float, Rest], ...] = (
    (0.0, FROZEN),
    (0.05, DROPPED),
    (0.05, FROZEN),
    (0.0, DROPPED),
)  # ssr.update, ssr.rest
BETTER = 0.8  # a layer that was not picked must be this much better
KEEP_STEPS = 100
LEAST_KEEP = 0.05
FALLBACK_DEPTH = 0.75  # of stage III to try, when the entropy does not turn
STEP = 0.1  # of the depth: neighbours of the picked stage III
LADDER = (1.25, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 5.0, 6.0, 8.0)
LADDER_START = 3.0  # where the stage III mode is decided when a divergence is the target


@dataclass(frozen=True, slots=True)
class Check:
    """A profile that was run."""

    profile: Profile
    divergence: float  # KL of the answers from the unpruned model's, nats per token
    agreement: float  # share of answer tokens that stay the likeliest
    speedup: float  # FLOPs of a picture, unpruned by pruned

    @property
    def marginal_utility(self) -> float:
        """Divergence per share of compute saved; less is better."""
        return self.divergence / max(1 - 1 / self.speedup, 1e-9)


@dataclass(frozen=True, slots=True)
class Found:
    """What the search comes to."""

    best: Check
    map: tuple[Check, ...]  # stage II alone, over layers and shares
    modes: tuple[Check, ...]  # stage III, at equal compute
    notes: tuple[str, ...]


@dataclass(slots=True)
class Tried:
    """The same while it goes on."""

    ivr_layer: int
    map: list[Check] = field(default_factory=list)
    modes: list[Check] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


Measure = Callable[[Profile], Check]
Speedup = Callable[[Profile], float]
Fits = Callable[[Profile], bool]


class Search:
    def __init__(
        self,
        n_layer: int,
        ivr: int,
        ssr: int,
        measure: Measure,
        speedup: Speedup,
        fits: Fits = lambda _: True,
    ):
        """ivr, ssr: as picked from the curves; ssr = n_layer: the curves show no stage III.

        fits: whether the model can have a profile's stages.
        """
        self.n_layer = n_layer
        self.measure = measure
        self.speedup = speedup
        self.fits = fits
        self.first_layers = [il for il in range(1, n_layer) if fits(self._profile(il, 0.5, n_layer, 1.0, DROPPED))]
        if not self.first_layers:
            raise HalfVError("No layer of this model can begin a stage II.")
        self.picked = ivr
        self.ivr = _nearest(ivr, self.first_layers)
        self.ssr = ssr

    def run(self, target: float | None, max_divergence: float | None) -> Found:
        """The fastest within a divergence, else the closest at a speedup."""
        tried = Tried(self.ivr)
        if self.ivr != self.picked:
            tried.notes.append(f"stage II from layer {self.ivr}: this model cannot begin it at {self.picked}")
        self._stage2(tried)
        if max_divergence is not None:
            best = self._within(max_divergence, tried)
        else:
            assert target is not None
            best = self._at(target, tried)
        return Found(best, tuple(tried.map), tuple(tried.modes), tuple(tried.notes))

    def map_layers(self) -> list[int]:
        n = self.n_layer
        near = {self.ivr - 1, self.ivr, self.ivr + 1}
        return sorted({layer for layer in near | {n // 4, n // 2, 3 * n // 4} if layer in self.first_layers})

    def _stage2(self, tried: Tried) -> None:
        """The marginal utility over layers and shares; a neighbour of the pick replaces it if it is clearly better."""
        tried.map = [
            self.measure(self._profile(layer, keep, self.n_layer, 1.0, DROPPED))
            for layer in self.map_layers()
            for keep in MAP_KEEPS
        ]
        cost = {
            layer: sum(check.marginal_utility for check in tried.map if check.profile.ivr_layer == layer)
            for layer in self.map_layers()
            if abs(layer - self.ivr) <= 1
        }
        best = min(cost, key=cost.__getitem__)
        if best != self.ivr and cost[best] < BETTER * cost[self.ivr]:
            tried.notes.append(f"stage II from layer {best}: its marginal utility is better than that of {self.ivr}")
            tried.ivr_layer = best

    def _at(self, target: float, tried: Tried) -> Check:
        """The least divergence at a speedup."""
        ssr = self._first_ssr(tried)
        wanted = [(ssr, update, rest) for update, rest in MODES if ssr < self.n_layer] + [(self.n_layer, 1.0, DROPPED)]
        checks = self._checks(tried, wanted, target)
        if not checks:
            closest = max(self._fastest(tried, wanted), key=self.speedup)
            raise HalfVError(
                f"This model cannot become {target:g} times faster without keeping less than {LEAST_KEEP:.0%} of a "
                f"picture: the closest is {math.floor(100 * self.speedup(closest)) / 100:g}; ask for that with "
                "{target_speedup}.",
                settings={"target_speedup": None},
            )
        tried.modes += checks
        deep = [check for check in checks if check.profile.ssr_layer < self.n_layer]
        if deep:
            checks.append(self._best_layer(min(deep, key=_divergence), tried, target))
        return min(checks, key=_divergence)

    def _best_layer(self, first: Check, tried: Tried, target: float) -> Check:
        """A neighbour of the picked stage III takes its place if it is clearly better."""
        p, step = first.profile, max(1, round(STEP * self.n_layer))
        layers = [layer for layer in (p.ssr_layer - step, p.ssr_layer + step) if 0 < layer < self.n_layer]
        others = self._checks(tried, [(layer, p.ssr_update, p.ssr_rest) for layer in layers], target)
        tried.modes += others
        other = min(others, key=_divergence, default=first)
        if other.divergence >= BETTER * first.divergence:
            return first
        tried.notes.append(f"stage III from layer {other.profile.ssr_layer}: it diverges less than from {p.ssr_layer}")
        return other

    def _within(self, limit: float, tried: Tried) -> Check:
        """The highest speedup whose divergence is within the limit."""
        start = LADDER_START
        while True:  # some models cannot even reach the start
            try:
                first = self._at(start, tried)
                break
            except HalfVError:
                start -= 0.5
                if start <= 1:
                    raise
        mode = (first.profile.ssr_layer, first.profile.ssr_update, first.profile.ssr_rest)
        # how the divergence grows with the speedup is close enough to monotone for a bisection
        low, high, best, least = 0, len(LADDER), None, first
        while low < high:
            middle = (low + high) // 2
            checks = self._checks(tried, [mode, (self.n_layer, 1.0, DROPPED)], LADDER[middle])
            tried.modes += checks
            fits = [check for check in checks if check.divergence <= limit]
            least = min([least, *checks], key=_divergence)
            if fits:
                best, low = min(fits, key=_divergence), middle + 1
            else:
                high = middle
        if best is None:
            raise HalfVError(
                f"No profile stays within a divergence of {limit:g}: the closest has {_rounded_up(least.divergence)} "
                f"and is {least.speedup:.2f} times faster; ask for that with {{max_divergence}}.",
                settings={"max_divergence": None},
            )
        return best

    def _first_ssr(self, tried: Tried) -> int:
        if self.ssr < self.n_layer and self.ssr > tried.ivr_layer:
            ssr, why = self.ssr, ""
        else:
            ssr = min(self.n_layer - 1, max(tried.ivr_layer + 1, round(FALLBACK_DEPTH * self.n_layer)))
            why = f"{FALLBACK_DEPTH:.0%} of the depth, as no curve shows it"
        possible = [
            layer
            for layer in range(tried.ivr_layer + 1, self.n_layer)
            if any(self.fits(self._profile(tried.ivr_layer, 0.5, layer, *mode)) for mode in MODES)
        ]
        nearest = _nearest(ssr, possible) if possible else self.n_layer
        if nearest != ssr:
            why = f"as this model cannot begin it at {ssr}"
        note = f"stage III is tried from layer {nearest}, {why}" if possible else "no stage III is possible"
        if why and note not in tried.notes:
            tried.notes.append(note)
        return nearest

    def _checks(self, tried: Tried, wanted: Iterable[tuple[int, float, Rest]], target: float) -> list[Check]:
        """Each at the largest share of kept tokens that reaches the target; those that cannot are left out."""
        checks = []
        for ssr, update, rest in wanted:
            if not tried.ivr_layer < ssr <= self.n_layer:
                continue
            profile = self.fitting(tried.ivr_layer, ssr, update, rest, target)
            if profile and self.fits(profile):
                checks.append(self.measure(profile))
        return checks

    def _fastest(self, tried: Tried, wanted: Iterable[tuple[int, float, Rest]]) -> list[Profile]:
        all_of = [self._profile(tried.ivr_layer, LEAST_KEEP, *mode) for mode in wanted if mode[0] > tried.ivr_layer]
        return [profile for profile in all_of if self.fits(profile)]

    def fitting(self, ivr: int, ssr: int, update: float, rest: Rest, target: float) -> Profile | None:
        """With the largest share kept that makes it fast enough; None when LEAST_KEEP does not."""
        low, high = round(LEAST_KEEP * KEEP_STEPS), KEEP_STEPS
        profile = self._profile(ivr, low / KEEP_STEPS, ssr, update, rest)
        if self.speedup(profile) < target:
            return None
        while low < high:
            middle = (low + high + 1) // 2
            fitted = self._profile(ivr, middle / KEEP_STEPS, ssr, update, rest)
            if self.speedup(fitted) >= target:
                low, profile = middle, fitted
            else:
                high = middle - 1
        return profile

    def _profile(self, ivr: int, keep: float, ssr: int, update: float, rest: Rest) -> Profile:
        # every picture counts, small ones too
        return Profile(ivr, keep, ANCHORS, ssr, update, rest, min_visual_tokens=1)


def can_freeze(n_layer: int, fits: Fits) -> bool:
    """Whether all layers of a model can leave visual tokens as they are."""
    return n_layer < 3 or fits(Profile(1, 0.5, ANCHORS, 2, 0.0, FROZEN, min_visual_tokens=1))


def _nearest(layer: int, layers: Iterable[int]) -> int:
    return min(layers, key=lambda other: (abs(other - layer), other))


def _divergence(check: Check) -> float:
    return check.divergence


def _rounded_up(value: float) -> str:
    """Three digits, not less than the value."""
    step = 10 ** (math.floor(math.log10(max(value, 1e-12))) - 2)
    return f"{math.ceil(value / step) * step:.3g}"


def finished(profile: Profile, n_visual: float) -> Profile:
    """For everyday use: pictures far smaller than the samples are left whole."""
    return dataclasses.replace(profile, min_visual_tokens=min(64, max(1, round(n_visual / 2))))
