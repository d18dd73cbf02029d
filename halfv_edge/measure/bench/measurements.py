"""The measurements: a prompt with a picture, prepared pictures and second questions, and what being off costs."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from halfv_cpp.machine import n_cores

from halfv_edge.errors import HalfVError, RunError
from halfv_edge.gguf import encoder_keys
from halfv_edge.gguf.read import read_metadata
from halfv_edge.measure.bench.options import BenchOptions
from halfv_edge.measure.bench.results import FollowUpRow, OffRow, PromptRow, Spread, spread
from halfv_edge.measure.bench.subject import Subject
from halfv_edge.measure.bench.workers import Answer, EncoderSettings, Worker
from halfv_edge.measure.policies import CHOICES, STOCK, Policy
from halfv_edge.measure.progress import Progress, Watch, ignore

N_PREFIX, N_QUESTION = 8, 40  # text tokens before and after the picture
OFF, SWITCHED_OFF = "HALFV=off", "switched off"


@dataclass(frozen=True, slots=True)
class Contender:
    """One way to run the model, in one set of libraries."""

    name: str
    worker: Worker
    policy: Policy = dataclasses.field(default_factory=lambda: Policy("unpruned"))
    switched_off: bool = False

    @property
    def encoder(self) -> EncoderSettings:
        policy = self.policy
        return EncoderSettings(policy.max_tokens, policy.intake, policy.weights)


class Bench(contextlib.ExitStack):
    """Workers, and what they are asked. The first contender is what the others are compared with."""

    def __init__(
        self, subject: Subject, options: BenchOptions, lib_dir: Path, progress: Watch = ignore, *, packed: bool = True
    ):
        super().__init__()
        self.subject = subject
        self.options = options
        self.progress = progress
        self.n_done = 0
        mmproj = subject.mmproj
        settings = {
            "n_batch": options.n_batch,
            "n_ubatch": options.n_ubatch,
            "n_threads": options.n_threads or n_cores(),
            "n_gpu_layers": options.n_gpu_layers,
            "packed": packed,
            "kv_type": options.kv_type,
            "mmproj_type": options.mmproj_type,
            "model": str(subject.about.path),
            "mmproj": str(mmproj) if mmproj else None,
            "image_max_tokens": encoder_keys.token_limit(read_metadata(mmproj)) if mmproj else None,
            "n_prefix": N_PREFIX,
            "n_question": N_QUESTION,
        }
        try:
            self.halfv = self.enter_context(Worker(lib_dir, settings))
            self.stock = self.enter_context(Worker(options.stock_lib, settings)) if options.stock_lib else None
        except BaseException:
            self.close()  # the first one must not outlive a second that cannot start
            raise
        self.contenders: list[Contender] = []
        self.n_visual: list[int] = []

    def about(self) -> dict[str, Answer]:
        workers = {"halfv": self.halfv} | ({"stock": self.stock} if self.stock else {})
        return {name: worker.ask("about") for name, worker in workers.items()}

    def enter(self, contenders: Iterable[Contender]) -> None:
        """Make their contexts, large enough for the pictures."""
        self.contenders = list(contenders)
        counts = [self.halfv.ask("count", **self._picture(at)) for at in range(self.n_pictures)]
        self.n_visual = [count["n_visual"] for count in counts]
        room = max(count["n_visual"] + count["n_text"] for count in counts)
        room += N_PREFIX + 2 * N_QUESTION + 2 * self.options.n_decode
        for contender in self.contenders:
            policy = contender.policy
            struct = policy.profile.to_c() if policy.profile else None
            names = [field[0] for field in struct._fields_ if field[0] != "size"] if struct else []
            values = {name: _plain(getattr(struct, name)) for name in names} or None
            contender.worker.ask(
                "add", name=contender.name, profile=values, switched_off=contender.switched_off,
                n_ctx=-(-room // 256) * 256, choice=CHOICES.index(policy.choice), seed=policy.seed,
                encoder=contender.encoder.as_json(),
            )  # fmt: skip

    @property
    def n_pictures(self) -> int:
        return len(self.subject.pictures)

    @property
    def n_requests(self) -> int:
        """How many `progress` hears of."""
        return self.n_pictures * (self.options.warm_up + self.options.repeats) * len(self.contenders)

    def _picture(self, at: int) -> dict[str, Any]:
        picture = dataclasses.asdict(self.subject.pictures[at])
        del picture["name"]
        return picture

    def _interleave(self, at: int, call: Callable[[Contender], Answer]) -> dict[str, list[Answer]]:
        """Each in turn, in changing order, first rounds not counted; the encoder once per round and size of picture."""
        answers: dict[str, list[Answer]] = {contender.name: [] for contender in self.contenders}
        for at_round in range(self.options.warm_up + self.options.repeats):
            encoded: dict[tuple[Worker, EncoderSettings], Answer] = {}
            for contender in self.contenders[:: 1 if at_round % 2 else -1]:
                doing = f"{self.n_visual[at]} visual tokens, {contender.name}"
                self.progress(Progress(self.n_done, self.n_requests, doing))
                key = contender.worker, contender.encoder
                if key not in encoded:
                    settings = contender.encoder.as_json()
                    encoded[key] = contender.worker.ask("encode", settings=settings, **self._picture(at))
                answer = call(contender) | encoded[key]
                self.n_done += 1
                if at_round >= self.options.warm_up:
                    answers[contender.name].append(answer)
        return answers

    #
    # a prompt
    #

    def prompt(self, at: int) -> list[PromptRow]:
        """A row per contender."""
        answers = self._interleave(at, self._request)
        for found in answers.values():
            for answer in found:
                answer["ttft_s"] = answer["encode_s"] + answer["prefill_s"]
        base = answers[self.contenders[0].name]
        dense = self._flops(self.contenders[0], base[-1])
        return [self._row(at, contender, answers[contender.name], base, dense) for contender in self.contenders]

    def _request(self, contender: Contender) -> Answer:
        return contender.worker.ask("prompt", name=contender.name, n_decode=self.options.n_decode)

    def _row(self, at: int, contender: Contender, found: list[Answer], base: list[Answer], dense: float) -> PromptRow:
        last, stats = found[-1], check_pruned(contender, found)
        spent = self._flops(contender, last)
        encode_s, prefill_s = spread_of(found, "encode_s"), spread_of(found, "prefill_s")
        at_same_flops = spread_of(base, "prefill_s").median * spent / dense
        return PromptRow(
            picture=self.subject.pictures[at].name,
            run=contender.name,
            n_visual=last["n_visual"],
            n_kept=stats["n_kept"] if stats else last["n_visual"],
            n_deep=stats["n_deep"] if stats else last["n_visual"],
            ttft_s=spread_of(found, "ttft_s"),
            encode_s=encode_s,
            prefill_s=prefill_s,
            select_s=spread(answer["stats"]["us_select"] / 1e6 for answer in found) if stats else None,
            ttft_ratio=ratio(base, found, "ttft_s"),
            prefill_ratio=ratio(base, found, "prefill_s"),
            flops=spent,
            flops_ratio=dense / spent,
            prefill_tokens_per_s=self._n_prompt(last) / prefill_s.median,
            decode_tokens_per_s=spread(self.options.n_decode / answer["decode_s"] for answer in found),
            kv_bytes=sum(stats["kv_bytes"]) if stats else None,
            stats=stats,
            ttft_ceiling=spread_of(base, "ttft_s").median / (encode_s.median + at_same_flops),
        )

    def _n_prompt(self, encoded: Answer) -> int:
        return int(N_PREFIX + encoded["n_text"] + encoded["n_visual"] + N_QUESTION)

    def _flops(self, contender: Contender, answer: Answer) -> float:
        """Of the language model for the whole prompt; the statistics start with the picture."""
        spent = float(answer["stats"]["flops_spent"]) if contender.policy.profile and answer["stats"] else 0.0
        if not spent:  # nothing is left out of the language model
            return self._dense_flops(self._n_prompt(answer))
        if contender.policy.holds_text:
            return spent
        return spent + self._dense_flops(N_PREFIX + answer["n_first"]) - self._dense_flops(0)

    def _dense_flops(self, n_tokens: int) -> float:
        return float(self.halfv.ask("flops", n_tokens=n_tokens)["flops"])

    def with_memory(self, rows: Sequence[PromptRow]) -> list[PromptRow]:
        """The rows of the last picture with KV bytes of unpruned ones, and peaks. Contexts do not outlive it."""
        stats = next((row.stats for row in rows if row.stats), None)
        profile = next((other.policy.profile for other in self.contenders if other.policy.profile), None)
        measured = []
        for contender, row in zip(self.contenders, rows, strict=True):
            kv_bytes = row.kv_bytes
            if stats and profile and kv_bytes is None:
                cell = stats["kv_bytes"][0] / stats["kv_cells"][0] / profile.ivr_layer  # stage I holds every token
                n_prompt = stats["kv_cells"][0] - stats["n_visual"] + row.n_visual
                kv_bytes = round(cell * n_prompt * self.subject.about.n_layer)
            peak = contender.worker.ask("peak", name=contender.name)
            memory = {"kv_bytes": kv_bytes, "peak_bytes": peak["bytes"], "device_bytes": peak["device_bytes"]}
            measured.append(dataclasses.replace(row, **memory))
        return measured

    #
    # the other measurements
    #

    def follow_up(self, at: int) -> list[FollowUpRow]:
        """A picture that is in before its question, and a second question."""
        answers = self._interleave(
            at,
            lambda contender: contender.worker.ask(
                "conversation", name=contender.name, n_decode=self.options.n_decode,
                prepare="prepared" in contender.name, topup="topped up" in contender.name,
            ),
        )  # fmt: skip
        return [
            FollowUpRow(
                self.subject.pictures[at].name,
                contender.name,
                self.n_visual[at],
                check_pruned(contender, found),
                spread_of(found, "picture_s"),
                spread_of(found, "first_s"),
                spread_of(found, "second_s"),
            )
            for contender, found in ((contender, answers[contender.name]) for contender in self.contenders)
        ]

    def off(self, at: int) -> list[OffRow]:
        """What the patched library costs when it does not prune."""
        answers = self._interleave(at, self._request)
        base = answers[STOCK]
        return [
            OffRow(
                self.subject.pictures[at].name,
                name,
                self.n_visual[at],
                spread_of(found, "prefill_s"),
                ratio(found, base, "prefill_s"),
                ratio(found, base, "decode_s"),
            )
            for name, found in answers.items()
        ]


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, ctypes.Array) else value


def check_pruned(contender: Contender, answers: list[Answer]) -> dict[str, Any] | None:
    """The last statistics of a contender that prunes; it is an error when it did not."""
    if not contender.policy.profile or contender.switched_off:
        return None
    last = answers[-1]
    stats: dict[str, Any] | None = last["stats"]
    if not stats and not contender.policy.intake.keeps_rows:
        return None  # what it does was done before the language model
    if not stats:
        raise RunError(
            f"The run {contender.name} was to be pruned, but these libraries or this kind of context cannot."
        )
    narrow = contender.policy.profile.narrows and stats["outcome"] == "pruned"  # all tokens, of which less is computed
    if not narrow and min([stats["n_deep"], *stats["n_further"]]) >= last["n_patches"]:
        why = "every token was kept" if stats["outcome"] == "pruned" else stats["reason"]
        raise HalfVError(
            f"The run {contender.name} was to be pruned and was not: {why}, of {stats['n_visual']} tokens."
        )
    return stats


def spread_of(answers: list[Answer], key: str) -> Spread:
    return spread(answer[key] for answer in answers)


def ratio(above: list[Answer], below: list[Answer], key: str) -> Spread:
    """Of requests that ran in the same round, so that what slows both down cancels out."""
    return spread(a[key] / b[key] for a, b in zip(above, below, strict=True))
