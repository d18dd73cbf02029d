"""Calibration of models that are not attention in every layer alike: recurrent layers, sliding windows."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from halfv_edge.engine.options import ModelOptions
from halfv_edge.measure import CalibrationGoal, find_samples, load_for_calibration, run_calibration
from halfv_edge.profile.profile import DROPPED
from tests.support.converted import convert_tiny
from tests.support.hf_reference import SIZES, random_picture

# how deep, and which layers have attention: recurrent layers; windows in all layers but the last; heads of two sizes
KINDS = {
    "qwen3_5": (8, [3, 7]),
    "lfm2_vl": (None, [1, 3]),
    "gemma4": (6, range(6)),
}


@pytest.mark.parametrize("family", KINDS)
def test_a_profile_comes_out(family: str, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> None:
    depth, attending = KINDS[family]
    pair = convert_tiny(family, tmp_path_factory.getbasetemp(), depth)
    for seed in range(4):
        Image.fromarray(random_picture(*SIZES[family], seed=seed)).save(tmp_path / f"{seed}.png")
    options = ModelOptions(n_ctx=1024, n_threads=1)
    with load_for_calibration(pair.text, pair.vision, options=options) as model:
        result = run_calibration(model, find_samples(tmp_path), goal=CalibrationGoal(target_speedup=1.1))
        n_layer = model.n_layer
    attention = list(np.flatnonzero(np.isfinite(result.curves.attention)))
    assert attention == list(attending)
    hybrid = len(attention) < n_layer
    assert np.isnan(result.curves.layer_kl).all() == hybrid
    assert (result.n_frozen == 0) == hybrid
    assert result.best.speedup >= 1.1
    if hybrid:
        assert result.profile.ssr_rest == DROPPED
        assert result.profile.ivr_layer > attention[0]
    assert "NaN" not in json.dumps(result.to_json())
