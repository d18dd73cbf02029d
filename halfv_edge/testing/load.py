"""Many mixed requests to a server at once: what is answered, how long it takes, and whether the server grows."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from halfv_edge.testing.server import Reply, RunningServer, about

Request = dict[str, Any]  # what RunningServer.ask takes
SAMPLE_SEC = 0.5


@dataclass
class Load:
    """What came of the requests, in their order."""

    replies: list[Reply | Exception] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)  # to the last token
    rss_mb: list[float] = field(default_factory=list)  # of the server, while it was asked

    @property
    def errors(self) -> list[Exception]:
        return [reply for reply in self.replies if isinstance(reply, Exception)]

    def percentile(self, share: float) -> float:
        """Of the seconds."""
        ordered = sorted(self.seconds)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def mixed(pictures: Sequence[Path], questions: Sequence[str], count: int, seed: int = 1) -> list[Request]:
    """Requests about one picture, about two, about none, in a second turn, and in JSON: so many of each as come."""
    rng = random.Random(seed)
    kinds: list[Callable[[], Request]] = [
        lambda: {"messages": about(rng.choice(pictures), rng.choice(questions))},
        lambda: {"messages": about(rng.choice(pictures), rng.choice(questions))},
        lambda: {"messages": _two(rng.sample(list(pictures), 2), rng.choice(questions))},
        lambda: {"messages": [{"role": "user", "content": rng.choice(questions)}]},
        lambda: {"messages": _second_turn(rng.choice(pictures), *rng.sample(list(questions), 2))},
        lambda: {
            "messages": about(rng.choice(pictures), rng.choice(questions)),
            "json_schema": {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]},
        },
    ]
    return [rng.choice(kinds)() | {"max_tokens": rng.choice((4, 8, 16))} for _ in range(count)]


def _two(pictures: Sequence[Path], question: str) -> list[dict[str, Any]]:
    first, second = (about(picture, question)[0]["content"] for picture in pictures)
    return [{"role": "user", "content": [first[0], *second]}]


def _second_turn(picture: Path, first: str, second: str) -> list[dict[str, Any]]:
    answer = {"role": "assistant", "content": "It is there."}
    return [*about(picture, first), answer, {"role": "user", "content": second}]


def run(
    server: RunningServer, requests: Sequence[Request], at_once: int, on_done: Callable[[], object] = lambda: None
) -> Load:
    """Ask them, so many at a time."""
    stop = threading.Event()
    load = Load()

    def ask(request: Request) -> tuple[Reply | Exception, float]:
        start = time.perf_counter()
        try:
            reply: Reply | Exception = server.ask(**request)
        except Exception as error:
            reply = error
        on_done()
        return reply, time.perf_counter() - start

    def sample() -> None:
        while not stop.wait(SAMPLE_SEC):
            load.rss_mb.append(rss_mb(server.process.pid))

    sampler = threading.Thread(target=sample, daemon=True)
    sampler.start()
    try:
        with ThreadPoolExecutor(at_once) as pool:
            for reply, seconds in pool.map(ask, requests):
                load.replies.append(reply)
                load.seconds.append(seconds)
    finally:
        stop.set()
        sampler.join()
    load.rss_mb.append(rss_mb(server.process.pid))
    return load


def rss_mb(pid: int) -> float:
    """Memory that a process holds; 0 where the system does not say."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS:")), 0.0)
