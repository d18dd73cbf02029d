"""What a calibration is to reach, and what it finds."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from halfv_edge.errors import HalfVError
from halfv_edge.measure.arrays import Floats
from halfv_edge.measure.calibrate.intake import Admitted
from halfv_edge.measure.calibrate.parts import PARTS
from halfv_edge.measure.calibrate.picking import Curves, Pick
from halfv_edge.measure.calibrate.search import Check, Found
from halfv_edge.profile.frontier import Point
from halfv_edge.profile.profile import Profile

USUAL_SPEEDUP = 4.0


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationGoal:
    """One of the two; with neither it is a speedup of 4.

    Example:
        >>> CalibrationGoal().speedup
        4.0
    """

    target_speedup: float | None = None
    """FLOPs of a picture, unpruned by pruned."""
    max_divergence: float | None = None
    """KL from the unpruned model, nats per token."""
    timed: bool = False
    """Speedups are of the time to the first token on this machine, encoder included, in place of FLOPs."""
    encoder_divergence: float | None = None
    """KL that smaller pictures and a reduced encoder may cost alone, for the frontier to have them; speedups then count
    the encoder. None: they are not looked for."""
    parts: tuple[str, ...] = ()
    """What else to try at each point, of "channels", "wipe", "heads" and "bias"; channels and heads in a model
    that was loaded with `repack=False`."""

    def __post_init__(self) -> None:
        for name, above in (("target_speedup", 1), ("max_divergence", 0), ("encoder_divergence", 0)):
            value = getattr(self, name)
            if value is not None and not above < value < math.inf:
                raise HalfVError(parameter=name, value=value, rule=f"above {above}")
        for part in self.parts:
            if part not in PARTS:
                raise HalfVError(parameter="parts", value=part, rule=f"one of {', '.join(PARTS)}")
        if self.target_speedup is not None and self.max_divergence is not None:
            raise HalfVError(
                "excludes {max_divergence}",
                parameter="target_speedup",
                value=self.target_speedup,
                hint="leave one of them out",
                settings={"max_divergence": None},
            )

    @property
    def speedup(self) -> float | None:
        """The speedup that is asked for; None when it is a divergence."""
        if self.max_divergence is not None:
            return None
        return USUAL_SPEEDUP if self.target_speedup is None else self.target_speedup


@dataclass(frozen=True, slots=True)
class CalibrationResult:
    """What `run_calibration` returns."""

    profile: Profile
    curves: Curves
    all_entropy: Floats
    picks: tuple[Pick, Pick]  # where stage II and stage III begin by the curves
    found: Found
    n_samples: int
    n_frozen: int
    n_tried: int
    n_held: int  # that decided between near-equals, where there were enough
    n_visual: int  # what speedups are counted for
    text_speedup: float  # the same with 60 tokens of text
    frontier: tuple[Profile, ...]  # one for each check of found.frontier, for everyday use
    skipped: tuple[str, ...]
    timed: bool = False  # speedups are of time
    admitted: Admitted | None = None  # before the language model, for the search; None: not looked for

    @property
    def best(self) -> Check:
        """The candidate that became the profile."""
        return self.found.best

    @property
    def points(self) -> tuple[Point, ...]:
        """The frontier as a model's file carries it."""
        pairs = zip(self.found.frontier, self.frontier, strict=True)
        return tuple(Point(check.speedup, check.divergence, profile) for check, profile in pairs)

    def to_json(self) -> dict[str, Any]:
        """All of it, as `halfv calibrate --json` prints it."""
        return {
            "profile": self.profile.to_json(),
            "n_visual": self.n_visual,
            "speedup": self.best.speedup,
            "speedup_with_text": self.text_speedup,
            "divergence": self.best.divergence,
            "agreement": self.best.agreement,
            "samples": {"used": self.n_samples, "frozen": self.n_frozen, "tried": self.n_tried} | {"held": self.n_held},
            "skipped": list(self.skipped),
            **({"admitted": list(map(_candidate, self.admitted.checks))} if self.admitted else {}),
            "picks": {name: dataclasses.asdict(pick) for name, pick in zip(("ivr", "ssr"), self.picks, strict=True)},
            "curves": {
                "visual_entropy": self.curves.visual.tolist(),
                "text_entropy": self.curves.text.tolist(),
                "all_entropy": self.all_entropy.tolist(),
                "attention": _numbers(self.curves.attention),
                "layer_kl": _numbers(self.curves.layer_kl),
            },
            "frontier": [_candidate(check) for check in self.found.frontier],
            "tried": [_candidate(check) for check in self.found.tried],
        }


def _numbers(curve: Floats) -> list[float | None]:
    return [value if math.isfinite(value) else None for value in curve.tolist()]


def _candidate(check: Check) -> dict[str, Any]:
    return {
        "profile": check.profile.to_json(),
        "divergence": check.divergence,
        "agreement": check.agreement,
        "speedup": check.speedup,
    }
