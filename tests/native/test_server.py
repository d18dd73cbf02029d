"""Upstream's llama-server on our libraries: answers from its prompt cache are those that are given fresh."""

from __future__ import annotations

import ctypes
import itertools
import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from halfv_cpp import llama_h

from halfv_edge.hub import demo
from halfv_edge.testing.client import Client
from halfv_edge.testing.server import Reply, Server, about
from tests.support import ROOT
from tests.support.building import build
from tests.support.tiny_models import make_tiny_lora

MODEL, MMPROJ = demo.DEMO_FOLDER / demo.MODEL, demo.DEMO_FOLDER / demo.MMPROJ
SHAPE = {"n_layer": 12, "n_embd": 256, "n_head": 4, "n_head_kv": 4, "n_ff": 512}
PICTURES = [ROOT / "examples" / f"{name}.png" for name in ("receipt", "shapes")]
QUESTIONS = ("What is the total?", "What is the date?", "How many are there?", "Where is the red circle?")
REQUESTS = [(picture, question) for question in QUESTIONS for picture in PICTURES]
NOISE = 5e-3  # of a log-probability, with K and V in f16


@pytest.fixture(scope="module")
def programs(build_dir: Path, cmake_cache: dict[str, str]) -> Path:
    build(build_dir, [cmake_cache["CMAKE_COMMAND"], "--build", build_dir, "--parallel", "--target", "llama-server"])
    return build_dir / "bin"


def ask(server: Server, requests: Sequence[tuple[Path, str]], cache: bool) -> list[Reply]:
    return [server.ask(about(*request), max_tokens=8, cache_prompt=cache) for request in requests]


def difference(some: Sequence[Reply], others: Sequence[Reply]) -> float:
    pairs = [zip(a.logprobs, b.logprobs, strict=False) for a, b in zip(some, others, strict=True)]
    return max(abs(a - b) for a, b in itertools.chain(*pairs))


def test_prompt_cache(programs: Path) -> None:
    with Server(programs, MODEL, MMPROJ, "-np", "2", "-c", "4096") as server:
        cached, fresh = (ask(server, REQUESTS, cache) for cache in (True, False))
    assert sum(reply.n_cached > 100 for reply in cached) >= len(REQUESTS) - 2  # pictures are not computed again
    assert [reply.text for reply in cached] == [reply.text for reply in fresh]
    assert difference(cached, fresh) < NOISE
    with Server(programs, MODEL, MMPROJ, "-np", "2", "-c", "4096", env={"HALFV_UNDO_MB": "0"}) as server:
        assert difference(ask(server, REQUESTS, True), fresh) > 5 * NOISE


def test_prompt_cache_of_a_share_of_the_rows(programs: Path) -> None:
    """What goes on depends on the picture alone, so a cached one is as good as any."""
    profile = {
        "version": 1,
        "ivr": {"layer": 4, "keep": 0.38, "anchors": 0.1},
        "ssr": {"layer": 9, "update": 0.05, "rest": "frozen"},
        "input": {"keep": 0.5},
    }
    env = {"HALFV_PROFILE": json.dumps(profile)}
    with Server(programs, MODEL, MMPROJ, "-np", "2", "-c", "4096", env=env) as server:
        cached, fresh = (ask(server, REQUESTS[:4], cache) for cache in (True, False))
    assert sum(reply.n_cached > 100 for reply in cached) >= 2
    assert [reply.text for reply in cached] == [reply.text for reply in fresh]
    assert difference(cached, fresh) < NOISE


def test_undo_mb_that_is_no_number(programs: Path) -> None:
    said = r'halfv: HALFV_UNDO_MB = "12 MB" is not valid: it must be a whole number of MiB'
    with pytest.raises(RuntimeError, match=said):
        Server(programs, MODEL, MMPROJ, env={"HALFV_UNDO_MB": "12 MB"})


@pytest.fixture(scope="module")
def alora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter that answers switch on: the template's first token of one."""
    with Client(MODEL, n_ctx=256) as client:
        vocab = llama_h.llama_model_get_vocab(client.model)
        tokens = (ctypes.c_int32 * 4)()
        text = b"<|assistant|>"
        assert llama_h.llama_tokenize(vocab, text, len(text), tokens, 4, False, True) == 1
    path = tmp_path_factory.mktemp("adapter") / "alora.gguf"
    return make_tiny_lora(path, "qwen2vl", **SHAPE, alpha=32.0, invocation=[tokens[0]])


def test_adapter_that_the_answer_switches_on(programs: Path, alora: Path) -> None:
    """The picture and its question go without it, whatever was asked before; and are as fresh."""
    flags = ("-np", "1", "-c", "2048", "--lora", str(alora))
    requests = [REQUESTS[0], REQUESTS[2], REQUESTS[0], REQUESTS[0], REQUESTS[4]]
    with Server(programs, MODEL, MMPROJ, *flags) as server:
        cached, fresh = (ask(server, requests, cache) for cache in (True, False))
    assert all(reply.n_cached > 100 for reply in cached[1:])
    assert [reply.text for reply in cached] == [reply.text for reply in fresh]
    assert difference(cached, fresh) < NOISE


def test_adapter_and_a_picture_that_stays_whole(programs: Path, alora: Path) -> None:
    """As where nothing is staged."""
    flags = ("-np", "1", "-c", "2048", "--lora", str(alora))
    profile = {
        "version": 1,
        "ivr": {"layer": 4, "keep": 0.38, "anchors": 0.1},
        "ssr": {"layer": 9, "update": 0.05, "rest": "frozen"},
        "min_visual_tokens": 100000,
    }
    found = {}
    for name, env in {"staged": {"HALFV_PROFILE": json.dumps(profile)}, "off": {"HALFV": "off"}}.items():
        with Server(programs, MODEL, MMPROJ, *flags, env=env) as server:
            found[name] = ask(server, REQUESTS[:4], True)
    with Server(programs, MODEL, MMPROJ, *flags[:4], env={"HALFV": "off"}) as server:
        assert difference(found["off"], ask(server, REQUESTS[:4], True)) > 10 * NOISE  # the adapter is felt
    assert difference(found["staged"], found["off"]) < 4 * NOISE
