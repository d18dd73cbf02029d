"""With no profile, or switched off, the patched library computes bit for bit what an unpatched build computes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from halfv_cpp import library

from tests.support.decoded import decode
from tests.support.drive_decode import N_DECODED
from tests.support.tiny_models import FREEZE, make_tiny

PROFILE = FREEZE | {"min_visual_tokens": 8}


@pytest.mark.parametrize("flags", [(), ("--flash-attn", "--kv-type", "f16")], ids=["f32", "flash-f16"])
@pytest.mark.parametrize("case", ["no profile", "switched off"])
@pytest.mark.parametrize("arch", ["llama", "qwen2vl"])
def test_same_bits_as_stock(arch: str, case: str, flags: tuple[str, ...], stock_lib_dir: Path, tmp_path: Path) -> None:
    profile = None if case == "no profile" else PROFILE
    model = make_tiny(tmp_path / "model.gguf", arch, profile=profile)
    env = {"HALFV": "off"} if profile else {}
    which, stock = decode(stock_lib_dir, model, tmp_path / "stock.npy", *flags)
    assert which == "stock"
    which, ours = decode(library.lib_dir(), model, tmp_path / "ours.npy", *flags, **env)
    assert which == "patched"

    assert stock.shape[0] == 1 + N_DECODED
    assert np.isfinite(stock).all()
    assert (stock.std(axis=1) > 0.1).all()
    assert stock.tobytes() == ours.tobytes()
