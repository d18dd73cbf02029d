"""The vision encoder: pictures in, chunks of embeddings out, the last ones remembered."""

from __future__ import annotations

import collections
import ctypes
import hashlib
import math
import os
import re
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from halfv_edge import gguf_meta, libs, native_log, profile
from halfv_edge.errors import HalfvError, RunError
from halfv_edge.images import Picture
from halfv_edge.tokens import Layout, Tile, TokenMap

llama_cpp = libs.load()

from llama_cpp import mtmd_cpp as mtmd  # noqa: E402

# Encoders of pictures of any size, from which libmtmd keeps patches that their neighbours predict.
PATCHWISE = ("qwen2vl_merger", "qwen2.5vl_merger", "qwen2.5o", "qwen3vl_merger")
OVERVIEW_FIRST = ("resampler", "minicpmv4_6")  # llama.cpp puts the overview behind the tiles for all others


class Chunk:
    """A run of visual tokens: a whole picture, or one tile of it. `embd` is None until it is encoded."""

    def __init__(self, pointer: int):
        self.pointer = pointer  # owned
        self.n_tokens = mtmd.mtmd_input_chunk_get_n_tokens(pointer)
        self.n_pos = mtmd.mtmd_input_chunk_get_n_pos(pointer)
        image = mtmd.mtmd_input_chunk_get_tokens_image(pointer)
        self._size = mtmd.mtmd_image_tokens_get_nx(image), mtmd.mtmd_image_tokens_get_ny(image)
        self.n_patches = max(math.prod(self._size), self.n_tokens)  # visual tokens of the picture, were it whole
        self.embd: np.ndarray | None = None

    def grid(self, is_mrope: bool) -> tuple[int, int]:
        """Columns and rows of the whole picture: those of M-RoPE, else a square; (0, 0) when there is no grid."""
        side = math.isqrt(self.n_tokens)
        columns, rows = self._size if is_mrope else (side, side)
        return (columns, rows) if columns * rows == self.n_patches else (0, 0)

    def places(self) -> list[int]:
        """Where in the grid each token is, row by row."""
        if self.n_patches == self.n_tokens:
            return list(range(self.n_tokens))
        found = (mtmd.mtmd_decoder_pos * self.n_tokens)()
        mtmd.mtmd_helper_image_get_decoder_pos(mtmd.mtmd_input_chunk_get_tokens_image(self.pointer), 0, found)
        return [place.y * self._size[0] + place.x for place in found]

    def __del__(self) -> None:
        if self.pointer:
            mtmd.mtmd_input_chunk_free(self.pointer)
            self.pointer = None


@dataclass(slots=True)
class Encoded:
    """A picture as the language model takes it: tokens around and between chunks."""

    items: list[int | Chunk]
    picture: Picture
    digest: str

    @property
    def chunks(self) -> list[Chunk]:
        return [item for item in self.items if isinstance(item, Chunk)]

    @property
    def n_tokens(self) -> int:
        return sum(item.n_tokens if isinstance(item, Chunk) else 1 for item in self.items)

    @property
    def n_bytes(self) -> int:
        return sum(chunk.embd.nbytes for chunk in self.chunks if chunk.embd is not None)


@dataclass(slots=True)
class Encoder:
    """mtmd for one language model."""

    path: Path
    pointer: int
    cache_bytes: int
    n_embd: int
    layout: Layout
    pixel_tau: float | None  # None: pictures are taken whole
    n_encoded: int = 0  # pictures that went through the encoder, the remembered ones not counted
    _cache: collections.OrderedDict[str, list[int | Chunk]] = field(default_factory=collections.OrderedDict)

    @classmethod
    def load(
        cls,
        path: Path,
        model: int,
        model_path: Path,
        *,
        use_gpu: bool,
        n_threads: int,
        flash_attn: int,
        image_max_tokens: int | None,
        pixel_tau: float | None,
        cache_bytes: int,
    ) -> Encoder:
        """pixel_tau: of the model's profile in force, where libmtmd takes it from."""
        params = mtmd.mtmd_context_params_default()
        params.use_gpu = use_gpu
        params.print_timings = False
        params.n_threads = n_threads
        params.flash_attn_type = flash_attn
        params.warmup = False
        if image_max_tokens is not None:
            params.image_max_tokens = image_max_tokens
        native_log.clear()
        pointer = mtmd.mtmd_init_from_file(str(path).encode(), model, params)
        if not pointer:
            raise HalfvError(_why_not(path, model_path))
        if not mtmd.mtmd_support_vision(pointer):
            mtmd.mtmd_free(pointer)
            raise HalfvError(f"{path} hears but does not see: give an mmproj with a vision encoder.")
        metadata = gguf_meta.read(path)
        tau = pixel_tau if _projector(metadata) in PATCHWISE else None
        return cls(path, pointer, cache_bytes, llama_cpp.llama_model_n_embd_inp(model), _layout(metadata), tau)

    def close(self) -> None:
        self._cache.clear()
        if self.pointer:
            mtmd.mtmd_free(self.pointer)
            self.pointer = None

    @property
    def is_mrope(self) -> bool:
        return mtmd.mtmd_decode_use_mrope(self.pointer)

    @property
    def non_causal(self) -> bool:
        return mtmd.mtmd_decode_use_non_causal(self.pointer, None)

    def token_map(self, encoded: Encoded, chosen: list[tuple[list[int] | None, list[int] | None]]) -> TokenMap:
        """What was kept and deep in each chunk of a picture, None for all of it."""
        chunks = encoded.chunks
        columns, rows = chunks[0].grid(self.is_mrope)
        boxes = self.layout.boxes(len(chunks), encoded.picture.image.size, columns, rows)
        tiles = []
        for chunk, (kept, deep), (box, overview) in zip(chunks, chosen, boxes, strict=True):
            places = chunk.places()
            kept, deep = (places if some is None else [places[token] for token in some] for some in (kept, deep))
            tiles.append(Tile(*chunk.grid(self.is_mrope), chunk.n_patches, places, kept, deep, box, overview))
        return TokenMap(encoded.picture.image, tiles)

    def tokens(self, picture: Picture) -> Encoded:
        """What the picture will be, with embeddings only if it is remembered."""
        digest = picture.digest()
        if self.pixel_tau is not None:
            digest = hashlib.blake2b(f"{digest} {self.pixel_tau}".encode(), digest_size=32).hexdigest()
        if digest in self._cache:
            self._cache.move_to_end(digest)
            return Encoded(self._cache[digest], picture, digest)
        # which patches there will be is written in the pixels
        return Encoded(self._tokenize(picture, pixels=self.pixel_tau is not None, keep_pixels=False), picture, digest)

    def encode(self, encoded: Encoded) -> float | None:
        """Make sure of the embeddings; the seconds that it took, None when they were there."""
        if all(chunk.embd is not None for chunk in encoded.chunks):
            return None
        if encoded.digest in self._cache:  # the same picture twice in one question
            encoded.items[:] = self._cache[encoded.digest]
            return None
        start = time.perf_counter()
        items = self._tokenize(encoded.picture, pixels=True)
        for position, item in enumerate(items):
            if isinstance(item, Chunk):
                items[position] = self._run(item, encoded.picture.name)
        encoded.items[:] = items
        self.n_encoded += 1
        self._remember(encoded)
        return time.perf_counter() - start

    def _remember(self, encoded: Encoded) -> None:
        self._cache[encoded.digest] = encoded.items
        total = {
            digest: sum(i.embd.nbytes for i in items if isinstance(i, Chunk)) for digest, items in self._cache.items()
        }
        while sum(total.values()) > self.cache_bytes:
            oldest, _ = self._cache.popitem(last=False)
            del total[oldest]

    def _run(self, chunk: Chunk, name: str) -> Chunk:
        native_log.clear()
        if mtmd.mtmd_encode_chunk(self.pointer, chunk.pointer) != 0:
            if native_log.out_of_memory():
                raise HalfvError(
                    f"{name} does not fit in memory as {chunk.n_tokens} tokens: set image_max_tokens lower."
                )
            raise RunError(f"{name} cannot be encoded: {native_log.last_words()}.")
        out = mtmd.mtmd_get_output_embd(self.pointer)
        # without the pixels, which are as large again
        light = Chunk(mtmd.mtmd_input_chunk_get_placeholder(chunk.pointer))
        light.embd = np.ctypeslib.as_array(out, shape=(chunk.n_tokens, self.n_embd)).copy()
        return light

    def _tokenize(self, picture: Picture, pixels: bool, keep_pixels: bool = True) -> list[int | Chunk]:
        width, height = picture.image.size
        data = picture.image.tobytes() if pixels else None
        buffer = ctypes.cast(data, ctypes.POINTER(ctypes.c_uint8)) if data else None
        bitmap = mtmd.mtmd_bitmap_init(width, height, buffer)
        chunks = mtmd.mtmd_input_chunks_init()
        try:
            marker = mtmd.mtmd_get_marker(self.pointer)
            text = mtmd.mtmd_input_text(marker, len(marker), False, True)
            native_log.clear()
            rc = mtmd.mtmd_tokenize(
                self.pointer, chunks, ctypes.byref(text), (mtmd.mtmd_bitmap_p_ctypes * 1)(bitmap), 1
            )
            if rc != 0:
                raise HalfvError(f"{picture.name} ({width} x {height}) cannot be used: {native_log.last_words()}.")
            return list(self._items(chunks, keep_pixels))
        finally:
            mtmd.mtmd_input_chunks_free(chunks)
            mtmd.mtmd_bitmap_free(bitmap)

    @staticmethod
    def _items(chunks: int, keep_pixels: bool = True):
        copy = mtmd.mtmd_input_chunk_copy if keep_pixels else mtmd.mtmd_input_chunk_get_placeholder
        for index in range(mtmd.mtmd_input_chunks_size(chunks)):
            chunk = mtmd.mtmd_input_chunks_get(chunks, index)
            if mtmd.mtmd_input_chunk_get_type(chunk) == mtmd.MTMD_INPUT_CHUNK_TYPE_TEXT:
                count = ctypes.c_size_t()
                tokens = mtmd.mtmd_input_chunk_get_tokens_text(chunk, ctypes.byref(count))
                yield from tokens[: count.value]
            else:
                yield Chunk(copy(chunk))


def _projector(metadata: gguf_meta.Metadata) -> str:
    return metadata.text("clip.projector_type") or metadata.text("clip.vision.projector_type")


def _layout(metadata: gguf_meta.Metadata) -> Layout:
    """How llama.cpp will tile for this encoder."""
    side = metadata.value("clip.vision.image_size") or 1
    pinpoints = metadata.value("clip.vision.image_grid_pinpoints") or []
    grids = zip(pinpoints[::2], pinpoints[1::2], strict=False)
    first = _projector(metadata) in OVERVIEW_FIRST
    return Layout(tuple((width // side, height // side) for width, height in grids), first)


def _why_not(path: Path, model_path: Path) -> str:
    said = native_log.text()
    if widths := re.search(r"mismatch between text model \(n_embd = (\d+)\) and mmproj \(n_embd = (\d+)\)", said):
        return (
            f"{path} belongs to another model: it gives {widths[2]} numbers per token, {model_path.name} takes "
            f"{widths[1]}; give the mmproj made for this model."
        )
    if native_log.out_of_memory():
        return f"There is not enough memory for the vision encoder {path}: close other programs, or set n_gpu_layers=0."
    return f"{path} cannot be loaded as a vision encoder: {native_log.last_words()}."


def find(given: str | os.PathLike[str] | None, model: profile.Model) -> Path:
    """The encoder's file: as given, else the one in the model's folder that is most likely its own."""
    if given is not None:
        path = Path(given)
        if gguf_meta.read(path).text("general.architecture") != "clip":
            raise HalfvError(f"{path} is not a vision encoder: give the mmproj GGUF that belongs to {model.path.name}.")
        return path
    found = [path for path in sorted(model.path.parent.glob("*.gguf")) if "mmproj" in path.name.lower()]
    if not found:
        raise HalfvError(
            f"There is no vision encoder beside {model.path}: put the model's mmproj GGUF into its folder, or name it "
            "with mmproj (a model for text alone has none)."
        )
    width = model.metadata.value(f"{model.architecture}.embedding_length")
    words = _words(model.path)

    def likeness(path: Path) -> tuple[bool, int, bool]:
        # an old llava's projection_dim says something else, so it is no reason to refuse
        fits = gguf_meta.read(path).value("clip.vision.projection_dim") == width
        return fits, len(words & _words(path)), "f16" in path.name.lower()

    return find(max(found, key=likeness), model)


def _words(path: Path) -> set[str]:
    return set(re.split(r"[^a-z0-9]+", path.stem.lower()))
