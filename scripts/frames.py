#!/usr/bin/env python3
"""What frames of one scene cost, and what answers lose, with `halfv.frames.tau` and without, on the demo model.

scripts/frames.py speed examples/interface.png
scripts/frames.py answers validation/questions.jsonl
scripts/frames.py video validation/questions.jsonl

speed: eight frames of a picture over which a square moves, in one message, settings in turn; a line of JSON each.
answers: questions about a picture alone, given twice, and given with its right half covered before it is given whole.
video: questions about a video of 2 seconds in which a picture stands still, with a sensor's noise, in H.264 (ffmpeg).
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from halfv_edge import Model
from halfv_edge.hub import demo
from halfv_edge.measure.eval.questions import read_questions

Tau = float | Literal["off"]
N_FRAMES, SIZE, SQUARE, STEP = 8, 440, 60, 40  # pixels
ROUNDS = 3
QUESTIONS = 40
VIDEO_TAUS: tuple[Tau, ...] = ("off", 0, 4, 8, 12, 16)
VIDEO_SEC, VIDEO_FPS, KEY_FRAMES, CRF, SENSOR = 2, 24, 24, 23, 4  # SENSOR: standard deviation, in levels
SETTINGS: tuple[tuple[Tau, Tau], ...] = (("off", "off"), ("off", 0), (0, "off"), (0, 0))
FILES = demo.DEMO_FOLDER / demo.MODEL, demo.DEMO_FOLDER / demo.MMPROJ


@contextlib.contextmanager
def loaded(pixel_tau: Tau, frames_tau: Tau) -> Iterator[Model]:
    """The whole demo model, on one thread."""
    taus = {"pixel_tau": pixel_tau, "frames_tau": frames_tau}
    with Model.load(*FILES, n_threads=1, n_ctx=4096, visual_share=0, profile="off", **taus) as model:
        yield model


def scene(picture: Path) -> list[Image.Image]:
    """The frames."""
    frames = []
    for number in range(N_FRAMES):
        frame = Image.open(picture).convert("RGB").resize((SIZE, SIZE))
        left, top = STEP * number, (SIZE - SQUARE) // 2
        frame.paste((250, 10, 200), (left, top, left + SQUARE, top + SQUARE))
        frames.append(frame)
    return frames


def print_speed(picture: Path) -> None:
    """Each setting once in a round."""
    frames = scene(picture)
    for number in range(ROUNDS):
        for pixel_tau, frames_tau in SETTINGS:
            with loaded(pixel_tau, frames_tau) as model, model.chat(mode="exact") as chat:
                chat.answer("How many buttons are there?", frames, max_tokens=8, temperature=0)
                line = {"round": number, "pixel_tau": pixel_tau, "frames_tau": frames_tau}
                line["tokens"] = sum(tokens.n_visual for tokens in chat.token_maps)
                for name in ("encode_sec", "prefill_sec", "ttft_sec"):
                    line[name] = round(getattr(chat.stats, name), 3)
                print(json.dumps(line), flush=True)


def half(picture: Image.Image) -> Image.Image:
    """Its right half is grey."""
    covered = picture.copy()
    covered.paste((128, 128, 128), (picture.width // 2, 0, picture.width, picture.height))
    return covered


def print_answers(file: Path) -> None:
    """How many are right, and how many tokens the last picture has on average."""
    for frames_tau in ("off", 0):
        right: dict[str, float] = defaultdict(float)
        tokens: dict[str, list[int]] = defaultdict(list)
        with loaded("off", frames_tau) as model:
            for question in read_questions([file], limit=QUESTIONS):
                picture = Image.open(question.image).convert("RGB")
                ways = {"alone": [picture], "twice": [picture] * 2, "half, then whole": [half(picture), picture]}
                for way, pictures in ways.items():
                    with model.chat(mode="exact") as chat:
                        answer = chat.answer(question.question, pictures, max_tokens=72, temperature=0)
                        right[way] += question.score(answer)
                        tokens[way].append(chat.token_maps[-1].n_visual)
        for way, count in right.items():
            line = {"frames_tau": frames_tau, "message": way, "right": count, "of": len(tokens[way])}
            print(json.dumps(line | {"tokens": sum(tokens[way]) / len(tokens[way])}), flush=True)


def still_video(picture: Image.Image, path: Path) -> None:
    """A video of it."""
    levels, noise = np.asarray(picture, np.float32), np.random.default_rng(0)
    width, height = picture.size
    command = ["ffmpeg", "-y", "-loglevel", "error", "-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}"]
    command += ["-r", str(VIDEO_FPS), "-i", "pipe:0", "-vf", "crop=trunc(iw/2)*2:trunc(ih/2)*2", "-c:v", "libx264"]
    command += ["-crf", str(CRF), "-g", str(KEY_FRAMES), "-pix_fmt", "yuv420p", str(path)]
    frames = (levels + noise.normal(0, SENSOR, levels.shape) for _ in range(VIDEO_SEC * VIDEO_FPS))
    raw = b"".join(np.clip(frame, 0, 255).astype(np.uint8).tobytes() for frame in frames)
    subprocess.run(command, input=raw, check=True)


def print_video_answers(file: Path) -> None:
    """How many are right, and how many tokens a video has on average."""
    with tempfile.TemporaryDirectory() as folder:
        questions = read_questions([file], limit=QUESTIONS)
        for at, question in enumerate(questions):
            still_video(Image.open(question.image).convert("RGB"), Path(folder) / f"{at}.mp4")
        for frames_tau in VIDEO_TAUS:
            right, tokens = 0.0, []
            with loaded("off", frames_tau) as model:
                for at, question in enumerate(questions):
                    with model.chat(mode="exact") as chat:
                        answer = chat.answer(
                            question.question, Path(folder) / f"{at}.mp4", max_tokens=72, temperature=0
                        )
                        right += question.score(answer)
                        tokens.append(chat.token_maps[-1].n_visual)
            line = {"frames_tau": frames_tau, "right": right, "of": len(tokens), "tokens": sum(tokens) / len(tokens)}
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1] not in ("speed", "answers", "video"):
        sys.exit(__doc__)
    {"speed": print_speed, "answers": print_answers, "video": print_video_answers}[sys.argv[1]](Path(sys.argv[2]))
