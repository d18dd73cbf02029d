"""Videos in a chat: frames as llama.cpp has them, and frames of one scene behind them."""

from __future__ import annotations

import base64
import dataclasses
import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from halfv_cpp import library
from PIL import Image

from halfv_edge.draw.token_map import draw_token_map
from halfv_edge.engine import images, video
from halfv_edge.engine.model import Model
from halfv_edge.errors import HalfVError
from halfv_edge.profile.profile import Profile
from halfv_edge.server import llama_server
from tests.support.demo_server import start
from tests.support.holes import noise
from tests.support.vlm import NEXT, QUESTION, Vlms, last_prompt, retell

SIDE, COLUMNS, ROWS = 28, 8, 6
WHOLE = Profile(1, 1.0, 0.1, 6, 1.0, "dropped")  # prunes nothing
MP4 = b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom" + bytes(40)

needs_ffmpeg = pytest.mark.skipif(not shutil.which("ffmpeg"), reason="ffmpeg, which reads videos, is not installed")


def scene(count: int) -> list[Image.Image]:
    """A block moves on by a token from frame to frame."""
    frames = []
    for number in range(count):
        frame = noise(COLUMNS * SIDE, ROWS * SIDE, SIDE)
        frame[SIDE : 2 * SIDE, number % COLUMNS * SIDE : (number % COLUMNS + 1) * SIDE] = 200
        frames.append(Image.fromarray(frame))
    return frames


def write(path: Path, frames: list[Image.Image], *codec: str) -> Path:
    """At llama.cpp's pace; without loss unless the codec says otherwise."""
    width, height = frames[0].size
    command = ["ffmpeg", "-y", "-loglevel", "error", "-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}"]
    command += ["-r", str(video.PER_SEC), "-i", "pipe:0", *(codec or ("-c:v", "ffv1")), str(path)]
    subprocess.run(command, input=b"".join(frame.tobytes() for frame in frames), check=True)
    return path


def counts(model: Model, *pictures: images.Source) -> list[int]:
    """Tokens of each, in one message."""
    with model.chat(mode="exact") as chat:
        chat.answer(QUESTION, pictures, max_tokens=2)
        return [token_map.n_visual for token_map in chat.token_maps]


@needs_ffmpeg
def test_frames_are_those_of_the_file(tmp_path: Path) -> None:
    frames = scene(5)
    path = write(tmp_path / "clip.mkv", frames)
    found = images.load(path, videos=True)
    assert max(np.abs(np.asarray(a, int) - b).max() for a, b in zip(found.frames, frames, strict=True)) <= 2
    assert found.image is found.frames[0] and found.name == str(path)
    for source in (path.read_bytes(), found.url(), images.load(path.read_bytes(), videos=True).url()):
        assert images.load(source, videos=True).digest() == found.digest() != images.load(found.image).digest()


@needs_ffmpeg
def test_a_conversation_about_a_video(vlms: Vlms, tmp_path: Path) -> None:
    """Of six frames the first is a picture by itself, as a time follows it, then two are one, and the last is alone."""
    path = write(tmp_path / "clip.mkv", scene(6))
    model = vlms.load("qwen2vl", profile=WHOLE, frames_tau=4)
    with model.chat(mode="prepare") as chat:
        chat.add_image(str(path))
        for question in (QUESTION, NEXT):
            answer = chat.answer(question, max_tokens=10, temperature=0)
            assert answer == retell(model, last_prompt(chat), 10)
        (found,) = chat.token_maps
        again = model.chat(messages=json.loads(json.dumps(chat.messages)))
        assert [picture.digest() for picture in again.pictures] == [picture.digest() for picture in chat.pictures]
    whole = COLUMNS * ROWS
    assert [tile.n_patches for tile in found.tiles] == [whole] * 4
    # where the block was in either frame of the pair before, and where it is in either of this one
    assert [tile.n_tokens for tile in found.tiles] == [whole, 1 + 2, 2 + 2, 2 + 1]
    assert found.n_visual == sum(counts(model, path))
    assert draw_token_map(found).size > (0, 0)
    boxes = [tile.box for tile in found.tiles]
    assert len(set(boxes)) == 4 and all(0 <= place <= 1 for box in boxes for place in box)
    with pytest.raises(HalfVError, match="video"):
        found.original(1, 1)


@needs_ffmpeg
@pytest.mark.parametrize("kind", ["qwen2vl", "llava"])
def test_frames_without_frames_tau(vlms: Vlms, tmp_path: Path, kind: str) -> None:
    path = write(tmp_path / "clip.mkv", scene(4))
    model = vlms.load(kind, profile=WHOLE, n_ctx=4096)
    n_pictures = 3 if kind == "qwen2vl" else 4
    with model.chat(mode="exact") as chat:
        chat.answer(QUESTION, [path], max_tokens=2)
        (found,) = chat.token_maps
    assert len(found.tiles) == n_pictures and len({tile.n_tokens for tile in found.tiles}) == 1


@needs_ffmpeg
def test_compressed_footage(vlms: Vlms, tmp_path: Path) -> None:
    """What does not move is a few levels apart in H.264 where there is a sensor's noise: a bound of 0 keeps it."""
    rng = np.random.default_rng(1)
    smooth = Image.fromarray(noise(COLUMNS, ROWS, 1)).resize((COLUMNS * SIDE, ROWS * SIDE), Image.Resampling.BICUBIC)
    footage = [
        Image.fromarray(
            np.clip(np.asarray(smooth) + rng.normal(0, 4, (ROWS * SIDE, COLUMNS * SIDE, 3)), 0, 255).astype("u1")
        )
        for _ in range(7)
    ]
    path = write(tmp_path / "clip.mp4", footage, "-c:v", "libx264", "-crf", "23", "-pix_fmt", "yuv420p")
    tokens = {tau: counts(vlms.load("qwen2vl", profile=WHOLE, frames_tau=tau), path)[0] for tau in (0, 16)}
    assert tokens[0] > 2 * tokens[16]


@needs_ffmpeg
@pytest.mark.skipif(not (library.lib_dir() / llama_server.NAME).is_file(), reason="llama-server was not built")
def test_as_many_tokens_as_the_server_has(tmp_path: Path) -> None:
    """The demo model's, whose chat template is the same in both."""
    frames = [frame.resize((160, 120)) for frame in scene(7)]
    path = write(tmp_path / "clip.mkv", frames)
    profile = dataclasses.replace(WHOLE, frames_tau=2)
    with Model.load(profile=profile, n_ctx=2048, n_threads=1) as model, model.chat(mode="exact") as chat:
        chat.answer("Is there a red square?", [path], max_tokens=2, temperature=0)
        n_visual, n_prompt = chat.stats.n_visual, chat.stats.n_prompt
    content = [{"type": "input_video", "input_video": {"data": base64.b64encode(path.read_bytes()).decode()}}]
    with start(
        library.lib_dir(), "-np", "1", "-c", "2048", env={"HALFV_PROFILE": json.dumps(profile.to_json())}
    ) as server:
        messages = [{"role": "user", "content": [*content, {"type": "text", "text": "Is there a red square?"}]}]
        reply = server.ask(messages, max_tokens=2)
    assert reply.pictures is not None
    assert reply.pictures["visual_seen"] == n_visual
    assert reply.n_prompt == n_prompt


def test_words_between_frames() -> None:
    """A time every five seconds, behind the frame."""
    assert video.prompt(3, "<>") == "Video:<>[0m0.00s]<><>"
    long = video.prompt(262, "<>")
    assert long.count("<>") == 262
    assert long.split("<>" * 20)[1:3] == ["[0m5.00s]", "[0m10.00s]"] and long.endswith("[1m5.00s]<>")
    assert video.first_of_pairs(24) == [0, *range(1, 21, 2), 21, 23]
    assert video.first_of_pairs(1) == [0]


def test_what_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "clip.mp4"
    path.write_bytes(MP4)
    with pytest.raises(HalfVError, match=r"clip\.mp4 is a video: give a picture \(videos are for `halfv chat`"):
        images.load(path)
    if shutil.which("ffmpeg"):
        with pytest.raises(HalfVError, match=r"clip\.mp4 is a video that ffmpeg cannot read \(.+\): get it again\.$"):
            images.load(path, videos=True)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(HalfVError, match=r"clip\.mp4 is a video, and ffmpeg, .* not on the path: install ffmpeg\.$"):
        images.load(path, videos=True)


@needs_ffmpeg
def test_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "clip.mkv", scene(9))
    monkeypatch.setattr(video, "MAX_FRAMES", 8)
    with pytest.raises(HalfVError, match=r"clip\.mkv is longer than 2 seconds: cut it"):
        images.load(path, videos=True)
    monkeypatch.setattr(video, "MAX_PIXELS", 100_000)
    with pytest.raises(HalfVError, match=r"clip\.mkv has more than 0 million pixels .* of 224 x 168, 4 a second"):
        images.load(path, videos=True)
