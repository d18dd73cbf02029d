"""Every architecture in docs/models.md, as a tiny random model: pruned, or not for the reason that the page gives."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import halfv_cpp
import numpy as np
import pytest
from halfv_cpp import llama_h

from halfv_edge.testing.client import Client
from tests.support import ROOT, architectures, pruned
from tests.support.architectures import (
    COLS,
    MODES,
    NEXT_TOKENS,
    PREFIX,
    QUESTION,
    ROWS,
    TOP,
    WHOLE,
    masking_of,
    tell,
    told,
)
from tests.support.tiny_models import grid_positions, tiny_image

LISTED = architectures.listed()
# ggml looks GELU up in a table of f16, and these do not scale their scores down: rounding grows
NOISE = {"gemma3n": 4e-4, "gemma4": 4e-4}
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
    ("name", "causal"), [*((name, True) for name in PRUNED), *((name, False) for name in ("llama", "gemma3", "gemma4"))]
)
def test_pruned(name: str, causal: bool, program: Path, tmp_path: Path) -> None:
    """Whole through three stages is stock's to the bit; pruned is stock with the same tokens masked, or never fed."""
    for path in architectures.save(program, name, tmp_path):
        assert architectures.why_not(path) == ""
        stock, _ = told(path, causal=causal)
        assert np.isfinite(stock).all()
        assert stock.std() > 0.05
        whole, kept = told(path, WHOLE, causal=causal)
        assert [len(chosen) for chosen in kept] == [architectures.ROWS * architectures.COLS] * 2
        assert whole.tobytes() == stock.tobytes()
        layer_by_layer = architectures.observed(path) if causal else None  # as calibration runs it
        # CogVLM's builder gives the logits of all tokens, and llama.cpp takes a batch's first for those of its last
        if layer_by_layer is not None and name != "cogvlm":
            assert np.abs(layer_by_layer - stock[0]).max() < NOISE.get(name, 5e-5) * np.abs(stock).max()

        if causal:
            assert_neighbours(path, name, stock)
        hybrid = architectures.is_hybrid(path)
        for profile in [TOP] if hybrid else MODES.values():
            logits, (kept, deep) = told(path, profile, causal=causal)
            assert len(kept) == 24
            assert len(deep) == int(48 * profile["ssr.update"])
            if hybrid:
                expected = architectures.relayed(path, profile, kept, deep)
            else:
                expected, _ = told(path, None, masking_of(profile, kept, deep), causal)
            error = np.abs(logits - expected).max()
            change = np.abs(logits - stock).max()
            assert error < NOISE.get(name, 5e-5) * np.abs(stock).max()
            assert error * 20 < change  # or nothing would be tested


def assert_neighbours(path: Path, name: str, stock: np.ndarray) -> None:
    """Those of so large a square come to what seeing everything does; some kinds of attention are refused."""
    profile = TOP | {"ivr.keep": 1.0, "ssr.update": 1.0, "neighbours.layer": 2, "neighbours.width": 255}
    try:
        logits, _ = told(path, profile)
    except halfv_cpp.CallError as error:
        assert "has no attention that can be confined to neighbours" in str(error)
    else:
        assert np.abs(logits - stock).max() < NOISE.get(name, 5e-5) * np.abs(stock).max()


@pytest.mark.parametrize("layer", [1, 3])
def test_a_stage_without_windows_or_with_nothing_else(layer: int, program: Path, tmp_path: Path) -> None:
    """Every other layer of this model has a window, and such a stage has one layer."""
    path = architectures.save(program, "gemma3", tmp_path)[0]
    profile = TOP | {"ivr.layer": layer, "ssr.layer": layer + 1}
    logits, (kept, deep) = told(path, profile)
    expected, _ = told(path, None, masking_of(profile, kept, deep))
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"ssr.layer": 5}, "halfv.ssr.layer = 5 is not valid: layer 6 reads the cache of layer 4"),
        ({"ivr.layer": 6, "ssr.layer": 8}, "halfv.ivr.layer = 6 is not valid: layer 6 reads the cache of layer 4"),
        ({"ivr.layer": 7, "ssr.layer": 8}, "so no stage can begin between them: at most 4"),
    ],
)
def test_a_stage_between_a_cache_and_its_reader(
    changes: dict[str, int], sentence: str, program: Path, tmp_path: Path
) -> None:
    path = architectures.save(program, "gemma4", tmp_path)[-1]
    with pytest.raises(halfv_cpp.CallError) as error:
        told(path, TOP | changes)
    assert sentence in str(error.value)


# a plain cache, sliding windows, shared caches, several states per token, latent keys, recurrent layers beside each of
# them, and in every layer
@pytest.mark.parametrize(
    "name", ["llama", "gemma3", "gemma4", "gemma3n", "deepseek2", "qwen35", "lfm2", "kimi-linear", "falcon-h1"]
)
def test_small_micro_batches_two_sequences_and_states(name: str, program: Path, tmp_path: Path) -> None:
    path = architectures.save(program, name, tmp_path)[0]
    expected, (kept, _) = told(path, TOP)
    atol = NOISE.get(name, 2e-5) / 2

    def connect(**options: Any) -> Client:
        return Client(path, n_ctx=512, on_model=lambda model: pruned.set_profile(model, TOP), **options)

    with connect(n_ubatch=16) as client:
        np.testing.assert_allclose(tell(client), expected, rtol=0, atol=atol)

    with connect(n_seq_max=2) as client:
        client.text(QUESTION, seq=1)
        alone = [client.logits().copy(), client.decode(NEXT_TOKENS[0], seq=1).copy()]
        np.testing.assert_allclose(tell(client), expected, rtol=0, atol=atol)
        assert list(pruned.kept(client, 0, 2)) == kept
        llama_h.llama_memory_seq_rm(client.memory, 1, -1, -1)
        client.next_pos[1] = 0
        client.text(QUESTION, seq=1)
        again = [client.logits().copy(), client.decode(NEXT_TOKENS[0], seq=1).copy()]
        np.testing.assert_allclose(again, alone, rtol=0, atol=atol)

    with connect() as client, connect() as other:
        client.text(PREFIX, logits_last=False)
        pos = grid_positions(client.next_pos[0], ROWS, COLS) if client.is_mrope else None
        client.image(tiny_image(ROWS * COLS, client.n_embd_inp), pos)
        size = llama_h.llama_state_seq_get_size(client.ctx, 0)
        data = (ctypes.c_uint8 * size)()
        assert llama_h.llama_state_seq_get_data(client.ctx, data, size, 0) == size
        assert llama_h.llama_state_seq_set_data(other.ctx, data, size, 0) == size
        other.next_pos[0] = client.next_pos[0]
        other.text(QUESTION)
        logits = [other.logits().copy(), *(other.decode(token).copy() for token in NEXT_TOKENS)]
        np.testing.assert_allclose(logits, expected, rtol=0, atol=atol)


@pytest.mark.parametrize("name", ["deepseek2"])
def test_one_key_head_on_a_device(name: str, program: Path, build_dir: Path, tmp_path: Path) -> None:
    """Keys of one head are rows there as those of more are."""
    for talk, here in architectures.on_a_device(build_dir, architectures.save(program, name, tmp_path)[0]).items():
        assert here["same_kept"] and here["same_logits"], talk
