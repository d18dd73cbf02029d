"""While a picture is encoded, llama-server's log and the clients that asked for progress hear of it."""

from __future__ import annotations

import io
import json
import re
import urllib.request
from pathlib import Path
from typing import Any

from PIL import Image

from halfv_edge.testing.server import Server, about
from tests.support.demo_server import CHAT, PICTURES, start

SIDE = 1400  # of a picture that takes the demo model's encoder some seconds


def large(folder: Path) -> Path:
    path = folder / "large.png"
    with Image.open(PICTURES[0]) as picture:
        picture.convert("RGB").resize((SIDE, SIDE)).save(path)
    return path


def progress(server: Server, picture: Path) -> list[dict[str, Any]]:
    body = {"messages": about(picture, "What?"), "max_tokens": 1, "stream": True, "return_progress": True}
    request = urllib.request.Request(server.url + CHAT, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=300) as lines:
        events = [json.loads(line[6:]) for line in io.TextIOWrapper(lines) if line.startswith("data: {")]
    return [event["prompt_progress"] for event in events if "prompt_progress" in event]


def test_a_picture_that_takes_long(programs: Path, tmp_path: Path) -> None:
    with start(programs, "-np", "1", "-c", "4096", "--image-max-tokens", "2500") as server:
        found = progress(server, large(tmp_path))
        said = [int(share) for share in re.findall(r"halfv: encoding a picture, (\d+)% after \d", server.log())]
        again = progress(server, large(tmp_path))
    assert said == sorted(said) and len(said) > 1 and said[-1] == 100
    encoding = [at for at in found if 0 < at["encoder"] < 1]
    assert [round(100 * at["encoder"]) for at in encoding] == [share for share in said if share < 100]
    assert {at["processed"] for at in encoding} == {encoding[0]["processed"]}  # before any of its tokens
    assert found[0]["encoder"] == 0 and found[-1]["encoder"] == 1 and found[-1]["processed"] == found[-1]["total"]
    assert {at["encoder"] for at in again} == {0}  # it is in the prompt cache
