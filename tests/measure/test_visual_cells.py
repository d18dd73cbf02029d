"""Keys and values of visual tokens in fewer bits, against short torch statements and ggml's own blocks."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, quants
from halfv_cpp import ggml_h
from halfv_cpp.ggml_backend_h import ggml_backend_sched_eval_callback
from halfv_cpp.tensor_types import TENSOR_TYPES

from halfv_edge.engine import images
from halfv_edge.engine.context import Context
from halfv_edge.engine.model import Model
from halfv_edge.errors import HalfVError
from halfv_edge.measure.eval.asking import Asker
from halfv_edge.measure.policies import Policy, PolicyModel, parse_one
from halfv_edge.measure.visual_bits import PER_TOKEN, VisualBits
from halfv_edge.measure.visual_cells import (
    CalibratedRange,
    SavedState,
    by_blocks,
    by_channel,
    calibrated,
    restored,
    rewrite,
)
from tests.support import ROOT
from tests.support.tiny_mmproj import make_tiny_mmproj
from tests.support.tiny_models import make_tiny
from tests.support.vlm import QUESTION, Vlms, picture

N_LAYER = 6
F16 = {"flash_attn": True, "kv_type": "f16"}
WIDE_HEADS = {"n_head": 2, "n_head_kv": 1}  # as blocks of a cache need them


def rows(n: int = 200, channels: int = 64) -> np.ndarray:
    rng = np.random.default_rng(3)
    found = rng.standard_normal((n, channels)).astype(np.float32) * rng.uniform(0.1, 9, channels).astype(np.float32)
    found[0] = 0
    found[:, 5] = 0.25
    return found


#
# quantisers
#


@pytest.mark.parametrize("kind", PER_TOKEN)
def test_blocks_are_those_of_ggml(kind: str) -> None:
    number = GGMLQuantizationType[kind.upper()]
    expected = quants.dequantize(quants.quantize(rows(), number), number)
    np.testing.assert_array_equal(by_blocks(rows(), kind), expected)


@pytest.mark.parametrize(("n_bits", "shrink"), [(1, 0.5), (1, 0.3), (2, 1.0), (4, 1.0)])
def test_channels_are_as_published(n_bits: int, shrink: float) -> None:
    given = torch.from_numpy(rows()).double()
    low, high = shrink * given.amin(0), shrink * given.amax(0)
    scale = (high - low) / (2**n_bits - 1)
    zero = -low / scale
    code = torch.round(torch.clamp(given / scale + zero, 0, 2**n_bits - 1))
    expected = scale * (code - zero)
    expected[:, 5] = shrink * 0.25  # all alike: published, nothing over nothing
    np.testing.assert_allclose(by_channel(rows(), n_bits, shrink), expected, rtol=1e-5, atol=1e-6)


def test_one_bit_is_one_of_two_values() -> None:
    keys, values = (restored(rows(), VisualBits("1"), of_keys) for of_keys in (True, False))
    for column in range(64):
        extremes = np.array([rows()[:, column].min(), rows()[:, column].max()])
        np.testing.assert_allclose(np.unique(keys[:, column]), np.unique(0.5 * extremes), rtol=1e-6)
        np.testing.assert_allclose(np.unique(values[:, column]), np.unique(0.3 * extremes), rtol=1e-6)


@pytest.mark.parametrize("kind", ["2", "4", *PER_TOKEN])
def test_what_is_left_is_left_again(kind: str) -> None:
    once = restored(rows(), VisualBits(kind), True)
    np.testing.assert_allclose(restored(once, VisualBits(kind), True), once, rtol=1e-3, atol=1e-5)


def test_range() -> None:
    logits = np.array([[4.0, -2.0, 1.0], [0.5, 0.5, 0.5]])
    np.testing.assert_allclose(calibrated(logits), [[1.0, -2.0, -0.5], [0.5, 0.5, 0.5]])


#
# caches
#


@pytest.fixture(params=[("qwen2vl", {}), ("qwen2vl", F16), ("llava", F16)], ids=["mrope f32", "mrope", "llava"])
def asker(request: pytest.FixtureRequest, vlms: Vlms) -> Iterator[Asker]:
    kind, options = request.param
    asker = Asker(vlms.load(kind, **options), 6, 4)
    yield asker
    asker.close()


def policy(model: Model, name: str) -> Policy:
    return parse_one(name, PolicyModel(model.n_layer, model.profile))


def filled(asker: Asker, name: str) -> tuple[Context, int]:
    """A prompt with a picture, and how many tokens of text are in it."""
    wanted = policy(asker.model, name)
    head, tail, _ = asker.items(wanted, images.load(picture(0, 336, 280)), QUESTION)
    context = asker.context(wanted, 400)
    context.evaluate([*head, *tail], output=True)
    return context, sum(isinstance(item, int) for item in [*head, *tail])


@pytest.mark.parametrize("name", ["unpruned", "profile"])
@pytest.mark.parametrize("bits", [VisualBits("q4_0"), VisualBits("1", first_layer=3)], ids=["q4_0", "1/3"])
def test_visual_cells_alone_change(asker: Asker, name: str, bits: VisualBits) -> None:
    context, n_text = filled(asker, name)
    stats = context.stats()
    n_visual = [stats[key] for key in ("n_visual", "n_kept", "n_deep") for _ in range(2)] if stats else [120] * N_LAYER
    if asker.model.profile and stats and asker.model.encoder.is_mrope:
        assert n_visual == [120, 120, 60, 60, 12, 12]
    before = SavedState(context).layers()
    where = rewrite(context, bits)
    after = SavedState(context).layers()
    assert len(before) == len(after) == N_LAYER
    for number, (was, now) in enumerate(zip(before, after, strict=True)):
        visual = [
            at for at, place in enumerate(was.positions) if any(a <= place < b for a, b in context.picture_positions())
        ]
        text = sorted(set(range(len(was.positions))) - set(visual))
        assert len(text) == n_text
        assert len(visual) == n_visual[number] or not asker.model.encoder.is_mrope
        np.testing.assert_array_equal(was.positions, now.positions)
        for of_keys, old, new in ((True, was.keys, now.keys), (False, was.values, now.values)):
            assert old[text].tobytes() == new[text].tobytes()
            if number < bits.first_layer:
                assert old.tobytes() == new.tobytes()
                continue
            assert visual == list(where.cells[number])
            expected = restored(old[visual], bits, of_keys).astype(old.dtype)
            np.testing.assert_array_equal(new[visual], expected)
            assert (new[visual] != old[visual]).any()


@pytest.mark.parametrize("name", ["unpruned", "profile"])
def test_nothing_changes_where_no_layer_is_rewritten(asker: Asker, name: str) -> None:
    def follow(after: VisualBits | None) -> list[np.ndarray]:
        context, _ = filled(asker, name)
        if after:
            rewrite(context, after)
        found = []
        for token in (5, 9, 11):
            context.evaluate([token], output=True)
            found.append(asker.runtime.logits(context))
        return found

    np.testing.assert_array_equal(follow(None), follow(VisualBits("1", first_layer=N_LAYER)))


def test_the_first_token_is_chosen_before(asker: Asker) -> None:
    shown = images.load(picture(0, 336, 280))
    unpruned = asker.ask(policy(asker.model, "unpruned"), shown, QUESTION)
    answers = {
        name: asker.ask(policy(asker.model, name), shown, QUESTION, unpruned) for name in ("kv:q8_0", "kv:1", "kv:4")
    }
    for answer in answers.values():
        np.testing.assert_array_equal(answer.logits[0], unpruned.logits[0])
        assert answer.n_deep == unpruned.n_deep
    assert 0 < answers["kv:q8_0"].kl < answers["kv:4"].kl < answers["kv:1"].kl
    pruned = asker.ask(policy(asker.model, "profile"), shown, QUESTION, unpruned)
    both = asker.ask(policy(asker.model, "calibquant+profile"), shown, QUESTION, unpruned)
    assert (both.n_kept, both.n_deep, both.flops) == (pruned.n_kept, pruned.n_deep, pruned.flops)
    assert both.kl != pruned.kl


@pytest.mark.parametrize("name", ["unpruned", "profile"])
def test_calibquant_is_as_stated(vlms: Vlms, name: str) -> None:
    """What the first layer's attention gives for a token, from its queries and what the cache holds."""
    model = vlms.load("qwen2vl")
    mapping = CalibratedRange()
    seen: dict[bytes, np.ndarray] = {}

    def watch(tensor: int, ask: bool, user: object) -> bool:
        label = ggml_h.ggml_get_name(tensor)
        if label in (b"Qcur-0", b"kqv_out-0"):
            if not ask:
                pointer = ggml_h.ggml_get_data_f32(tensor)
                seen[label] = np.ctypeslib.as_array(pointer, (ggml_h.ggml_nbytes(tensor) // 4,)).copy()
            return True
        return bool(mapping._on_tensor(tensor, ask, user))

    callback = ggml_backend_sched_eval_callback(watch)
    asker = Asker(model, 6, 4)
    asker._seeing_logits = lambda _policy: {"watch": callback, "flash_attn": False}  # type: ignore[method-assign]
    try:
        context, _ = filled(asker, name)
        mapping.where = rewrite(context, VisualBits("1"))
        visual = torch.from_numpy(mapping.where.cells[0])
        context.evaluate([7], output=True)
        layer = SavedState(context).layers()[0]
    finally:
        asker.close()
    assert mapping.error is None

    heads, n_kv = 4, 2
    queries = torch.from_numpy(seen[b"Qcur-0"]).double().reshape(heads, 16)
    keys, values = (
        torch.from_numpy(np.ascontiguousarray(rows)).double().reshape(-1, n_kv, 16).repeat_interleave(heads // n_kv, 1)
        for rows in (layer.keys, layer.values)
    )
    logits = torch.einsum("hd,nhd->hn", queries, keys) / 4
    of_picture = logits[:, visual]
    low, high = of_picture.amin(1, keepdim=True), of_picture.amax(1, keepdim=True)
    mapped = logits.clone()
    mapped[:, visual] = low + (of_picture - low) * ((high - 3) - low) / (high - low)
    found = torch.from_numpy(seen[b"kqv_out-0"]).double().reshape(heads, 16)
    as_stated, without = (torch.einsum("hn,nhd->hd", one.softmax(1), values) for one in (mapped, logits))
    torch.testing.assert_close(found, as_stated, rtol=0, atol=1e-5)
    assert (as_stated - without).abs().max() > 1e-3


#
# what is refused, and what it takes
#


def test_a_quantised_cache_is_not_rewritten(vlms: Vlms) -> None:
    asker = Asker(vlms.load("qwen2vl", WIDE_HEADS, kv_type="q8_0", flash_attn=True), 6, 4)
    try:
        with pytest.raises(HalfVError, match="kv_type = 'q8_0' is not valid: it must be f16 or f32 where"):
            asker.ask(policy(asker.model, "kv:1"), images.load(picture(0, 336, 280)), QUESTION)
    finally:
        asker.close()


def test_a_cache_in_two_parts_is_not_rewritten(tmp_path: Path) -> None:
    path = make_tiny(tmp_path / "model.gguf", "gemma3")
    make_tiny_mmproj(tmp_path / "mmproj-model.gguf", "llava", n_embd=64)
    with Model.load(path, n_ctx=512, n_threads=1) as model:
        asker = Asker(model, 6, 4)
        try:
            with pytest.raises(HalfVError, match="cache that cannot be rewritten"):
                asker.ask(policy(model, "kv:1"), images.load(picture(0, 336, 280)), QUESTION)
        finally:
            asker.close()


def test_rows_without_whole_blocks() -> None:
    with pytest.raises(HalfVError, match=re.escape("Keys of 80 values have no whole blocks of q8_0: take bits")):
        restored(rows(channels=80), VisualBits("q8_0"), True)


@pytest.mark.parametrize(
    ("name", "bits"),
    [
        ("kv:q8_0", VisualBits("q8_0")),
        ("kv:2/4", VisualBits("2", 4)),
        ("calibquant", VisualBits("1", calibrated=True)),
        ("calibquant:2", VisualBits("2", calibrated=True)),
    ],
)
def test_names(vlms: Vlms, name: str, bits: VisualBits) -> None:
    own = PolicyModel(N_LAYER, vlms.load("qwen2vl").profile)
    assert parse_one(name, own) == Policy(name, bits=bits)
    for other in ("profile", "input:0.5", "prepared", "unpruned"):
        expected = dataclasses.replace(parse_one(other, own), name=f"{name}+{other}", bits=bits)
        assert parse_one(f"{name}+{other}", own) == expected


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("kv:3", "The policy 'kv:3' is not valid: 3 must be one of q8_0, q4_0, 1, 2, 4"),
        ("kv:1/0", "The policy 'kv:1/0' is not valid: 0 must be a whole number of at least 1."),
        ("kv", "The policy 'kv' is not valid: kv is visual tokens' keys"),
        ("calibquant:4", "The policy 'calibquant:4' is not valid: 4 must be 1 or 2 bits."),
        ("kv:1+kv:2", "The policy 'kv:1+kv:2' is not valid: what stands before + must be one of "),
        ("kv:1+stock", "The policy 'kv:1+stock' is not valid: what stands before + must be one of "),
    ],
)
def test_names_that_are_refused(name: str, why: str) -> None:
    with pytest.raises(HalfVError, match=re.escape(why)):
        parse_one(name, PolicyModel(N_LAYER, None))


@pytest.mark.parametrize("kind", PER_TOKEN)
def test_bytes_are_those_of_such_a_cache(vlms: Vlms, kind: str) -> None:
    model = vlms.load("qwen2vl", WIDE_HEADS, kv_type=kind, flash_attn=True)
    context = model.runtime.context(n_ctx=512)
    try:
        context.evaluate([5, 6, 7], output=True)
        stats: dict[str, Any] = context.stats()
    finally:
        context.close()
    assert stats["kv_bytes"] == [2 * 2 * VisualBits(kind).n_bytes(3, 32)] * 3  # keys and values, of two layers each


def test_bytes_per_channel() -> None:
    assert VisualBits("1").n_bytes(1001, 256) == 256 * (126 + 4)
    assert VisualBits("2").n_bytes(1001, 256) == 256 * (251 + 4)


def test_states_that_are_timed_have_so_many_cells(tmp_path: Path) -> None:
    """Of `tiny`: 8 layers with keys of 64 values; its profile keeps all, a quarter, a twentieth from 0, 2, 6 on."""
    script = ROOT / "scripts" / "visual-bits.py"
    found = subprocess.run(
        [sys.executable, script, "decode", "tiny", "q8_0", "200"], env=os.environ | {"XDG_CACHE_HOME": str(tmp_path)},
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    lines = [json.loads(line) for line in found.stdout.splitlines()]
    assert [(line["run"], line["type"]) for line in lines] == [
        (run, kind) for run in ("unpruned", "profile") for kind in ("f16", "q8_0", "q4_0")
    ]
    for line in lines:
        in_stages = [(2, 200), (4, 50), (2, 10)] if line["run"] == "profile" else [(8, 200)]
        row = TENSOR_TYPES[line["type"]].row_bytes(64)
        expected = sum(n_layers * 2 * n * row + n * 24 for n_layers, n in in_stages)
        assert 0 < line["state_bytes"] - expected < 500
        assert line["seconds"] > 0
