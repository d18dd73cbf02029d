"""Conversations on pretended devices and on the CPU, as JSON: how far their answers are apart, and the rows of states
that went from device to device. In a process of its own, as no device is taken away again."""

from __future__ import annotations

import ctypes
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from halfv_cpp import library

library.load()

from halfv_cpp import llama_h  # noqa: E402

from tests.support import talks  # noqa: E402
from tests.support.agreement import nmse  # noqa: E402
from tests.support.defaults import changed  # noqa: E402
from tests.support.pretend_device import PretendDevice  # noqa: E402
from tests.support.talks import OPTIONS, SIZES  # noqa: E402
from tests.support.tiny_models import DROP, FREEZE, make_tiny  # noqa: E402

PROFILES = {"freeze": FREEZE | {"ssr.update": 0.1}, "drop": DROP}
NO_DEVICES = (ctypes.c_void_p * 1)(None)
make_params = llama_h.llama_model_default_params
on_cpu = changed(make_params, devices=ctypes.addressof(NO_DEVICES))


def one_question(talk: talks.Talk) -> None:
    talk.show()
    talk.ask(talks.FIRST)


def compare(device: PretendDevice, model: Path, splits: list[dict[str, Any]], **options: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = [{"kept_otherwise": 0, "nmse": 0.0} for _ in splits]
    for tell in [one_question, *talks.TALKS]:
        llama_h.llama_model_default_params = on_cpu
        expected = talks.answers(model, tell, **options)
        llama_h.llama_model_default_params = make_params
        for split, here in zip(splits, found, strict=True):
            device.counts()
            actual = talks.answers(model, tell, **options, **split)
            counts = device.counts()
            here["kept_otherwise"] += actual.kept != expected.kept
            error = nmse(np.stack(actual.logits), np.stack(expected.logits)).max()
            here["nmse"] = max(here["nmse"], float(error))
            if tell is one_question:
                here["rows_across"] = counts.bytes_across / SIZES["n_embd"] / 4
                here["kept"], here["deep"] = (len(kept) for kept in actual.kept)
    return found


if __name__ == "__main__":
    build_dir, folder, arch, mode, splits = sys.argv[1:]
    numbers, unified = ("f32", True) if mode == "freeze" else ("flash-f16", False)
    path = make_tiny(Path(folder) / "model.gguf", arch, seed=1, profile=PROFILES[mode], **SIZES)
    device = PretendDevice(Path(build_dir) / "bin", 2)
    print(json.dumps(compare(device, path, json.loads(splits), kv_unified=unified, **OPTIONS[numbers])))
