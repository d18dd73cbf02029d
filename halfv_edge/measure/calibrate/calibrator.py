"""The whole calibration: observe samples, pick boundaries, try candidates."""

from __future__ import annotations

import collections
import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from halfv_edge.engine.context import Item
from halfv_edge.engine.encoder import Chunk
from halfv_edge.errors import HalfVError
from halfv_edge.measure.arrays import Floats
from halfv_edge.measure.calibrate import entropy, picking, search
from halfv_edge.measure.calibrate.costs import Costs
from halfv_edge.measure.calibrate.intake import DEPTHS, LOSSES, SHARES, Admitted, admit
from halfv_edge.measure.calibrate.parts import PARTS, Part
from halfv_edge.measure.calibrate.picking import Curves
from halfv_edge.measure.calibrate.results import CalibrationGoal, CalibrationResult
from halfv_edge.measure.calibrate.samples import LEAST, Sample, Samples, too_few
from halfv_edge.measure.calibrate.search import Check, Choices, Search
from halfv_edge.measure.calibrate.taps import GreedyAnswer, Observation, Probe, n_tokens
from halfv_edge.measure.progress import Progress, Say, Sentence, Watch, ignore
from halfv_edge.measure.work_file import WorkFile
from halfv_edge.profile.keys import KEYS
from halfv_edge.profile.profile import Calibration, Intake, Profile

FROZEN_SAMPLES = 8  # on which every layer is frozen once, at the cost of half the layers per layer
TRIED_SAMPLES = 24  # on which candidates are run
# of the others, at most and at least: they decide between near-equals, and say how far the chosen ones are
HELD_SAMPLES, LEAST_HELD = 48, 8
USUAL_TOKENS = 1024  # of a picture, where the encoder takes any size: what speedups are counted for
TEXT_TOKENS = 60  # beside it, for the second figure
EXPECTED_CHECKS, EXPECTED_FINALS = 150, 30  # candidates that a search runs on all of them, about, and on those held out
CHECK_SHARE = 0.5  # what one of them costs, of an unpruned prompt
ANSWER_TOKENS = 8
# keys of a profile that are in a result's name only where they are not the usual ones
UNNAMED = [
    name for name in KEYS if name not in ("pixel_tau", "input_keep", "min_visual_tokens")
    and not name.startswith(("ivr_layer", "ivr_keep", "ivr_anchors", "ivr_query", "ssr_"))
]  # fmt: skip
ROWS_BYTES = 512 << 20  # of encoded samples that are remembered


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a calibration costs."""

    n_samples: int
    n_prompt: int  # tokens of a typical prompt
    tflops: float
    seconds: float


def spread_evenly(count: int, total: int) -> list[int]:
    """`count` of `total` places."""
    count = min(count, total)
    return [at * (total - 1) // max(1, count - 1) for at in range(count)]


class Calibrator:
    """One model and its samples."""

    def __init__(
        self,
        probe: Probe,
        samples: Samples,
        work: WorkFile,
        *,
        any_size: bool,
        taus: Sequence[float | None] = (None,),
        inputs: Sequence[float] = (1.0,),
        n_encoder_layer: int = 0,
        progress: Watch = ignore,
        say: Say = ignore,
        words: Sentence = str,
    ):
        self.probe = probe
        self.samples = samples.samples
        self.source = samples.source
        self.work = work
        self.any_size = any_size
        self.taus = taus  # to try, of patches that the encoder spares
        self.inputs = inputs  # to try, of shares of its rows that go on
        self.n_encoder_layer = n_encoder_layer
        self.progress = progress
        self.say = say
        self.words = words  # of a sample's error, in the names of whoever reads it
        self.skipped: list[str] = []
        self._n_done = 0.0
        self._answers: dict[int, GreedyAnswer] = {}
        # by what happens before the language model and by sample; the last used comes last
        self._given: collections.OrderedDict[Intake, dict[int, list[Item]]] = collections.OrderedDict()
        self._n_bytes = 0  # of their rows
        self._n_more = 0.0  # prompts of an encoder's trial, beside the others
        n_frozen = FROZEN_SAMPLES if search.can_freeze(probe.n_layer, probe.fits) else 0
        self._frozen = set(spread_evenly(n_frozen, len(self.samples)))

    # --- before it starts ---

    def estimate(self) -> Estimate:
        """From a sample and the speed of this machine; what was observed already is left out."""
        items, encode_sec = self._first_items()
        before, visual, after = n_tokens(items)
        n_flops = self.probe.flops(None, 0, 0, before + visual + after)[0]
        left = [at for at in range(len(self.samples)) if self._key(at) not in self.work.results]
        prompts = self._observing(left) + self._checking()
        start = time.perf_counter()
        n_embd = self.probe.n_embd
        entropy.matrix_entropy(np.random.default_rng(0).standard_normal((visual, n_embd)))
        reduce_sec = 2.5 * (time.perf_counter() - start) * (self.probe.n_layer + 1)  # visual, all, and text
        seconds = prompts * n_flops / self.probe.flops_per_sec() + (encode_sec + reduce_sec) * len(left)
        return Estimate(len(left), before + visual + after, prompts * n_flops / 1e12, seconds)

    def _first_items(self) -> tuple[list[Item], float]:
        """Of the first sample that can be encoded, and the seconds that took."""
        failed: HalfVError | None = None
        for sample in self.samples:
            start = time.perf_counter()
            try:
                return self._items(sample), time.perf_counter() - start
            except HalfVError as error:
                failed = error
        raise failed or too_few("There are no samples")

    def n_units(self) -> float:
        """Prompts that all of it costs, about."""
        return self._observing(range(len(self.samples))) + self._checking()

    def _observing(self, places: Sequence[int]) -> float:
        return sum(self._observe_cost(at) for at in places)

    def _observe_cost(self, at: int) -> float:
        return 1 + (self.probe.n_layer + 1) / 2 * (at in self._frozen)

    def _checking(self) -> float:
        n = len(self.samples)
        held = min(HELD_SAMPLES, n - TRIED_SAMPLES) * (1 + EXPECTED_FINALS * CHECK_SHARE)
        return min(TRIED_SAMPLES, n) * (1 + EXPECTED_CHECKS * CHECK_SHARE) + max(0.0, held) + self._n_more

    def _advance(self, n_prompts: float) -> None:
        """How many candidates there will be nobody knows: towards the end each counts for less."""
        left = self.n_units() - self._n_done
        self._n_done += min(n_prompts, 0.02 * left)
        self.progress(Progress(self._n_done, self.n_units(), "calibrating"))

    # --- the work ---

    def run(self, goal: CalibrationGoal) -> CalibrationResult:
        seen = self._observe_all()
        curves, all_entropy = _mean(list(seen.values()))
        first = picking.stage2(curves)
        second = picking.stage3(curves, first.layer)
        visual = float(np.median([observation.n_visual for observation in seen.values()]))
        n_visual = max(round(visual), USUAL_TOKENS) if self.any_size else round(visual)
        tried = [list(seen)[place] for place in spread_evenly(TRIED_SAMPLES, len(seen))]
        held = [at for at in seen if at not in tried]
        held = [held[place] for place in spread_evenly(HELD_SAMPLES, len(held))]
        own = self.probe.runtime.encoder.intake
        walks = goal.encoder_divergence is not None
        losses = (own.image_loss, *LOSSES) if walks and own.image_loss == 0 else (own.image_loss,)
        kinds = [(tau, loss) for tau in self.taus for loss in losses]
        some = [self.samples[at] for at in tried]
        costs = Costs.of(self.probe, some, kinds, n_visual, timed=goal.timed, with_encoder=walks)

        def measure(profile: Profile, count: int | None) -> Check:
            return check(profile, tried[:count])

        def check(profile: Profile, some: Sequence[int]) -> Check:
            for at in some:  # all answers first, as another profile needs another context
                self._answer(at, profile)
            checks = [self._check(at, profile) for at in some]
            agreement = float(np.mean([agree for _, agree in checks]))
            return Check(profile, tuple(kl for kl, _ in checks), agreement, costs.speedup(profile))

        admitted = self._admit(goal.encoder_divergence, measure, len(tried))
        choices = Choices(
            self.taus, self.inputs, [own.image_loss, *(admitted.losses if admitted else ())],
            [(own.encoder_layer, own.encoder_keep), *(admitted.reductions if admitted else ())],
            self._parts(goal), own, slow=walks,
        )  # fmt: skip
        search_ = Search(
            self.probe.n_layer, first.layer, second.layer, measure, costs.speedup, len(tried), choices,
            self.probe.fits, (lambda profile: check(profile, held)) if len(held) >= LEAST_HELD else None,
        )  # fmt: skip
        found = search_.run(goal.speedup, goal.max_divergence)
        self.progress(Progress(self.n_units(), self.n_units(), "calibrating"))
        n_frozen = sum(observation.layer_kl is not None for observation in seen.values())
        evidence = Calibration(
            samples=len(seen),
            source=self.source,
            visual_entropy=tuple(curves.visual),
            text_entropy=tuple(curves.text),
            layer_kl=tuple(curves.layer_kl) if np.isfinite(curves.layer_kl).all() else None,
            divergence=found.best.divergence,
        )
        done = [search.finished(check.profile, visual) for check in (found.best, *found.frontier)]
        profile = dataclasses.replace(done[0], calibration=evidence).validate(self.probe.n_layer)
        return CalibrationResult(
            profile, curves, all_entropy, (first, second), found, len(seen), n_frozen, len(tried), len(held), n_visual,
            costs.speedup(profile, TEXT_TOKENS), tuple(done[1:]), tuple(self.skipped), goal.timed, admitted,
        )  # fmt: skip

    def _admit(self, limit: float | None, measure: search.Measure, n_samples: int) -> Admitted | None:
        """What the search may do before the language model; None where that was not asked for."""
        if limit is None:
            return None
        encoder = self.probe.runtime.encoder
        self._n_more = n_samples * CHECK_SHARE * (len(LOSSES) + len(DEPTHS) * len(SHARES))
        self.say(f"looking for what a picture may lose before the language model, on {n_samples} samples.")
        own = encoder.intake.within(Profile.default(self.probe.n_layer))
        admitted = admit(own, self.n_encoder_layer, encoder.last_cut, limit, measure, n_samples)
        self.say(f"before the language model there may be, with its divergence alone: {admitted}.")
        return admitted

    def _parts(self, goal: CalibrationGoal) -> list[Part]:
        """Those that were asked for and that this model can have."""
        usable = []
        n = self.probe.n_layer
        halves = (search.keeping(search.staged(layer, n), 0.5) for layer in range(1, n))
        base = next(filter(self.probe.fits, halves), search.staged(1, n))  # its first stage II
        for name in goal.parts:
            try:
                for profile in PARTS[name](base, n):  # one layer or share may be refused and not another
                    self.probe.context(profile)
            except HalfVError as error:
                self.say(f"{name} cannot be tried: {self.words(error)}")
            else:
                usable.append(PARTS[name])
        return usable

    def _observe_all(self) -> dict[int, Observation]:
        seen: dict[int, Observation] = {}
        for at, sample in enumerate(self.samples):
            key = self._key(at)
            if key not in self.work.results:
                try:
                    observation = self._observe(at)
                except HalfVError as error:
                    self._skip(f"sample {at + 1} ({sample.name}): {self.words(error).rstrip('.')}")
                else:
                    self.work.add(key, dataclasses.asdict(observation))
            if key in self.work.results:
                seen[at] = Observation(**self.work.results[key])
            self._advance(self._observe_cost(at))
        if len(seen) < LEAST:
            why = f"; the last: {self.skipped[-1]}" if self.skipped else ""
            raise too_few(f"{len(seen)} of {len(self.samples)} samples could be used{why}")
        if self._frozen and all(observation.layer_kl is None for observation in seen.values()):
            raise HalfVError("None of the samples on which layers were to be frozen could be used: give others.")
        return seen

    def _skip(self, why: str) -> None:
        self.skipped.append(why)
        self.say(f"left out: {why}")

    def _observe(self, at: int) -> Observation:
        return self.probe.observe(self._items(self.samples[at]), freeze=at in self._frozen)

    def _items(self, sample: Sample) -> list[Item]:
        return self.probe.items(sample.load(), sample.question)

    def _items_under(self, at: int, profile: Profile) -> list[Item]:
        """Most candidates differ in the language model alone: what the last encoders gave is remembered."""
        given = self._given.setdefault(profile.intake, {})
        self._given.move_to_end(profile.intake)
        if at not in given:
            sample = self.samples[at]
            given[at] = self.probe.items_under(profile, sample.load(), sample.question)
            self._n_bytes += _n_bytes(given[at])
            while self._n_bytes > ROWS_BYTES and len(self._given) > 1:
                self._n_bytes -= sum(map(_n_bytes, self._given.popitem(last=False)[1].values()))
        return given[at]

    def _key(self, at: int) -> str:
        return f"observe {self.samples[at].key}" + " frozen" * (at in self._frozen)

    def _check_key(self, at: int, profile: Profile) -> str:
        values = (profile.ivr_layer, profile.ivr_keep, profile.ivr_anchors, profile.ssr_layer, profile.ssr_update)
        of_encoder = f"{profile.pixel_tau} {profile.input_keep}"
        choice = f"{profile.ssr_rest} {profile.ivr_query}"
        usual = self.probe.runtime.encoder.intake.within(Profile.default(self.probe.n_layer))
        rest = {name: value for name in UNNAMED if (value := getattr(profile, name)) != getattr(usual, name)}
        key = f"check {self.samples[at].key} {' '.join(map(str, values))} {choice} {of_encoder}"
        return f"{key} {rest}" if rest else key

    def _answer(self, at: int, profile: Profile) -> None:
        if at not in self._answers and self._check_key(at, profile) not in self.work.results:
            self._answers[at] = self.probe.answer(self._items(self.samples[at]), ANSWER_TOKENS)

    def _check(self, at: int, profile: Profile) -> tuple[float, float]:
        key = self._check_key(at, profile)
        if key not in self.work.results:
            divergence, agree = self.probe.divergence(self._answers[at], profile, self._items_under(at, profile))
            if not np.isfinite(divergence):
                raise HalfVError(f"Sample {at + 1} ({self.samples[at].name}) gives NaN with {profile.to_json()}.")
            self.work.add(key, [divergence, agree])
        self._advance(CHECK_SHARE)
        divergence, agree = self.work.results[key]
        return divergence, agree


def _n_bytes(items: Sequence[Item]) -> int:
    return sum(item.embd.nbytes for item in items if isinstance(item, Chunk) and item.embd is not None)


def _mean(seen: Sequence[Observation]) -> tuple[Curves, Floats]:
    visual, text, both, attention = (
        np.mean([getattr(observation, name) for observation in seen], axis=0)
        for name in ("visual", "text", "all", "attention")
    )
    frozen = [observation.layer_kl for observation in seen if observation.layer_kl is not None]
    layer_kl = np.mean(frozen, axis=0) if frozen else np.full(len(attention), np.nan)
    return Curves(visual, text, attention, layer_kl), both
