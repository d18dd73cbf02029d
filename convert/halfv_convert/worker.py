"""The child process of `convert`: runs the pinned converter and libllama's quantisation, and reports in JSON lines.

It is a process of its own because the converter needs its own gguf package, because libllama may abort on what it does
not expect, and because its talk and its tracebacks belong in a log.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from halfv_cpp import llama_h, machine

from halfv_convert import llama_log
from halfv_convert.checkpoint import tensor_names
from halfv_edge.errors import HalfVError
from halfv_edge.files import FULL_DISK

Report = Callable[..., None]


def main() -> None:
    job = json.load(sys.stdin)
    events = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what others print goes to the log, as stderr does

    def report(**event: Any) -> None:
        events.write(json.dumps(event) + "\n")

    try:
        run(job, report)
    except HalfVError as error:
        report(error=str(error))
        sys.exit(1)
    except Exception as error:
        traceback.print_exc()
        report(full_disk=True) if is_full_disk(error) else report(error=explain(error), unforeseen=True)
        sys.exit(1)


def run(job: dict[str, Any], report: Report) -> None:
    import torch

    with torch.inference_mode():
        convert(job, report)
    if job["quantize"]:
        quantize(job, report)


# --- the pinned converter ---


def convert(job: dict[str, Any], report: Report) -> None:
    import gguf
    from conversion.base import ModelBase, TextModel

    from halfv_convert import checks, models, profiles, vocabulary

    sys.modules["tqdm"].tqdm = progress_bar(report)  # type: ignore[attr-defined]  # what the converter's writer imports when it writes
    if job["tokenizer_pre"]:
        TextModel.get_vocab_base_pre = lambda self, tokenizer: job["tokenizer_pre"]
    folder = Path(job["checkpoint"])
    config = ModelBase.load_hparams(folder, False)
    vocabulary.LlamaVocabulary.n_rows = config.get("text_config", config).get("vocab_size", 0)
    gguf.LlamaHfVocab = vocabulary.LlamaVocabulary

    def load(kind: type[ModelBase], target: str, type_: str) -> ModelBase:
        return kind(folder, getattr(gguf.LlamaFileType, FILE_TYPES[type_]), Path(target), model_name=job["name"])

    # The encoder first: it is small, and what is wrong with a checkpoint is most often wrong there.
    report(stage="vision encoder")
    vision = load(models.vision_class(config), job["vision"], job["vision_type"])
    with renamed(vision) as names:
        write(vision, lambda: checks.vision_shapes(vision, names))
    checks.vision_loads(job["vision"])

    report(stage="language model")
    text: Any = load(models.text_class(config, tensor_names(folder)), job["text"], job["text_type"])
    text = getattr(text, "impl", text)  # Mistral 3's class only chooses one
    chosen = profiles.choose(job, config, gguf.MODEL_ARCH_NAMES[text.model_arch], text.block_count)
    report(profile=chosen.profile and chosen.profile.to_json(), source=chosen.source)
    for key, (type_, value) in (chosen.profile.to_gguf() if chosen.profile else {}).items():
        items = gguf.GGUFValueType.FLOAT32 if type_ == gguf.GGUFValueType.ARRAY else None
        text.gguf_writer.add_key_value(key, value, gguf.GGUFValueType(type_), items)
    with renamed(text) as names:
        write(text, lambda: checks.loads(job["text"], names))


FILE_TYPES = {"f32": "ALL_F32", "f16": "MOSTLY_F16", "bf16": "MOSTLY_BF16", "q8_0": "MOSTLY_Q8_0", "auto": "GUESSED"}


@contextlib.contextmanager
def renamed(model: Any) -> Iterator[dict[str, str]]:
    """Collects which tensor of the checkpoint each tensor of the GGUF is from."""
    names: dict[str, str] = {}
    modify = model.modify_tensors

    def noting(data: Any, name: str, bid: int | None) -> Iterator[Any]:
        for new_name, tensor in modify(data, name, bid):
            names[new_name] = name
            yield new_name, tensor

    model.modify_tensors = noting
    yield names


def write(model: Any, check: Callable[[], None]) -> None:
    """As the converter's own `write`, but what the header tells is checked before gigabytes follow it."""
    model.prepare_tensors()
    model.prepare_metadata(vocab_only=False)
    writer = model.gguf_writer
    writer.write_header_to_file(path=model.fname_out)
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    (file,) = writer.fout
    place = file.tell()
    pad = lambda size: writer.ggml_pad(size, writer.data_alignment)  # noqa: E731
    file.truncate(pad(place) + sum(pad(info.nbytes) for info in writer.tensors[0].values()))
    check()
    file.seek(place)
    writer.write_ti_data_to_file = lambda: None  # it is written
    writer.write_tensors_to_file(progress=True)
    writer.close()


def progress_bar(report: Report) -> type:
    class Reporter:
        def __init__(self, total: int | None = None, **_: Any):
            report(total=total, unit="B")

        def update(self, n: int) -> None:
            report(done=n)

    return Reporter


def is_full_disk(error: BaseException) -> bool:
    # numpy has no errno to tell
    return isinstance(error, OSError) and (error.errno in FULL_DISK or "requested and" in str(error))


def explain(error: Exception) -> str:
    text = str(error).strip().split("\n")[0]
    if "pre-tokenizer was not recognized" in text:
        return (
            "The checkpoint's tokenizer is not one that llama.cpp knows by its fingerprint: if it cuts text as a known "
            "one does, say which, for example --tokenizer-pre qwen2."
        )
    if isinstance(error, ImportError):
        return f"{error.name or text} is not installed: run `pip install halfv-edge[convert]`."
    return f"llama.cpp's converter cannot convert this checkpoint ({type(error).__name__}: {text})."


# --- quantisation ---


def quantize(job: dict[str, Any], report: Report) -> None:
    type_, target = job["quantize"]["type"], job["quantize"]["path"]
    report(stage=f"quantising to {type_}")

    def follow(line: str) -> None:
        if match := re.match(r"\[\s*(\d+)/\s*(\d+)\]", line):
            if match[1] == "1":
                report(total=int(match[2]), unit=" tensors")
            report(done=1)

    lines = llama_log.collect(follow)
    llama_h.llama_backend_init()
    params = llama_h.llama_model_quantize_default_params()
    params.ftype = getattr(llama_h, f"LLAMA_FTYPE_MOSTLY_{type_.upper()}")
    params.nthread = machine.n_cores()
    if llama_h.llama_model_quantize(job["text"].encode(), target.encode(), ctypes.byref(params)):
        why = llama_log.first_error(lines)
        if "iostream error" in why:
            raise OSError(errno.ENOSPC, why)
        raise HalfVError(f"llama.cpp cannot quantise this model to {type_}: {why}.")
    os.unlink(job["text"])
