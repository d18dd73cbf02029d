"""What pictures may lose before the language model: how small they are made, what the encoder's later layers see.

Looked for before anything else is pruned, and in force for the rest of the calibration.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from halfv_edge.engine.encoder import Chunk
from halfv_edge.engine.model import Model
from halfv_edge.errors import HalfVError
from halfv_edge.gguf.read import read_metadata
from halfv_edge.measure.calibrate.samples import LEAST, Sample, too_few
from halfv_edge.measure.calibrate.search import FIRST_HEAT
from halfv_edge.measure.calibrate.taps import GreedyAnswer, Probe
from halfv_edge.measure.progress import Progress, Sentence, Watch, ignore
from halfv_edge.measure.work_file import WorkFile
from halfv_edge.profile.profile import Intake, Profile

LOSSES = (0.3, 0.25, 0.2, 0.15, 0.1)  # halfv.image.loss, the greatest saving first
DEPTHS = (1 / 4, 1 / 3, 1 / 2, 2 / 3)  # of the encoder's layers, where halfv.encoder.layer may be
SHARES = (0.35, 0.5, 0.7)  # halfv.encoder.keep
ANSWER_TOKENS = 8


@dataclass(frozen=True, slots=True)
class IntakeCheck:
    """An intake that was run, nothing else pruned."""

    intake: Intake
    each: tuple[float, ...] = ()  # KL of the answers from the whole model's, nats per token, a sample each
    n_smaller: int = 0  # pictures that were made smaller
    n_reduced: int = 0  # and those of which later layers of the encoder saw less

    @property
    def divergence(self) -> float:
        """Mean over the samples; 0 where none was run, as nothing is lost."""
        return statistics.fmean(self.each) if self.each else 0.0

    def __str__(self) -> str:
        parts = [f"halfv.image.loss {self.intake.image_loss:g}"] if self.intake.image_loss else []
        if self.intake.encoder_keep < 1:
            parts.append(f"halfv.encoder.layer {self.intake.encoder_layer}")
            parts.append(f"halfv.encoder.keep {self.intake.encoder_keep:g}")
        if not self.each:
            return ", ".join([*parts, "and nothing else found"] if parts else ["nothing found"])
        return f"{', '.join(parts)}: divergence {self.divergence:.3g}"

    def to_json(self) -> dict[str, float]:
        """What was found, in the names of the profile, and its divergence."""
        names = ("image_loss", "encoder_layer", "encoder_keep")
        return {name: getattr(self.intake, name) for name in names} | {"divergence": self.divergence}


Measure = Callable[[Intake, int | None], IntakeCheck]  # on the first so many samples, None: on all


def reductions(own: Intake, n_layer: int, last_cut: int) -> list[Intake]:
    """What an encoder of so many layers may leave out, the cheapest first; none where it cannot."""
    layers = {min(max(1, round(depth * n_layer)), last_cut) for depth in DEPTHS} - {0}
    pairs = [(layer, share) for layer in layers for share in SHARES]
    pairs.sort(key=lambda pair: (pair[0] + (n_layer - pair[0]) * pair[1], pair))
    return [dataclasses.replace(own, encoder_layer=layer, encoder_keep=share) for layer, share in pairs]


def choose(own: Intake, n_layer: int, last_cut: int, limit: float, measure: Measure, n_samples: int) -> IntakeCheck:
    """The smallest pictures within the limit, and with them the cheapest encoder; what is given stays as it is."""
    heat = -(-n_samples // FIRST_HEAT)
    best = IntakeCheck(own)
    if own.image_loss == 0:
        smaller = [dataclasses.replace(own, image_loss=loss) for loss in LOSSES]
        found = _first_within(smaller, measure, limit, heat)
        if found and found.n_smaller:
            best = found
    if own.encoder_keep == 1:
        found = _first_within(reductions(best.intake, n_layer, last_cut), measure, limit, heat)
        if found and found.n_reduced:
            best = found
    return best


def _first_within(intakes: Iterable[Intake], measure: Measure, limit: float, heat: int) -> IntakeCheck | None:
    """On a share of the samples first, so that what is hopeless costs little."""
    for intake in intakes:
        if _surely_above(measure(intake, heat).each, limit):
            continue
        check = measure(intake, None)
        if check.divergence <= limit:
            return check
    return None


def _surely_above(each: Sequence[float], limit: float) -> bool:
    """By more than the mean's standard error."""
    if not each:
        return False
    error = statistics.stdev(each) / math.sqrt(len(each)) if len(each) > 1 else 0.0
    return statistics.fmean(each) - error > limit


@contextlib.contextmanager
def taking(model: Model, intake: Intake) -> Iterator[None]:
    """In here the model's encoder is one with this intake; its own stays loaded."""
    runtime = model.runtime
    own, options = runtime.encoder, runtime.options
    if intake == own.intake:
        yield
        return
    other = runtime.load_encoder(
        image_max_tokens=options.image_max_tokens, intake=intake, weights=options.mmproj_type
    )  # fmt: skip
    runtime.encoder = other
    try:
        yield
    finally:
        runtime.encoder = own
        other.close()


class IntakeRuns:
    """Runs samples through one encoder after the other, at most one at a time beside the model's own."""

    def __init__(
        self,
        model: Model,
        samples: Sequence[Sample],
        work: WorkFile,
        *,
        progress: Watch = ignore,
        words: Sentence = str,
    ):
        self.model = model
        self.samples = samples
        self.work = work
        self.progress = progress
        self.words = words  # of a sample's error
        self._answers: dict[Sample, GreedyAnswer | None] = {}  # of the whole model; None: this sample cannot be used
        self._why = ""  # the last one cannot
        self._n_done = 0

    def find(self, limit: float) -> IntakeCheck:
        """What stays within a divergence from the whole model's answers."""
        encoder = self.model.encoder
        n_layer = int(read_metadata(encoder.path).value("clip.vision.block_count") or 0)
        return choose(encoder.intake, n_layer, encoder.last_cut, limit, self._measure, len(self.samples))

    def _measure(self, intake: Intake, count: int | None) -> IntakeCheck:
        some = self.samples[:count]
        left = [sample for sample in some if _key(sample, intake) not in self.work.results]
        self._answer([sample for sample in left if sample not in self._answers])
        self._check([sample for sample in left if self._answers[sample]], intake)
        seen = [self.work.results[key] for sample in some if (key := _key(sample, intake)) in self.work.results]
        if count is None and len(seen) < min(LEAST, len(some)):
            raise too_few(f"{len(seen)} of {len(some)} samples could be used; the last: {self._why}")
        each, smaller, reduced = zip(*seen, strict=True) if seen else ((), (), ())
        return IntakeCheck(intake, tuple(each), sum(smaller), sum(reduced))

    def _answer(self, samples: Sequence[Sample]) -> None:
        """With the model's own encoder."""
        with contextlib.closing(Probe(self.model)) as probe:
            for sample in samples:
                self._answers[sample] = None
                try:
                    answer = probe.answer(probe.items(sample.load(), sample.question), ANSWER_TOKENS)
                except HalfVError as error:
                    self._why = f"{sample.name}: {self.words(error).rstrip('.')}"
                    continue
                if np.isfinite(answer.logits).all():
                    self._answers[sample] = answer
                else:
                    self._why = f"{sample.name}: the model gives NaN or infinity"

    def _check(self, samples: Sequence[Sample], intake: Intake) -> None:
        """One encoder on these; their results are kept."""
        if not samples:
            return
        profile = intake.within(Profile.default(self.model.n_layer))
        with taking(self.model, intake), contextlib.closing(Probe(self.model)) as probe:
            for sample in samples:
                answer = self._answers[sample]
                assert answer
                items = probe.items(sample.load(), sample.question)
                divergence, _ = probe.divergence(answer, profile, items)
                if not np.isfinite(divergence):
                    raise HalfVError(f"{sample.name} gives NaN with {IntakeCheck(intake)}.")
                chunks = [item for item in items if isinstance(item, Chunk)]
                smaller = any(chunk.n_grid < chunk.n_patches for chunk in chunks)
                reduced = any(chunk.n_seen < chunk.n_groups for chunk in chunks)
                self.work.add(_key(sample, intake), [divergence, smaller, reduced])
                self._n_done += 1
                most = len(self.samples) * (len(LOSSES) + len(DEPTHS) * len(SHARES))
                self.progress(Progress(self._n_done, most, "trying encoders"))


def _key(sample: Sample, intake: Intake) -> str:
    return f"intake {sample.key} {intake.image_loss} {intake.encoder_layer} {intake.encoder_keep}"
