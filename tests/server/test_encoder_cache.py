"""A picture is encoded once: for every slot and request, within a budget, and on disk if that is asked for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from halfv_edge.testing.server import Reply, RunningServer, Server, about
from tests.support.demo_server import PICTURES, QUESTIONS, start

NOISE = 5e-3  # of a log-probability, with K and V in f16


def ask(server: Server, slot: int = 0, picture: Path = PICTURES[0], question: int = 0) -> Reply:
    messages = about(picture, QUESTIONS[question])
    return server.ask(messages, max_tokens=6, cache_prompt=False, id_slot=slot)


def counts(reply: Reply) -> tuple[int, int]:
    assert reply.pictures is not None
    return reply.pictures["encoded_n"], reply.pictures["remembered_n"]


def test_once_for_all_slots(programs: Path) -> None:
    with start(programs, "-np", "2", "-c", "4096") as server:
        first, again, elsewhere = ask(server), ask(server), ask(server, slot=1, question=1)
        other = ask(server, picture=PICTURES[1])
    assert [counts(reply) for reply in (first, again, elsewhere, other)] == [(1, 0), (0, 1), (0, 1), (1, 0)]
    assert again.text == first.text
    assert max(abs(a - b) for a, b in zip(again.logprobs, first.logprobs, strict=True)) < NOISE


def several(*pictures: int) -> list[dict[str, Any]]:
    parts = [about(PICTURES[picture], "")[0]["content"][0] for picture in pictures]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": QUESTIONS[0]}]}]


@pytest.mark.parametrize("cached", ["512", "0"])
def test_twice_in_a_prompt(programs: Path, cached: str) -> None:
    """Encoded once, also where its first place is in the same batch; without a cache as often as it comes."""
    messages = several(2, 0, 2, 2)
    with start(programs, "-np", "1", "-c", "4096", env={"HALFV_ENCODER_CACHE_MB": cached}) as server:
        found = server.ask(messages, max_tokens=6, cache_prompt=False)
        assert counts(found) == ((2, 2) if cached != "0" else (4, 0))
        again = server.ask(messages, max_tokens=6)
        assert server.ask(messages, max_tokens=6).n_cached > 4 * 100  # the prompt cache tells the places apart as ever
    with start(programs, "-np", "1", "-c", "4096", env={"HALFV_ENCODER_CACHE_MB": "0"}) as server:
        alone = server.ask(messages, max_tokens=6)
    for reply in (found, again):
        assert reply.text == alone.text
        assert max(abs(a - b) for a, b in zip(reply.logprobs, alone.logprobs, strict=True)) < NOISE


def test_a_frame_behind_others(programs: Path, tmp_path: Path) -> None:
    """It is what the frames before it left, and remembered as that: as many patches here, and others."""
    paths = [tmp_path / f"{name}.png" for name in "abc"]
    room = Image.open(PICTURES[2]).convert("RGB").resize((440, 440))
    for path, at in zip(paths, ((40, 40), (240, 240), None), strict=True):
        frame = room.copy()
        if at:
            frame.paste((250, 10, 200), (*at, at[0] + 60, at[1] + 60))
        frame.save(path)
    a, b, last = paths

    def ask_about(server: RunningServer, *pictures: Path) -> Reply:
        parts = [about(picture, "")[0]["content"][0] for picture in pictures]
        content = [*parts, {"type": "text", "text": QUESTIONS[2]}]
        return server.ask([{"role": "user", "content": content}], max_tokens=6, cache_prompt=False)

    profile = {"version": 1, "ivr": {"layer": 1, "keep": 1, "anchors": 0.1}, "frames": {"tau": 0},
               "ssr": {"layer": 2, "update": 1, "rest": "dropped"}}  # fmt: skip
    env = {"HALFV_PROFILE": json.dumps(profile)}
    with start(programs, "-np", "1", "-c", "4096", env=env) as server:
        found = [ask_about(server, *pictures) for pictures in ((a, last), (b, last), (a, last), (last,))]
    assert [counts(reply) for reply in found] == [(2, 0), (2, 0), (0, 2), (1, 0)]
    assert found[0].n_prompt == found[1].n_prompt < 1.5 * found[3].n_prompt
    with start(programs, "-np", "1", "-c", "4096", env=env | {"HALFV_ENCODER_CACHE_MB": "0"}) as server:
        alone = [ask_about(server, *pictures) for pictures in ((b, last), (a, last))]
    for reply, same in ((found[1], alone[0]), (found[2], alone[1])):
        assert reply.text == same.text
        assert max(abs(x - y) for x, y in zip(reply.logprobs, same.logprobs, strict=True)) < NOISE


def test_budget(programs: Path, tmp_path: Path) -> None:
    pictures = [tmp_path / f"{number}.png" for number in range(10)]  # a seventh of a megabyte each, as embeddings
    for number, picture in enumerate(pictures):
        picture.write_bytes(PICTURES[0].read_bytes() + bytes([number]))  # another file, of the same pixels
    with start(programs, "-np", "1", "-c", "2048", env={"HALFV_ENCODER_CACHE_MB": "0"}) as server:
        assert [counts(ask(server)), counts(ask(server))] == [(1, 0), (1, 0)]
    with start(programs, "-np", "1", "-c", "2048", env={"HALFV_ENCODER_CACHE_MB": "1"}) as server:
        for picture in pictures:
            assert counts(ask(server, picture=picture)) == (1, 0)
        assert counts(ask(server, picture=pictures[-1])) == (0, 1)
        assert counts(ask(server, picture=pictures[0])) == (1, 0)


def test_on_disk(programs: Path, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "cache"
    env = {"HALFV_ENCODER_CACHE": str(folder)}
    with start(programs, "-np", "1", "-c", "2048", env=env) as server:
        first = ask(server)
    (file,) = folder.iterdir()
    with start(programs, "-np", "1", "-c", "2048", env=env) as server:
        again = ask(server)
    assert counts(again) == (0, 1) and again.text == first.text

    whole = file.read_bytes()
    for broken in (whole[:-4], whole[:2000] + b"\x01\x02" + whole[2002:], b"", whole + b"0000"):
        file.write_bytes(broken)
        with start(programs, "-np", "1", "-c", "2048", env=env) as server:
            reply = ask(server)
        assert counts(reply) == (1, 0) and reply.text == first.text
        assert file.read_bytes() == whole  # and is mended


def test_other_settings_are_other_entries(programs: Path, tmp_path: Path) -> None:
    """Whatever of a profile the encoder goes by, and what becomes of its rows."""
    half = {"version": 1, "ivr": {"layer": 1, "keep": 1, "anchors": 0.1}, "input": {"keep": 0.5},
            "ssr": {"layer": 2, "update": 1, "rest": "dropped"}}  # fmt: skip
    small = half | {"min_visual_tokens": 1000}  # so this picture stays whole
    found = []
    for flags, profile in (((), None), (("--image-max-tokens", "100"), None), ((), half), ((), small)):
        env = {"HALFV_ENCODER_CACHE": str(tmp_path)} | ({"HALFV_PROFILE": json.dumps(profile)} if profile else {})
        with start(programs, "-np", "1", "-c", "2048", *flags, env=env) as server:
            found.append(ask(server))
    assert [counts(reply) for reply in found] == [(1, 0)] * 4
    assert len(list(tmp_path.iterdir())) == 4
    assert found[2].n_prompt < found[3].n_prompt


def test_a_folder_that_cannot_be_written(programs: Path) -> None:
    with start(programs, "-np", "1", "-c", "2048", env={"HALFV_ENCODER_CACHE": "/proc/none"}) as server:
        assert [counts(ask(server)), counts(ask(server))] == [(1, 0), (0, 1)]
