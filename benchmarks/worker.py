"""One set of libraries under measurement: reads a JSON request per line, answers with a JSON line.

Started by prefill.py, which lets one worker compute at a time.
"""

from __future__ import annotations

import functools
import json
import re
import sys
import time
from typing import Any

import shapes
from client import Client, log_text
from llama_cpp import llama_cpp
from tiny_models import grid_positions, tiny_image

sys.path.append(str(shapes.ROOT / "bindings"))

DEVICE = re.compile(r"using device (\w+ \([^)]*\))")


class Bench:
    def __init__(self, options: dict[str, Any]):
        names = ("n_ctx", "n_batch", "n_ubatch", "n_threads", "n_gpu_layers")
        settings = {name: options[name] for name in names}
        kv_type = options["kv_type"]
        self.client = Client(options["model"], type_k=kv_type, type_v=kv_type, flash_attn=None, **settings)
        self.n_prefix, self.n_question = options["n_prefix"], options["n_question"]
        self.image = functools.cache(lambda n_tokens: tiny_image(n_tokens, self.client.n_embd_inp))
        self.halfv = None
        if hasattr(llama_cpp._lib, "halfv_version"):
            import halfv_cpp

            self.halfv = halfv_cpp

    def about(self) -> dict[str, Any]:
        devices = DEVICE.findall(log_text())
        system = llama_cpp.llama_print_system_info().decode()
        return {"library": llama_cpp._lib._name, "system": system, "devices": ", ".join(devices) or "CPU"}

    def switch(self, enabled: bool) -> dict[str, Any]:
        self.halfv.check(self.halfv.halfv_set_enabled(self.client.ctx, enabled))
        return {}

    def request(self, n_visual: int, n_decode: int) -> dict[str, Any]:
        """A prompt with a picture, then n_decode tokens."""
        self._clear()
        started = time.perf_counter()
        self._picture(n_visual)
        self._question()
        ttft = time.perf_counter() - started
        stats = self._stats()
        started = time.perf_counter()
        self._answer(n_decode)
        return {"ttft_s": ttft, "decode_s": time.perf_counter() - started, "stats": stats}

    def conversation(self, n_visual: int, n_decode: int, prepare: bool, topup: bool) -> dict[str, Any]:
        """A picture, then a question when it is in, an answer, and a second question."""
        self._clear()
        if self.halfv and self._stats():
            everything = 2**40
            self.halfv.check(self.halfv.halfv_set_topup_bytes(self.client.ctx, everything if topup else 0))
        started = time.perf_counter()
        self._picture(n_visual)
        if prepare:
            self.halfv.check(self.halfv.halfv_prepare(self.client.ctx, 0))
        llama_cpp.llama_synchronize(self.client.ctx)
        enter = time.perf_counter()
        self._question()
        first = time.perf_counter()
        self._answer(n_decode)
        second = time.perf_counter()
        if topup:
            self.halfv.check(self.halfv.halfv_topup(self.client.ctx, 0))
        self._question()
        ended = time.perf_counter()
        times = {"picture_s": enter - started, "first_s": first - enter, "second_s": ended - second}
        return times | {"stats": self._stats()}

    def _clear(self) -> None:
        llama_cpp.llama_memory_clear(self.client.memory, True)
        self.client.next_pos[0] = 0

    def _picture(self, n_visual: int) -> None:
        self.client.text(range(40, 40 + self.n_prefix), logits_last=False)
        pos = grid_positions(self.client.next_pos[0], *shapes.grid(n_visual)) if self.client.is_mrope else None
        self.client.image(self.image(n_visual), pos)

    def _question(self) -> None:
        self.client.text(range(60, 60 + self.n_question))
        self.client.logits()

    def _answer(self, n_decode: int) -> None:
        for token in range(80, 80 + n_decode):
            self.client.decode(token)

    def _stats(self) -> dict[str, Any] | None:
        """None when this library or context does not prune."""
        if self.halfv:
            try:
                return self.halfv.stats(self.client.ctx)
            except self.halfv.HalfvError as error:
                if error.code != self.halfv.HALFV_ERR_UNSUPPORTED:
                    raise
        return None


def main() -> None:
    bench = Bench(json.loads(sys.argv[1]))
    for line in sys.stdin:
        call, arguments = json.loads(line)
        print(json.dumps(getattr(bench, call)(**arguments)), flush=True)


if __name__ == "__main__":
    main()
