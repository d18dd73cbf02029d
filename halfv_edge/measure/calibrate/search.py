"""From the picked boundaries to a frontier: for each speedup the profile that stays nearest to the unpruned model.

Layers, shares, stage III, what the encoder leaves out and further parts are searched together: whatever is tried keeps
as many tokens as the speedup allows, so that only what it does to the answers decides. Pure but for `measure`.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from halfv_edge.errors import HalfVError
from halfv_edge.measure.calibrate.parts import Part
from halfv_edge.profile.profile import (
    DEFAULTS,
    DROPPED,
    FROZEN,
    LAST,
    NARROW,
    QUESTION,
    WHOLE_INTAKE,
    Intake,
    Profile,
    Query,
    Rest,
)
from halfv_edge.profile.values import InvalidError

ANCHORS = (0.1, 0.3, 0.6, 0.0)
QUERIES: tuple[Query, ...] = (LAST, QUESTION)
MODES: tuple[tuple[float, Rest], ...] = (
    (0.0, FROZEN),
    (0.05, DROPPED),
    (0.05, FROZEN),
    (0.0, DROPPED),
    (0.15, DROPPED),
)  # ssr.update, ssr.rest
KEEP_STEPS = 200
LEAST_KEEP = 0.02
FALLBACK_DEPTH = 0.75  # of stage III to try, when the entropy does not turn
STEP = 0.1  # of the depth: the longer of two steps by which layers move
ROUNDS = 2  # through all kinds of moves, for one speedup
LADDER = (1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0)
SLOW_LADDER = (1.1, 1.25)  # before it, where an encoder that is counted is most of the work
CLOSE = 0.002  # nats per token: what is nearer than this is not improved
HOPELESS = 1.0  # nats per token: what is faster than this is not tried
HALVINGS = 5  # of the gap between two speedups, for a divergence that lies between theirs
FINALISTS = 6  # of the search all over
SURE = 2.0  # standard errors
NEAR_EQUALS = 4  # of one speedup, that the samples cannot tell apart: others decide between them
FIRST_HEAT = 4  # a candidate runs on a share of the samples first, one in so many


@dataclass(frozen=True, slots=True)
class Check:
    """A profile that was run."""

    profile: Profile
    each: tuple[float, ...]  # KL of the answers from the unpruned model's, nats per token, a sample each
    agreement: float  # share of answer tokens that stay the likeliest
    speedup: float  # what a picture costs, unpruned by pruned

    @property
    def divergence(self) -> float:
        return statistics.fmean(self.each)


@dataclass(frozen=True, slots=True)
class Choices:
    """What may be tried beside the stages. The first of each list is how the model is loaded."""

    taus: Sequence[float | None] = (None,)  # of patches that the encoder spares
    inputs: Sequence[float] = (1.0,)  # shares of its rows that go on, ever fewer
    losses: Sequence[float] = (0.0,)  # of pictures that are made smaller, ever more
    reductions: Sequence[tuple[int, float]] = ((1, 1.0),)  # first layer and share of a reduced encoder, ever cheaper
    parts: Sequence[Part] = ()
    own: Intake = WHOLE_INTAKE  # what else happens before the language model
    slow: bool = False  # whether to begin at less than the usual speedups

    def encoders(self, profile: Profile) -> Iterator[Profile]:
        """A profile with each of them before the language model."""
        for tau, loss, (layer, keep) in itertools.product(self.taus, self.losses, self.reductions):
            yield dataclasses.replace(profile, pixel_tau=tau, image_loss=loss, encoder_layer=layer, encoder_keep=keep)

    def cheapest(self, profile: Profile) -> Profile:
        """With the smallest pictures and the cheapest encoder; it may spare patches as it did."""
        layer, keep = self.reductions[-1]
        return dataclasses.replace(profile, image_loss=self.losses[-1], encoder_layer=layer, encoder_keep=keep)


def staged(ivr_layer: int, ssr_layer: int, own: Intake = WHOLE_INTAKE) -> Profile:
    """Stages that leave nothing out; every picture counts, small ones too."""
    return own.within(Profile(ivr_layer, 1.0, ANCHORS[0], ssr_layer, 1.0, DROPPED, min_visual_tokens=1))


def keeping(profile: Profile, share: float) -> Profile:
    return dataclasses.replace(profile, ivr_keep=share)


@dataclass(frozen=True, slots=True)
class Found:
    """What the search comes to."""

    best: Check
    frontier: tuple[Check, ...]  # faster and faster, each further from the unpruned model
    tried: tuple[Check, ...]  # all that ran on every sample


T = TypeVar("T")
WHOLE = Choices()
Measure = Callable[[Profile, int | None], Check]  # on the first so many samples, None: on all
Confirm = Callable[[Profile], Check]  # on samples that the search does not see
Speedup = Callable[[Profile], float]
Fits = Callable[[Profile], bool]


class Search:
    def __init__(
        self, n_layer: int, ivr: int, ssr: int, measure: Measure, speedup: Speedup, n_samples: int,
        choices: Choices = WHOLE, fits: Fits = lambda _: True, confirm: Confirm | None = None,
    ):  # fmt: skip
        """ivr, ssr: as picked from the curves; ssr = n_layer: the curves show no stage III.

        fits: whether the model can have a profile's stages.
        confirm: None: there are no other samples, and those of the search have the last word.
        """
        self.n_layer = n_layer
        self.measure = measure
        self.speedup = speedup
        self.heat = -(-n_samples // FIRST_HEAT)
        self.long = max(2, round(STEP * n_layer))
        self.choices = choices
        self.fits = fits
        self._tried: dict[Profile, Check] = {}
        self._confirm = functools.cache(confirm or self._check)
        self.first_layers = [layer for layer in range(1, n_layer) if self._possible(self._staged(layer, n_layer))]
        if not self.first_layers:
            raise HalfVError("No layer of this model can begin a stage II.")
        self.ivr = _nearest(ivr, self.first_layers)
        self.ssr = ssr if self.ivr < ssr < n_layer else round(FALLBACK_DEPTH * n_layer)

    def _staged(self, ivr_layer: int, ssr_layer: int) -> Profile:
        return staged(ivr_layer, ssr_layer, self.choices.own)

    def run(self, target: float | None, max_divergence: float | None) -> Found:
        """The fastest within a divergence, else the nearest at a speedup."""
        points: list[Check] = []
        shape = self._staged(self.ivr, self.n_layer)
        ladder = sorted({*LADDER, *(SLOW_LADDER if self.choices.slow else ()), *([target] if target else [])})
        for speed in ladder:
            path = self._nearest_at(speed, shape)
            if not path:
                break
            point = self._settled(path)
            points.append(point)
            shape = point.profile
            if point.divergence > HOPELESS and not (target and speed < target):
                break
        if not any(point.speedup >= (target or 0) for point in points):
            raise self._out_of_reach(target or ladder[0])
        best = self._at(target, points) if target else self._within(max_divergence or 0.0, points)
        return Found(best, _frontier([*points, best]), tuple(self._tried.values()))

    def _at(self, target: float, points: Sequence[Check]) -> Check:
        return min((point for point in points if point.speedup >= target), key=_divergence)

    def _out_of_reach(self, speed: float) -> HalfVError:
        shapes = [*self._shapes(), *map(self.choices.cheapest, self._shapes())]
        closest = max(self.speedup(keeping(shape, LEAST_KEEP)) for shape in shapes)
        return HalfVError(
            f"This model cannot become {speed:g} times faster without keeping less than {LEAST_KEEP:.0%} of a "
            f"picture: the closest is {math.floor(100 * closest) / 100:g}; ask for that with "
            "{target_speedup}.",
            settings={"target_speedup": None},
        )

    def _settled(self, path: Sequence[Check]) -> Check:
        """Of the last and those on the way that its samples cannot tell from it the nearest on others, with what
        these say."""
        finals = [check for check in path if not surely_less(path[-1].each, check.each, SURE)][-NEAR_EQUALS:]
        return min((self._confirm(check.profile) for check in reversed(finals)), key=_divergence)

    def _within(self, limit: float, points: Sequence[Check]) -> Check:
        """The fastest of some between the last step of the ladder that fits and the next."""
        fitting = [check for check in points if check.divergence <= limit]
        if not fitting:
            least = min(points, key=_divergence)
            raise HalfVError(
                f"No profile stays within a divergence of {limit:g}: the closest has {_rounded_up(least.divergence)} "
                f"and is {least.speedup:.2f} times faster; ask for that with {{max_divergence}}.",
                settings={"max_divergence": None},
            )
        slow = max(fitting, key=_speedup)
        fast = min((point for point in points if point.speedup > slow.speedup), key=_speedup, default=None)
        low, high = slow.speedup, fast.speedup if fast else slow.speedup
        shapes = [point.profile for point in (slow, fast) if point]
        for _ in range(HALVINGS if fast else 0):
            middle = math.sqrt(low * high)
            checks = [check for shape in shapes if (check := self._fitted(shape, middle))]
            finals = [self._confirm(check.profile) for check in checks]
            within = [check for check in finals if check.divergence <= limit]
            low, high = (middle, high) if within else (low, middle)
            fitting += within
        return max(fitting, key=_speedup)

    # --- one speedup ---

    def _nearest_at(self, speed: float, start: Profile) -> list[Check]:
        """Moves one thing after the other as long as that helps; the best so far after each, and nothing where no
        profile is so fast."""
        best = self._fitted(start, speed) or self._best_anywhere(start, speed)
        if best is None:
            return []
        path = [best]
        for _ in range(ROUNDS):
            before = best
            if best.divergence < CLOSE:
                break
            for moves in (
                self._inputs, self._taus, self._losses, self._reductions, self._layers, self._stage3,
                self._deep_layers, self._anchors, *map(self._further, self.choices.parts),
            ):  # fmt: skip
                better = [check for shape in moves(best.profile) if (check := self._better(shape, speed, best))]
                best = min([best, *better], key=_divergence)
                if best is not path[-1]:
                    path.append(best)
            if best is before:
                break
        return path

    def _best_anywhere(self, start: Profile, speed: float) -> Check | None:
        """Where the last point leads to nothing so fast: its stages behind any encoder, any stages behind its encoder,
        or else behind the cheapest."""
        as_there = (
            dataclasses.replace(
                shape, image_loss=start.image_loss, encoder_layer=start.encoder_layer, encoder_keep=start.encoder_keep
            )
            for shape in self._shapes()
        )
        found = self._best_of([*self.choices.encoders(start), *as_there], speed)
        return found or self._best_of(map(self.choices.cheapest, self._shapes()), speed)

    def _best_of(self, shapes: Iterable[Profile], speed: float) -> Check | None:
        """On a few samples, and the best of those on all."""
        fitting = dict.fromkeys(profile for shape in shapes if (profile := self._keeping_most(shape, speed)))
        heats = sorted((self.measure(profile, self.heat) for profile in fitting), key=_divergence)
        finals = [self._check(heat.profile) for heat in heats[:FINALISTS]]
        return min(finals, key=_divergence, default=None)

    def _better(self, shape: Profile, speed: float, best: Check) -> Check | None:
        """Nearer than the best by more than the samples' differences vary; most fail on a few of them."""
        profile = self._keeping_most(shape, speed)
        if profile is None:
            return None
        if profile not in self._tried:
            first = self.measure(profile, self.heat)
            if first.divergence >= statistics.fmean(best.each[: len(first.each)]):
                return None
        check = self._check(profile)
        return check if surely_less(check.each, best.each) else None

    def _fitted(self, shape: Profile, speed: float) -> Check | None:
        profile = self._keeping_most(shape, speed)
        return self._check(profile) if profile else None

    def _check(self, profile: Profile) -> Check:
        if profile not in self._tried:
            self._tried[profile] = self.measure(profile, None)
        return self._tried[profile]

    def _keeping_most(self, shape: Profile, speed: float) -> Profile | None:
        """The largest share kept that is fast enough; None when LEAST_KEEP is not."""
        if not self._possible(shape):
            return None
        low, high = round(LEAST_KEEP * KEEP_STEPS), KEEP_STEPS
        if self.speedup(keeping(shape, low / KEEP_STEPS)) < speed:
            return None
        while low < high:
            middle = (low + high + 1) // 2
            if self.speedup(keeping(shape, middle / KEEP_STEPS)) >= speed:
                low = middle
            else:
                high = middle - 1
        return keeping(shape, low / KEEP_STEPS)

    # --- moves ---

    def _possible(self, shape: Profile) -> bool:
        try:
            return self.fits(keeping(shape, 0.5).validate(self.n_layer))
        except InvalidError:  # one move can be in the way of another
            return False

    def _around(self, layer: int, layers: Sequence[int]) -> list[int]:
        """The next ones in a list, and those a tenth of the depth away, both ways."""
        if not layers:
            return []
        at = layers.index(_nearest(layer, layers))
        found = [layers[to] for to in (at - 1, at, at + 1) if 0 <= to < len(layers)]
        return sorted({*found, _nearest(layer - self.long, layers), _nearest(layer + self.long, layers)})

    def _layers(self, shape: Profile) -> Iterator[Profile]:
        for layer in self._around(shape.ivr_layer, self.first_layers):
            # no part begins before stage II
            on = [name for much, name in NARROW.items() if getattr(shape, much) != DEFAULTS[much]]
            behind = {name: max(layer, getattr(shape, name)) for name in on}
            yield dataclasses.replace(shape, ivr_layer=layer, **behind)

    def _stage3(self, shape: Profile) -> Iterator[Profile]:
        for update, rest in MODES:
            changed = dataclasses.replace(shape, ssr_update=update, ssr_rest=rest)
            if shape.ssr_layer < self.n_layer:
                yield changed
            elif layers := self._third_layers(changed):
                for layer in {_nearest(self.ssr, layers), _nearest(self.ssr + self.long, layers)}:
                    yield dataclasses.replace(changed, ssr_layer=layer)
        yield dataclasses.replace(shape, ssr_layer=self.n_layer, ssr_update=1.0, ssr_rest=DROPPED)

    def _deep_layers(self, shape: Profile) -> Iterator[Profile]:
        if shape.ssr_layer < self.n_layer:
            for layer in self._around(shape.ssr_layer, self._third_layers(shape)):
                yield dataclasses.replace(shape, ssr_layer=layer)

    def _third_layers(self, shape: Profile) -> list[int]:
        """Where stage III can begin."""
        layers = range(shape.ivr_layer + 1, self.n_layer)
        return [layer for layer in layers if self._possible(dataclasses.replace(shape, ssr_layer=layer))]

    def _anchors(self, shape: Profile) -> Iterator[Profile]:
        for share, query in itertools.product(ANCHORS, QUERIES):
            if share > 0 or query == LAST:
                yield dataclasses.replace(shape, ivr_anchors=share, ivr_query=query)

    def _inputs(self, shape: Profile) -> Iterator[Profile]:
        # a profile rounds
        at = min(range(len(self.choices.inputs)), key=lambda to: abs(self.choices.inputs[to] - shape.input_keep))
        for share in _near(self.choices.inputs, at):
            yield dataclasses.replace(shape, input_keep=share)

    def _taus(self, shape: Profile) -> Iterator[Profile]:
        for tau in self.choices.taus:
            yield dataclasses.replace(shape, pixel_tau=tau)

    def _losses(self, shape: Profile) -> Iterator[Profile]:
        for loss in _near(self.choices.losses, self.choices.losses.index(shape.image_loss)):
            yield dataclasses.replace(shape, image_loss=loss)

    def _reductions(self, shape: Profile) -> Iterator[Profile]:
        at = self.choices.reductions.index((shape.encoder_layer, shape.encoder_keep))
        for layer, keep in _near(self.choices.reductions, at):
            yield dataclasses.replace(shape, encoder_layer=layer, encoder_keep=keep)

    def _further(self, part: Part) -> Callable[[Profile], Iterator[Profile]]:
        return lambda shape: part(shape, self.n_layer)

    def _shapes(self) -> Iterator[Profile]:
        """From where no step leads to a speedup: everywhere, coarsely."""
        n = self.n_layer
        layers = {_nearest(layer, self.first_layers) for layer in (1, self.ivr, n // 8, n // 4, 3 * n // 8, n // 2)}
        third = [(layer, *mode) for layer in (self.ssr, 2) for mode in MODES] + [(n, 1.0, DROPPED)]
        if len(self.choices.inputs) > 1:  # what enters does much of what the third stage would
            third = third[:2] + third[-1:]
        inputs = self.choices.inputs[::3]
        for first, (ssr, update, rest), tau, share in itertools.product(
            sorted(layers), third, self.choices.taus, inputs
        ):
            shape = dataclasses.replace(
                self._staged(first, n), ssr_update=update, ssr_rest=rest, pixel_tau=tau, input_keep=share
            )
            deep = self._third_layers(shape) if ssr < n else []
            if deep or ssr == n:
                yield dataclasses.replace(shape, ssr_layer=_nearest(ssr, deep) if deep else n)


def can_freeze(n_layer: int, fits: Fits) -> bool:
    """Whether all layers of a model can leave visual tokens as they are."""
    frozen = dataclasses.replace(staged(1, 2), ivr_keep=0.5, ssr_update=0.0, ssr_rest=FROZEN)
    return n_layer < 3 or fits(frozen)


def _near(steps: Sequence[T], at: int) -> Iterator[T]:
    """The next ones of a place in a list, and those three on, as lists can be long."""
    for to in (at - 3, at - 1, at + 1, at + 3):
        if 0 <= to < len(steps):
            yield steps[to]


def _nearest(layer: int, layers: Iterable[int]) -> int:
    return min(layers, key=lambda other: (abs(other - layer), other))


def surely_less(one: Sequence[float], other: Sequence[float], errors: float = 1.0) -> bool:
    """On the same samples, by more than so many standard errors of the mean difference."""
    differences = [b - a for a, b in zip(one, other, strict=True)]
    spread = statistics.stdev(differences) / math.sqrt(len(differences)) if len(differences) > 1 else 0.0
    return statistics.fmean(differences) > errors * spread


def _frontier(points: Iterable[Check]) -> tuple[Check, ...]:
    """Those that none beats in both."""
    kept: list[Check] = []
    for point in sorted(set(points), key=lambda check: (-check.speedup, check.divergence)):
        if not kept or point.divergence < kept[-1].divergence:
            kept.append(point)
    return tuple(reversed(kept))


def _divergence(check: Check) -> float:
    return check.divergence


def _speedup(check: Check) -> float:
    return check.speedup


def _rounded_up(value: float) -> str:
    """Three digits, not less than the value."""
    step = 10 ** (math.floor(math.log10(max(value, 1e-12))) - 2)
    return f"{math.ceil(value / step) * step:.3g}"


def finished(profile: Profile, n_visual: float) -> Profile:
    """For everyday use: pictures far smaller than the samples are left whole."""
    return dataclasses.replace(profile, min_visual_tokens=min(64, max(1, round(n_visual / 2))))
