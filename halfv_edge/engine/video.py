"""Videos as frames, by the ffmpeg on the path: as many a second, and with the words between, as llama.cpp has them."""

from __future__ import annotations

import itertools
import math
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

from PIL import Image

from halfv_edge.errors import HalfVError

PER_SEC = 4
TIME_EVERY_SEC = 5  # a time is written
MAX_FRAMES = 768
MAX_PIXELS = 400_000_000  # of all frames together, 1.2 GB

# how files begin that may be videos: what is there, and from which byte
STARTS = ((b"ftyp", 4), (b"\x1aE\xdf\xa3", 0), (b"AVI ", 8), (b"FLV", 0), (b"\x00\x00\x01\xba", 0))
TS_PACKET = 188  # bytes, each of which begins with a G


def is_video(raw: bytes) -> bool:
    """Whether a file that is no picture looks like one: MP4, MOV, WebM, MKV, AVI, FLV, MPEG."""
    is_ts = raw[:1] == b"G" and raw[TS_PACKET : TS_PACKET + 1] == b"G"
    return is_ts or any(raw[at : at + len(start)] == start for start, at in STARTS)


def decode(raw: bytes, name: str) -> tuple[Image.Image, ...]:
    """Its frames, all of one size, at least one."""
    ffmpeg = shutil.which("ffmpeg")
    if not ffmpeg:
        raise HalfVError(f"{name} is a video, and ffmpeg, which reads those, is not on the path: install ffmpeg.")
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile() as said:
        path = Path(folder) / "video"  # ffmpeg has to seek in it; and no name can be taken for anything else
        path.write_bytes(raw)
        command = [ffmpeg, "-nostdin", "-loglevel", "error", "-protocol_whitelist", "file", "-i", f"file:{path}"]
        command += ["-map", "0:v:0", "-vf", f"fps={PER_SEC}", "-f", "image2pipe", "-c:v", "ppm", "pipe:1"]
        with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=said) as process:
            assert process.stdout
            try:
                frames = _limited(_read(process.stdout), name)
            finally:
                process.kill()
        if not frames:
            said.seek(0)
            lines = said.read().decode(errors="replace").replace(f"file:{path}", "it").strip().splitlines()
            why = lines[-1] if lines else "there is no frame in it"
            raise HalfVError(f"{name} is a video that ffmpeg cannot read ({why}): get it again.")
    return frames


def _read(stream: IO[bytes]) -> Iterator[Image.Image]:
    """Of PPM files one behind the other; the last may be cut short."""
    while stream.readline() == b"P6\n":
        width, height = map(int, stream.readline().split())
        stream.readline()  # the largest value
        data = stream.read(3 * width * height)
        if len(data) == 3 * width * height:
            yield Image.frombytes("RGB", (width, height), data)


def _limited(found: Iterator[Image.Image], name: str) -> tuple[Image.Image, ...]:
    frames: list[Image.Image] = []
    for frame in found:
        if len(frames) == MAX_FRAMES:
            raise HalfVError(
                f"{name} is longer than {MAX_FRAMES // PER_SEC} seconds: cut it, with `ffmpeg -ss START -t SECONDS`."
            )
        if (len(frames) + 1) * frame.width * frame.height > MAX_PIXELS:
            raise HalfVError(
                f"{name} has more than {MAX_PIXELS // 1_000_000} million pixels in all its frames of {frame.width} x "
                f"{frame.height}, {PER_SEC} a second: cut it, or scale it down."
            )
        frames.append(frame if not frames or frame.size == frames[0].size else frame.resize(frames[0].size))
    return tuple(frames)


def prompt(n_frames: int, marker: str) -> str:
    """A marker for each frame, and words that llama.cpp puts around and between them."""
    each = PER_SEC * TIME_EVERY_SEC
    times = (f"[{at // each * TIME_EVERY_SEC // 60}m{at / PER_SEC % 60:.2f}s]" for at in range(0, n_frames, each))
    return "Video:" + "".join(marker + ("" if at % each else next(times)) for at in range(n_frames))


def first_of_pairs(n_frames: int) -> list[int]:
    """Where encoders take two frames as one picture: the first of each two. A time between them keeps them apart."""
    cuts = [0, *range(1, n_frames, PER_SEC * TIME_EVERY_SEC), n_frames]
    return [at for first, end in itertools.pairwise(cuts) for at in range(first, end, 2)]


class Sheet:
    """Frames side by side in one picture."""

    def __init__(self, frames: Sequence[Image.Image], longest: int = 1600):
        width, height = frames[0].size
        self.across = min(len(frames), max(1, round(math.sqrt(len(frames) * height / width))))
        self.down = -(-len(frames) // self.across)
        scale = min(1.0, longest / max(self.across * width, self.down * height))
        wide, high = max(1, round(width * scale)), max(1, round(height * scale))
        self.image = Image.new("RGB", (self.across * wide, self.down * high))
        for at, frame in enumerate(frames):
            row, column = divmod(at, self.across)
            self.image.paste(frame.resize((wide, high)), (column * wide, row * high))

    def box(self, at: int, box: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
        """The place in it of a box in one of the frames, each from 0 to 1."""
        row, column = divmod(at, self.across)
        left, top, right, bottom = box
        return (
            (column + left) / self.across, (row + top) / self.down,
            (column + right) / self.across, (row + bottom) / self.down,
        )  # fmt: skip
