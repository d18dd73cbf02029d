"""What a bench finds."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from halfv_edge.measure.bench.options import Measurement


@dataclass(frozen=True, slots=True)
class Spread:
    """Of a number that was measured several times."""

    median: float
    min: float
    max: float


def spread(values: Iterable[float]) -> Spread:
    ordered = sorted(values)
    return Spread(statistics.median(ordered), ordered[0], ordered[-1])


@dataclass(frozen=True, slots=True)
class PromptRow:
    """One way to run a prompt with one picture. Ratios are to the first row of the picture."""

    picture: str
    run: str
    n_visual: int
    n_kept: int  # of them in stage II
    n_deep: int  # and updated in stage III
    ttft_s: Spread
    encode_s: Spread
    prefill_s: Spread
    select_s: Spread | None
    ttft_ratio: Spread
    prefill_ratio: Spread
    flops: float
    flops_ratio: float
    prefill_tokens_per_s: float
    decode_tokens_per_s: Spread
    kv_bytes: int | None
    stats: dict[str, Any] | None
    ttft_ceiling: float  # what ttft_ratio would be at the FLOPS of the first row
    peak_bytes: int | None = None  # resident, measured for the last picture
    device_bytes: int | None = None  # what its context takes of GPUs, likewise


@dataclass(frozen=True, slots=True)
class FollowUpRow:
    """One way to hold a conversation."""

    picture: str
    run: str
    n_visual: int
    stats: dict[str, Any] | None
    picture_s: Spread  # before Enter
    first_s: Spread  # from Enter to the first token
    second_s: Spread  # from the second question to its first token


@dataclass(frozen=True, slots=True)
class OffRow:
    """One way not to prune, beside an unpatched llama.cpp."""

    picture: str
    run: str
    n_visual: int
    prefill_s: Spread
    prefill_cost: Spread
    decode_cost: Spread


Row = PromptRow | FollowUpRow | OffRow


@dataclass(frozen=True, slots=True)
class BenchReport:
    """What `run_bench` returns. `bench_table` and `bench_plot` show it."""

    measurement: Measurement
    subject: str
    arch: str
    weights: str
    encoder: bool
    profile: dict[str, Any] | None
    commit: str
    machine: dict[str, Any]
    libraries: dict[str, dict[str, Any]]
    repeats: int
    n_decode: int
    n_batch: int
    n_ubatch: int
    n_threads: int
    n_gpu_layers: int
    kv_type: str
    mmproj_type: str
    packed: bool  # weights may be laid out for a processor's own products, of which no part can be taken
    rows: tuple[Row, ...]

    def to_json(self) -> dict[str, Any]:
        """All of it, as `halfv bench --json` prints it."""
        return dataclasses.asdict(self)
