"""What a sequence carries, in a saved state: a field that cannot be is refused with a sentence, before it is used."""

from __future__ import annotations

import struct

import halfv_cpp
import numpy as np
import pytest

from halfv_edge.testing.client import LOG, Client, log_text
from tests.support import pruned
from tests.support.pruned import OUTCOME
from tests.support.tiny_models import FREEZE
from tests.support.waiting import N_VISUAL, OTHER, PREFIX, QUESTION, load, save, show

ROW = ("pos", "pos1", "pos2", "pos3", "image", "index", "token", "stage", "group", "has")
TEXT = N_VISUAL  # the first row of text
N_ROWS = N_VISUAL + len(OTHER)


def waiting(client: Client) -> bytes:
    """A picture and some text wait."""
    show(client)
    client.text(OTHER, logits_last=False)
    return save(client, 0)


def offsets(client: Client, state: bytes) -> dict[str, int]:
    """Where the fields of that are."""
    places: dict[str, int] = {}
    positions = np.arange(len(PREFIX), len(PREFIX) + N_VISUAL, dtype=np.int32).tobytes()
    at = state.index(positions)
    for name in ("positions", "reason", "flags", "pictures"):
        at -= 4
        places[name] = at
    at = places["positions"] + 4
    places["position"] = at
    at += len(positions)
    for name in ("kept", "deep", *(f"further {i}" for i in range(halfv_cpp.HALFV_MAX_FURTHER)), "rows"):
        places[name] = at
        at += 4
    first, second = (state.index(struct.pack("<7i", len(PREFIX) + i, 0, 0, 0, 0, i, -1)) for i in (0, 1))
    assert first == at
    for row in range(N_ROWS):
        for number, name in enumerate(ROW):
            places[f"{name}[{row}]"] = at + 4 * number
        at += second - first if row < TEXT else 4 * (len(ROW) + client.n_embd_inp)  # text has no key
    places["query"] = at
    at += 4 + 4 * struct.unpack_from("<I", state, at)[0]
    for name in ("turns", "sequence flags"):
        places[name] = at
        at += 4
    places["flops"] = at
    places["time"] = at + 16
    assert at + 56 == len(state)
    return places


BROKEN = [
    ("pictures", 2**31, "lists 2147483648 pictures"),
    ("flags", 32, "flags of a picture"),
    ("flags", 16, "counts of what tokens stand for"),
    ("reason", 99, "unknown reason"),
    ("positions", 2**31, "tokens of a picture"),
    ("position", -1, "position that is not held"),
    ("position", 10_000, "position that is not held"),
    ("kept", N_VISUAL + 1, "tokens kept"),
    ("further 3", N_VISUAL + 1, "tokens kept"),
    ("rows", 2**31, "lists 2147483648 tokens"),
    ("pos[0]", -1, "position that is not held"),
    ("pos[0]", 5, "not where its picture has it"),
    ("image[0]", 1, "token of no picture"),
    ("image[0]", -2, "token of no picture"),
    ("image[0]", -1, "text with a place in a picture"),
    ("index[0]", -1, "not where its picture has it"),
    ("index[0]", N_VISUAL, "not where its picture has it"),
    ("token[0]", 5, "visual token that is text"),
    (f"token[{TEXT}]", 2**31 - 1, "not in the vocabulary"),
    (f"index[{TEXT}]", 0, "text with a place in a picture"),
    ("stage[0]", 0, "unknown stage"),
    ("stage[0]", 4, "unknown stage"),
    ("stage[0]", 2, "gone on although its picture waits"),
    ("group[0]", -2, "unknown group"),
    ("group[0]", 2**30, "unknown group"),
    ("has[0]", 2, "visual token without a key"),
    ("has[0]", 1, "visual token without a key"),
    (f"pos[{TEXT}]", 4, "not in order"),
    ("query", 3, "query of another model"),
    ("query", 2**31, "values of a query"),
    ("turns", 2**31, "questions"),
    ("sequence flags", 4, "flags of a sequence"),
]


@pytest.mark.parametrize(("field", "value", "words"), BROKEN, ids=[f"{field}={value}" for field, value, _ in BROKEN])
def test_a_field_that_cannot_be(model, field, value, words):
    with Client(model()) as client:
        state = bytearray(waiting(client))
        struct.pack_into("<I", state, offsets(client, state)[field], value & 0xFFFFFFFF)
        LOG.clear()
        assert load(client, bytes(state), 0) == 0
        assert words in log_text()
        assert pruned.stats(client).outcome == OUTCOME["none"]


@pytest.mark.parametrize(("field", "value"), [("flops", np.nan), ("flops", -1.0), ("time", -1)])
def test_statistics_that_cannot_be(model, field, value):
    with Client(model()) as client:
        state = bytearray(waiting(client))
        struct.pack_into("<q" if field == "time" else "<d", state, offsets(client, state)[field], value)
        LOG.clear()
        assert load(client, bytes(state), 0) == 0
        assert "cannot be" in log_text()


def test_a_token_twice(model):
    with Client(model("qwen2vl")) as client:  # whose tokens share a position
        show(client)
        state = save(client, 0)
        row = struct.pack("<iii", 0, 1, -1)  # picture, place in it, token
        assert state.count(row) == 1
        LOG.clear()
        assert load(client, state.replace(row, struct.pack("<iii", 0, 0, -1)), 0) == 0
        assert "the saved state is broken" in log_text()


def test_a_group_longer_than_a_micro_batch(model):
    with Client(model(), n_ubatch=64) as client:
        state = bytearray(waiting(client))
        places = offsets(client, state)
        for row in range(N_VISUAL):
            struct.pack_into("<i", state, places[f"group[{row}]"], 0)
        LOG.clear()
        assert load(client, bytes(state), 0) == 0
        assert "longer than a micro-batch" in log_text()


@pytest.mark.parametrize(
    ("profile", "sizes"),
    [
        (FREEZE | {"ivr.layer": 1}, {}),
        (FREEZE | {"ssr.layer": 5}, {}),
        (FREEZE, {"n_embd": 128}),
        (FREEZE, {"n_head_kv": 4}),
    ],
    ids=["other stage II", "other stage III", "wider states", "more keys"],
)
def test_a_state_of_another_model(model, profile, sizes):
    with Client(model()) as client, Client(model(profile=FREEZE | profile, **sizes)) as other:
        LOG.clear()
        assert load(client, waiting(other), 0) == 0
        assert "another model or other stages" in log_text()


def test_what_is_whole_is_loaded(model):
    """Or the refusals above would prove little."""
    with Client(model()) as client:
        state = waiting(client)
        offsets(client, state)
        assert load(client, state, 0) == len(state)
        client.text(QUESTION)
        assert pruned.stats(client).outcome == OUTCOME["pruned"]
