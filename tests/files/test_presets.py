"""Presets, and what docs/gguf-format.md says of them and of profiles."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from halfv_edge.errors import HalfVError
from halfv_edge.gguf.read import (
    FLOAT32,
    MAX_ALIGNMENT,
    MAX_KEY_BYTES,
    MAX_KEYS,
    MAX_STRINGS,
    MAX_TENSORS,
    MAX_VALUE_BYTES,
    STRING,
    UINT32,
    encode_entry,
)
from halfv_edge.profile import presets, profile, stored
from halfv_edge.profile.keys import KEYS
from halfv_edge.profile.profile import Profile

VICUNA, MISTRAL, QWEN = (0.5, 0.2, 0.0, "frozen"), (0.5, 0.1, 0.0, "frozen"), (0.25, 0.1, 0.05, "dropped")


@pytest.mark.parametrize(
    ("name", "n_layer", "ivr", "ssr", "shares", "published"),
    [
        ("llava-1.5-7b", 32, 3, 15, VICUNA, True),
        ("llava-1.5-13b", 40, 3, 15, VICUNA, True),
        ("llava-next-mistral-7b", 32, 2, 16, MISTRAL, True),
        ("llava-next-vicuna-7b", 32, 3, 15, VICUNA, False),
        ("llava-next-vicuna-13b", 40, 3, 15, VICUNA, False),
        ("qwen2.5-vl-7b", 28, 2, 21, QWEN, True),
        ("qwen2.5-vl-3b", 36, 2, 27, QWEN, False),
        ("qwen2.5-vl-32b", 64, 2, 48, QWEN, False),
        ("qwen2.5-vl-72b", 80, 2, 60, QWEN, False),
        ("qwen2-vl-2b", 28, 2, 21, QWEN, False),
        ("qwen2-vl-7b", 28, 2, 21, QWEN, False),
        ("qwen2-vl-72b", 80, 2, 60, QWEN, False),
        ("qwen3-vl-2b", 28, 2, 21, QWEN, False),
        ("qwen3-vl-4b", 36, 2, 27, QWEN, False),
        ("qwen3-vl-8b", 36, 2, 27, QWEN, False),
        ("qwen3-vl-32b", 64, 2, 48, QWEN, False),
    ],
)
def test_presets(name: str, n_layer: int, ivr: int, ssr: int, shares: tuple, published: bool) -> None:
    preset = presets.get(name)
    p = preset.profile
    assert (preset.n_layer, preset.published) == (n_layer, published)
    assert (p.ivr_layer, p.ssr_layer) == (ivr, ssr)
    assert (p.ivr_keep, p.ivr_anchors, p.ssr_update, p.ssr_rest) == shares
    assert p.min_visual_tokens == 64
    p.validate(n_layer)


def test_preset_table_is_whole() -> None:
    named = test_presets.pytestmark[0].args[1]
    assert sorted(presets.PRESETS) == sorted(row[0] for row in named)


@settings(deadline=None)
@given(st.sampled_from(list(presets.PRESETS.values())), st.integers(2, 200))
def test_scaling(preset: presets.Preset, n_layer: int) -> None:
    scaled = preset.scaled(n_layer)
    p = scaled.profile.validate(n_layer)
    assert p.ivr_layer <= preset.profile.ivr_layer or n_layer > preset.n_layer
    if n_layer >= presets.DEEP:
        assert p.ivr_layer == preset.profile.ivr_layer
    if n_layer >= 8:
        assert abs(p.ssr_layer / n_layer - preset.profile.ssr_layer / preset.n_layer) <= 0.5 / n_layer + 1e-9
    assert scaled.published == (preset.published and n_layer == preset.n_layer)


def test_scaling_rounds_half_up() -> None:
    assert presets.scale(presets.QWEN, 28, 30).ssr_layer == 23  # 22.5
    assert presets.scale(presets.QWEN, 28, 6) == dataclasses.replace(presets.QWEN, ivr_layer=1, ssr_layer=5)  # 0.4, 4.5
    with pytest.raises(HalfVError, match="A model of 1 layers cannot be pruned"):
        presets.scale(presets.QWEN, 28, 1)


@pytest.mark.parametrize(
    ("architecture", "name", "n_layer", "preset"),
    [
        ("qwen2vl", "Qwen2.5 VL 7B Instruct", 28, "qwen2.5-vl-7b"),
        ("qwen2vl", "Qwen2.5-VL-3B-Instruct", 36, "qwen2.5-vl-3b"),
        ("qwen2vl", "Qwen2.5 Vl 72B Instruct Awq", 80, "qwen2.5-vl-72b"),
        ("qwen2vl", "Qwen2 VL 2B Instruct", 28, "qwen2-vl-2b"),
        ("qwen2vl", "Qwen2-VL", 28, "qwen2-vl-7b"),
        ("qwen3vl", "Qwen3 VL 8B Instruct", 36, "qwen3-vl-8b"),
        ("qwen3vl", "Qwen3-VL-4B-Thinking", 36, "qwen3-vl-4b"),
        ("llama", "Llava v1.5 7B", 32, "llava-1.5-7b"),
        ("llama", "llava-1.5-13b-hf", 40, "llava-1.5-13b"),
        ("llama", "Llava v1.6 Mistral 7b Hf", 32, "llava-next-mistral-7b"),
        ("llama", "LLaVA-NeXT-Vicuna-13B", 40, "llava-next-vicuna-13b"),
        ("llama", "Llava v1.6 34b", 60, None),
        ("llama", "LLaMA v2", 32, None),
        ("qwen2", "Qwen2.5 VL 7B Instruct", 28, None),
        ("qwen2vl", "UI-TARS 7B", 28, None),
        ("qwen2vl", "Qwen2.5-VL", 1, None),
    ],
)
def test_match(architecture: str, name: str, n_layer: int, preset: str | None) -> None:
    found = presets.match(architecture, ["", name], n_layer)
    assert (found.name if found else None) == preset
    assert found is None or found.n_layer == n_layer


def test_match_scales_to_a_depth_that_no_size_has() -> None:
    found = presets.match("qwen2vl", ["Qwen2.5-VL 5B"], 32)
    assert (found.name, found.n_layer, found.profile.ssr_layer, found.published) == ("qwen2.5-vl-7b", 32, 24, False)


def test_unknown_preset() -> None:
    with pytest.raises(HalfVError, match=r"There is no preset 'qwen2.5-vl-8b': did you mean qwen2\.5-vl-"):
        presets.get("qwen2.5-vl-8b")
    with pytest.raises(HalfVError, match=r"There is no preset 'gpt': those are llava-1\.5-7b, "):
        presets.get("gpt")


# docs/gguf-format.md


@pytest.fixture(scope="module")
def specification(root: Path) -> str:
    return (root / "docs" / "gguf-format.md").read_text()


def test_specified_keys(specification: str) -> None:
    rows = re.findall(r"^\| `halfv\.([\w.]+)` \| ([^|]+?) \|.*\| ([^|]+) \|$", specification, re.MULTILINE)
    evidence = [(f"calibration.{name}", type_, False) for name, type_ in profile.CALIBRATION_KEYS.items()]
    keys = [(key.key, key.type, key.needed) for key in KEYS.values()]
    assert [(key, type_.split(",")[0], needed == "yes") for key, type_, needed in rows] == [
        (key, stored.TYPE_WORDS[type_], needed)
        for key, type_, needed in [("version", UINT32, True), *keys, *evidence, ("frontier", STRING, False)]
    ]


def test_specified_sidecar(specification: str) -> None:
    example = re.search(r"```json\n(.*?)```", specification, re.DOTALL)[1]
    found = Profile.from_json(json.loads(example)).validate(28)
    assert dataclasses.replace(found, calibration=None) == presets.QWEN


def test_specified_bytes(specification: str) -> None:
    shown = re.search(r"^((?:[0-9a-f]{2} +){29}[0-9a-f]{2})$", specification, re.MULTILINE)[1]
    assert bytes.fromhex(shown) == encode_entry("halfv.ivr.keep", FLOAT32, 0.25)


def test_specified_presets(specification: str) -> None:
    rows = re.findall(r"^\| (`.+?`) \| (\d.*) \|$", specification, re.MULTILINE)
    found = {name: values for names, values in rows for name in re.findall(r"`(.+?)`", names)}
    assert found == {
        preset.name: f"{preset.n_layer} | {p.ivr_layer} | {p.ivr_keep:g} | {p.ivr_anchors:g} | {p.ssr_layer} | "
        f"{p.ssr_update:g} | {p.ssr_rest} |" + (" published" if preset.published else "")
        for preset in presets.PRESETS.values()
        for p in [preset.profile]
    }
    assert {p.name for p in presets.PRESETS.values() if p.profile.pixel_tau == 0} == {n for n in found if "qwen" in n}


def test_specified_limits(specification: str) -> None:
    limits = (MAX_KEYS, MAX_TENSORS, MAX_STRINGS)
    assert "refuse more than {} keys, {} tensors, {} strings,".format(*limits) in " ".join(specification.split())
    assert (MAX_KEY_BYTES + 1, MAX_ALIGNMENT) == (64 << 10, 1 << 20)
    assert MAX_VALUE_BYTES == stored.MAX_SIDECAR_BYTES == 1 << 20
