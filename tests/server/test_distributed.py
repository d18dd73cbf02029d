"""`halfv serve --rpc`: layers of one model on two ggml-rpc-server, and answers that are this machine's."""

from __future__ import annotations

import sys
from pathlib import Path

from halfv_edge.testing.server import Reply, RunningServer, about
from tests.support.demo_server import PICTURES, QUESTIONS
from tests.support.rpc_servers import Wire, running

HALFV = [sys.executable, "-m", "halfv_edge", "serve", "-np", "1", "-c", "2048", "-t", "1", "--no-warmup"]
OVER = ["-ngl", "99", "--tensor-split", "1,1", "--no-mmproj-offload"]
NOISE = 5e-3  # of a log-probability, with K and V in f16


def ask(server: RunningServer) -> list[Reply]:
    """First and second questions, of pictures new and known."""
    wanted = [(0, 0), (0, 1), (1, 2), (0, 0)]
    return [server.ask(about(PICTURES[picture], QUESTIONS[question]), max_tokens=6) for picture, question in wanted]


def test_serve_over_two_servers(programs: Path, rpc_server: Path) -> None:
    with RunningServer(HALFV) as server:
        expected = ask(server)
    with running(rpc_server, 2) as ports:
        wires = [Wire(port) for port in ports]
        with RunningServer([*HALFV, "--rpc", ",".join(wire.endpoint for wire in wires), *OVER]) as server:
            for wire in wires:
                wire.reset()
            found = ask(server)
        assert all(wire.up > 100_000 for wire in wires)  # layers are on both
    for there, here in zip(found, expected, strict=True):
        assert there.text == here.text and there.pictures is not None and here.pictures is not None
        for name in ("visual_seen", "visual_kept", "visual_deep"):
            assert there.pictures[name] == here.pictures[name]
        assert here.pictures["visual_seen"] > here.pictures["visual_kept"] > 0
        assert max(abs(a - b) for a, b in zip(there.logprobs, here.logprobs, strict=True)) < NOISE
