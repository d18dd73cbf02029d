"""What an evaluation finds."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from halfv_edge.measure.eval.intervals import Interval


@dataclass(frozen=True, slots=True)
class TaskScore:
    """Of the questions of one task."""

    n: int
    score: float
    interval: Interval
    interval_kind: Literal["bootstrap", "Wilson"]
    retention: float | None  # of the unpruned model's score; None when that is 0
    f1: float | None = None  # of yes and no
    says_yes: float | None = None  # share of the answers


@dataclass(frozen=True, slots=True)
class PolicyRow:
    """One policy. Ratios and retention are to the first row, the unpruned model."""

    policy: str
    score: float  # mean of tasks
    score_interval: Interval
    retention: float | None
    retention_interval: Interval | None
    agreement: float  # share of answers that are the unpruned model's
    kl: float
    n_visual: float
    n_kept: float
    n_deep: float
    n_whole: int  # pictures that were not pruned
    flops: float
    flops_ratio: float
    ttft_s: float
    ttft_ratio: float
    enter_s: float
    tasks: dict[str, TaskScore]


@dataclass(frozen=True, slots=True)
class TurnScore:
    """Of the first or of the later questions of conversations."""

    n: int
    score: float
    interval: Interval
    retention: float | None
    enter_s: float


@dataclass(frozen=True, slots=True)
class ConversationRow:
    """One way to hold a conversation."""

    way: str
    first: TurnScore
    later: TurnScore
    ahead_s: float
    n_visual: float
    n_kept_first: float
    n_kept_last: float


@dataclass(frozen=True, slots=True)
class EqualRow:
    """What a kind of policy retains at the profile's time and at its FLOPs; None where it does not get there."""

    kind: str
    time: float | None
    flops: float | None


@dataclass(frozen=True, slots=True)
class PairRow:
    """Two policies on the same pictures."""

    first: str
    second: str
    leads: str  # where the first has the best score of all that cost no more, and the second the next best
    n_pictures: int
    first_better: int  # pictures whose questions the first answers better
    second_better: int
    p: float  # of a split at least as uneven if both were alike
    kl_less: float  # by how much the first diverges less, mean over pictures
    kl_error: float  # its standard error


@dataclass(frozen=True, slots=True)
class EvalReport:
    """What `run_eval` returns. `eval_table` and `eval_plot` show it."""

    model: str
    encoder: str
    profile: dict[str, Any] | None
    n_questions: int
    n_pictures: int
    follow_up: bool
    max_tokens: int
    kl_tokens: int
    n_threads: int
    commit: str
    machine: dict[str, Any]
    rows: tuple[PolicyRow, ...] | tuple[ConversationRow, ...]
    equal: tuple[EqualRow, ...]
    pairs: tuple[PairRow, ...]

    def to_json(self) -> dict[str, Any]:
        """All of it, as `halfv eval --json` prints it."""
        return dataclasses.asdict(self)
