"""The measurements: a prompt with a picture, prepared pictures and second questions, and what being off costs."""

from __future__ import annotations

import contextlib
import dataclasses
import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from halfv_edge.errors import HalfVError, RunError
from halfv_edge.gguf import encoder_keys
from halfv_edge.gguf import read as gguf_read
from halfv_edge.measure.bench.workers import Answer, Worker
from halfv_edge.measure.policies import CHOICES, STOCK, Policy

N_PREFIX, N_QUESTION = 8, 40  # text tokens before and after the picture
OFF, SWITCHED_OFF = "HALFV=off", "switched off"

Spread = dict[str, float]


@dataclass(frozen=True)
class Picture:
    """A file, or one that is drawn; where there is no encoder its number of tokens is all that counts."""

    name: str
    file: str | None = None
    drawing: str = "photo"
    size: tuple[int, int] = (0, 0)
    n_visual: int | None = None


@dataclass(frozen=True)
class Subject:
    """What is measured."""

    name: str
    arch: str
    n_layer: int
    model: Path
    mmproj: Path | None
    pictures: list[Picture]


@dataclass(frozen=True)
class Contender:
    name: str
    worker: Worker
    policy: Policy = dataclasses.field(default_factory=lambda: Policy("unpruned"))
    switched_off: bool = False

    @property
    def eyes(self) -> dict[str, Any]:
        """Which encoder it uses."""
        return {"max_tokens": self.policy.max_tokens, "tau": self.policy.tau, "weights": self.policy.weights}


class Bench(contextlib.ExitStack):
    """Workers, and what they are asked. The first contender is what the others are compared with."""

    def __init__(
        self,
        subject: Subject,
        options: dict[str, Any],
        lib_dir: Path,
        stock_dir: Path | None,
        repeats: int,
        n_warm_up: int,
        n_decode: int,
        tick: Callable[[str], None] = lambda _: None,
    ):
        super().__init__()
        self.subject = subject
        self.repeats = repeats
        self.n_warm_up = n_warm_up
        self.n_decode = n_decode
        self.tick = tick
        options = options | {
            "model": str(subject.model),
            "mmproj": str(subject.mmproj) if subject.mmproj else None,
            "image_max_tokens": encoder_keys.token_limit(gguf_read.read(subject.mmproj)) if subject.mmproj else None,
            "n_prefix": N_PREFIX,
            "n_question": N_QUESTION,
        }
        self.halfv = self.enter_context(Worker(lib_dir, options))
        self.stock = self.enter_context(Worker(stock_dir, options)) if stock_dir else None
        self.contenders: list[Contender] = []
        self.n_visual: list[int] = []

    def about(self) -> dict[str, Answer]:
        workers = {"halfv": self.halfv} | ({"stock": self.stock} if self.stock else {})
        return {name: worker.ask("about") for name, worker in workers.items()}

    def enter(self, contenders: Iterable[Contender]) -> None:
        """Make their contexts, large enough for the pictures."""
        self.contenders = list(contenders)
        found = [self.halfv.ask("count", **self._picture(at)) for at in range(self.n_pictures)]
        self.n_visual = [look["n_visual"] for look in found]
        room = max(look["n_visual"] + look["n_text"] for look in found) + N_PREFIX + 2 * N_QUESTION + 2 * self.n_decode
        for one in self.contenders:
            struct = one.policy.profile.to_c() if one.policy.profile else None
            values = {name: getattr(struct, name) for name, _ in struct._fields_ if name != "size"} if struct else None
            one.worker.ask(
                "add", name=one.name, profile=values, switched_off=one.switched_off, n_ctx=-(-room // 256) * 256,
                choice=CHOICES.index(one.policy.choice), seed=one.policy.seed, **one.eyes,
            )  # fmt: skip

    @property
    def n_pictures(self) -> int:
        return len(self.subject.pictures)

    def n_requests(self) -> int:
        """What `tick` will be told of."""
        return self.n_pictures * (self.n_warm_up + self.repeats) * len(self.contenders)

    def _picture(self, at: int) -> dict[str, Any]:
        picture = dataclasses.asdict(self.subject.pictures[at])
        del picture["name"]
        return picture

    def _interleave(self, at: int, call: Callable[[Contender], Answer]) -> dict[str, list[Answer]]:
        """Each in turn, in changing order, first rounds not counted; the encoder once per round and size of picture."""
        answers: dict[str, list[Answer]] = {one.name: [] for one in self.contenders}
        for at_round in range(self.n_warm_up + self.repeats):
            looks: dict[Any, Answer] = {}
            for one in self.contenders[:: 1 if at_round % 2 else -1]:
                self.tick(f"{self.n_visual[at]} visual tokens, {one.name}")
                key = one.worker, *one.eyes.values()
                if key not in looks:
                    looks[key] = one.worker.ask("look", **one.eyes, **self._picture(at))
                answer = call(one) | looks[key]
                if at_round >= self.n_warm_up:
                    answers[one.name].append(answer)
        return answers

    #
    # a prompt
    #

    def prompt(self, at: int) -> list[dict[str, Any]]:
        """A row per contender."""
        answers = self._interleave(at, lambda one: one.worker.ask("request", name=one.name, n_decode=self.n_decode))
        for found in answers.values():
            for answer in found:
                answer["ttft_s"] = answer["encode_s"] + answer["prefill_s"]
        base = answers[self.contenders[0].name]
        dense = self._flops(self.contenders[0], base[-1])
        return [self._row(one, answers[one.name], base, dense) for one in self.contenders]

    def _row(self, one: Contender, found: list[Answer], base: list[Answer], dense: float) -> dict[str, Any]:
        last, stats = found[-1], pruned(one, found)
        spent = self._flops(one, last)
        row = {
            "run": one.name,
            "n_visual": last["n_visual"],
            "n_kept": stats["n_kept"] if stats else last["n_visual"],
            "n_deep": stats["n_deep"] if stats else last["n_visual"],
            "ttft_s": of(found, "ttft_s"),
            "encode_s": of(found, "encode_s"),
            "prefill_s": of(found, "prefill_s"),
            "select_s": spread(a["stats"]["us_select"] / 1e6 for a in found) if stats else None,
            "ttft_ratio": ratio(base, found, "ttft_s"),
            "prefill_ratio": ratio(base, found, "prefill_s"),
            "flops": spent,
            "flops_ratio": dense / spent,
            "prefill_tokens_per_s": self._n_prompt(last) / of(found, "prefill_s")["median"],
            "decode_tokens_per_s": spread(self.n_decode / a["decode_s"] for a in found),
            "kv_bytes": sum(stats["kv_bytes"]) if stats else None,
            "stats": stats,
        }
        prefill = of(base, "prefill_s")["median"] * spent / dense  # at the same FLOPS
        row["ttft_ceiling"] = of(base, "ttft_s")["median"] / (row["encode_s"]["median"] + prefill)
        return row

    def _n_prompt(self, look: Answer) -> int:
        return N_PREFIX + look["n_text"] + look["n_visual"] + N_QUESTION

    def _flops(self, one: Contender, answer: Answer) -> float:
        """Of the language model for the whole prompt; the statistics start with the picture."""
        count = lambda n: self.halfv.ask("flops", n_tokens=n)  # noqa: E731
        if not one.policy.profile or not answer["stats"]["flops_spent"]:  # nothing is left out of the language model
            return count(self._n_prompt(answer))
        if one.policy.holds_text:
            return answer["stats"]["flops_spent"]
        return answer["stats"]["flops_spent"] + count(N_PREFIX + answer["n_first"]) - count(0)

    def add_memory(self, rows: list[dict[str, Any]]) -> None:
        """KV bytes of the unpruned ones, and peaks, of the last picture. Contexts do not outlive it."""
        with_stats = next((row["stats"] for row in rows if row["stats"]), None)
        for one, row in zip(self.contenders, rows, strict=True):
            if with_stats and row["kv_bytes"] is None:
                ivr_layer = next(c.policy.profile.ivr_layer for c in self.contenders if c.policy.profile)
                # stage I holds every token
                cell = with_stats["kv_bytes"][0] / with_stats["kv_cells"][0] / ivr_layer
                n_prompt = with_stats["kv_cells"][0] - with_stats["n_visual"] + row["n_visual"]
                row["kv_bytes"] = round(cell * n_prompt * self.subject.n_layer)
            row["peak_bytes"] = one.worker.ask("peak", name=one.name)["bytes"]

    #
    # the other measurements
    #

    def follow_up(self, at: int) -> list[dict[str, Any]]:
        """A picture that is in before its question, and a second question."""
        answers = self._interleave(
            at,
            lambda one: one.worker.ask(
                "conversation", name=one.name, n_decode=self.n_decode, prepare="prepared" in one.name,
                topup="topped up" in one.name,
            ),
        )  # fmt: skip
        return [
            {"run": one.name, "n_visual": self.n_visual[at], "stats": pruned(one, answers[one.name])}
            | {key: of(answers[one.name], key) for key in ("picture_s", "first_s", "second_s")}
            for one in self.contenders
        ]

    def off(self, at: int) -> list[dict[str, Any]]:
        """What the patched library costs when it does not prune."""
        answers = self._interleave(at, lambda one: one.worker.ask("request", name=one.name, n_decode=self.n_decode))
        base = answers[STOCK]
        return [
            {
                "run": one.name,
                "n_visual": self.n_visual[at],
                "prefill_s": of(answers[one.name], "prefill_s"),
                "prefill_cost": ratio(answers[one.name], base, "prefill_s"),
                "decode_cost": ratio(answers[one.name], base, "decode_s"),
            }
            for one in self.contenders
        ]


def pruned(one: Contender, answers: list[Answer]) -> Answer | None:
    """The last statistics of a contender that prunes; it is an error when it did not."""
    if not one.policy.profile or one.switched_off:
        return None
    last = answers[-1]
    stats = last["stats"]
    if not stats:
        raise RunError(f"The run {one.name} was to be pruned, but these libraries or this kind of context cannot.")
    if stats["n_deep"] >= last["n_patches"]:
        why = "every token was kept" if stats["outcome"] == "pruned" else stats["reason"]
        raise HalfVError(f"The run {one.name} was to be pruned and was not: {why}, of {stats['n_visual']} tokens.")
    return stats


def spread(values: Iterable[float]) -> Spread:
    values = sorted(values)
    return {"median": statistics.median(values), "min": values[0], "max": values[-1]}


def of(answers: list[Answer], key: str) -> Spread:
    return spread(answer[key] for answer in answers)


def ratio(above: list[Answer], below: list[Answer], key: str) -> Spread:
    """Of requests that ran in the same round, so that what slows both down cancels out."""
    return spread(a[key] / b[key] for a, b in zip(above, below, strict=True))
