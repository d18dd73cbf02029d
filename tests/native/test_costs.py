"""What pruning may not cost those that do not use it, and the KV memory that it can spare. Counted, not timed."""

from __future__ import annotations

import ctypes
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from halfv_cpp import check, ggml_backend_h, halfv_compare_h, library, llama_h

from halfv_edge.testing.client import LOG, Client, DecodeError, log_text
from tests.support import pruned
from tests.support.defaults import changed
from tests.support.tiny_models import ARCHS, DROP, grid_positions, make_tiny

PREFIX = [11, 12, 13, 14]
TOLERANCE = 1e-4
FIRST_OF_A_GRAPH = "attn_norm-0"  # that runs the first layer


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny(tmp_path_factory.mktemp("models") / "model.gguf", "llama", profile=DROP)


def picture(client: Client, n: int = 120) -> np.ndarray:
    return np.random.default_rng(n).standard_normal((n, client.n_embd_inp)).astype(np.float32)


# --- graphs ---


@pytest.fixture
def rows_of(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, list[int]]]:
    """By the name of a tensor, its rows in each graph of the clients made from here on."""
    seen: dict[str, list[int]] = defaultdict(list)
    ggml = ctypes.CDLL(str(library.library_path("ggml-base")))
    ggml.ggml_get_name.argtypes, ggml.ggml_get_name.restype = [ctypes.c_void_p], ctypes.c_char_p
    ggml.ggml_nrows.argtypes, ggml.ggml_nrows.restype = [ctypes.c_void_p], ctypes.c_int64

    @ggml_backend_h.ggml_backend_sched_eval_callback
    def watch(tensor: int, ask: bool, _user: int) -> bool:
        if ask:
            seen[ggml.ggml_get_name(tensor).decode()].append(ggml.ggml_nrows(tensor))
        return False

    watched = changed(llama_h.llama_context_default_params, cb_eval=watch)
    monkeypatch.setattr(llama_h, "llama_context_default_params", watched)
    yield seen


@pytest.mark.parametrize("kv_unified", [True, False], ids=["unified", "streams"])
@pytest.mark.parametrize("waiting", [0, 4, 8])
def test_one_that_waits_does_not_part_the_others(path, rows_of, kv_unified, waiting):
    n_others, last = 8, len(PREFIX)
    others = [seq for seq in range(n_others + 1) if seq != waiting]
    alone = []
    for seq in others:
        with Client(path) as client:
            client.text([*PREFIX, 30 + seq], logits_last=False)
            alone.append([client.decode(token) for token in (40 + seq, 50 + seq)])

    with Client(path, n_seq_max=n_others + 1, kv_unified=kv_unified) as client:
        for seq in others:
            client.text([*PREFIX, 30 + seq], logits_last=False, seq=seq)
        client.image(picture(client), seq=waiting)
        for step in range(2):
            rows_of.clear()
            rows, pos, seqs, outputs = [], [], [], []
            for seq in range(n_others + 1):
                waits = seq == waiting
                rows.append(21 if waits else 40 + 10 * step + seq)
                pos.append(client.next_pos[waiting] + step if waits else last + 1 + step)
                seqs.append(seq)
                outputs.append(not waits)
            client.batch(rows, np.array(pos), seqs, outputs)
            assert len(rows_of[FIRST_OF_A_GRAPH]) <= 3
            for i, seq in enumerate(others):
                assert np.abs(client.logits(seq) - alone[i][step]).max() < TOLERANCE
        assert pruned.stats(client, waiting).n_pending == 122


@pytest.mark.parametrize("kv_unified", [True, False], ids=["unified", "streams"])
def test_others_of_unequal_length(path, rows_of, kv_unified):
    """In one batch with a sequence that waits: a long text, a token, a gap in the numbers, a text with two outputs."""
    texts = {0: [*range(20, 40)], 1: [41], 4: [*range(50, 62)], 5: [*range(70, 90)]}
    outputs_of = {0: {19}, 1: {0}, 4: {5, 11}, 5: set()}
    with Client(path, n_seq_max=6, n_batch=64, n_ubatch=16, kv_unified=kv_unified) as client:
        client.image(picture(client), seq=2)
        order = [(seq, i) for i in range(20) for seq in texts if i < len(texts[seq])]  # interleaved
        order.insert(7, (2, 0))
        rows_of.clear()
        client.batch(
            [texts[seq][i] if seq in texts else 21 for seq, i in order],
            np.array([i if seq in texts else client.next_pos[2] for seq, i in order]),
            [seq for seq, _ in order],
            [seq in texts and i in outputs_of[seq] for seq, i in order],
        )
        assert len(rows_of[FIRST_OF_A_GRAPH]) <= 9
        together = {
            place: client.logits(index) for index, place in enumerate(order) if place[1] in outputs_of.get(place[0], ())
        }
    for seq, text in texts.items():
        for i in outputs_of[seq]:
            with Client(path) as client:
                client.text(text[: i + 1])
                assert np.abs(together[seq, i] - client.logits()).max() < TOLERANCE


QUESTION = [21, 22, 23, 24, 25]


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("update", [0.1, 0.0])
def test_what_stage_iii_drops_gives_only_k_and_v_in_the_last_layer_before_it(tmp_path, rows_of, arch, update):
    profile = DROP | {"ssr.update": update}
    with Client(make_tiny(tmp_path / "model.gguf", arch, profile=profile)) as client:
        grid = grid_positions(len(PREFIX), 10, 12) if client.is_mrope else None
        client.text(PREFIX, logits_last=False)
        client.image(picture(client), grid)
        rows_of.clear()
        client.text(QUESTION)
    all_of_it, kept = len(QUESTION), 60 + len(QUESTION)
    deep = int(update * 120) + len(QUESTION)
    assert [rows_of[f"ffn_inp-{layer}"] for layer in range(6)] == [[all_of_it]] * 2 + [[kept], [deep], [deep], [1]]
    assert [rows_of[f"attn_norm-{layer}"] for layer in (2, 3, 4)] == [[kept], [kept, deep], [deep]]


@pytest.mark.parametrize(
    ("changes", "prepare"),
    [({"ssr.rest": "frozen"}, False), ({"ssr.update": 0.5}, False), ({"ssr.layer": 3}, False), ({}, True)],
    ids=["frozen", "keeps all", "one layer", "prepared"],
)
def test_where_the_last_layer_before_stage_iii_stays_whole(tmp_path, rows_of, changes, prepare):
    profile = DROP | changes
    last = profile["ssr.layer"] - 1
    with Client(make_tiny(tmp_path / "model.gguf", "llama", profile=profile)) as client:
        client.text(PREFIX, logits_last=False)
        client.image(picture(client))
        rows_of.clear()
        if prepare:
            pruned.prepare(client)
        client.text(QUESTION)
    assert rows_of[f"ffn_inp-{last}"] == rows_of[f"attn_norm-{last}"]
    assert sum(rows_of[f"ffn_inp-{last}"]) == 60 + len(QUESTION)


# --- memory for masks ---


def compute_mib(log: str) -> list[float]:
    return [float(size) for size in re.findall(r"compute buffer size (?:=|is|of) +([\d.]+) MiB", log)]


def reserved_and_used(path: Path, fill: bool = False, **options: object) -> tuple[float, float]:
    """MiB of the compute buffer when the context is new, and at its end."""
    LOG.clear()
    with Client(path, type_k="f16", type_v="f16", **options) as client:
        reserved = max(compute_mib(log_text()))
        if fill:
            client.text(PREFIX, logits_last=False)
            client.image(picture(client))
            client.text([*range(20, 40)])
            n_left = llama_h.llama_n_ctx(client.ctx) - client.next_pos[0]
            client.text([20 + i % 50 for i in range(n_left)])
        LOG.clear()
    return reserved, max(compute_mib(log_text()))


@pytest.mark.parametrize("flash_attn", [True, False], ids=["flash", "plain"])
def test_masks_take_what_one_mask_takes(path, monkeypatch, flash_attn):
    size = {"n_ctx": 32768, "n_ubatch": 512, "flash_attn": flash_attn}
    monkeypatch.setenv("HALFV", "off")
    stock, _ = reserved_and_used(path, **size)
    monkeypatch.delenv("HALFV")
    reserved, _ = reserved_and_used(path, **size)
    assert reserved < 1.3 * stock


@pytest.mark.parametrize("flash_attn", [True, False], ids=["flash", "plain"])
def test_masks_of_pruned_stages_take_no_more(path, flash_attn):
    reserved, used = reserved_and_used(path, fill=True, n_ctx=4096, n_ubatch=512, flash_attn=flash_attn)
    assert used < reserved + 0.01  # the log rounds one of them


def test_observing_takes_no_more(path):
    """Layer by layer, stages hold the same tokens in the same cells, and logits are asked for after each layer."""
    LOG.clear()
    with Client(path, n_ctx=4096, n_batch=4096, n_ubatch=512, type_k="f16", type_v="f16") as client:
        reserved = max(compute_mib(log_text()))
        check(halfv_compare_h.halfv_hold(client.ctx, True))
        client.image(picture(client))
        client.text([20 + i % 50 for i in range(3900)], logits_last=False)
        observer = halfv_compare_h.halfv_observer(lambda _boundary, _user: True)
        check(halfv_compare_h.halfv_observe(client.ctx, (ctypes.c_uint8 * 6)(*[1] * 6), observer, None))
        LOG.clear()
    assert max(compute_mib(log_text())) < reserved + 0.01


def test_one_mask_until_something_is_pruned(path, monkeypatch):
    """The same text with one mask and with three, and one again once the pruned tokens are gone."""
    text = [20 + i % 50 for i in range(300)]
    with Client(path, n_ubatch=64) as client:
        client.text(text)
        expected = client.logits()
    with Client(path, n_ubatch=64, n_seq_max=2, kv_unified=True) as client:
        client.image(picture(client), seq=1)
        client.text(PREFIX, seq=1)
        client.text(text)
        assert np.abs(client.logits() - expected).max() < TOLERANCE
        assert llama_h.llama_memory_seq_rm(client.memory, 1, -1, -1)
        assert llama_h.llama_memory_seq_rm(client.memory, 0, -1, -1)
        client.next_pos[0] = 0
        client.text(text)
        assert np.array_equal(client.logits(), expected)


# --- KV memory ---

SHARED = DROP | {"visual_share": 0.75}


def stage_cells(path: Path, **options: object) -> list[int]:
    LOG.clear()
    Client(path, **options).close()
    return [int(n) for n in re.findall(r"llama_kv_cache: size = .*\( *(\d+) cells", log_text())]


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"visual_share": 0.0}, [4096, 4096, 4096]),
        ({}, [4096, 2560, 1536]),  # 4096 * (0.25 + 0.75 * 0.5), and * 0.1, up to whole 256
        ({"visual_share": 1.0, "ssr.update": 0.0}, [4096, 2048, 256]),
        ({"ssr.rest": "frozen"}, [4096, 2560, 2560]),
        ({"ivr.keep": 1.0, "ssr.update": 1.0}, [4096, 4096, 4096]),
    ],
    ids=["none", "dropped", "all", "frozen", "whole"],
)
def test_stages_have_room_for_what_reaches_them(tmp_path, changed, expected):
    path = make_tiny(tmp_path / "model.gguf", "llama", profile=SHARED | changed)
    assert stage_cells(path, n_ctx=4096) == expected
    assert stage_cells(path, n_ctx=8192, n_seq_max=2) == expected  # of each sequence


@pytest.mark.parametrize("cells", [1, 255, 0xFFFFFF01, 0xFFFFFFFF])
def test_any_number_of_cells(path, cells):
    found = stage_cells(path, n_ctx=1024, on_model=lambda m: pruned.set_stage_cells(m, 0, cells, cells))
    assert found == [1024, *[256 if cells < 256 else 1024] * 2]


def test_text_that_does_not_fit_the_deep_stages(tmp_path):
    path = make_tiny(tmp_path / "model.gguf", "llama", profile=SHARED)
    options = {"n_ctx": 1024, "n_batch": 1024}  # 1024, 768 and 512 cells
    with Client(path, **options) as client:
        client.image(picture(client, 500))
        client.text(PREFIX)
        before = client.logits(), list(pruned.stats(client).kv_cells)
        with pytest.raises(DecodeError, match="returned 1"):
            client.text([20 + i % 50 for i in range(520)])
        assert "HalfV: stage 2 is full: it has cells for 768 tokens" in log_text()
        assert list(pruned.stats(client).kv_cells) == before[1]
        token = int(before[0].argmax())
        after = client.decode(token)
    with Client(path, **options) as client:
        client.image(picture(client, 500))
        client.text(PREFIX)
        assert np.array_equal(client.decode(token), after)
