"""A prompt with one picture through libmtmd and libllama, as a client of both does it."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import halfv_cpp
import numpy as np
from halfv_cpp import ggml_h, mtmd_h, mtmd_helper_h

from halfv_edge.testing.client import Client

MARKER = "<__media__>"
FLASH_ATTN = False  # of the vision encoder
ATTENTION = halfv_cpp.HALFV_ATTENTION_FAST


@ggml_h.ggml_log_callback
def _drop(_level: int, _text: bytes, _user: ctypes.c_void_p) -> None:
    pass


@dataclass
class PromptRun:
    """Pieces of the prompt in order: token ids of text, or the embeddings [n, n_embd_inp] of visual tokens."""

    pieces: list[list[int] | np.ndarray]
    logits: np.ndarray  # of the last token
    n_pos: int

    @property
    def pictures(self) -> list[np.ndarray]:
        return [piece for piece in self.pieces if isinstance(piece, np.ndarray)]

    def ids(self, image_token: int) -> list[int]:
        """The prompt as transformers takes it: one image token per visual token."""
        texts = (piece if isinstance(piece, list) else [image_token] * len(piece) for piece in self.pieces)
        return [id_ for text in texts for id_ in text]


def run_prompt(model: Path, mmproj: Path, picture: np.ndarray, prompt: str, **options: Any) -> PromptRun:
    """`picture` is [height, width, 3] of bytes; the prompt has MARKER once; options are those of Client."""
    with (
        Client(model, n_ctx=1024, **options) as client,
        open_mmproj(client, mmproj) as encoder,
        chunks_of(encoder, picture, prompt) as chunks,
    ):
        pieces = [_piece(encoder, chunk, client.n_embd_inp) for chunk in each(chunks)]
        n_pos = ctypes.c_int32(0)
        code = mtmd_helper_h.mtmd_helper_eval_chunks(encoder, client.ctx, chunks, 0, 0, 512, True, ctypes.byref(n_pos))
        assert code == 0
        return PromptRun(pieces, client.logits(), n_pos.value)


@contextlib.contextmanager
def open_mmproj(client: Client, mmproj: Path) -> Iterator[int]:
    mtmd_h.mtmd_log_set(_drop, None)
    mtmd_helper_h.mtmd_helper_log_set(_drop, None)
    params = mtmd_h.mtmd_context_params_default()
    params.use_gpu = params.warmup = params.print_timings = False
    params.n_threads = 1
    params.flash_attn_type = int(FLASH_ATTN)
    halfv_cpp.check(halfv_cpp.halfv_set_encoder(b"file", ATTENTION))  # numbers will be compared
    encoder = mtmd_h.mtmd_init_from_file(str(mmproj).encode(), client.model, params)
    assert encoder, f"cannot load {mmproj}"
    try:
        yield encoder
    finally:
        mtmd_h.mtmd_free(encoder)


@contextlib.contextmanager
def chunks_of(encoder: int, picture: np.ndarray, prompt: str) -> Iterator[int]:
    height, width, _ = picture.shape
    pixels = np.ascontiguousarray(picture)
    bitmap = mtmd_h.mtmd_bitmap_init(width, height, pixels.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8)))
    mtmd_h.mtmd_bitmap_set_id(bitmap, b"picture")
    text = mtmd_h.mtmd_input_text()
    text.text = prompt.encode()
    text.text_len = len(prompt.encode())
    text.add_special = text.parse_special = True
    chunks = mtmd_h.mtmd_input_chunks_init()
    try:
        bitmaps = (ctypes.c_void_p * 1)(bitmap)
        assert mtmd_h.mtmd_tokenize(encoder, chunks, ctypes.byref(text), bitmaps, 1) == 0
        yield chunks
    finally:
        mtmd_h.mtmd_input_chunks_free(chunks)
        mtmd_h.mtmd_bitmap_free(bitmap)


def each(chunks: int) -> list[Any]:
    return [mtmd_h.mtmd_input_chunks_get(chunks, i) for i in range(mtmd_h.mtmd_input_chunks_size(chunks))]


def _piece(encoder: int, chunk: Any, n_embd: int) -> list[int] | np.ndarray:
    if mtmd_h.mtmd_input_chunk_get_type(chunk) == mtmd_h.MTMD_INPUT_CHUNK_TYPE_TEXT:
        length = ctypes.c_size_t()
        tokens = mtmd_h.mtmd_input_chunk_get_tokens_text(chunk, ctypes.byref(length))
        return tokens[: length.value]
    assert mtmd_h.mtmd_encode_chunk(encoder, chunk) == 0
    shape = (mtmd_h.mtmd_input_chunk_get_n_tokens(chunk), n_embd)
    return np.ctypeslib.as_array(mtmd_h.mtmd_get_output_embd(encoder), shape).copy()


def saved(chunk: int) -> bytes:
    size = ctypes.c_size_t()
    assert mtmd_h.mtmd_input_chunk_save(chunk, None, 0, ctypes.byref(size)) == 0
    buffer = ctypes.create_string_buffer(size.value)
    assert mtmd_h.mtmd_input_chunk_save(chunk, buffer, size.value, None) == 0
    return buffer.raw
