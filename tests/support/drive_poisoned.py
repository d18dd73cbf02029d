"""Logits of a picture and a prompt, with no profile and with two: MODEL.gguf MMPROJ.gguf WIDTH HEIGHT OUT.npy."""

from __future__ import annotations

import contextlib
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from halfv_cpp import CallError

from tests.support import pruned
from tests.support.mtmd_prompt import MARKER, run_prompt

STAGES = {"ivr.layer": 1, "ssr.layer": 3, "min_visual_tokens": 1}
PROFILES = (
    None,
    STAGES | {"ivr.keep": 0.5, "ssr.update": 0.0, "ssr.rest": "dropped"},
    STAGES | {"ivr.keep": 0.8, "ssr.update": 0.3, "ssr.rest": "frozen", "input.keep": 0.7},
)


def set_profile(model: int, profile: dict[str, Any] | None) -> None:
    """Or what comes nearest to it, of a model with recurrent layers."""
    for fitting in (profile, {**(profile or {}), "ivr.layer": 2, "ssr.layer": 4, "ssr.rest": "dropped"}, None):
        with contextlib.suppress(CallError):
            return pruned.set_profile(model, fitting)


def all_logits(model: Path, mmproj: Path, width: int, height: int) -> np.ndarray:
    picture = np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8)
    prompt = f"what is in {MARKER}the picture?"
    runs = (
        run_prompt(model, mmproj, picture, prompt, on_model=partial(set_profile, profile=profile))
        for profile in PROFILES
    )
    return np.stack([run.logits for run in runs])


if __name__ == "__main__":
    model, mmproj, width, height, out = sys.argv[1:]
    np.save(out, all_logits(Path(model), Path(mmproj), int(width), int(height)))
