"""What a picture costs under a profile: FLOPs of the language model, or seconds to the first token on this machine."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from halfv_edge.measure.calibrate.samples import Sample
from halfv_edge.measure.calibrate.taps import Probe
from halfv_edge.profile.profile import Profile


@dataclass(frozen=True, slots=True)
class Costs:
    probe: Probe
    n_visual: int  # tokens of a whole picture
    share: Mapping[float | None, float]  # of them that enter the encoder, by tau
    keep: float  # of the encoder's rows, where nothing is pruned
    seconds: Mapping[float | None, float]  # of the encoder per picture, by tau; 0 where FLOPs alone count
    flops_per_sec: float

    @classmethod
    def of(
        cls, probe: Probe, samples: Sequence[Sample], taus: Sequence[float | None], n_visual: int, *, timed: bool
    ) -> Costs:
        """From these samples, each of which can be encoded."""
        share, seconds = {}, {}
        for tau in taus:
            encoder = probe.encoder(dataclasses.replace(probe.runtime.encoder.intake, pixel_tau=tau))
            given, whole, spent = 0, 0, []
            for sample in samples:
                if timed:
                    encoder._cache.clear()  # so that the time is that of the encoder
                start = time.perf_counter()
                encoded = encoder.tokens(sample.load())
                if timed:
                    encoder.encode(encoded)
                spent.append(time.perf_counter() - start)
                chunks = encoded.chunks
                given += sum(chunk.n_rows for chunk in chunks)
                whole += sum(chunk.n_grid for chunk in chunks)  # in the size that it is taken in
            share[tau] = given / max(1, whole)
            seconds[tau] = statistics.median(spent) if timed else 0.0
        keep = probe.runtime.encoder.intake.input_keep
        return cls(probe, n_visual, share, keep, seconds, probe.flops_per_sec() if timed else 1.0)

    def speedup(self, profile: Profile, n_text: int = 0) -> float:
        """A whole picture by one under the profile."""
        whole = None if None in self.share else profile.pixel_tau
        dense = self.probe.flops(profile, 0, self.n_visual, n_text)[0]
        share = self.share[profile.pixel_tau] / self.share[whole] * profile.input_keep / self.keep
        left = max(1, round(self.n_visual * share))
        spent = self.probe.flops(profile, 0, left, n_text)[1]
        return (self.seconds[whole] + dense / self.flops_per_sec) / (
            self.seconds[profile.pixel_tau] + spent / self.flops_per_sec
        )
