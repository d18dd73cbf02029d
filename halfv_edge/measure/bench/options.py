"""What a bench measures and how."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from halfv_cpp.tensor_types import KV_TYPES

from halfv_edge.engine.encoder import MMPROJ_TYPES
from halfv_edge.engine.options import ProfileSource, check_choice
from halfv_edge.errors import HalfVError
from halfv_edge.measure.bench.pictures import DRAWINGS

Measurement = Literal["prompt", "follow_up", "off"]
MEASUREMENTS: tuple[Measurement, ...] = ("prompt", "follow_up", "off")
LEAST = {"repeats": 1, "warm_up": 0, "n_decode": 1, "n_threads": 1, "n_batch": 1, "n_ubatch": 1}


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchOptions:
    """What `run_bench` takes beside the model and its pictures.

    Example:
        >>> BenchOptions(keep=(0.5, 0.25), repeats=3).n_decode
        32
    """

    measurement: Measurement = "prompt"
    """"prompt": a picture and a question. "follow_up": prepared pictures and second questions. "off": what the
    libraries cost while they do not prune; needs `stock_lib`."""
    profile: ProfileSource = None
    """As `Model.load` takes it; None is what comes with the model."""
    keep: tuple[float, ...] = ()
    """Shares to run the profile with as well."""
    policies: tuple[str, ...] = ()
    """More ways to save, such as "fastv:0.25"; docs/eval.md lists them."""
    draw: tuple[str, ...] = ()
    """What generated pictures show: "photo", which is the default, or "page", or both."""
    stock_lib: Path | None = None
    """A folder with the libraries of an unpatched llama.cpp, to compare with."""
    repeats: int = 5
    """Rounds that count."""
    warm_up: int = 1
    """Rounds before them that do not."""
    n_decode: int = 32
    """Tokens that are generated after each prompt."""
    n_gpu_layers: int = -1
    """Layers on the GPU; -1 is all."""
    n_threads: int | None = None
    """On the CPU; None is one per core."""
    n_batch: int = 2048
    """Tokens of a prompt that are given to llama.cpp at once."""
    n_ubatch: int = 512
    """Tokens of a batch that are computed at once."""
    kv_type: str = "f16"
    """Type of the KV cache."""
    mmproj_type: str = "auto"
    """Type of the encoder's weights in memory."""

    def __post_init__(self) -> None:
        check_choice("measurement", self.measurement, MEASUREMENTS)
        check_choice("kv_type", self.kv_type, KV_TYPES)
        check_choice("mmproj_type", self.mmproj_type, MMPROJ_TYPES)
        for drawing in self.draw:
            check_choice("draw", drawing, DRAWINGS)
        for name, least in LEAST.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise HalfVError(parameter=name, value=value, rule=f"at least {least}")
        if self.measurement == "off" and self.stock_lib is None:
            raise HalfVError(
                "What being off costs shows beside an unpatched llama.cpp: name the folder of its libraries with "
                "{stock_lib}.",
                settings={"stock_lib": None},
            )
