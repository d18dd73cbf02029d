"""Pictures from wherever they come, as RGB: upright, first frame, eight bits, on white where they are transparent.

Videos too, where they are asked for.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
import os
import stat
import urllib.parse
import urllib.request
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile

from halfv_edge.engine import video
from halfv_edge.errors import HalfVError

MAX_FILE_BYTES = 256 << 20
MAX_PATH = 4096  # characters
MAX_QUOTED = 200
MAX_PIXELS = 100_000_000  # 300 MB as RGB; a file that would decode to more is refused by its header
DRAFT_PIXELS = 40_000_000  # larger JPEGs are decoded at half, quarter or eighth size

# Only what decodes in-process without surprises: Pillow would start Ghostscript for EPS, for example.
FORMATS = ("PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "PPM", "ICO", "TGA", "AVIF", "JPEG2000")
JPEG_START = b"\xff\xd8\xff"
FORMATS_TEXT = "PNG, JPEG, WebP, GIF, BMP, TIFF or AVIF"


@dataclass(frozen=True, slots=True)
class Picture:
    """A decoded picture, or a video, and what to call it in messages."""

    name: str
    image: Image.Image  # RGB
    source: str | bytes | None = None  # its path or data URL, or the file's bytes; None: the pixels are all there is
    frames: tuple[Image.Image, ...] = ()  # of a video; the first is `image`

    def digest(self) -> str:
        """The same for the same pixels."""
        video = f" {len(self.frames)} frames" if self.frames else ""
        data = hashlib.blake2b(f"{self.image.size}{video}".encode(), digest_size=32)
        for image in self.frames or (self.image,):
            data.update(image.tobytes())
        return data.hexdigest()

    def url(self) -> str:
        """What `load` makes the same picture from: the path that was given, or a data URL."""
        if isinstance(self.source, str):
            return self.source
        raw, kind = self.source, "image/png"
        if raw is None:
            file = io.BytesIO()
            self.image.save(file, "png")
            raw = file.getvalue()
        elif self.frames:
            kind = "video/mp4"  # or another; ffmpeg looks at the bytes
        else:
            with _opened(raw) as image:
                kind = Image.MIME.get(image.format or "", kind)
        return f"data:{kind};base64,{base64.b64encode(raw).decode()}"


Source: TypeAlias = str | os.PathLike[str] | bytes | bytearray | memoryview | Image.Image | NDArray[Any] | Picture


def load(source: Source, name: str = "", videos: bool = False) -> Picture:
    """Decode a picture; whatever is wrong with it is one sentence.

    `name`: what to call bytes there. `videos`: whether it may be one.
    """
    if isinstance(source, Picture):
        return source
    if isinstance(source, Image.Image):
        return _from_pil(source, f"The {source.width} x {source.height} image")
    if isinstance(source, np.ndarray):
        return Picture(f"The array of shape {source.shape}", _from_array(source))
    if isinstance(source, (bytes, bytearray, memoryview)):
        raw = bytes(source)
        return _decode(raw, name or f"The image of {len(raw)} bytes", raw, videos)
    if isinstance(source, str) and source[:5].lower() == "data:":
        return _from_data_url(source, videos)
    if isinstance(source, str) and source[:8].lower().startswith(("http://", "https://")):
        raise HalfVError(f"{_short(source)} is not fetched: download it, and give the file or its bytes.")
    if isinstance(source, str) and source[:5].lower() == "file:":
        return _from_file(_local(source), _short(source), videos)
    if isinstance(source, (str, os.PathLike)):
        return _from_file(Path(source), str(source), videos)
    raise HalfVError(
        f"A {type(source).__name__} is not an image: give a path, bytes, a PIL image, a numpy array, a file: URL or a "
        "data: URL."
    )


def load_all(sources: Source | Iterable[Source]) -> list[Picture]:
    """Several pictures and videos; a single one may come without a list around it."""
    if isinstance(sources, (str, bytes, bytearray, memoryview, os.PathLike, Image.Image, np.ndarray, Picture)):
        return [load(sources, videos=True)]
    if not isinstance(sources, Iterable):
        return [load(sources)]  # which says what is wrong
    return [load(source, videos=True) for source in sources]


def _from_file(path: Path, name: str, videos: bool) -> Picture:
    if len(name) > MAX_PATH:
        raise HalfVError(f"{_short(name)} is too long for a path: base64 goes into a data: URL.")
    return _decode(_read(path), name, os.path.abspath(path), videos)


def _short(text: str) -> str:
    """Enough of a text to know it by."""
    return text if len(text) <= MAX_QUOTED else f"{text[:MAX_QUOTED]}..."


def _read(path: Path) -> bytes:
    try:
        info = path.stat()
        if stat.S_ISDIR(info.st_mode):
            raise HalfVError(f"{path} is a folder: name the image in it.")
        if not stat.S_ISREG(info.st_mode):  # opening a pipe would wait for ever
            raise HalfVError(f"{path} is not a regular file.")
        if info.st_size > MAX_FILE_BYTES:
            raise HalfVError(
                f"{path} has {info.st_size >> 20} MB, more than {MAX_FILE_BYTES >> 20} MB: make it smaller."
            )
        return path.read_bytes()
    except FileNotFoundError as error:
        raise HalfVError(f"{path} does not exist: check the name and the folder.") from error
    except (OSError, ValueError) as error:  # ValueError: a null character in the path
        raise HalfVError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}.") from error


def _local(url: str) -> Path:
    """As file managers paste it."""
    try:
        parts = urllib.parse.urlsplit(url)
    except ValueError as error:
        raise HalfVError(f"{url} is not a valid URL: {error}.") from error
    if parts.netloc not in ("", "localhost"):
        raise HalfVError(f"{url} is on another machine, {parts.netloc}: give the path where it is mounted.")
    return Path(urllib.request.url2pathname(parts.path))


def _from_data_url(url: str, videos: bool) -> Picture:
    head, comma, body = url[5:].partition(",")
    if not comma:
        raise HalfVError(f"{url[:40]!r} has no comma: a data URL is data:image/png;base64,... or the like.")
    if head.lower().endswith(";base64"):
        try:
            raw = base64.b64decode(urllib.parse.unquote(body), validate=True)
        except (binascii.Error, ValueError) as error:
            raise HalfVError(f"{url[:40]!r}... is not valid base64: {error}.") from error
    else:
        raw = urllib.parse.unquote_to_bytes(body)
    return _decode(raw, f"The data URL of {len(raw)} bytes", url, videos)


def _opened(raw: bytes) -> Image.Image:
    """Not decoded yet. Opened directly, as Image.open refuses a JPEG of the size that draft() is about to divide."""
    if raw[:3] == JPEG_START:
        return JpegImageFile(io.BytesIO(raw))
    if _is_heic(raw) and (reader := _heic_reader()):
        opened: Image.Image = reader(io.BytesIO(raw))
        return opened
    return Image.open(io.BytesIO(raw), formats=FORMATS)


def _decode(raw: bytes, name: str, source: str | bytes, videos: bool) -> Picture:
    if not raw:
        raise HalfVError(f"{name} is empty: it has 0 bytes.")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's own bomb warning; the limit here is lower or deliberate
        try:
            image = _opened(raw)
        except Image.DecompressionBombError as error:
            raise HalfVError(
                f"{name} is too large to decode safely: scale it down to at most {_LIMIT_TEXT}."
            ) from error
        except (UnidentifiedImageError, OSError, SyntaxError, ValueError, MemoryError) as error:
            if videos and not _is_heic(raw) and video.is_video(raw):
                frames = video.decode(raw, name)
                return Picture(name, frames[0], source, frames)
            raise HalfVError(_unknown(raw, name)) from error
        except Exception as error:  # damaged headers make Pillow's plugins raise almost anything
            raise HalfVError(f"{name} is damaged: {error}; get it again.") from error
        with image:
            if raw[:3] == JPEG_START and image.width * image.height > DRAFT_PIXELS:
                shrink = next(n for n in (2, 4, 8) if n == 8 or image.width * image.height <= DRAFT_PIXELS * n * n)
                image.draft("RGB" if image.mode != "CMYK" else "CMYK", (image.width // shrink, image.height // shrink))
            if image.width * image.height > MAX_PIXELS:
                raise HalfVError(f"{name} is {image.width} x {image.height}: scale it down to at most {_LIMIT_TEXT}.")
            return _from_pil(image, name, source)


_LIMIT_TEXT = f"{MAX_PIXELS // 1_000_000} million pixels"


def _is_heic(raw: bytes) -> bool:
    return raw[4:8] == b"ftyp" and raw[8:12] in (b"heic", b"heix", b"mif1", b"hevc")


def _heic_reader() -> Any:
    """Of phones' pictures: pillow-heif, where it is installed."""
    try:
        from pillow_heif import HeifImageFile
    except ImportError:
        return None
    return HeifImageFile


def _unknown(raw: bytes, name: str) -> str:
    if _is_heic(raw):
        if _heic_reader():
            return f"{name} is cut short or damaged: get it again."
        return f"{name} is HEIC, which cannot be read: convert it to JPEG, or `pip install pillow-heif`."
    if video.is_video(raw):
        return f"{name} is a video: give a picture (videos are for `halfv chat`, `halfv tokens` and Model.chat)."
    if raw[:4] == b"%PDF":
        return f"{name} is a PDF, not an image: convert the page to PNG."
    return f"{name} is not an image that can be read: give {FORMATS_TEXT}."


def _from_pil(image: Image.Image, name: str, source: str | bytes | None = None) -> Picture:
    if image.width * image.height > MAX_PIXELS or min(image.size) < 1:
        raise HalfVError(f"{name} is {image.width} x {image.height}: it must have 1 to {_LIMIT_TEXT}.")
    try:
        image.load()  # the first frame of an animation
        return Picture(name, _to_rgb(_upright(image)), source)
    except MemoryError as error:
        raise HalfVError(f"{name} does not fit in memory: scale it down.") from error
    except HalfVError:
        raise
    except Exception as error:  # truncated and damaged files: OSError, SyntaxError, struct.error, ...
        raise HalfVError(f"{name} is cut short or damaged ({error}): get it again.") from error


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # a broken EXIF block says nothing about the pixels
        return image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        return _from_array(np.asarray(image))
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        if image.mode in ("La", "RGBa"):  # premultiplied
            image = image.convert("LA" if image.mode == "La" else "RGBA")
        layer = image.convert("RGBA")
        white = Image.new("RGBA", layer.size, "white")
        return Image.alpha_composite(white, layer).convert("RGB")
    return image.copy() if image.mode == "RGB" else image.convert("RGB")


def _from_array(array: NDArray[Any]) -> Image.Image:
    """Height x width, with 1, 3 or 4 channels last or none; integers by their range, floats from 0 to 1."""
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)) or 0 in array.shape:
        raise HalfVError(f"An array of shape {array.shape} is not an image: it must be height x width (x 3 or 4).")
    if array.shape[0] * array.shape[1] > MAX_PIXELS:
        raise HalfVError(f"An array of shape {array.shape} is too large: scale it down to at most {_LIMIT_TEXT}.")
    return _to_rgb(Image.fromarray(_to_bytes(array)))


def _to_bytes(array: NDArray[Any]) -> NDArray[np.uint8]:
    if array.dtype == np.uint8:
        return np.ascontiguousarray(array)
    if array.dtype == bool:
        return array.astype(np.uint8) * 255
    if array.dtype.kind == "u" and array.dtype.itemsize == 2:  # of either byte order
        return np.asarray(array >> 8, np.uint8)
    if array.dtype.kind in "iu":  # 16 bits in a wider type, as Pillow has them, or eight
        top = int(array.max())
        wide = np.clip(array, 0, 65535)
        return np.asarray(wide >> 8 if top > 255 else wide, np.uint8)
    if array.dtype.kind == "f":
        values = np.nan_to_num(array.astype(np.float32), nan=0.0, posinf=1.0, neginf=0.0)
        scale = 255.0 if float(values.max()) <= 1.0 else 1.0
        return np.asarray(np.clip(values * scale, 0, 255).round(), np.uint8)
    raise HalfVError(f"An array of {array.dtype} is not an image: use uint8, or floats from 0 to 1 or to 255.")
