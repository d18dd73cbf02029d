"""Attention of visual tokens with the first heads alone, and to neighbours alone, against the torch reference."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import halfv_cpp
import numpy as np
import pytest
from halfv_cpp import llama_h

from tests.support import pruned
from tests.support.dialogue import (
    QUESTION,
    Model,
    assert_counts,
    assert_parts_agree,
    assert_prompt_agrees,
    connect,
    feed,
    make_prompt,
    nmse,
    tell,
)
from tests.support.reference.halfv_torch import Reference, Text
from tests.support.tiny_models import ARCHS, DROP, FREEZE, make_tiny, make_tiny_lora
from tests.support.waiting import load, save

SQUARE, GRID, GRIDS = (
    [(12, 12)],
    [(9, 12)],
    [(12, 12), (9, 12)],
)  # without positions of rows and columns squares alone count
HEADS = {"heads.layer": 2, "heads.keep": 0.5}  # one group of two
NEAR = {"neighbours.layer": 2, "neighbours.width": 5}
WHOLE = DROP | {"ivr.keep": 1.0, "ssr.update": 1.0}
CHANNELS = {"ffn.layer": 2, "ffn.keep": 0.5}
YOPO = WHOLE | {"ssr.layer": 5, "ssr.update": 0.0} | CHANNELS
PROFILES = {
    "heads in stages II and III": DROP | HEADS,
    "heads from a layer in stage III on": DROP | {"heads.layer": 4, "heads.keep": 0.5},
    "heads with frozen ones": FREEZE | {"ssr.update": 0.1} | HEADS,
    "heads alone": WHOLE | HEADS,
    "neighbours in stages II and III": DROP | NEAR,
    "neighbours from a layer on": DROP | {"neighbours.layer": 3, "neighbours.width": 3},
    "neighbours with frozen ones": FREEZE | {"ssr.update": 0.1} | NEAR,
    "neighbours alone": WHOLE | NEAR,
    "all four": YOPO | HEADS | NEAR,
    "all four and fewer": DROP | CHANNELS | HEADS | NEAR | {"further.layers": (5,), "further.keep": (0.0,)},
}  # fmt: skip


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("name", PROFILES)
def test_parts_of_attention(models: Callable[..., Model], name: str, arch: str) -> None:
    assert_parts_agree(models(arch), GRIDS, PROFILES[name], ("heads", "neighbours"))


@pytest.mark.parametrize("n_ubatch", [1, 7, 100, 512])
@pytest.mark.parametrize("arch", ["llama", "qwen2vl"])
def test_ubatches_of_any_size(models: Callable[..., Model], arch: str, n_ubatch: int) -> None:
    assert_prompt_agrees(models(arch), GRIDS, WHOLE | HEADS | NEAR, n_batch=n_ubatch, n_ubatch=n_ubatch)


@pytest.mark.parametrize("name", PROFILES)
def test_prepared_and_topped_up(models: Callable[..., Model], name: str) -> None:
    assert_prompt_agrees(models("qwen3vl"), GRID, PROFILES[name], prepared=True)


@pytest.mark.parametrize("name", ["heads alone", "neighbours alone", "all four and fewer"])
def test_pictures_that_are_not_causal(models: Callable[..., Model], name: str) -> None:
    assert_prompt_agrees(models("llama"), GRIDS, PROFILES[name], causal=False)


@pytest.mark.parametrize(
    "options", [{"flash_attn": True}, {"flash_attn": True, "type_k": "q8_0", "type_v": "q8_0"}], ids=str
)
@pytest.mark.parametrize("arch", ["llama", "qwen2vl"])
def test_rounded_caches(models: Callable[..., Model], arch: str, options: dict[str, Any]) -> None:
    path, reference = models(arch, seed=10, n_embd=128, n_head=4, n_head_kv=2, head_dim=32)
    segments = make_prompt(reference, SQUARE, seed=10)
    profile = WHOLE | HEADS | NEAR
    with connect(path, profile, **options) as client:
        assert nmse(feed(client, segments), reference.run(segments, profile).logits) < 0.02


@pytest.mark.parametrize("kv_unified", [False, True])
def test_several_sequences(models: Callable[..., Model], kv_unified: bool) -> None:
    """What one hides from some heads, others' text of the same graphs still sees."""
    path, reference = models("qwen2vl")
    profile = WHOLE | HEADS | NEAR
    prompts = [make_prompt(reference, SQUARE, seed=1), [Text(range(30, 60))], make_prompt(reference, GRID, seed=2)]
    with connect(path, profile, n_seq_max=3, n_ctx=1536, kv_unified=kv_unified) as client:
        for seq, prompt in enumerate(prompts):
            for at, segment in enumerate(prompt):
                if isinstance(segment, Text):
                    client.text(segment.ids, seq=seq, logits_last=at == len(prompt) - 1)
                else:
                    client.image(segment.embd, segment.pos, seq=seq)
            np.testing.assert_allclose(client.logits(), reference.run(prompt, profile).logits, atol=1e-4)


def test_saved_state(models: Callable[..., Model]) -> None:
    """Which cells some heads do not see is part of it."""
    path, reference = models("llama")
    profile = WHOLE | HEADS | NEAR
    segments = make_prompt(reference, SQUARE)
    with connect(path, profile) as client:
        feed(client, segments)
        asked = save(client, 0)
        later = client.decode(7)
    with connect(path, profile) as client:
        assert load(client, asked, 0) == len(asked)
        client.next_pos[0] = len(segments[0].ids) + len(segments[1].embd) + len(QUESTION)
        assert client.decode(7).tobytes() == later.tobytes()
    with connect(path, WHOLE | NEAR) as client:
        assert load(client, asked, 0) == 0  # all heads see all cells


@pytest.mark.parametrize("prepares", [False, True])
def test_removed_question(models: Callable[..., Model], prepares: bool) -> None:
    path, reference = models("qwen2vl")
    *shown, question = make_prompt(reference, SQUARE)
    other = Text(range(30, 45))
    profile = DROP | HEADS | NEAR
    found = []
    for first in (None, question):
        with connect(path, profile) as client:
            pruned.set_prepare(client, prepares)
            for segment in shown:
                tell(client, segment)
            begun = client.next_pos[0]
            if first:
                client.text(first.ids)
                llama_h.llama_memory_seq_rm(client.memory, 0, begun, -1)
                client.next_pos[0] = begun
            client.text(other.ids)
            found.append(client.logits())
    np.testing.assert_allclose(found[0], found[1], rtol=0, atol=1e-4)


def test_adapters_and_small_pictures_take_all(models: Callable[..., Model], tmp_path: Path) -> None:
    path, reference = models("llama")
    lora = make_tiny_lora(tmp_path / "lora.gguf", "llama", n_layer=6)
    segments = make_prompt(reference, SQUARE)
    found = []
    for profile in (DROP | HEADS | NEAR, DROP):
        with connect(path, profile, lora=lora) as client:
            found.append((feed(client, segments), pruned.stats(client).flops_spent))
    np.testing.assert_allclose(found[0][0], found[1][0], atol=1e-5)
    assert found[0][1] == found[1][1]
    with connect(path, DROP | HEADS | NEAR | {"min_visual_tokens": 200}) as client:
        np.testing.assert_allclose(feed(client, segments), reference.run(segments).logits, atol=1e-4)


@pytest.mark.parametrize("ftype", ["f16", "q8_0"])
def test_types_whose_rows_can_be_cut(tmp_path: Path, ftype: str) -> None:
    path = make_tiny(tmp_path / "model.gguf", "llama", n_layer=6, n_embd=128, head_dim=32, ftype=ftype)
    reference = Reference(path)
    segments = make_prompt(reference, SQUARE)
    try:
        connect(path, WHOLE | HEADS).close()
    except halfv_cpp.CallError as error:
        said = str(error)
        assert "halfv.heads.keep = 0.5 is not valid: the weights of layer 2 are in memory of the kind" in said
        assert "use_extra_bufts" in said
    with connect(path, WHOLE | HEADS, packed=False) as client:
        assert nmse(feed(client, segments), reference.run(segments, WHOLE | HEADS).logits) < 0.02


def test_attention_of_which_no_part_can_be_taken(tmp_path: Path) -> None:
    def attempt(profile: dict[str, Any], **shape: Any) -> str:
        path = make_tiny(tmp_path / "model.gguf", "qwen2vl", n_layer=6, **shape)
        with pytest.raises(halfv_cpp.CallError) as error:
            connect(path, profile)
        return str(error.value)

    assert "halfv.heads.keep = 0.5 is not valid: the heads of layer 2 share one group of keys and values" in attempt(
        DROP | HEADS, n_head_kv=1
    )
    said = attempt(DROP | HEADS, n_embd=96, n_head=4, n_head_kv=2, head_dim=24, ftype="q8_0")
    assert (
        "1 of 2 groups of heads of layer 2 are 48 columns of its output matrix, which are not whole blocks of" in said
    )


def test_flops(models: Callable[..., Model]) -> None:
    """As counted while it runs, as foretold, and by hand."""
    path, reference = model = models("llama")
    segments = make_prompt(reference, SQUARE)
    counts = n_before, n, n_after = len(segments[0].ids), 144, len(segments[-1].ids)
    for profile in PROFILES.values():
        assert_counts(model, profile, segments, *counts)
    with connect(path, WHOLE | HEADS) as client:
        dense, heads = pruned.flops(client, WHOLE | HEADS, n_before, n, n_after)
        near = pruned.flops(client, WHOLE | NEAR, n_before, n, n_after)[1]
    matrices = 2.0 * sum(reference.weights[f"blk.3.attn_{name}.weight"].numel() for name in ("q", "k", "v", "output"))
    pair = 4.0 * reference.weights["blk.3.attn_q.weight"].shape[0]
    pairs = n * n_before + n * (n + 1) / 2
    assert dense - heads == pytest.approx(4 * (n * matrices + pairs * pair) / 2, rel=1e-9)
    seen = sum(min(index, 13) for index in range(1, n + 1))  # 2 rows of 5 before, 2 beside, itself
    assert dense - near == pytest.approx(4 * pair * (n * (n + 1) / 2 - seen), rel=1e-9)


def test_work_grows_with_the_number_of_tokens(models: Callable[..., Model]) -> None:
    """And not with its square: each token of a larger picture costs what those of a smaller one do."""
    path, _ = models("llama")
    profile = WHOLE | NEAR | {"ivr.layer": 1, "neighbours.layer": 1}
    with connect(path, profile) as client:
        costs = [pruned.flops(client, profile, 4, n, 10)[1] for n in (4096, 8192, 16384)]
        dense = [pruned.flops(client, profile, 4, n, 10)[0] for n in (4096, 8192, 16384)]
    first = [dense_ / 6 for dense_ in dense]  # of the one layer that is not pruned, about
    assert (costs[2] - first[2]) / (costs[1] - first[1]) < 2.1
    assert dense[2] / dense[1] > 3
