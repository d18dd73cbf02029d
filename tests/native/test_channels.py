"""Feed-forward networks of which visual tokens take the first channels alone, against the torch reference."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import halfv_cpp
import numpy as np
import pytest

from tests.support import pruned
from tests.support.dialogue import (
    Model,
    assert_counts,
    assert_parts_agree,
    assert_prompt_agrees,
    connect,
    feed,
    make_prompt,
)
from tests.support.reference.halfv_torch import Reference
from tests.support.tiny_models import ARCHS, DROP, FREEZE, make_tiny, make_tiny_lora

GRID, GRIDS = [(9, 12)], [(9, 12), (7, 19)]
HALF = {"ffn.layer": 2, "ffn.keep": 0.5}  # 64 of 128
PROFILES = {
    "in stages II and III": DROP | HALF,
    "from a layer in stage II on": DROP | {"ffn.layer": 3, "ffn.keep": 0.3},
    "with frozen ones": FREEZE | {"ssr.update": 0.1} | HALF,
    "alone": DROP | {"ivr.keep": 1.0, "ssr.update": 1.0} | HALF,
    "and then only text": DROP | HALF | {"further.layers": (5,), "further.keep": (0.0,)},
}


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("name", PROFILES)
def test_channels(models: Callable[..., Model], name: str, arch: str) -> None:
    assert_parts_agree(models(arch), GRIDS, PROFILES[name], ("ffn",))


@pytest.mark.parametrize("n_ubatch", [1, 7, 512])
def test_ubatches_of_any_size(models: Callable[..., Model], n_ubatch: int) -> None:
    assert_prompt_agrees(models("qwen2vl"), GRIDS, DROP | HALF, n_batch=n_ubatch, n_ubatch=n_ubatch)


@pytest.mark.parametrize("name", PROFILES)
def test_prepared_and_topped_up(models: Callable[..., Model], name: str) -> None:
    assert_prompt_agrees(models("qwen3vl"), GRID, PROFILES[name], prepared=True)


@pytest.mark.parametrize("name", ["in stages II and III", "alone"])
def test_pictures_that_are_not_causal(models: Callable[..., Model], name: str) -> None:
    assert_prompt_agrees(models("llama"), GRIDS, PROFILES[name], causal=False)


def test_small_pictures_and_text_take_all(models: Callable[..., Model]) -> None:
    path, reference = models("llama")
    segments = make_prompt(reference, GRID)
    with connect(path, DROP | HALF | {"min_visual_tokens": 200}) as client:
        logits = feed(client, segments)
    np.testing.assert_allclose(logits, reference.run(segments).logits, atol=1e-4)


@pytest.mark.parametrize("ftype", ["f16", "q8_0", "q4_0"])
def test_types_whose_rows_can_be_cut(tmp_path: Path, ftype: str) -> None:
    """Whole blocks of quantised types; weights that a processor packs for itself are refused with a sentence."""
    path = make_tiny(tmp_path / "model.gguf", "llama", n_layer=6, ftype=ftype)
    reference = Reference(path)
    segments = make_prompt(reference, GRID)
    try:
        connect(path, DROP | HALF).close()
    except halfv_cpp.CallError as error:
        said = str(error)
        assert "halfv.ffn.keep = 0.5 is not valid: the weights of layer 2 are in memory of the kind" in said
        assert "use_extra_bufts" in said
    with connect(path, DROP | HALF, packed=False) as client:
        logits = feed(client, segments)
    expected = reference.run(segments, DROP | HALF).logits
    assert np.square(logits - expected).sum() < 0.02 * np.square(expected).sum()


def test_adapters_take_all(models: Callable[..., Model], tmp_path: Path) -> None:
    """They are made for the whole networks."""
    path, reference = models("llama")
    lora = make_tiny_lora(tmp_path / "lora.gguf", "llama", n_layer=6)
    segments = make_prompt(reference, GRID)
    found = []
    for profile in (DROP | HALF, DROP):
        with connect(path, profile, lora=lora) as client:
            found.append((feed(client, segments).tobytes(), pruned.stats(client).flops_spent))
    assert found[0] == found[1]


def test_networks_that_have_none_to_cut(tmp_path: Path) -> None:
    path = make_tiny(tmp_path / "model.gguf", "qwen2vl", n_layer=6)

    def attempt(**more: Any) -> str:
        with pytest.raises(halfv_cpp.CallError) as error:
            connect(path, DROP | more)
        return str(error.value)

    assert "halfv.ffn.layer = 1 is not valid: it must be at least halfv.ivr.layer (2)" in attempt(
        **HALF | {"ffn.layer": 1}
    )
    assert "halfv.ffn.keep = 0 is not valid: it must be above 0 and at most 1" in attempt(**HALF | {"ffn.keep": 0.0})


def test_flops(models: Callable[..., Model]) -> None:
    path, reference = model = models("llama")
    segments = make_prompt(reference, GRID)
    counts = n_before, n_visual, n_after = len(segments[0].ids), 108, len(segments[-1].ids)
    for profile in PROFILES.values():
        assert_counts(model, profile, segments, *counts)
    whole = PROFILES["alone"] | {"ffn.keep": 1.0}
    network = 2.0 * sum(reference.weights[f"blk.3.ffn_{name}.weight"].numel() for name in ("gate", "up", "down"))
    assert assert_counts(model, whole | {"ivr.keep": 0.999}, segments, *counts).flops_spent > 0
    with connect(path, PROFILES["alone"]) as client:
        dense, half = pruned.flops(client, PROFILES["alone"], n_before, n_visual, n_after)
    assert dense - half == pytest.approx(3 * n_visual * network / 2, rel=1e-9)  # the last layer has none to spare
