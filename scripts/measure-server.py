#!/usr/bin/env python3
"""Measures llama-server with HalfV: is an answer from its prompt cache the one that is given fresh, and what it costs.

    python scripts/measure-server.py exact  --halfv build/py/bin --stock build/stock/bin
    python scripts/measure-server.py second --halfv build/py/bin --stock build/stock/bin --shape scaled --tokens 1024
    python scripts/measure-server.py load   --halfv build/py/bin --stock build/stock/bin --requests 1000
    python scripts/measure-server.py again  --halfv build/py/bin --stock build/stock/bin

`exact` sends 200 requests about four pictures, some at the same time, to a server with several slots, and then each of
them again with the prompt cache off. `second` asks one question after the other about one picture, which is in the
cache, of four servers in turn: stock, HalfV, HalfV with HALFV_PREPARE=1, which keeps what does not depend on the
question, and HalfV with HALFV_UNDO_MB=0, which leaves pictures as the last question left them. `load` sends mixed
requests, some with pictures, to servers with several slots: answers, times, memory. `again` asks about a picture that
each server has seen, where its prompt cache does not help: in another slot, and after a restart, for which HalfV keeps
a folder. All print Markdown.
`cmake --build build/py --target llama-server` builds the program (docs/llama-server.md).
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import random
import statistics
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm import tqdm

from halfv_edge.hub import demo
from halfv_edge.measure.bench import pictures, shapes
from halfv_edge.testing import load
from halfv_edge.testing.server import Reply, Server, about

ROOT = Path(__file__).resolve().parent.parent
PICTURES = [ROOT / "examples" / f"{name}.png" for name in ("receipt", "chart", "interface", "shapes")]
STEMS = (
    "What is the {}?",
    "Where is the {}?",
    "Is there a {} in the picture?",
    "How many of the {} can you see?",
    "Read the {} aloud.",
)
THINGS = ("total", "date", "title", "largest bar", "red circle", "button", "second line", "name", "colour", "legend")
QUESTIONS = [stem.format(thing) for stem in STEMS for thing in THINGS]
UNDO_OFF, PREPARE = {"HALFV_UNDO_MB": "0"}, {"HALFV_PREPARE": "1"}


def contenders(args: argparse.Namespace) -> dict[str, tuple[Path, dict[str, str]]]:
    found = {
        "HalfV": (args.halfv, {}),
        "HalfV, prepared": (args.halfv, PREPARE),
        "HalfV, undo off": (args.halfv, UNDO_OFF),
    }
    return ({"stock": (args.stock, {})} if args.stock else {}) | found


def table(rows: list[list[str]]) -> str:
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "|" + " --- |" * len(rows[0]), *lines[1:]])


def spread(values: list[float], form: str) -> str:
    low, middle, high = (format(f(values), form) for f in (min, statistics.median, max))
    return f"{middle} ({low}-{high})"


#
# answers from the cache and fresh
#


def largest_difference(a: Reply, b: Reply) -> float:
    return max(abs(x - y) for x, y in zip(a.logprobs, b.logprobs, strict=False))


def exact(args: argparse.Namespace, model: Path, mmproj: Path) -> str:
    rng = random.Random(args.seed)
    wanted = rng.sample(list(itertools.product(PICTURES, QUESTIONS)), args.requests)
    rows = [["", "requests", "from the cache", "other answers", "largest difference of a log-probability"]]
    flags = ("-np", str(args.slots), "-c", str(2048 * args.slots))
    fresh_by_folder: dict[Path, list[Reply]] = {}  # there is nothing to undo
    for name, (folder, env) in contenders(args).items():
        with (
            Server(folder, model, mmproj, *flags, env=env, n_threads=args.threads) as server,
            ThreadPoolExecutor(args.at_once) as pool,
            tqdm(
                total=(2 - (folder in fresh_by_folder)) * len(wanted), desc=name, unit="request", file=sys.stderr
            ) as bar,
        ):

            def ask(request: tuple[Path, str], cache: bool, server: Server = server, bar: tqdm = bar) -> Reply:
                reply = server.ask(about(*request), max_tokens=args.max_tokens, cache_prompt=cache)
                bar.update()
                return reply

            cached = list(pool.map(lambda request: ask(request, True), wanted))
            if folder not in fresh_by_folder:
                fresh_by_folder[folder] = [ask(request, False) for request in wanted]
        pairs = list(zip(cached, fresh_by_folder[folder], strict=True))
        n_cached = sum(reply.n_cached > 100 for reply in cached)  # more than the template's first words: a picture
        n_other = sum(a.text != b.text for a, b in pairs)
        largest = max(largest_difference(a, b) for a, b in pairs)
        rows.append([name, str(len(pairs)), str(n_cached), str(n_other), f"{largest:.2g}"])
    return table(rows)


#
# many at once
#


def under_load(args: argparse.Namespace, model: Path, mmproj: Path) -> str:
    requests = load.mixed(PICTURES, QUESTIONS, args.requests, args.seed)
    rows = [
        [
            "",
            "requests",
            "errors",
            "other answers than alone",
            "p50 s",
            "p99 s",
            "MB after 1/5",
            "2/5",
            "3/5",
            "4/5",
            "5/5",
        ]
    ]
    flags = ("-np", str(args.slots), "-c", str(2048 * args.slots), "--cache-ram", str(args.cache_ram))
    for name, (folder, env) in contenders(args).items():
        if env:
            continue
        with (
            Server(folder, model, mmproj, *flags, env=env, n_threads=args.threads) as server,
            tqdm(total=2 * len(requests), desc=name, unit="request", file=sys.stderr) as bar,
        ):
            found = load.run(server, requests, args.at_once, bar.update)
            alone = load.run(server, [request | {"cache_prompt": False} for request in requests], 1, bar.update)
        pairs = zip(found.replies, alone.replies, strict=True)
        n_other = sum(isinstance(a, Reply) and isinstance(b, Reply) and a.text != b.text for a, b in pairs)
        times = [f"{found.percentile(share):.2f}" for share in (0.5, 0.99)]
        memory = [f"{found.rss_mb[len(found.rss_mb) * fifth // 5 - 1]:.0f}" for fifth in range(1, 6)]
        rows.append([name, str(len(requests)), str(len(found.errors + alone.errors)), str(n_other), *times, *memory])
    return table(rows)


#
# a picture that was seen before
#


def again(args: argparse.Namespace, model: Path, mmproj: Path, picture: Path) -> str:
    flags = ("-np", "2", "-c", str(2 * args.ctx), "--cache-ram", "0")
    times: dict[tuple[str, str], list[float]] = {}
    with tempfile.TemporaryDirectory() as place:
        pictures = [Path(place) / f"{number}.png" for number in range(args.repeats)]
        for number, path in enumerate(pictures):  # another file each, of the same pixels
            path.write_bytes(picture.read_bytes() + number.to_bytes(2, "big"))
        env = {"HALFV_ENCODER_CACHE": str(Path(place) / "cache")}
        folders = {name: folder for name, (folder, env) in contenders(args).items() if not env}
        for moments in (("first", "another slot"), ("after a restart",)):
            with contextlib.ExitStack() as stack:
                servers = {
                    name: stack.enter_context(Server(folder, model, mmproj, *flags, env=env, n_threads=args.threads))
                    for name, folder in folders.items()
                }
                for server in servers.values():
                    server.ask([{"role": "user", "content": "Hello"}], max_tokens=1)
                for path in tqdm(pictures, unit="picture", file=sys.stderr):
                    for slot, moment in enumerate(moments):
                        for name, server in servers.items():
                            reply = server.ask(
                                about(path, QUESTIONS[0]), max_tokens=1, id_slot=slot, cache_prompt=False
                            )
                            times.setdefault((name, moment), []).append(reply.ttft_sec)
    moments = ("first", "another slot", "after a restart")
    rows = [["", *(f"{moment} s" for moment in moments)]]
    rows += [[name, *(spread(times[name, moment], ".2f") for moment in moments)] for name in folders]
    return table(rows)


#
# second questions
#


def second(args: argparse.Namespace, model: Path, mmproj: Path, picture: Path) -> str:
    flags = ("-np", "1", "-c", str(args.ctx))
    times: dict[str, list[float]] = {}
    first: dict[str, Reply] = {}
    last: dict[str, Reply] = {}
    with contextlib.ExitStack() as stack:
        servers = {}
        for name, (folder, env) in contenders(args).items():
            servers[name] = stack.enter_context(Server(folder, model, mmproj, *flags, env=env, n_threads=args.threads))
            first[name] = servers[name].ask(about(picture, "What is this?"), max_tokens=1)
        bar = stack.enter_context(tqdm(total=(args.repeats + 1) * len(servers), unit="request", file=sys.stderr))
        for at_round in range(args.repeats + 1):  # the first is not counted
            messages = about(picture, QUESTIONS[at_round % len(QUESTIONS)])
            for name in list(servers)[:: 1 if at_round % 2 else -1]:
                last[name] = servers[name].ask(messages, max_tokens=1)
                if at_round:
                    times.setdefault(name, []).append(last[name].ttft_sec)
                bar.update()
    base = next(iter(times))
    rows = [["", "first question s", "second questions s", f"times {base}", "tokens of the prompt", "computed anew"]]
    for name, seconds in times.items():
        ratios = [a / b for a, b in zip(seconds, times[base], strict=True)]
        reply = last[name]
        rows.append(
            [
                name,
                f"{first[name].ttft_sec:.2f}",
                spread(seconds, ".3f"),
                spread(ratios, ".2f"),
                str(reply.n_cached + reply.n_prompt),
                str(reply.n_prompt),
            ]
        )
    return table(rows)


def shaped(args: argparse.Namespace, folder: Path) -> tuple[Path, Path, Path]:
    """A model of random weights, and a picture of as many tokens as were asked for."""
    shape = shapes.SHAPES[args.shape]
    picture = folder / "picture.png"
    pictures.photo(*shape.vision.size(args.tokens)).save(picture)
    model = shapes.model_file(args.shape, shape, "q4_0", args.models)
    return model, shapes.mmproj_file(args.shape, shape, args.models), picture


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("measurement", choices=("exact", "second", "load", "again"))
    parser.add_argument("--halfv", type=Path, required=True, metavar="DIR", help="folder with HalfV's llama-server")
    parser.add_argument("--stock", type=Path, metavar="DIR", help="folder with an unpatched llama-server")
    parser.add_argument("--threads", type=int, default=1, help="of each server (1)")
    parser.add_argument("--requests", type=int, default=200, help="exact, load: how many (200)")
    parser.add_argument("--slots", type=int, default=4, help="exact, load: of the server (4)")
    parser.add_argument("--at-once", type=int, default=3, help="exact, load: clients at the same time (3)")
    parser.add_argument("--cache-ram", type=int, default=8192, help="load: MiB of the prompt cache (8192, upstream's)")
    parser.add_argument("--max-tokens", type=int, default=24, help="exact: of an answer (24)")
    parser.add_argument("--seed", type=int, default=1, help="exact, load: of the order of requests (1)")
    parser.add_argument("--repeats", type=int, default=20, help="second, again: to each server (20)")
    parser.add_argument("--shape", choices=shapes.SHAPES, help="second, again: random weights")
    parser.add_argument("--tokens", type=int, default=1024, help="second, with --shape: of the picture (1024)")
    parser.add_argument("--ctx", type=int, default=8192, help="second: tokens of the context (8192)")
    parser.add_argument("--models", type=Path, default=ROOT / "build" / "shapes", help="second: where shapes are kept")
    args = parser.parse_args()
    for folder in filter(None, (args.halfv, args.stock)):
        if not os.access(folder / "llama-server", os.X_OK):
            parser.error(f"{folder} has no llama-server: build the target llama-server there.")
    with tempfile.TemporaryDirectory() as folder:
        if args.shape:
            model, mmproj, picture = shaped(args, Path(folder))
        else:
            model, mmproj, picture = demo.DEMO_FOLDER / demo.MODEL, demo.DEMO_FOLDER / demo.MMPROJ, PICTURES[0]
        measurements: dict[str, Callable[[], str]] = {
            "exact": lambda: exact(args, model, mmproj),
            "second": lambda: second(args, model, mmproj, picture),
            "load": lambda: under_load(args, model, mmproj),
            "again": lambda: again(args, model, mmproj, picture),
        }
        print(measurements[args.measurement]())
    return 0


if __name__ == "__main__":
    sys.exit(main())
