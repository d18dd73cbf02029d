"""Pictures through llama_decode: when they settle, several sequences, what cannot be pruned, and failures."""

from __future__ import annotations

import ctypes
from pathlib import Path

import gguf
import numpy as np
import pytest
from halfv_cpp import llama_h

from halfv_edge.testing.client import LOG, Client, DecodeError, log_text
from tests.support import pruned
from tests.support.pruned import OUTCOME, REASON
from tests.support.reference.halfv_torch import Image, Reference, Text
from tests.support.tiny_models import DROP, FREEZE, make_tiny
from tests.support.waiting import N_VISUAL, OTHER, PREFIX, QUESTION, answer, close, dense, picture, show


def test_waits_for_the_question(model):
    with Client(model()) as client:
        show(client)
        waiting = pruned.stats(client)
        assert (waiting.outcome, waiting.n_pending, waiting.n_visual) == (OUTCOME["pending"], N_VISUAL, N_VISUAL)
        assert (waiting.kv_cells[0], waiting.kv_cells[1]) == (len(PREFIX) + N_VISUAL, len(PREFIX))

        client.text(QUESTION)
        done = pruned.stats(client)
        assert (done.outcome, done.n_pending) == (OUTCOME["pruned"], 0)
        assert (done.n_kept, done.n_deep) == (N_VISUAL // 2, 0)
        n_text = len(PREFIX) + len(QUESTION)
        assert list(done.kv_cells) == [n_text + N_VISUAL, n_text + N_VISUAL // 2, n_text + N_VISUAL // 2]
        assert 1 < done.flops_dense / done.flops_spent < 4


@pytest.mark.parametrize("profile", [FREEZE, DROP], ids=["freeze", "drop"])
def test_client_asks_after_every_piece(model, profile):
    path = model(profile=profile)
    with Client(path) as client:
        image = show(client)
        client.text(QUESTION)
        client.text(OTHER)
        reference = Reference(path)
        reference.run([Text(PREFIX), image, Text(QUESTION)], profile)
        for token in OTHER:
            expected = reference.decode(token)
        assert close(client.logits(), expected)


@pytest.mark.parametrize("arch", ["llama", "qwen2vl"])
def test_prompt_ends_with_the_picture(model, arch):
    path = model(arch)
    with Client(path) as client:
        image = show(client)
        start = client.next_pos[0]
        assert close(client.decode(QUESTION[0]), answer(path, Text(PREFIX), image, Text(QUESTION[:1], start)))


def test_second_picture_in_a_later_turn(model):
    path = model()
    with Client(path) as client:
        show(client)
        client.text(QUESTION)
        client.image(picture(client, seed=1))
        client.text(OTHER)
        stats = pruned.stats(client)
        assert (stats.n_images, stats.n_visual, stats.n_kept) == (2, 2 * N_VISUAL, N_VISUAL)
        assert len(pruned.kept(client, 1)) == N_VISUAL // 2
        assert np.isfinite(client.logits()).all()


def test_small_picture_is_left_whole(model):
    path = model(profile=FREEZE | {"min_visual_tokens": N_VISUAL + 1})
    with Client(path) as client:
        image = show(client)
        client.text(QUESTION)
        stats = pruned.stats(client)
        assert (stats.outcome, stats.reason) == (OUTCOME["unpruned"], REASON["small"])
        assert (stats.n_kept, stats.n_deep) == (N_VISUAL, N_VISUAL)
        assert close(client.logits(), dense(path, Text(PREFIX), image, Text(QUESTION)))


def test_keep_everything_is_the_dense_model_bit_for_bit(model, monkeypatch):
    path = model(profile=FREEZE | {"ivr.keep": 1.0, "ssr.update": 1.0})

    def logits() -> np.ndarray:
        with Client(path) as client:
            show(client)
            client.text(QUESTION)
            return client.logits()

    with_profile = logits()
    monkeypatch.setenv("HALFV", "off")
    assert (with_profile == logits()).all()


def test_switched_off_and_on_again(model):
    path = model()
    with Client(path) as client:
        pruned.set_enabled(client, False)
        image = show(client)
        client.text(QUESTION)
        assert close(client.logits(), dense(path, Text(PREFIX), image, Text(QUESTION)))
        stats = pruned.stats(client)
        assert (stats.outcome, stats.reason) == (OUTCOME["unpruned"], REASON["disabled"])

        llama_h.llama_memory_clear(client.memory, True)
        client.next_pos[0] = 0
        pruned.set_enabled(client, True)
        image = show(client)
        client.text(QUESTION)
        assert close(client.logits(), answer(path, Text(PREFIX), image, Text(QUESTION)))


def test_switched_off_while_waiting(model):
    path = model()
    with Client(path) as client:
        image = show(client)
        pruned.set_enabled(client, False)
        client.text(QUESTION)
        assert close(client.logits(), dense(path, Text(PREFIX), image, Text(QUESTION)))


def test_keep_ratio_per_question(model):
    path = model()
    with Client(path) as client:
        pruned.set_keep(client, 0.25)
        image = show(client)
        client.text(QUESTION)
        assert len(pruned.kept(client, 0)) == N_VISUAL // 4
        quarter = FREEZE | {"ivr.keep": 0.25}
        assert close(client.logits(), answer(path, Text(PREFIX), image, Text(QUESTION), profile=quarter))


# --- several sequences ---


@pytest.mark.parametrize("kv_unified", [True, False], ids=["unified", "streams"])
def test_lazy_and_ordinary_sequences_in_one_batch(model, kv_unified):
    path = model()
    with Client(path, n_seq_max=3, kv_unified=kv_unified) as client:
        first = show(client, seed=1, seq=0)
        second = show(client, seed=2, seq=2)
        client.text(PREFIX, seq=1)
        n = len(QUESTION)
        start = client.next_pos[0]
        rows = QUESTION + OTHER[:1] + QUESTION[::-1]
        pos = [*range(start, start + n), len(PREFIX), *range(start, start + n)]
        outputs = [False] * (n - 1) + [True, True] + [False] * (n - 1) + [True]
        client.batch(rows, np.array(pos), [0] * n + [1] + [2] * n, outputs)

        assert close(client.logits(n - 1), answer(path, Text(PREFIX), first, Text(QUESTION)))
        assert close(client.logits(n), dense(path, Text(PREFIX + OTHER[:1])))
        assert close(client.logits(2 * n), answer(path, Text(PREFIX), second, Text(QUESTION[::-1])))


def test_pictures_of_two_sequences_in_one_batch(model):
    path = model()
    with Client(path, n_seq_max=2, kv_unified=True) as client:
        embd = picture(client, n=2 * N_VISUAL)
        order = np.tile([0, 1], N_VISUAL)  # row by row in turn
        pos = np.repeat(np.arange(N_VISUAL), 2)
        client.batch(embd, pos, order.tolist(), [False] * len(embd))
        client.next_pos = [N_VISUAL, N_VISUAL]
        for seq in (0, 1):
            client.text(QUESTION, seq=seq)
            assert close(client.logits(), answer(path, Image(embd[order == seq]), Text(QUESTION)))


def test_rows_shared_by_sequences_are_not_pruned(model):
    path = model()
    with Client(path, n_seq_max=2, kv_unified=True) as client:
        LOG.clear()
        embd = picture(client)
        client.batch(embd, np.arange(N_VISUAL), [(0, 1)] * N_VISUAL, [False] * N_VISUAL)
        assert "not pruned" in log_text()
        client.next_pos = [N_VISUAL, N_VISUAL]
        for seq in (0, 1):
            client.text(QUESTION, seq=seq)
            assert close(client.logits(), dense(path, Image(embd), Text(QUESTION)))
            assert pruned.stats(client, seq).reason == REASON["shared"]


# --- pictures that cannot be pruned ---


def test_outputs_on_visual_rows(model):
    path = model()
    with Client(path) as client:
        LOG.clear()
        embd = picture(client)
        for start in (0, N_VISUAL // 2):
            rows = embd[start : start + N_VISUAL // 2]
            client.batch(rows, np.arange(start, start + len(rows)), [0] * len(rows), [False] * (len(rows) - 1) + [True])
        assert log_text().count("not pruned") == 1
        client.text(QUESTION, pos=N_VISUAL)
        assert close(client.logits(), dense(path, Image(embd), Text(QUESTION)))
        stats = pruned.stats(client)
        assert (stats.outcome, stats.reason) == (OUTCOME["unpruned"], REASON["outputs"])


def test_embeddings_of_every_row(model):
    path = model()
    with Client(path, embeddings=True) as client:
        embd = picture(client)
        client.batch(embd, np.arange(N_VISUAL), [0] * N_VISUAL, [True] * N_VISUAL)
        n = len(QUESTION)
        client.batch(QUESTION, np.arange(N_VISUAL, N_VISUAL + n), [0] * n, [True] * n)
        assert close(client.logits(), dense(path, Image(embd), Text(QUESTION)))
        assert pruned.stats(client).reason == REASON["outputs"]


@pytest.mark.parametrize("text", [[31, 32], []], ids=["text follows", "nothing follows"])
def test_embeddings_asked_for_while_waiting(model, text):
    """The last token of text that waits stands for the question; a picture's own is none."""
    path = model()
    with Client(path) as client:
        show(client)
        if text:
            client.text(text, logits_last=False)
        start = client.next_pos[0]
        llama_h.llama_set_embeddings(client.ctx, True)
        client.batch(QUESTION, np.arange(start, start + len(QUESTION)), [0] * len(QUESTION), [True] * len(QUESTION))
        stats = pruned.stats(client)
        if text:
            assert (stats.outcome, stats.n_kept, stats.n_pending) == (OUTCOME["pruned"], N_VISUAL // 2, 0)
        else:
            assert (stats.outcome, stats.reason, stats.n_kept) == (OUTCOME["unpruned"], REASON["unasked"], N_VISUAL)
        assert np.isfinite(client.logits()).all()


def test_audio_is_not_visual(model):
    path = model()
    with Client(path) as client:
        pruned.begin_media(client, "other")
        image = show(client)
        client.text(QUESTION)
        assert close(client.logits(), dense(path, Text(PREFIX), image, Text(QUESTION)))
        assert pruned.stats(client).n_visual == 0


def test_adjacent_pictures_are_told_apart_when_announced(model):
    path = model()
    with Client(path) as client:
        for seed in (0, 1):
            pruned.begin_media(client)
            client.image(picture(client, seed))
        client.text(QUESTION)
        images = [Image(picture(client, seed)) for seed in (0, 1)]
        assert pruned.stats(client).n_images == 2
        assert close(client.logits(), answer(path, *images, Text(QUESTION)))


@pytest.mark.parametrize("profile", [DROP, None], ids=["pruned", "stock"])
def test_positions_leave_gaps_only_where_rows_were_left_out(model, profile):
    """Announced so by mtmd. Of anyone else llama_decode refuses them, as llama.cpp does."""
    with Client(model(profile=profile)) as client:
        client.text(PREFIX, logits_last=False)
        gappy = client.next_pos[0] + np.array([1, 2, 5, 9])
        for media in (None, "visual", "other"):
            if media:
                pruned.begin_media(client, media)
            for pos in (gappy, gappy[:2], gappy - 1):
                with pytest.raises(DecodeError, match=r"consecutive|continuous"):
                    client.image(picture(client)[: len(pos)], pos)
        pruned.begin_media(client, "sparse")
        for pos in (gappy[:2], gappy[2:]):
            client.image(picture(client)[: len(pos)], pos)
        with pytest.raises(DecodeError, match="consecutive"):
            client.image(picture(client)[:1], gappy[-1:])  # that one is taken
        with pytest.raises(DecodeError, match="continuous"):
            client.batch([40, 41], np.array([0, 2]) + client.next_pos[0], [0, 0], [False, True])  # text has none
        client.text(QUESTION)
        assert np.isfinite(client.logits()).all()
        pruned.begin_media(client)
        with pytest.raises(DecodeError, match="consecutive"):
            client.image(picture(client)[:2], client.next_pos[0] + np.array([1, 2]))


# --- failures ---


def fill(client: Client, tokens: int) -> None:
    """Ordinary text in the way."""
    client.text([40 + i % 50 for i in range(tokens)], logits_last=False)


def test_no_room_leaves_memory_as_it_was(model):
    path = model()
    with Client(path, n_ctx=256) as client:
        fill(client, 100)
        client.image(picture(client))
        before = pruned.stats(client)
        with pytest.raises(DecodeError) as failure:
            fill(client, 60)
        assert failure.value.code == 1
        after = pruned.stats(client)
        assert (list(after.kv_cells), after.n_pending) == (list(before.kv_cells), before.n_pending)
        client.text(QUESTION, pos=100 + N_VISUAL)
        text = [40 + i % 50 for i in range(100)]
        assert close(client.logits(), answer(path, Text(text), Image(picture(client)), Text(QUESTION)))


def test_a_stage_that_is_too_small(model):
    path = model()
    with Client(path, n_ctx=1024, on_model=lambda m: pruned.set_stage_cells(m, 0, 256, 256)) as client:
        image = show(client)
        client.text(QUESTION)
        assert close(client.logits(), answer(path, Text(PREFIX), image, Text(QUESTION)))
        with pytest.raises(DecodeError) as failure:
            fill(client, 400)
        assert failure.value.code == 1
        assert close(client.decode(OTHER[0]), _decoded(path, image, OTHER[0]))


def _decoded(path: Path, image: Image, token: int) -> np.ndarray:
    reference = Reference(path)
    reference.run([Text(PREFIX), image, Text(QUESTION)], FREEZE)
    return reference.decode(token)


@pytest.mark.parametrize("after", range(0, 160, 20))
@pytest.mark.parametrize("profile", [FREEZE, DROP], ids=["freeze", "drop"])
def test_abort_leaves_memory_as_it_was(model, profile, after):
    """Aborts somewhere in the passes that settle; asking again gives the right answer."""
    path = model(profile=profile)
    with Client(path, n_ubatch=64) as client:
        image = show(client)
        before = pruned.stats(client)
        calls = 0

        @ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.c_void_p)
        def abort(_data) -> bool:
            nonlocal calls
            calls += 1
            return calls > after

        llama_h.llama_set_abort_callback(client.ctx, abort, None)
        with pytest.raises(DecodeError) as failure:
            client.text(QUESTION)
        assert failure.value.code == 2
        stats = pruned.stats(client)
        assert (list(stats.kv_cells), stats.n_pending) == (list(before.kv_cells), before.n_pending)

        calls = -(10**9)
        client.text(QUESTION)
        assert close(client.logits(), answer(path, Text(PREFIX), image, Text(QUESTION), profile=profile))


def test_choosing_asks_whether_to_abort(model):
    """Coverage of a large picture takes long, and no graph runs meanwhile that would ask."""

    def times_asked(anchors: float) -> int:
        calls = 0

        @ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.c_void_p)
        def abort(_data) -> bool:
            nonlocal calls
            calls += 1
            return False

        with Client(model(profile=FREEZE | {"ivr.anchors": anchors})) as client:
            show(client)
            llama_h.llama_set_abort_callback(client.ctx, abort, None)
            client.text(QUESTION)
        return calls

    assert times_asked(0.1) > times_asked(1.0)  # with anchors alone nothing is covered


# --- memory use and settings ---


def kv_mib(path: Path, **kwargs) -> float:
    LOG.clear()
    with Client(path, n_ctx=4096, **kwargs):
        sizes = [line.rsplit("=", 1)[1].split()[0] for line in log_text().splitlines() if "KV buffer size" in line]
    return sum(float(size) for size in sizes)


def test_default_caches_are_no_larger_than_stock(model):
    assert kv_mib(model()) == pytest.approx(kv_mib(model(profile=None)), abs=0.02)
    smaller = kv_mib(model(), on_model=lambda m: pruned.set_stage_cells(m, 0, 2048, 1024))
    assert smaller == pytest.approx(kv_mib(model(profile=None)) * (2 + 2 / 2 + 2 / 4) / 6, abs=0.05)


@pytest.mark.parametrize(
    ("change", "key", "value"),
    [
        ({"ivr.layer": 0}, "halfv.ivr.layer", "0"),
        ({"ivr.layer": 6}, "halfv.ivr.layer", "6"),
        ({"ivr.keep": 0.0}, "halfv.ivr.keep", "0"),
        ({"ivr.keep": 1.5}, "halfv.ivr.keep", "1.5"),
        ({"ivr.keep": float("nan")}, "halfv.ivr.keep", "nan"),
        ({"ivr.anchors": -0.1}, "halfv.ivr.anchors", "-0.1"),
        ({"ssr.layer": 2}, "halfv.ssr.layer", "2"),
        ({"ssr.layer": 7}, "halfv.ssr.layer", "7"),
        ({"ssr.update": 2.0}, "halfv.ssr.update", "2"),
        ({"ssr.rest": "thawed"}, "halfv.ssr.rest", "thawed"),
        ({"version": 2}, "halfv.version", "2"),
    ],
)
def test_bad_profiles_refuse_the_context(tmp_path, change, key, value):
    path = make_tiny(tmp_path / "bad.gguf", "llama", profile=FREEZE | change)
    with pytest.raises(RuntimeError, match="cannot make a context") as refusal:
        Client(path)
    assert f"{key} = " in str(refusal.value) and value in str(refusal.value)


def test_profile_of_the_wrong_type_or_incomplete(tmp_path):
    wrong = {"halfv.ivr.keep": (1, gguf.GGUFValueType.UINT32)}
    path = make_tiny(tmp_path / "type.gguf", "llama", profile=FREEZE, **wrong)
    with pytest.raises(RuntimeError, match=r"halfv\.ivr\.keep = u32"):
        Client(path)
    path = make_tiny(tmp_path / "short.gguf", "llama", profile={"ivr.layer": 2})
    with pytest.raises(RuntimeError, match=r"halfv\.ivr\.keep is missing"):
        Client(path)


@pytest.mark.parametrize("value", ["off", "0"])
def test_bad_profile_can_be_switched_off(tmp_path, monkeypatch, value):
    monkeypatch.setenv("HALFV", value)
    path = make_tiny(tmp_path / "bad.gguf", "llama", profile=FREEZE | {"version": 9})
    with Client(path) as client:
        client.text(QUESTION)
        assert close(client.logits(), dense(path, Text(QUESTION)))
