"""Many requests at once, and clients that misbehave: nothing is lost but their own request."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from halfv_edge.testing import load
from halfv_edge.testing.server import Reply, Server, about
from tests.support.demo_server import CHAT, PICTURES, QUESTIONS, post, start

QUESTION = {"messages": about(PICTURES[0], QUESTIONS[0]), "max_tokens": 8, "temperature": 0}
CONNECTIONS = 100
CACHE_MB = 16
PARTS = (
    b'{"type": "image_url"}',
    b'{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}',
    b'{"type": "image_url", "image_url": {"url": 7}}',
    b'{"type": "nothing"}',
)


@pytest.fixture(scope="module")
def server(programs: Path) -> Iterator[Server]:
    with start(programs, "-np", "4", "-c", "8192", "--metrics") as server:
        yield server


def answer(server: Server) -> str:
    status, found = post(server, QUESTION)
    assert status == 200
    text: str = found["choices"][0]["message"]["content"]
    return text


def test_mixed_requests_are_answered_as_alone(server: Server) -> None:
    requests = load.mixed(PICTURES, QUESTIONS, 36)
    alone = [server.ask(**request, cache_prompt=False) for request in requests]
    together = load.run(server, requests, at_once=6)
    assert together.errors == []
    found = [reply for reply in together.replies if isinstance(reply, Reply)]
    assert [reply.text for reply in found] == [reply.text for reply in alone]
    assert sum(reply.n_cached > 100 for reply in found) > 5  # the prompt cache had its part in it


def test_memory_grows_by_the_prompt_cache_alone(programs: Path) -> None:
    """And that to what it may have: here a few prompts."""
    requests = [request | {"max_tokens": 1} for request in load.mixed(PICTURES, QUESTIONS, 72, seed=2)]
    with start(programs, "-np", "2", "-c", "4096", "--cache-ram", str(CACHE_MB)) as server:
        load.run(server, requests[:36], at_once=2)
        assert "removing oldest entry" in server.log()
        before = load.rss_mb(server.process.pid)
        assert load.run(server, requests[36:], at_once=2).errors == []
        assert load.rss_mb(server.process.pid) - before < CACHE_MB


def test_a_client_that_goes_away_in_the_middle(server: Server) -> None:
    expected = answer(server)
    for _ in range(3):
        client = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
        body = json.dumps(QUESTION | {"stream": True, "max_tokens": 500, "ignore_eos": True})
        client.request("POST", CHAT, body, {"Content-Type": "application/json"})
        assert client.getresponse().read(20)
        client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # reset, as by kill -9
        client.close()
    assert answer(server) == expected


def test_half_a_request(server: Server) -> None:
    expected = answer(server)
    for raw in (b"POST ", b"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: 1000000\r\n\r\n{", b"\0" * 5000):
        with socket.create_connection(("127.0.0.1", server.port), timeout=60) as client:
            client.sendall(raw)
    assert answer(server) == expected


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b'{"messages": 7}',
        b"\xff\xfe\x00",
        b"[" * 100_000,
        *(b'{"messages": [{"role": "user", "content": [%s]}]}' % part for part in PARTS),
        b'{"messages": [{"role": "user", "content": "x"}], "max_tokens": "many"}',
    ],
)
def test_malformed_bodies(server: Server, body: bytes) -> None:
    status, found = post(server, body)
    assert 400 <= status <= 500 and server.process.poll() is None, found
    assert post(server, {"messages": [{"role": "user", "content": "x"}], "max_tokens": 1})[0] == 200


def test_many_connections(server: Server) -> None:
    expected = answer(server)
    with ThreadPoolExecutor(CONNECTIONS) as pool:
        answers = list(pool.map(lambda _: answer(server), range(CONNECTIONS)))
    assert set(answers) == {expected}


def test_no_room(server: Server) -> None:
    """A prompt that does not fit is refused, in a slot that then answers the next one."""
    expected = answer(server)
    parts = about(PICTURES[0], QUESTIONS[0])[0]["content"]
    status, found = post(server, QUESTION | {"messages": [{"role": "user", "content": [parts[0]] * 20}]})
    assert status == 400 and "exceed" in found["error"]["type"], found
    assert answer(server) == expected
