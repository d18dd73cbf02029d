"""Runs the parts in order of importance within a budget of seconds, and writes the report after each."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gpu_proof import parity, speed, trace
from gpu_proof.place import ROOT, Place, ProofError, ended, kill

PARTS = ("parity", "profile", "speed", "exact")
SHAPES = (
    "qwen2.5-vl-7b:1024+4096,qwen3-vl-8b:1024+4096,qwen3.5-9b:1024+4096,qwen2.5-vl-3b:1024+4096,gemma-3-4b:256,"
    "llava-1.5-7b:576,llava-next-mistral-7b:2880"
)
PROFILED = "qwen2.5-vl-7b:4096,qwen3-vl-8b:4096"
REHEARSED = "test_errors or ((test_choice or test_pruned and drop) and llama)"  # of tests/gpu, on a pretended device
MEMORY_FOR_MODELS = 40 << 30
MOST_FOR_PARITY = 0.35  # of the budget
LEFT_FOR_THE_END = 3  # seconds
LEAST = {"parity": 20, "profile": 25, "speed": 25, "exact": 20}  # with fewer seconds left a part is not begun


def run(args: argparse.Namespace) -> None:
    args.out.mkdir(parents=True, exist_ok=True)
    for part in args.parts.split(","):
        if part not in PARTS:
            raise ProofError(f"--parts {part} is not known: give some of {', '.join(PARTS)}.")
    with tempfile.TemporaryDirectory() as folder:
        log = args.out / "gpu-proof.log"
        log.write_text("")
        proof = Proof(args, Place.find(args.build, args.stock, log), Path(folder))
        try:
            proof.run()
        finally:
            for child in proof.writers.values():
                kill(child)
            if not args.models and proof.models.is_dir():
                shutil.rmtree(proof.models)


class Proof:
    def __init__(self, args: argparse.Namespace, place: Place, folder: Path) -> None:
        self.args, self.place, self.folder = args, place, folder
        self.started = time.monotonic()
        self.report: dict[str, Any] = {"seconds": {}, "skipped": []}
        self.models = args.models or _fast_folder() / f"gpu-proof-{os.getpid()}"
        self.shapes = _sizes("--shapes", args.shapes)
        self.profiled = _sizes("--profiled", args.profiled)
        self.writers: dict[tuple[str, str], Any] = {}
        self.how = {
            "models": str(self.models),
            "n_ubatch": args.ubatch,
            "n_threads": args.threads,
            "n_gpu_layers": 99 if args.device == "gpu" else 0,
        }

    def left(self) -> float:
        return self.args.budget - (time.monotonic() - self.started) - LEFT_FOR_THE_END

    def say(self, what: str) -> None:
        print(f"[{time.monotonic() - self.started:6.1f} s] {what}", file=sys.stderr, flush=True)

    def run(self) -> None:
        parts = self.args.parts.split(",")
        self.describe()
        if {"profile", "speed"} & set(parts):
            self.write_models()
        for part in parts:
            steps = list(getattr(self, f"{part}_steps")())
            for name, step in steps:
                if self.left() < LEAST[part]:
                    self.skip(name, f"{max(self.left(), 0):.0f} s were left of {self.args.budget:.0f}")
                    continue
                self.say(name)
                began = time.monotonic()
                try:
                    step()
                except ProofError as error:
                    self.skip(name, str(error))
                self.report["seconds"][name] = round(time.monotonic() - began, 1)
                self.save()
        self.save()
        self.say(f"done; {len(self.report['skipped'])} left out")
        print((self.args.out / "gpu-proof.md").read_text())

    def skip(self, name: str, why: str) -> None:
        self.say(f"{name}: left out, {why}")
        self.report["skipped"].append({"name": name, "why": why})
        self.save()

    def describe(self) -> None:
        self.say("the machine")
        found = self.place.ask(60, "gpu_proof.environment", {}, self.place.env())
        packed = ROOT / "pack.json"
        found["pack"] = json.loads(packed.read_text()) if packed.is_file() else None
        self.report["environment"] = found
        self.report["how"] = self.how | {"device": self.args.device, "budget": self.args.budget}
        devices = [device for device in found["devices"] if device["type"] in ("gpu", "igpu")]
        if self.args.device == "gpu" and not devices:
            raise ProofError(
                f"These libraries see no GPU, only {', '.join(device['name'] for device in found['devices'])}: "
                "is a driver installed, and is the build for this card? --device cpu rehearses without one."
            )
        self.say(f"{', '.join(device['description'] for device in devices) or 'no GPU'}; commit {found['commit']}")
        self.save()

    def write_models(self) -> None:
        """All at once, in the background, while the parity tests run."""
        for name in dict.fromkeys([*self.profiled, *self.shapes]):
            for which in ("model", "mmproj"):
                self.writers[name, which] = self.place.start("-m", "gpu_proof.weights", name, which, str(self.models))

    def wait_for(self, name: str) -> None:
        for which in ("model", "mmproj"):
            child = self.writers[name, which]
            ended(child, self.left())
            if child.returncode:
                raise ProofError(f"the weights of {name} could not be written: {self.place.last_words()}")

    #
    # the parts: names and what to do
    #

    def parity_steps(self) -> Iterator[tuple[str, Any]]:
        if self.args.device == "gpu":
            yield "parity with the CPU", lambda: self.check("parity")
        elif (self.place.lib / "libpretend-device.so").exists():
            yield "parity, rehearsed", lambda: self.check("parity", REHEARSED, HALFV_TEST_DEVICE="pretend")
        else:
            self.skip("parity", "there is nothing to compare the CPU with")

    def exact_steps(self) -> Iterator[tuple[str, Any]]:
        if self.args.device == "cpu":
            return
        select = "test_memory or test_pruned or test_unpruned"
        yield "parity, cuBLAS without TF32", lambda: self.check("exact", select, NVIDIA_TF32_OVERRIDE="0")

    def check(self, name: str, select: str = "", **env: str) -> None:
        seconds = min(self.left(), MOST_FOR_PARITY * self.args.budget)
        found = parity.run(self.place, self.folder, seconds, name, select, **env)
        self.report[name] = found
        outcomes = [test["outcome"] for test in found["tests"]]
        self.say("  " + ", ".join(f"{outcomes.count(word)} {word}" for word in ("passed", "failed", "skipped")))

    def profile_steps(self) -> Iterator[tuple[str, Any]]:
        for name, counts in self.profiled.items():
            for count in counts:
                for run, pruned, stock in (("pruned", True, False), ("stock", False, True), ("unpruned", False, False)):
                    which = (name, count, run, pruned, stock)
                    yield f"where the time goes: {name}:{count}, {run}", lambda which=which: self.trace(*which)

    def trace(self, name: str, count: int, run: str, pruned: bool, stock: bool) -> None:
        self.wait_for(name)
        question = self.how | {
            "shape": name,
            "tokens": count,
            "pruned": pruned,
            "tracer": str(self.place.lib / "libtrace-ggml.so"),
        }
        found = self.place.ask(self.left(), "gpu_proof.trace", question, self.place.env(stock=stock))
        self.report.setdefault("profile", {})[f"{name}:{count}, {run}"] = found

    def speed_steps(self) -> Iterator[tuple[str, Any]]:
        for name in self.shapes:
            yield f"speed: {name}", lambda name=name: self.measure(name)

    def measure(self, name: str) -> None:
        self.wait_for(name)
        out = self.folder / f"{name}.json"
        question = self.how | {
            "shape": name,
            "tokens": self.shapes[name],
            "draw": self.args.draw.split(","),
            "stock": str(self.place.stock),
            "repeats": self.args.repeats,
            "out": str(out),
        }
        child = self.place.start("-m", "gpu_proof.speed", json.dumps(question))
        ended(child, self.left())
        rows = json.loads(out.read_text()) if out.exists() else []
        self.report.setdefault("speed", []).extend(rows)
        for row in rows:
            picture = f"{row['picture']}, {row['n_visual']} tokens"
            self.say(f"  {picture}, {row['run']}: {1e3 * row['ttft_s']['median']:.0f} ms to the first")
        if child.returncode:
            late = child.returncode < 0
            raise ProofError("the budget was spent" if late else f"it failed: {self.place.last_words()}")

    #
    # the report
    #

    def save(self) -> None:
        _replace(self.args.out / "gpu-proof.json", json.dumps(self.report, indent=1))
        _replace(self.args.out / "gpu-proof.md", "\n".join(self.as_table()) + "\n")

    def as_table(self) -> Iterator[str]:
        found = self.report["environment"]
        card = found["card"].get("name") or ", ".join(device["description"] for device in found["devices"])
        yield f"{card}; commit {found['commit']}, llama.cpp {found['llama_cpp']}; {found['machine']['cpu']}"
        yield f"Micro-batches of {self.args.ubatch}. Weights are random: this shows speed and parity, not quality."
        for name, title, table in (
            ("parity", "The GPU against the CPU, and off against stock", parity.as_table),
            ("exact", "The GPU against the CPU, cuBLAS without TF32", parity.as_table),
            ("profile", "Where the time goes", trace.as_table),
            ("speed", f"Speed: medians of {self.args.repeats} (minimum-maximum)", speed.as_table),
        ):
            if self.report.get(name):
                yield from ("", f"## {title}", "", *table(self.report[name]))
        yield ""
        yield from (f"- left out: {one['name']}: {one['why']}" for one in self.report["skipped"])
        yield "- seconds: " + ", ".join(f"{name} {seconds}" for name, seconds in self.report["seconds"].items())


def _sizes(option: str, text: str) -> dict[str, list[int]]:
    found = {}
    for part in text.split(","):
        name, _, counts = part.strip().partition(":")
        if not all(count.isdigit() for count in counts.split("+")):
            raise ProofError(f"{option} {part} is not valid: it is NAME:TOKENS+TOKENS, ...")
        found[name] = [int(count) for count in counts.split("+")]
    return found


def _fast_folder() -> Path:
    """Memory, where it has room for all the weights."""
    shared = Path("/dev/shm")
    roomy = shared.is_dir() and shutil.disk_usage(shared).free > MEMORY_FOR_MODELS
    return shared if roomy else Path(tempfile.gettempdir())


def _replace(path: Path, text: str) -> None:
    partial = path.with_suffix(".partial")
    partial.write_text(text)
    partial.replace(path)
