"""Conversations on a pretended device, with states there and on the host: whether all is the same, and what comes down,
as JSON. In a process of its own, as no device is taken away again."""

from __future__ import annotations

import ctypes
import json
import os
import sys
from pathlib import Path
from typing import Any

from halfv_cpp import library

library.load()

from halfv_cpp import llama_h  # noqa: E402

from halfv_edge.testing.client import DecodeError  # noqa: E402
from tests.support import pruned, talks  # noqa: E402
from tests.support.architectures import MODES  # noqa: E402
from tests.support.pretend_device import PretendDevice  # noqa: E402


def two_pictures(talk: talks.Talk) -> None:
    talk.show()
    talk.show()
    talk.ask(talks.FIRST)
    talk.go_on(0)


def a_copy(talk: talks.Talk) -> None:
    """Of a picture that waits: each is asked something else."""
    talk.show()
    llama_h.llama_memory_seq_cp(talk.client.memory, 0, 1, -1, -1)
    talk.client.next_pos[1] = talk.client.next_pos[0]
    talk.ask(talks.FIRST)
    talk.ask(talks.SECOND, 1)
    talk.go_on(0, 1)


def an_aborted_question(talk: talks.Talk) -> None:
    left = 0

    @ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.c_void_p)
    def abort(_data: object) -> bool:
        nonlocal left
        left -= 1
        return left < 0

    talk.show()
    for after in (0, 1, 2):
        left = after
        llama_h.llama_set_abort_callback(talk.client.ctx, abort, None)
        before = talk.client.next_pos[0]
        try:
            talk.client.text(talks.FIRST)
        except DecodeError:
            talk.client.next_pos[0] = before
        else:
            raise AssertionError("it was not aborted")
        llama_h.llama_set_abort_callback(talk.client.ctx, type(abort)(), None)
    talk.ask(talks.FIRST)
    talk.go_on(0)


def set_states(where: str) -> None:
    """For contexts made from here on."""
    os.environ.pop("HALFV_STATES", None)
    if where == "host":
        os.environ["HALFV_STATES"] = where


def compare(device: PretendDevice, model: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    tells = [*talks.TALKS, two_pictures, a_copy, an_aborted_question]
    for tell in tells:
        for mode in ("top", "freeze-and-update"):
            answers, down = {}, {}
            for where in ("host", "device"):
                set_states(where)
                device.counts()
                on_model = lambda loaded, mode=mode: pruned.set_profile(loaded, MODES[mode])  # noqa: E731
                unified = mode == "top"
                answers[where] = talks.answers(model, tell, n_gpu_layers=99, kv_unified=unified, on_model=on_model)
                down[where] = device.counts().bytes_down
            host, there = answers["host"], answers["device"]
            found[f"{tell.__name__}, {mode}"] = {
                "same_kept": host.kept == there.kept,
                "same_logits": [a.tobytes() for a in host.logits] == [b.tobytes() for b in there.logits],
                "down": down,
            }
    return found


if __name__ == "__main__":
    build_dir, model = sys.argv[1:]
    print(json.dumps(compare(PretendDevice(Path(build_dir) / "bin"), Path(model))))
