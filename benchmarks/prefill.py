"""HalfV against stock llama.cpp, through llama_decode as a client uses it, without an image encoder.

Three measurements, each on random weights, with both sets of libraries interleaved request by request:
  (default)    time to first token and decoding speed of a prompt with a picture
  --follow-up  a picture that is in before its question: halfv_prepare; a second question: halfv_topup
  --off        what the patched library costs when it does not prune
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import machine
from shapes import ARCHS, ROOT, SHAPES, Shape, model_file

N_PREFIX, N_QUESTION = 8, 40  # text tokens before and after the picture

Answer = dict[str, Any]


class BenchError(Exception):
    """A mistake that one sentence explains."""


class Worker(contextlib.AbstractContextManager):
    """A process that has loaded one set of libraries, a model and a context."""

    def __init__(self, lib_dir: Path, options: dict[str, Any], **env: str):
        if not any(lib_dir.glob("*llama.*")):
            raise BenchError(f"{lib_dir} holds no llama library: name the folder with --lib or --stock-lib.")
        places = {"LLAMA_CPP_LIB_PATH": str(lib_dir), "MTMD_CPP_LIB": str(lib_dir)}
        command = [sys.executable, str(Path(__file__).with_name("worker.py")), json.dumps(options)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | places | env
        )

    def ask(self, call: str, **arguments: Any) -> Answer:
        with contextlib.suppress(BrokenPipeError):  # it has said why on stderr
            self.process.stdin.write(json.dumps([call, arguments]) + "\n")
            self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise BenchError(f"a worker ended during '{call}' with code {self.process.wait()}.")
        return json.loads(line)

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.wait()


@dataclasses.dataclass
class Bench:
    shape: Shape
    stock: Worker
    halfv: Worker
    switched: Worker | None  # as halfv, but switched off per context; for --off
    repeats: int
    n_decode: int

    def interleave(self, n_visual: int, contenders: dict[str, Callable[[], Answer]]) -> dict[str, list[Answer]]:
        """Each in turn, in changing order, after a warm-up."""
        answers: dict[str, list[Answer]] = {name: [] for name in contenders}
        for repeat in range(self.repeats + 1):
            for name in list(contenders)[:: 1 if repeat % 2 else -1]:
                progress(f"{n_visual} visual tokens, repeat {repeat} of {self.repeats}, {name}")
                answer = contenders[name]()
                if repeat:  # the first is the warm-up
                    answers[name].append(answer)
        progress("")
        return answers

    def prompt(self, n_visual: int) -> dict[str, Any]:
        arguments = {"n_visual": n_visual, "n_decode": self.n_decode}
        contenders = {"stock": self.stock, "halfv": self.halfv}
        answers = self.interleave(
            n_visual, {name: lambda w=worker: w.ask("request", **arguments) for name, worker in contenders.items()}
        )
        stats = pruned(answers["halfv"])
        n_prompt = N_PREFIX + n_visual + N_QUESTION
        ttft = medians(answers, "ttft_s")
        select = spread(answer["stats"]["us_select"] / 1e3 for answer in answers["halfv"])
        prefix = self.shape.flops(N_PREFIX)  # the statistics start with the picture
        # stage I holds every token
        kv_per_layer = stats["kv_bytes"][0] // self.shape.profile["ivr.layer"]
        return {
            "n_visual": n_visual,
            "ttft_s": ttft,
            "ttft_ratio": ratio(answers["stock"], answers["halfv"], "ttft_s"),
            "flops_ratio": (stats["flops_dense"] + prefix) / (stats["flops_spent"] + prefix),
            "select_ms": select,
            "select_share": select["median"] / 1e3 / ttft["stock"]["median"],
            "prefill_tokens_per_s": {name: n_prompt / value["median"] for name, value in ttft.items()},
            "decode_tokens_per_s": {
                name: spread(self.n_decode / answer["decode_s"] for answer in found) for name, found in answers.items()
            },
            "kv_bytes": {"stock": kv_per_layer * self.shape.n_layer, "halfv": sum(stats["kv_bytes"])},
            "stats": stats,
        }

    def follow_up(self, n_visual: int) -> dict[str, Any]:
        def talk(worker: Worker, early: bool) -> Callable[[], Answer]:
            arguments = {"n_visual": n_visual, "n_decode": self.n_decode, "prepare": early, "topup": early}
            return lambda: worker.ask("conversation", **arguments)

        answers = self.interleave(
            n_visual,
            {"stock": talk(self.stock, False), "exact": talk(self.halfv, False), "prepared": talk(self.halfv, True)},
        )
        times = {key: medians(answers, key) for key in ("picture_s", "first_s", "second_s")}
        return {"n_visual": n_visual} | times | {"stats": pruned(answers["prepared"])}

    def off(self, n_visual: int) -> dict[str, Any]:
        arguments = {"n_visual": n_visual, "n_decode": self.n_decode}
        contenders = {"stock": self.stock, "HALFV=off": self.halfv, "switched off": self.switched}
        answers = self.interleave(
            n_visual, {name: lambda w=worker: w.ask("request", **arguments) for name, worker in contenders.items()}
        )
        ours = [name for name in contenders if name != "stock"]
        return {
            "n_visual": n_visual,
            "ttft_s": medians(answers, "ttft_s"),
            "ttft_cost": {name: ratio(answers[name], answers["stock"], "ttft_s") for name in ours},
            "decode_cost": {name: ratio(answers[name], answers["stock"], "decode_s") for name in ours},
        }


def progress(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r{text:<70}\r", end="", file=sys.stderr, flush=True)
    elif text:
        print(text, file=sys.stderr)


def spread(values: Iterable[float]) -> dict[str, float]:
    values = sorted(values)
    return {"median": statistics.median(values), "min": values[0], "max": values[-1]}


def medians(answers: dict[str, list[Answer]], key: str) -> dict[str, dict[str, float]]:
    return {name: spread(answer[key] for answer in found) for name, found in answers.items()}


def ratio(above: list[Answer], below: list[Answer], key: str) -> dict[str, float]:
    """Of requests that ran next to each other, so that what slows both down cancels out."""
    return spread(a[key] / b[key] for a, b in zip(above, below, strict=True))


def pruned(answers: list[Answer]) -> dict[str, Any]:
    stats = answers[-1]["stats"]
    if not stats:
        raise BenchError("the context runs unpruned: do the --lib libraries have HalfV?")
    if stats["outcome"] != "pruned":
        raise BenchError(f"a picture of {stats['n_visual']} tokens was not pruned; reason: {stats['reason']}.")
    return stats


#
# tables
#


def seconds(value: dict[str, float]) -> str:
    return f"{value['median']:.3f} ({value['min']:.3f}-{value['max']:.3f})"


def factor(value: dict[str, float]) -> str:
    return f"{value['median']:.2f} ({value['min']:.2f}-{value['max']:.2f})"


def percent(value: dict[str, float]) -> str:
    low, high = (100 * (value[end] - 1) for end in ("min", "max"))
    return f"{100 * (value['median'] - 1):+.1f} % ({low:+.1f} to {high:+.1f})"


def prompt_rows(row: dict[str, Any]) -> list[dict[str, str]]:
    speed = {name: f"{value['median']:.1f}" for name, value in row["decode_tokens_per_s"].items()}
    kv = {name: f"{value / 2**20:.1f}" for name, value in row["kv_bytes"].items()}
    prefill = {name: f"{value:.0f}" for name, value in row["prefill_tokens_per_s"].items()}
    cells = {
        "stock TTFT s": seconds(row["ttft_s"]["stock"]),
        "HalfV TTFT s": seconds(row["ttft_s"]["halfv"]),
        "ratio": factor(row["ttft_ratio"]),
        "FLOPs ratio": f"{row['flops_ratio']:.2f}",
        "selection ms": f"{row['select_ms']['median']:.1f}",
        "of stock": f"{100 * row['select_share']:.2f} %",
        "prefill tok/s": f"{prefill['stock']} -> {prefill['halfv']}",
        "decode tok/s": f"{speed['stock']} -> {speed['halfv']}",
        "KV MiB": f"{kv['stock']} -> {kv['halfv']}",
    }
    return [cells]


def follow_up_rows(row: dict[str, Any]) -> list[dict[str, str]]:
    titles = {
        "picture_s": "picture, before Enter",
        "first_s": "Enter to first token",
        "second_s": "second question to first token",
    }
    names = {"stock": "stock s", "exact": "HalfV s", "prepared": "HalfV, prepared and topped up s"}
    return [
        {"moment": title} | {names[name]: seconds(value) for name, value in row[key].items()}
        for key, title in titles.items()
    ]


def off_rows(row: dict[str, Any]) -> list[dict[str, str]]:
    cells = {"stock TTFT s": seconds(row["ttft_s"]["stock"])}
    for name in row["ttft_cost"]:
        cells |= {
            f"{name}: TTFT": percent(row["ttft_cost"][name]),
            f"{name}: decoding": percent(row["decode_cost"][name]),
        }
    return [cells]


def as_table(report: dict[str, Any]) -> str:
    to_rows = {"prompt": prompt_rows, "follow_up": follow_up_rows, "off": off_rows}[report["measurement"]]
    rows = [{"visual tokens": str(row["n_visual"])} | cells for row in report["rows"] for cells in to_rows(row)]
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(list(row.values()) for row in rows)]
    about = f"{report['shape']} ({report['arch']}, {report['ftype']}), {report['n_threads']} threads"
    about += f", {report['n_gpu_layers']} layers on {report['machine']['devices']}" if report["n_gpu_layers"] else ""
    about += f"; median (min-max) of {report['repeats']}; {report['commit']}; {report['machine']['cpu']}"
    return "\n".join([about, "", *("| " + " | ".join(cells) + " |" for cells in lines)])


#
# command line
#


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--follow-up", dest="measurement", action="store_const", const="follow_up", default="prompt")
    kind.add_argument("--off", dest="measurement", action="store_const", const="off")
    parser.add_argument("--shape", choices=SHAPES, default="scaled", help="default: scaled, 28 layers x 1024")
    parser.add_argument("--arch", choices=ARCHS, help="another architecture of the same sizes")
    parser.add_argument("--ftype", choices=("q4_0", "q8_0", "f16"), default="q4_0", help="default: q4_0")
    parser.add_argument("--tokens", type=token_counts, help="visual tokens, comma-separated; default: the shape's")
    parser.add_argument("--repeats", type=positive, default=5, help="default: 5")
    parser.add_argument("--decode", type=positive, default=32, help="tokens to decode after the prompt; default: 32")
    parser.add_argument("--lib", type=Path, help="folder of the HalfV libraries; default: the installed ones")
    parser.add_argument("--stock-lib", type=Path, default=ROOT / "build/stock/bin", help="default: build/stock/bin")
    parser.add_argument(
        "--models", type=Path, default=ROOT / "build/bench", help="where models go; default: build/bench"
    )
    parser.add_argument("--n-gpu-layers", "-ngl", type=int, default=0)
    parser.add_argument("--n-threads", "-t", type=int, default=machine.physical_cores(), help="default: physical cores")
    parser.add_argument("--n-batch", type=int, default=2048)
    parser.add_argument("--n-ubatch", type=int, default=512)
    parser.add_argument("--kv-type", choices=("f16", "q8_0", "q4_0"), default="f16")
    parser.add_argument("--json", action="store_true", help="print everything that was measured")
    return parser.parse_args(argv)


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a positive number")
    return int(text)


def token_counts(text: str) -> list[int]:
    return [positive(part) for part in text.split(",")]


def installed_libraries() -> Path:
    sys.path.insert(0, str(ROOT))
    from halfv_edge import libs
    from halfv_edge.errors import HalfvError

    try:
        return libs.lib_dir()
    except HalfvError as error:
        raise BenchError(str(error)) from error


def run(args: argparse.Namespace) -> dict[str, Any]:
    shape = SHAPES[args.shape]
    shape = dataclasses.replace(shape, arch=args.arch) if args.arch else shape
    tokens = args.tokens or shape.tokens
    lib_dir = args.lib or installed_libraries()
    texts = N_PREFIX + 2 * N_QUESTION + args.decode
    options = {
        "model": str(model_file(args.shape, shape, args.ftype, args.models)),
        "n_ctx": -(-(max(tokens) + texts) // 256) * 256,
        "n_prefix": N_PREFIX,
        "n_question": N_QUESTION,
    } | {name: getattr(args, name) for name in ("n_batch", "n_ubatch", "n_threads", "n_gpu_layers", "kv_type")}
    report = {
        "measurement": args.measurement,
        "shape": args.shape,
        "arch": shape.arch,
        "ftype": args.ftype,
        "commit": machine.commit(),
        "machine": machine.describe(),
        "repeats": args.repeats,
        "rows": [],
    } | {key: value for key, value in options.items() if key != "model"}
    machine.warn_when_busy()

    with contextlib.ExitStack() as stack:

        def start(folder: Path, **env: str) -> Worker:
            return stack.enter_context(Worker(folder, options, **env))

        is_off = args.measurement == "off"
        bench = Bench(
            shape,
            stock=start(args.stock_lib, HALFV="off"),
            halfv=start(lib_dir, HALFV="off" if is_off else ""),
            switched=start(lib_dir, HALFV="") if is_off else None,
            repeats=args.repeats,
            n_decode=args.decode,
        )
        report["libraries"] = {"stock": bench.stock.ask("about"), "halfv": bench.halfv.ask("about")}
        report["machine"]["devices"] = report["libraries"]["halfv"]["devices"]
        if bench.switched:
            bench.switched.ask("switch", enabled=False)
        for n_visual in tokens:
            row = getattr(bench, args.measurement)(n_visual)
            report["rows"].append(row)
    return report


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    try:
        report = run(args)
    except BenchError as error:
        print(f"prefill.py: {error}", file=sys.stderr)
        return 1
    print(json.dumps(report, indent=2) if args.json else as_table(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
