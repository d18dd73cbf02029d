"""One set of libraries under measurement: reads a JSON request per line, answers with a JSON line.

Started by workers.py, which lets one worker compute at a time. It keeps to what a stock llama.cpp has, with a client of
its own, so that both are measured by the same code.
"""

from __future__ import annotations

import ctypes
import functools
import json
import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import halfv_cpp
import numpy as np
from halfv_cpp import devices, halfv_compare_h, halfv_mtmd_h, library, llama_h, mtmd_h, mtmd_helper_h
from PIL import Image

from halfv_edge.measure.bench import pictures, shapes
from halfv_edge.measure.bench.workers import EncoderSettings
from halfv_edge.profile.profile import Profile
from halfv_edge.testing.client import Client, collect_log, log_text

DEVICE = re.compile(r"using device (\w+ \([^)]*\))")
STATUS, CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")
RESET_PEAK = "5"
ALL = 2**40  # bytes: no picture is too large to be pruned


class EncodedPicture:
    """A picture as an encoder gave it: tokens, and chunks with their embeddings."""

    def __init__(self, encoder: int):
        self.encoder = encoder
        self.chunks = mtmd_h.mtmd_input_chunks_init()
        self.parts: list[list[int] | tuple[int, np.ndarray]] = []
        self.n_patches = 0  # visual tokens of the picture, were it whole

    @property
    def n_visual(self) -> int:
        return sum(len(part[1]) for part in self.parts if isinstance(part, tuple))

    @property
    def n_text(self) -> int:
        return sum(len(part) for part in self.parts if isinstance(part, list))

    @property
    def n_first(self) -> int:
        """Text tokens before the first visual one."""
        return len(self.parts[0]) if isinstance(self.parts[0], list) else 0

    def all_chunks(self) -> Iterator[tuple[int, bool]]:
        """Each chunk, and whether it is text."""
        for index in range(mtmd_h.mtmd_input_chunks_size(self.chunks)):
            chunk = mtmd_h.mtmd_input_chunks_get(self.chunks, index)
            yield chunk, mtmd_h.mtmd_input_chunk_get_type(chunk) == mtmd_h.MTMD_INPUT_CHUNK_TYPE_TEXT

    def close(self) -> None:
        mtmd_h.mtmd_input_chunks_free(self.chunks)


def _free_on_gpus() -> int:
    """Bytes."""
    return sum(gpu.free_bytes for gpu in devices.gpus())


@functools.lru_cache(maxsize=1)
def _drawn(drawing: str, width: int, height: int) -> Image.Image:
    return pictures.DRAWINGS[drawing](width, height)


def _image(file: str | None, drawing: str, size: list[int]) -> Image.Image:
    return Image.open(file).convert("RGB") if file else _drawn(drawing, *size)


class LibrariesUnderTest:
    """Answers the requests of workers.Worker, a method each."""

    def __init__(self, options: dict[str, Any]):
        self.options = options
        names = ("n_batch", "n_ubatch", "n_threads", "n_gpu_layers", "packed")
        self.settings = {name: options[name] for name in names}
        self.settings |= {"type_k": options["kv_type"], "type_v": options["kv_type"], "flash_attn": None}
        self.n_prefix, self.n_question = options["n_prefix"], options["n_question"]
        self.first = Client(options["model"], n_ctx=256, **self.settings)  # holds the model
        mtmd_helper_h.mtmd_helper_log_set(collect_log, None)
        self.clients: dict[str, Client] = {}
        self.contenders: dict[str, dict[str, Any]] = {}
        self.encoders: dict[EncoderSettings, int] = {}
        self.encoded: dict[EncoderSettings, EncodedPicture] = {}
        self.embeddings: np.ndarray | None = None  # of a picture without an encoder
        self.prunes = library.is_patched()

    def about(self) -> dict[str, Any]:
        devices = DEVICE.findall(log_text())
        system = llama_h.llama_print_system_info().decode()
        return {"library": str(library.library_path("llama")), "system": system, "devices": ", ".join(devices) or "CPU"}

    def flops(self, n_tokens: int) -> dict[str, Any]:
        """What the whole model costs for n_tokens and one output."""
        dense, spent = ctypes.c_double(), ctypes.c_double()
        profile = halfv_cpp.default_profile(llama_h.llama_model_n_layer(self.first.model))
        halfv_cpp.check(
            halfv_cpp.halfv_flops(
                self.first.model, ctypes.byref(profile), 0, 0, n_tokens, ctypes.byref(dense), ctypes.byref(spent)
            )
        )
        return {"flops": dense.value}

    def add(self, name: str, **contender: Any) -> dict[str, Any]:
        """A context to measure. profile: None is unpruned; switched_off: it has one and does not use it."""
        self.contenders[name] = contender
        self.clients[name] = self._client(contender)
        return {}

    def count(self, n_visual: int | None, **picture: Any) -> dict[str, Any]:
        """The tokens of a whole picture."""
        if not self.options["mmproj"]:
            return {"n_visual": n_visual, "n_text": 0}
        encoded = EncodedPicture(self._encoder(EncoderSettings()))
        self._tokenize(encoded, _image(**picture))
        counts = {"n_visual": 0, "n_text": 0}
        for chunk, is_text in encoded.all_chunks():
            counts["n_text" if is_text else "n_visual"] += mtmd_h.mtmd_input_chunk_get_n_tokens(chunk)
        encoded.close()
        return counts

    def encode(self, settings: dict[str, Any], n_visual: int | None, **picture: Any) -> dict[str, Any]:
        """Give a picture to an encoder, or imagine its embeddings where there is none."""
        wanted = EncoderSettings.of(settings)
        if not self.options["mmproj"]:
            assert n_visual is not None
            if not wanted.intake.keeps_rows:
                raise RuntimeError("the choice before the language model needs a vision encoder, and there is none")
            self.embeddings = pictures.random_image(n_visual, self.first.n_embd_inp)
            return {"encode_s": 0.0, "n_visual": n_visual, "n_patches": n_visual, "n_text": 0, "n_first": 0}
        image = _image(**picture)
        if wanted in self.encoded:
            self.encoded.pop(wanted).close()
        encoder = self._encoder(wanted)
        started = time.perf_counter()
        encoded = self.encoded[wanted] = EncodedPicture(encoder)
        self._tokenize(encoded, image)
        copying = self._encode(encoded)
        seconds = time.perf_counter() - started - copying
        names = ("n_visual", "n_patches", "n_text", "n_first")
        return {"encode_s": seconds} | {name: getattr(encoded, name) for name in names}

    def prompt(self, name: str, n_decode: int) -> dict[str, Any]:
        """A prompt with the picture, then n_decode tokens."""
        client = self._cleared(name)
        started = time.perf_counter()
        self._picture(name)
        self._question(client)
        prefill = time.perf_counter() - started
        stats = self._stats(client)
        started = time.perf_counter()
        self._answer(client, n_decode)
        return {"prefill_s": prefill, "decode_s": time.perf_counter() - started, "stats": stats}

    def conversation(self, name: str, n_decode: int, prepare: bool, topup: bool) -> dict[str, Any]:
        """A picture, then a question when it is in, an answer, and a second question."""
        client = self._cleared(name)
        if self.prunes and self._stats(client):
            halfv_cpp.check(halfv_cpp.halfv_set_undo_bytes(client.ctx, ALL))
        started = time.perf_counter()
        self._picture(name)
        if prepare:
            halfv_cpp.check(halfv_cpp.halfv_prepare(client.ctx, 0))
        llama_h.llama_synchronize(client.ctx)
        enter = time.perf_counter()
        self._question(client)
        first = time.perf_counter()
        self._answer(client, n_decode)
        second = time.perf_counter()
        if topup:
            halfv_cpp.check(halfv_cpp.halfv_topup(client.ctx, 0))
        self._question(client)
        ended = time.perf_counter()
        times = {"picture_s": enter - started, "first_s": first - enter, "second_s": ended - second}
        return times | {"stats": self._stats(client)}

    def peak(self, name: str) -> dict[str, Any]:
        """Peak resident bytes of a request in a context of its own, None where the system does not tell; and what
        such a context takes of GPUs, which keep what they once reserved for it."""
        while self.clients:
            self.clients.popitem()[1].close()
        free = _free_on_gpus()
        self.clients[name] = self._client(self.contenders[name])
        try:
            CLEAR_REFS.write_text(RESET_PEAK)
            tells = True
        except OSError:
            tells = False
        self.prompt(name, 0)
        found = re.search(r"VmHWM:\s+(\d+) kB", STATUS.read_text()) if tells else None
        return {"bytes": int(found[1]) << 10 if found else None, "device_bytes": free - _free_on_gpus()}

    def _client(self, contender: dict[str, Any]) -> Client:
        if self.prunes:
            values = contender["profile"]
            halfv_cpp.set_model_profile(self.first.model, halfv_cpp.halfv_profile(**values) if values else None)
        client = Client(self.options["model"], beside=self.first, n_ctx=contender["n_ctx"], **self.settings)
        if contender["choice"]:
            halfv_cpp.check(halfv_compare_h.halfv_set_choice(client.ctx, contender["choice"], contender["seed"]))
        if contender["switched_off"]:
            halfv_cpp.check(halfv_cpp.halfv_set_enabled(client.ctx, False))
        return client

    def _cleared(self, name: str) -> Client:
        client = self.clients[name]
        llama_h.llama_memory_clear(client.memory, True)
        client.next_pos[0] = 0
        return client

    def _encoder(self, settings: EncoderSettings) -> int:
        if settings not in self.encoders:
            max_tokens, intake, weights = settings
            params = mtmd_h.mtmd_context_params_default()
            params.use_gpu = self.settings["n_gpu_layers"] != 0
            params.print_timings = params.warmup = False
            params.n_threads = self.settings["n_threads"]
            if limits := [limit for limit in (max_tokens, self.options["image_max_tokens"]) if limit]:
                params.image_max_tokens = min(limits)
            if self.prunes:  # libmtmd asks the model for it
                base = Profile.default(llama_h.llama_model_n_layer(self.first.model))
                halfv_cpp.set_model_profile(self.first.model, intake.within(base).to_c())
                is_stock = (weights or self.options["mmproj_type"]) == "off"
                how = halfv_cpp.HALFV_ATTENTION_STOCK if is_stock else halfv_cpp.HALFV_ATTENTION_FAST
                halfv_cpp.check(halfv_cpp.halfv_set_encoder((weights or self.options["mmproj_type"]).encode(), how))
            path = self.options["mmproj"]
            encoder = mtmd_h.mtmd_init_from_file(path.encode(), self.first.model, params)
            if not encoder:
                raise RuntimeError(f"cannot load the encoder {path}")
            self.encoders[settings] = encoder
        return self.encoders[settings]

    def _tokenize(self, encoded: EncodedPicture, image: Image.Image) -> None:
        pixels = (ctypes.c_uint8 * (3 * image.width * image.height)).from_buffer_copy(image.tobytes())
        bitmap = mtmd_h.mtmd_bitmap_init(image.width, image.height, pixels)
        marker = mtmd_h.mtmd_get_marker(encoded.encoder)
        text = mtmd_h.mtmd_input_text(marker, len(marker), False, True)
        rc = mtmd_h.mtmd_tokenize(encoded.encoder, encoded.chunks, ctypes.byref(text), (ctypes.c_void_p * 1)(bitmap), 1)
        mtmd_h.mtmd_bitmap_free(bitmap)
        if rc != 0:
            raise RuntimeError(f"the encoder takes no picture of {image.width} x {image.height}")

    def _encode(self, encoded: EncodedPicture) -> float:
        """The seconds of it that went into keeping the embeddings for later prompts, which programs do not do."""
        copying = 0.0
        for chunk, is_text in encoded.all_chunks():
            if is_text:
                count = ctypes.c_size_t()
                tokens = mtmd_h.mtmd_input_chunk_get_tokens_text(chunk, ctypes.byref(count))
                encoded.parts.append(tokens[: count.value])
                continue
            if mtmd_h.mtmd_encode_chunk(encoded.encoder, chunk) != 0:
                raise RuntimeError("the encoder failed")
            shape = (mtmd_h.mtmd_input_chunk_get_n_tokens(chunk), self.first.n_embd_inp)
            image = mtmd_h.mtmd_input_chunk_get_tokens_image(chunk)
            assert image is not None
            n_patches = mtmd_h.mtmd_image_tokens_get_nx(image) * mtmd_h.mtmd_image_tokens_get_ny(image)
            full = halfv_mtmd_h.halfv_picture_full_tokens(image) if self.prunes else 0
            encoded.n_patches += max(shape[0], n_patches, full)
            values = np.ctypeslib.as_array(mtmd_h.mtmd_get_output_embd(encoded.encoder), shape)
            started = time.perf_counter()
            encoded.parts.append((chunk, values.copy()))
            copying += time.perf_counter() - started
        return copying

    def _picture(self, name: str) -> None:
        client = self.clients[name]
        client.text(range(40, 40 + self.n_prefix), logits_last=False)
        if self.embeddings is not None:
            rows, columns = shapes.grid(len(self.embeddings))
            pos = pictures.grid_positions(client.next_pos[0], rows, columns) if client.is_mrope else None
            client.image(self.embeddings, pos)
            return
        encoded = self.encoded[EncoderSettings.of(self.contenders[name]["encoder"])]
        for part in encoded.parts:
            if isinstance(part, list):
                client.text(part, logits_last=False)
                continue
            after = ctypes.c_int32(0)
            values = part[1].ctypes.data_as(ctypes.POINTER(ctypes.c_float))
            rc = mtmd_helper_h.mtmd_helper_decode_image_chunk(
                encoded.encoder, client.ctx, part[0], values, client.next_pos[0], 0, client.n_batch,
                ctypes.byref(after), mtmd_helper_h.mtmd_helper_post_decode_callback(0), None,
            )  # fmt: skip
            if rc != 0:
                raise RuntimeError(f"llama_decode of the picture returned {rc}")
            client.next_pos[0] = after.value

    def _question(self, client: Client) -> None:
        client.text(range(60, 60 + self.n_question))
        client.logits()

    def _answer(self, client: Client, n_decode: int) -> None:
        for token in range(80, 80 + n_decode):
            client.decode(token)

    def _stats(self, client: Client) -> dict[str, Any] | None:
        """None when this library or context does not prune."""
        if self.prunes:
            try:
                return halfv_cpp.stats(client.ctx)
            except halfv_cpp.CallError as error:
                if error.code != halfv_cpp.HALFV_ERR_UNSUPPORTED:
                    raise
        return None


def main() -> None:
    libraries = LibrariesUnderTest(json.loads(sys.argv[1]))
    calls: dict[str, Callable[..., dict[str, Any]]] = {
        "about": libraries.about,
        "add": libraries.add,
        "conversation": libraries.conversation,
        "count": libraries.count,
        "encode": libraries.encode,
        "flops": libraries.flops,
        "peak": libraries.peak,
        "prompt": libraries.prompt,
    }
    for line in sys.stdin:
        call, arguments = json.loads(line)
        try:
            answer = calls[call](**arguments)
        except Exception as error:
            answer = {"error": str(error)}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
