"""What a picture costs under a profile: FLOPs of the language model, with those of the encoder where that is walked
too, or seconds to the first token on this machine."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from halfv_edge.engine.encoder import Encoder
from halfv_edge.measure.calibrate.encoder_flops import EncoderFlops
from halfv_edge.measure.calibrate.samples import Sample
from halfv_edge.measure.calibrate.taps import Probe
from halfv_edge.profile.profile import Intake, Profile

Kind = tuple[float | None, float]  # pixel_tau and image_loss, which say what of a picture enters the encoder


@dataclass(frozen=True, slots=True)
class Costs:
    probe: Probe
    n_visual: int  # tokens of a whole picture
    entering: Mapping[Kind, float]  # tokens of the samples that enter the encoder
    encoder: EncoderFlops | None = None  # None: it is not counted
    rates: tuple[float, float] = (1.0, 1.0)  # FLOPs of encoder and language model, in a unit of cost

    @classmethod
    def of(
        cls, probe: Probe, samples: Sequence[Sample], kinds: Iterable[Kind], n_visual: int, *, timed: bool,
        with_encoder: bool,
    ) -> Costs:  # fmt: skip
        """From these samples, each of which can be encoded."""
        own = probe.runtime.encoder
        entering = {}
        for tau, loss in {(own.intake.pixel_tau, own.intake.image_loss), *kinds}:
            encoder = probe.encoder(
                dataclasses.replace(own.intake, pixel_tau=tau, image_loss=loss, encoder_layer=1, encoder_keep=1.0)
            )
            chunks = [chunk for sample in samples for chunk in encoder.tokens(sample.load()).chunks]
            entering[tau, loss] = float(sum(chunk.n_rows for chunk in chunks))
        if not timed and not with_encoder:
            return cls(probe, n_visual, entering)
        flops = EncoderFlops.of(own, own.tokens(samples[0].load()).chunks[0].n_grid)
        if not timed:
            return cls(probe, n_visual, entering, flops)
        return cls(probe, n_visual, entering, flops, (_rate(own, samples, flops), probe.flops_per_sec()))

    def speedup(self, profile: Profile, n_text: int = 0) -> float:
        """A whole picture by one under the profile."""
        own = self.probe.runtime.encoder.intake
        dense = self.probe.flops(profile, 0, self.n_visual, n_text)[0]
        enter = self.n_visual / own.input_keep
        left = enter * self.entering[_kind(profile.intake)] / self.entering[_kind(own)]
        given = max(1, round(left * profile.input_keep))
        spent = self.probe.flops(profile, 0, given, n_text)[1]
        return self._cost(enter, own, dense) / self._cost(left, profile.intake, spent)

    def _cost(self, entering: float, intake: Intake, language: float) -> float:
        encoder = self.encoder(entering, intake) if self.encoder else 0.0
        return encoder / self.rates[0] + language / self.rates[1]


def _kind(intake: Intake) -> Kind:
    return intake.pixel_tau, intake.image_loss


def _rate(encoder: Encoder, samples: Sequence[Sample], flops: EncoderFlops) -> float:
    """FLOPs a second of this encoder, as it is now."""
    rates = []
    for sample in samples:
        encoder._cache.clear()  # so that the time is that of the encoder
        encoded = encoder.tokens(sample.load())
        seconds = encoder.encode(encoded)
        assert seconds
        n_rows = sum(chunk.n_rows for chunk in encoded.chunks)
        rates.append(flops(n_rows, encoder.intake) / seconds)
    return statistics.median(rates)
