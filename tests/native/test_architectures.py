"""Every architecture in docs/models.md, as a tiny random model: pruned, or not for the reason that the page gives."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.support import ROOT, architectures
from tests.support.architectures import MODES, WHOLE, masking_of, told

LISTED = architectures.listed()
PRUNED = [name for name, reason in LISTED.items() if not reason]


@pytest.fixture(scope="module")
def program(build_dir: Path) -> Path:
    found = build_dir / "bin" / "save-archs"
    assert found.is_file(), f"{found} is not built: run `make test`"
    return found


def test_all_are_listed(program: Path) -> None:
    assert sorted(architectures.names(program)) == sorted(LISTED)
    assert f"{len(PRUNED)} of llama.cpp's" in (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", [name for name, reason in LISTED.items() if reason])
def test_runs_unpruned(name: str, program: Path, tmp_path: Path) -> None:
    for path in architectures.save(program, name, tmp_path):
        assert architectures.why_not(path) == LISTED[name]


@pytest.mark.parametrize(
    ("name", "causal"), [*((name, True) for name in PRUNED), *((name, False) for name in ("llama", "gemma3"))]
)
def test_pruned(name: str, causal: bool, program: Path, tmp_path: Path) -> None:
    """Whole through three stages is stock's to the bit; pruned is stock with the same tokens masked."""
    for path in architectures.save(program, name, tmp_path):
        assert architectures.why_not(path) == ""
        stock, _ = told(path, causal=causal)
        assert np.isfinite(stock).all()
        assert stock.std() > 0.05
        whole, kept = told(path, WHOLE, causal=causal)
        assert [len(chosen) for chosen in kept] == [architectures.ROWS * architectures.COLS] * 2
        assert whole.tobytes() == stock.tobytes()

        for profile in MODES.values():
            logits, (kept, deep) = told(path, profile, causal=causal)
            assert len(kept) == 24
            assert len(deep) == int(48 * profile["ssr.update"])
            expected, _ = told(path, None, masking_of(profile, kept, deep), causal)
            error = np.abs(logits - expected).max()
            assert error < 2e-5 * np.abs(stock).max()  # ggml looks GELU up in a table of f16
            assert error * 20 < np.abs(logits - stock).max()  # or nothing would be tested
