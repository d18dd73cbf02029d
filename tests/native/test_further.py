"""Stages behind III, against the torch reference: which tokens each sees, what follows, and what it costs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import halfv_cpp
import numpy as np
import pytest
from halfv_cpp import llama_h

from halfv_edge.testing.client import Client
from tests.support import pruned
from tests.support.dialogue import (
    N_LAYER,
    QUESTION,
    Model,
    assert_parts_agree,
    assert_prompt_agrees,
    connect,
    feed,
    make_prompt,
    tell,
)
from tests.support.reference.halfv_torch import Text
from tests.support.tiny_models import ARCHS, DROP, FREEZE
from tests.support.waiting import load, save

GRID, GRIDS = [(9, 12)], [(9, 12), (7, 19)]
WIPE = {"further.layers": (5,), "further.keep": (0.0,)}
MANY = {"ivr.layer": 1, "ssr.layer": 2, "ssr.update": 0.4}
PROFILES = {
    "text alone behind a few": DROP | WIPE,
    "text alone behind frozen ones": FREEZE | {"ssr.update": 0.1} | WIPE,
    "text alone behind all": DROP | {"ivr.keep": 1.0, "ssr.update": 1.0} | WIPE,
    "fewer twice, then none": DROP | MANY | {"further.layers": (3, 4, 5), "further.keep": (0.2, 0.05, 0.0)},
    "fewer at the end": DROP | MANY | {"further.layers": (3, 5), "further.keep": (1.0, 0.1)},
    "none to choose among": DROP | {"ssr.update": 0.0, "further.layers": (5,), "further.keep": (0.5,)},
}  # fmt: skip


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("name", PROFILES)
def test_stages(models: Callable[..., Model], name: str, arch: str) -> None:
    assert_parts_agree(models(arch), GRIDS, PROFILES[name], ("further",), matters=PROFILES[name]["ssr.update"] > 0)


@pytest.mark.parametrize("n_ubatch", [1, 7, 512])
def test_ubatches_of_any_size(models: Callable[..., Model], n_ubatch: int) -> None:
    profile = PROFILES["fewer twice, then none"]
    assert_prompt_agrees(models("qwen2vl"), GRIDS, profile, n_batch=n_ubatch, n_ubatch=n_ubatch)


@pytest.mark.parametrize("name", ["text alone behind a few", "fewer twice, then none", "text alone behind frozen ones"])
def test_pictures_that_are_not_causal(models: Callable[..., Model], name: str) -> None:
    assert_prompt_agrees(models("llama"), GRIDS, PROFILES[name], causal=False)


@pytest.mark.parametrize("name", PROFILES)
def test_prepared_and_topped_up(models: Callable[..., Model], name: str) -> None:
    """What needs no question is done before it: all of it where no stage asks."""
    assert_prompt_agrees(models("qwen3vl"), GRID, PROFILES[name], prepared=True)


@pytest.mark.parametrize("prepares", [False, True])
@pytest.mark.parametrize("name", PROFILES)
def test_removed_question(models: Callable[..., Model], name: str, prepares: bool) -> None:
    path, reference = models("qwen2vl")
    *shown, question = make_prompt(reference, GRIDS)
    other = Text(range(30, 45))

    def told(client: Client) -> tuple[np.ndarray, list[list[int]], list[int]]:
        stats = halfv_cpp.stats(client.ctx)
        tokens = [halfv_cpp.image_tokens(client.ctx, 0, image, stage) for image in (0, 1) for stage in range(2, 8)]
        return client.logits(), tokens, stats["kv_cells"]

    with connect(path, PROFILES[name]) as client:
        pruned.set_prepare(client, prepares)
        feed(client, [*shown, other])
        fresh = told(client)
    with connect(path, PROFILES[name]) as client:
        pruned.set_prepare(client, prepares)
        for segment in shown:
            tell(client, segment)
        begun = client.next_pos[0]
        client.text(question.ids)
        llama_h.llama_memory_seq_rm(client.memory, 0, begun, -1)
        client.next_pos[0] = begun
        client.text(other.ids)
        again = told(client)
    np.testing.assert_allclose(again[0], fresh[0], rtol=0, atol=1e-4)
    assert again[1:] == fresh[1:]


@pytest.mark.parametrize("name", ["text alone behind a few", "fewer twice, then none"])
def test_saved_state(models: Callable[..., Model], name: str) -> None:
    """Of what waits, and of what was asked: another context goes on as this one would."""
    path, reference = models("llama")
    segments = make_prompt(reference, GRID)
    with connect(path, PROFILES[name]) as client:
        for segment in segments[:-1]:
            tell(client, segment)
        waiting = save(client, 0)
        client.text(QUESTION)
        asked, logits = save(client, 0), client.logits()
        later = client.decode(7)
    with connect(path, PROFILES[name]) as client:
        assert load(client, waiting, 0) == len(waiting)
        client.text(QUESTION, pos=len(segments[0].ids) + len(segments[1].embd))
        assert client.logits().tobytes() == logits.tobytes()
    with connect(path, PROFILES[name]) as client:
        assert load(client, asked, 0) == len(asked)
        client.next_pos[0] = len(segments[0].ids) + len(segments[1].embd) + len(QUESTION)
        assert client.decode(7).tobytes() == later.tobytes()
    with connect(path, DROP | MANY) as client:
        assert load(client, asked, 0) == 0  # of other stages


def test_flops(models: Callable[..., Model]) -> None:
    """As counted while it runs, as foretold, and by hand for what text alone saves."""
    path, reference = models("llama")
    segments = make_prompt(reference, [(9, 12)])
    n_visual, n_text = 108, len(segments[-1].ids)

    def spent(profile: dict[str, Any]) -> float:
        with connect(path, profile) as client:
            feed(client, segments)
            stats = pruned.stats(client)
            foretold = pruned.flops(client, profile, len(segments[0].ids), n_visual, n_text)
            assert (stats.flops_dense, stats.flops_spent) == pytest.approx(foretold, rel=1e-12)
            return stats.flops_spent

    for profile in PROFILES.values():
        spent(profile)
    weights = reference.weights  # of the last layer, whose feed-forward network only outputs go through
    layer = 2.0 * sum(weights[f"blk.5.{name}.weight"].numel() for name in
                      ("attn_q", "attn_k", "attn_v", "attn_output"))  # fmt: skip
    pair = 4.0 * weights["blk.5.attn_q.weight"].shape[0]  # q.k and the weighted sum, all heads
    n = n_visual // 10
    # the picture's tokens, what they see of each other and of the text before, and the text after of them
    fewer = n * layer + pair * (n * (n + 1) / 2 + n * (len(segments[0].ids) + n_text))
    assert spent(DROP) - spent(DROP | WIPE) == pytest.approx(fewer, rel=1e-12)


def test_no_stage_has_more_cells_than_the_one_before(models: Callable[..., Model]) -> None:
    def sizes(*cells: int, **more: Any) -> list[int]:
        profile = DROP | MANY | {"further.layers": (3, 5), "further.keep": (0.1, 0.0)} | more

        def prepare(pointer: int) -> None:
            pruned.set_profile(pointer, profile)
            pruned.set_stage_cells(pointer, *cells)

        with Client(path, n_ctx=2048, on_model=prepare) as client:
            found: list[int] = halfv_cpp.stats(client.ctx)["kv_size"]
            return found

    path, _ = models("llama")
    assert sizes() == [2048] * 5
    assert sizes(visual_share=1.0) == [2048, 1024, 1024, 256, 256]
    assert sizes(0, 512, 0) == [2048, 512, 512, 512, 512]
    assert sizes(512, 0, 0) == [512] * 5


def test_tokens_of_a_stage_that_is_not_there(models: Callable[..., Model]) -> None:
    path, reference = models("llama")
    with connect(path, DROP) as client:
        feed(client, make_prompt(reference, GRID))
        assert pruned.kept(client, 0, 7) == pruned.kept(client, 0, 3)
        for stage in (1, 8):
            with pytest.raises(halfv_cpp.CallError, match=f"stage {stage} is none of 2 to 7"):
                pruned.kept(client, 0, stage)
        assert N_LAYER == 6
