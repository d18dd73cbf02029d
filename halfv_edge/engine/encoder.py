"""The vision encoder: pictures in, chunks of embeddings out, the last ones remembered."""

from __future__ import annotations

import collections
import contextlib
import ctypes
import dataclasses
import hashlib
import math
import os
import re
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import halfv_cpp
import numpy as np
from halfv_cpp import devices, halfv_mtmd_h, llama_h, log, mtmd_h
from PIL import Image

from halfv_edge.engine import video
from halfv_edge.engine.images import Picture
from halfv_edge.engine.tokens import Layout, Tile, TokenMap
from halfv_edge.errors import HalfVError, RunError
from halfv_edge.gguf import encoder_keys
from halfv_edge.gguf.read import Metadata, read_metadata
from halfv_edge.profile import model_file
from halfv_edge.profile.profile import WHOLE_INTAKE, Intake

# of the weights: the fastest here that keeps the embeddings, as stored, as llama.cpp loads them, or one type
MMPROJ_TYPES = ("auto", "file", "off", "f32", "f16", "bf16", "q8_0", "q6_k", "q5_1", "q5_0", "q4_1", "q4_0")
OVERVIEW_FIRST = ("resampler", "minicpmv4_6")  # llama.cpp puts the overview behind the tiles for all others
TELL_SEC = 1.0  # how often share_done changes at most


class Chunk:
    """A run of visual tokens: a whole picture, or one tile of it. `embd` is None until it is encoded."""

    def __init__(self, pointer: int):
        self.pointer = pointer  # owned
        self.n_tokens = mtmd_h.mtmd_input_chunk_get_n_tokens(pointer)
        self.n_pos = mtmd_h.mtmd_input_chunk_get_n_pos(pointer)
        image = self._image()
        self._size = mtmd_h.mtmd_image_tokens_get_nx(image), mtmd_h.mtmd_image_tokens_get_ny(image)
        self.n_rows = halfv_mtmd_h.halfv_picture_rows(image)  # visual tokens that the encoder gives
        self.n_grid = max(math.prod(self._size), self.n_rows)  # visual tokens of the picture, were it whole
        self.n_patches = halfv_mtmd_h.halfv_picture_full_tokens(image) or self.n_grid  # and had it kept its size
        self.n_groups = self.n_seen = 0  # of patches, and those that the encoder's later layers saw; 0: they saw all
        self.embd: np.ndarray | None = None

    def grid(self, is_mrope: bool) -> tuple[int, int]:
        """Columns and rows of the whole picture: those of M-RoPE, else a square; (0, 0) when there is no grid."""
        side = math.isqrt(self.n_rows)
        columns, rows = self._size if is_mrope else (side, side)
        return (columns, rows) if columns * rows == self.n_grid else (0, 0)

    def count_like(self, chunk: Chunk) -> None:
        """What the chunk with the pixels says; this one was made from it."""
        self.n_patches = chunk.n_patches
        seen = (ctypes.c_int32 * 1)()
        self.n_groups = halfv_mtmd_h.halfv_picture_groups(chunk._image(), seen)
        self.n_seen = seen[0]

    def places(self) -> list[int]:
        """Where in the grid each token is that the encoder gives, row by row."""
        found = (ctypes.c_int32 * self.n_rows)()
        halfv_mtmd_h.halfv_picture_places(self._image(), found, len(found))
        return list(found)

    def given(self) -> list[int]:
        """Which of those the language model gets; the picture has been encoded."""
        found = (ctypes.c_int32 * self.n_tokens)()
        if halfv_mtmd_h.halfv_picture_kept(self._image(), found, len(found)) < 0:
            raise RuntimeError("the picture is not encoded")
        return list(found)

    def _image(self) -> int:
        return mtmd_h.mtmd_input_chunk_get_tokens_image(self.pointer) or 0

    def __del__(self) -> None:
        if self.pointer:
            mtmd_h.mtmd_input_chunk_free(self.pointer)
            self.pointer = 0


@dataclass(slots=True)
class Encoded:
    """A picture as the language model takes it: tokens around and between chunks."""

    items: list[int | Chunk]
    picture: Picture
    digest: str
    has_pixels: bool = False  # its chunks can be encoded as they are

    @property
    def chunks(self) -> list[Chunk]:
        return [item for item in self.items if isinstance(item, Chunk)]

    @property
    def n_tokens(self) -> int:
        return sum(item.n_tokens if isinstance(item, Chunk) else 1 for item in self.items)

    @property
    def n_bytes(self) -> int:
        return _n_bytes(self.items)


class Frames:
    """What the pictures of a message showed so far; of one thread at a time."""

    def __init__(self) -> None:
        if not (pointer := halfv_mtmd_h.halfv_frames_init()):
            raise MemoryError
        self.pointer = pointer
        self.digest = ""  # of all of them

    def __del__(self) -> None:
        halfv_mtmd_h.halfv_frames_free(self.pointer)


@dataclass(slots=True, kw_only=True)
class Encoder:
    """mtmd for one language model. Its own lock lets one picture at a time in; whoever takes it holds no model's."""

    path: Path
    pointer: int
    cache_bytes: int
    n_embd: int
    layout: Layout
    token_side: int  # pixels of a token, of encoders that take any size; else 0
    intake: Intake  # of the profile that it was loaded under, but for what it cannot
    last_cut: int = 0  # the last value that intake.encoder_layer can have
    batches: bool = False  # several tiles of a picture at once, for encoders that can
    on_tensor: Any = None
    spares_patches: bool = False  # whether it could leave out those that repeat
    n_encoded: int = 0  # pictures that went through the encoder, the remembered ones not counted
    share_done: float = 0.0  # of the picture that is being encoded; 0 where none is, or where it takes no second
    _cache: collections.OrderedDict[str, list[int | Chunk]] = field(default_factory=collections.OrderedDict)
    _lock: threading.RLock = field(default_factory=threading.RLock)

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
        cache_bytes: int,
        intake: Intake = WHOLE_INTAKE,
        weights: str = "auto",
        attention: int | None = None,
        on_tensor: Any = None,
    ) -> Encoder:
        """intake: of the model's profile in force, where libmtmd has it.
        weights: of MMPROJ_TYPES. attention: enum halfv_attention; by default the fastest, llama.cpp's for "off".
        on_tensor: a ggml_backend_sched_eval_callback, in place of the one that progress needs.
        """
        if attention is None:
            attention = halfv_cpp.HALFV_ATTENTION_STOCK if weights == "off" else halfv_cpp.HALFV_ATTENTION_FAST
        halfv_cpp.check(halfv_cpp.halfv_set_encoder(weights.encode(), attention))
        params = mtmd_h.mtmd_context_params_default()
        params.use_gpu = use_gpu
        params.print_timings = False
        params.n_threads = n_threads
        params.flash_attn_type = flash_attn
        params.warmup = False
        if on_tensor is not None:
            params.cb_eval = on_tensor
        metadata = _metadata(path)
        own_limit = encoder_keys.token_limit(metadata) if metadata else None
        if limits := [limit for limit in (image_max_tokens, own_limit) if limit]:
            params.image_max_tokens = min(limits)
        log.clear()
        pointer = mtmd_h.mtmd_init_from_file(str(path).encode(), model, params)
        if not pointer:
            raise _why_not(path, model_path, image_max_tokens)
        if not mtmd_h.mtmd_support_vision(pointer):
            mtmd_h.mtmd_free(pointer)
            raise HalfVError(f"{path} hears but does not see: give an mmproj with a vision encoder.")
        metadata = metadata or read_metadata(path)
        spares_patches = encoder_keys.projector(metadata) in encoder_keys.PATCHWISE
        return cls(
            path=path,
            pointer=pointer,
            cache_bytes=cache_bytes,
            n_embd=llama_h.llama_model_n_embd_inp(model),
            layout=_layout(metadata),
            token_side=encoder_keys.token_side(metadata),
            intake=intake if spares_patches else dataclasses.replace(intake, pixel_tau=None, frames_tau=None),
            last_cut=halfv_mtmd_h.halfv_last_cut(pointer),
            batches=use_gpu and bool(devices.gpus()),  # a tile fills a CPU, and one call cannot be interrupted
            on_tensor=on_tensor,
            spares_patches=spares_patches,
        )

    def close(self) -> None:
        with self._lock:
            self._cache.clear()
            if self.pointer:
                mtmd_h.mtmd_free(self.pointer)
                self.pointer = 0

    @contextlib.contextmanager
    def _held(self) -> Iterator[int]:
        """Its pointer, for one thread."""
        with self._lock:
            if not self.pointer:
                raise HalfVError(f"The vision encoder {self.path.name} is closed: load the model again.")
            yield self.pointer

    @property
    def is_mrope(self) -> bool:
        return mtmd_h.mtmd_decode_use_mrope(self.pointer)

    @property
    def non_causal(self) -> bool:
        return mtmd_h.mtmd_decode_use_non_causal(self.pointer, None)

    def token_map(self, encoded: Encoded, chosen: list[tuple[list[int] | None, list[int] | None]]) -> TokenMap:
        """What was kept and deep in each chunk of a picture, None for all of it."""
        chunks, picture = encoded.chunks, encoded.picture
        columns, rows = chunks[0].grid(self.is_mrope)
        frames, image = picture.frames, picture.image
        if len(chunks) < len(frames):
            frames = tuple(frames[at] for at in video.first_of_pairs(len(frames)))
        boxes = self.layout.boxes(len(chunks) // max(1, len(frames)), image.size, columns, rows)
        if frames:
            sheet = video.Sheet(frames)
            image = sheet.image
            boxes = [(sheet.box(at, box), overview) for at in range(len(frames)) for box, overview in boxes]
        tiles = []
        for chunk, (kept, deep), (box, overview) in zip(chunks, chosen, boxes, strict=True):
            entered = chunk.places()
            given = [entered[row] for row in chunk.given()]
            kept, deep = (given if some is None else [given[token] for token in some] for some in (kept, deep))
            tiles.append(Tile(*chunk.grid(self.is_mrope), chunk.n_grid, entered, given, kept, deep, box, overview))
        return TokenMap(image, tiles, 0 if frames else self.token_side)

    def frames(self, pictures: Iterable[Picture] = ()) -> Frames | None:
        """For the pictures of a message, of which it has these so far; None where they are not compared."""
        if self.intake.frames_tau is None:
            return None
        frames = Frames()
        for picture in pictures:
            self.tokens(picture, frames)
        return frames

    def tokens(self, picture: Picture, frames: Frames | None = None) -> Encoded:
        """What the picture will be, with embeddings only if it is remembered; it joins these frames."""
        digest = picture.digest()
        if self.intake != WHOLE_INTAKE:
            digest = hashlib.blake2b(f"{digest} {self.intake}".encode(), digest_size=32).hexdigest()
        with self._held() as pointer:
            if frames:
                if frames.digest:
                    digest = hashlib.blake2b(f"{frames.digest} {digest}".encode(), digest_size=32).hexdigest()
                frames.digest = digest
                made = Encoded(self._tokenize(pointer, picture, True, frames=frames), picture, digest, has_pixels=True)
                if digest not in self._cache:
                    return made
            if digest in self._cache:
                self._cache.move_to_end(digest)
                return Encoded(self._cache[digest], picture, digest)
            # which patches there will be, and in what size, is written in the pixels
            pixels = self.intake.pixel_tau is not None or self.intake.image_loss > 0
            return Encoded(self._tokenize(pointer, picture, pixels, keep_pixels=False), picture, digest)

    def encode(self, encoded: Encoded) -> float | None:
        """Make sure of the embeddings; the seconds that it took, None when they were there."""
        if all(chunk.embd is not None for chunk in encoded.chunks):
            return None
        with self._held() as pointer:
            if encoded.digest in self._cache:  # twice in one question, or another chat was first
                encoded.items[:] = self._cache[encoded.digest]
                return None
            start = time.perf_counter()
            items = encoded.items if encoded.has_pixels else self._tokenize(pointer, encoded.picture, pixels=True)
            chunks = [item for item in items if isinstance(item, Chunk)]
            light = iter(self._run(pointer, chunks, encoded.picture.name))
            encoded.items[:] = [next(light) if isinstance(item, Chunk) else item for item in items]
            self.n_encoded += 1
            self._remember(encoded)
            return time.perf_counter() - start

    def _remember(self, encoded: Encoded) -> None:
        self._cache[encoded.digest] = encoded.items
        total = {digest: _n_bytes(items) for digest, items in self._cache.items()}
        while sum(total.values()) > self.cache_bytes:
            oldest, _ = self._cache.popitem(last=False)
            del total[oldest]

    def _run(self, pointer: int, chunks: list[Chunk], name: str) -> list[Chunk]:
        """Their embeddings, without the pixels, which are as large again."""
        light: list[Chunk] = []

        def tell(share: float, _data: object) -> None:
            self.share_done = (len(light) + share) / len(chunks)

        callback = halfv_mtmd_h.halfv_encode_callback(tell)
        if self.on_tensor is None:
            halfv_mtmd_h.halfv_watch_encoding(callback, None, TELL_SEC)
        try:
            while len(light) < len(chunks):
                batch = mtmd_h.mtmd_batch_init(pointer)
                try:
                    light += self._run_batch(batch, chunks[len(light) :], name)
                finally:
                    mtmd_h.mtmd_batch_free(batch)
        finally:
            halfv_mtmd_h.halfv_watch_encoding(halfv_mtmd_h.halfv_encode_callback(), None, 0.0)
            self.share_done = 0.0
        return light

    def _run_batch(self, batch: int, chunks: list[Chunk], name: str) -> list[Chunk]:
        """As many of the first ones as go together."""
        log.clear()
        count = 0
        while count < (len(chunks) if self.batches else 1):
            if mtmd_h.mtmd_batch_add_chunk(batch, chunks[count].pointer) != 0:
                break
            count += 1
        if count == 0 or mtmd_h.mtmd_batch_encode(batch) != 0:
            if log.out_of_memory():
                raise HalfVError(
                    f"{name} does not fit in memory as {chunks[0].n_tokens} tokens",
                    hint="set {image_max_tokens} lower",
                    settings={"image_max_tokens": None},
                )
            raise RunError(f"{name} cannot be encoded: {log.last_words()}.")
        return [self._light(batch, chunk) for chunk in chunks[:count]]

    def _light(self, batch: int, chunk: Chunk) -> Chunk:
        out = mtmd_h.mtmd_batch_get_output_embd(batch, chunk.pointer)
        light = Chunk(mtmd_h.mtmd_input_chunk_get_placeholder(chunk.pointer))
        light.count_like(chunk)
        light.embd = np.ctypeslib.as_array(out, shape=(chunk.n_tokens, self.n_embd)).copy()
        return light

    def _tokenize(
        self, pointer: int, picture: Picture, pixels: bool, keep_pixels: bool = True, frames: Frames | None = None
    ) -> list[int | Chunk]:
        width, height = picture.image.size
        marker = mtmd_h.mtmd_get_marker(pointer)
        if picture.frames:
            marker = video.prompt(len(picture.frames), marker.decode()).encode()
        bitmaps = [_bitmap(image, pixels, bool(picture.frames)) for image in picture.frames or (picture.image,)]
        chunks = mtmd_h.mtmd_input_chunks_init()
        try:
            text = mtmd_h.mtmd_input_text(marker, len(marker), False, True)
            log.clear()
            halfv_mtmd_h.halfv_follow_frames(frames.pointer if frames else None)
            given = (ctypes.c_void_p * len(bitmaps))(*bitmaps)
            rc = mtmd_h.mtmd_tokenize(pointer, chunks, ctypes.byref(text), given, len(bitmaps))
            if rc != 0:
                raise HalfVError(f"{picture.name} ({width} x {height}) cannot be used: {log.last_words()}.")
            return list(self._items(chunks, keep_pixels))
        finally:
            halfv_mtmd_h.halfv_follow_frames(None)
            mtmd_h.mtmd_input_chunks_free(chunks)
            for bitmap in bitmaps:
                mtmd_h.mtmd_bitmap_free(bitmap)

    @staticmethod
    def _items(chunks: int, keep_pixels: bool = True) -> Iterator[int | Chunk]:
        copy = mtmd_h.mtmd_input_chunk_copy if keep_pixels else mtmd_h.mtmd_input_chunk_get_placeholder
        for index in range(mtmd_h.mtmd_input_chunks_size(chunks)):
            chunk = mtmd_h.mtmd_input_chunks_get(chunks, index)
            if mtmd_h.mtmd_input_chunk_get_type(chunk) == mtmd_h.MTMD_INPUT_CHUNK_TYPE_TEXT:
                count = ctypes.c_size_t()
                tokens = mtmd_h.mtmd_input_chunk_get_tokens_text(chunk, ctypes.byref(count))
                yield from tokens[: count.value]
            else:
                yield Chunk(copy(chunk))


def _bitmap(image: Image.Image, pixels: bool, of_video: bool) -> int:
    data = ctypes.c_char_p(image.tobytes() if pixels else None)
    bitmap = mtmd_h.mtmd_bitmap_init(*image.size, ctypes.cast(data, ctypes.POINTER(ctypes.c_uint8)))
    mtmd_h.mtmd_bitmap_set_mergeable(bitmap, of_video)
    return bitmap


def _n_bytes(items: list[int | Chunk]) -> int:
    return sum(item.embd.nbytes for item in items if isinstance(item, Chunk) and item.embd is not None)


def _metadata(path: Path) -> Metadata | None:
    try:
        return read_metadata(path)
    except HalfVError:
        return None  # libmtmd's refusal says more


def _layout(metadata: Metadata) -> Layout:
    """How llama.cpp will tile for this encoder."""
    side = metadata.value("clip.vision.image_size") or 1
    pinpoints = metadata.value("clip.vision.image_grid_pinpoints") or []
    grids = zip(pinpoints[::2], pinpoints[1::2], strict=False)
    first = encoder_keys.projector(metadata) in OVERVIEW_FIRST
    return Layout(tuple((width // side, height // side) for width, height in grids), first)


def _why_not(path: Path, model_path: Path, limit: int | None) -> HalfVError:
    """From what llama.cpp said: it gives no codes."""
    said = log.text()
    if widths := re.search(r"mismatch between text model \(n_embd = (\d+)\) and mmproj \(n_embd = (\d+)\)", said):
        return HalfVError(
            f"{path} belongs to another model: it gives {widths[2]} numbers per token, {model_path.name} takes "
            f"{widths[1]}; give the mmproj made for this model."
        )
    pixels = re.search(r"image_max_pixels \((\d+)\) is less than image_min_pixels \((\d+)\)", said)
    if limit is not None and pixels:
        least = -(-int(pixels[2]) * limit // int(pixels[1]))
        return HalfVError(
            "is too few for this encoder", parameter="image_max_tokens", value=limit, hint=f"it needs at least {least}"
        )
    if log.out_of_memory():
        return HalfVError(
            f"There is not enough memory for the vision encoder {path}",
            hint="close other programs, or set {n_gpu_layers}",
            settings={"n_gpu_layers": 0},
        )
    return HalfVError(f"{path} cannot be loaded as a vision encoder: {log.last_words()}.")


def find_mmproj(given: str | os.PathLike[str] | None, model: model_file.ModelFile) -> Path:
    """The encoder's file: as given, else the one in the model's folder that is most likely its own."""
    if given is not None:
        path = Path(given)
        if read_metadata(path).text("general.architecture") != "clip":
            raise HalfVError(f"{path} is not a vision encoder: give the mmproj GGUF that belongs to {model.path.name}.")
        return path
    found = [path for path in sorted(model.path.parent.glob("*.gguf")) if "mmproj" in path.name.lower()]
    if not found:
        raise HalfVError(
            f"There is no vision encoder beside {model.path}",
            hint="put the model's mmproj GGUF into its folder, or name it with {mmproj} "
            "(a model for text alone has none)",
            settings={"mmproj": None},
        )
    width = model.metadata.value(f"{model.architecture}.embedding_length")
    words = _words(model.path)

    def likeness(path: Path) -> tuple[bool, int, bool]:
        # an old llava's projection_dim says something else, so it is no reason to refuse
        fits = read_metadata(path).value("clip.vision.projection_dim") == width
        return fits, len(words & _words(path)), "f16" in path.name.lower()

    return find_mmproj(max(found, key=likeness), model)


def _words(path: Path) -> set[str]:
    return set(re.split(r"[^a-z0-9]+", path.stem.lower()))
