"""What a request may make the server load: addresses, sizes, pixels, and how many pictures."""

from __future__ import annotations

import base64
import http.server
import struct
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from halfv_edge.testing.server import Server
from tests.support.demo_server import PICTURES, complaint, post, start


def asking(*urls: str) -> dict[str, Any]:
    parts: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    content = [*parts, {"type": "text", "text": "What is this?"}]
    return {"messages": [{"role": "user", "content": content}], "max_tokens": 1, "temperature": 0}


def data_uri(raw: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(raw).decode()


def blank_png(width: int, height: int) -> bytes:
    """One bit a pixel, so that a large one is quickly made."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    rows = zlib.compress((b"\0" + bytes(-(-width // 8))) * height, 1)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


class Site(http.server.BaseHTTPRequestHandler):
    """Serves the receipt, and what a hostile site would."""

    def do_GET(self) -> None:
        body = PICTURES[0].read_bytes()
        if self.path == "/slow":
            time.sleep(5)
        if self.path.startswith("/to/"):
            self.send_response(302)
            self.send_header("Location", self.path[4:])
            self.end_headers()
            return
        if self.path == "/large":
            body = b"\0" * (3 << 20)
        if self.path == "/text":
            body = b"no picture"
        self.send_response(404 if self.path == "/none" else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Site) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.fixture(scope="module")
def closed(programs: Path) -> Iterator[Server]:
    """As it is when nobody says otherwise."""
    with start(programs, "-np", "1", "-c", "2048") as server:
        yield server


@pytest.fixture(scope="module")
def opened(programs: Path) -> Iterator[Server]:
    env = {"HALFV_MEDIA_HOSTS": "127.0.0.1, example.invalid,localhost", "HALFV_MEDIA_MB": "2", "HALFV_MEDIA_SEC": "2"}
    with start(
        programs, "-np", "1", "-c", "2048", "--media-path", "/", env=env | {"HALFV_MAX_PICTURES": "2"}
    ) as server:
        yield server


def test_nothing_is_fetched_unless_it_is_allowed(closed: Server, site: str) -> None:
    said = complaint(closed, asking(f"{site}/receipt"))
    assert said.startswith('pictures are not fetched from "127.0.0.1": this server fetches none')
    assert "file: is never read by a server" in complaint(closed, asking(f"file://{PICTURES[0]}"))


def test_a_listed_host(opened: Server, site: str) -> None:
    fetched, sent = (
        post(opened, asking(url))[1]["choices"] for url in (f"{site}/receipt", data_uri(PICTURES[0].read_bytes()))
    )
    assert fetched[0]["message"] == sent[0]["message"]
    assert post(opened, asking(f"{site}/to//receipt"))[0] == 200  # a redirection within the list


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://example.com/a.png", 'from "example.com": the list of hosts does not have it'),
        ("HTTP://EXAMPLE.COM/a.png", "is not a URL that can be fetched"),
        ("http://127.0.0.1@example.com/a.png", 'from "example.com"'),
        ("http://127.0.0.2:1/a.png", 'from "127.0.0.2"'),
        ("http://[::1]:1/a.png", 'from "::1"'),
        ("http://2130706433/a.png", 'from "2130706433"'),  # 127.0.0.1
        ("http://example.invalid/a.png", '"example.invalid" has no address'),
        ("file:///etc/passwd", "file: is never read by a server"),
        ("FILE:///etc/passwd", "file: is never read by a server"),
        ("http://[::1/a.png", "is not a URL that can be fetched"),
        ("http://127.0.0.1:99999999999/", "is not a URL that can be fetched"),
        ("http://127.0.0.1:1/", '"127.0.0.1" cannot be asked'),
        ("SITE/none", '"127.0.0.1" answers 404'),
        ("SITE/large", "is larger than 2 MB"),
        ("SITE/slow", "cannot be asked"),
        ("SITE/to/http://example.com/", 'from "example.com"'),
        ("SITE/to/file:///etc/passwd", "file: is never read by a server"),
        ("SITE/to//to//to//to//to//receipt", "is redirected too often"),
        ("SITE/text", "Failed to load image"),
    ],
)
def test_what_is_refused(opened: Server, site: str, url: str, said: str) -> None:
    assert said in complaint(opened, asking(url.replace("SITE", site)))


def test_a_listed_name_with_a_private_address(programs: Path, site: str) -> None:
    """Whoever controls a name could point it at the network that the server is in."""
    for hosts in ("localhost", "*"):
        with start(programs, "-np", "1", "-c", "2048", env={"HALFV_MEDIA_HOSTS": hosts}) as server:
            said = complaint(server, asking(site.replace("127.0.0.1", "localhost")))
        assert said == 'pictures are not fetched from "localhost": its address is not a public one'


def test_too_many_pictures(opened: Server) -> None:
    picture = data_uri(PICTURES[0].read_bytes())
    assert "the request has 3 pictures, and this server takes 2 at most" in complaint(opened, asking(*[picture] * 3))
    assert post(opened, asking(picture, picture))[0] == 200


def test_too_many_pixels(closed: Server) -> None:
    said = complaint(closed, asking(data_uri(blank_png(20000, 10000))))
    assert said.startswith("a picture has 20000 x 10000 pixels, and this server takes 100 million at most")
    assert post(closed, asking(data_uri(blank_png(200, 100))))[0] == 200


def test_a_setting_that_is_no_number(programs: Path) -> None:
    for name in ("HALFV_ENCODER_CACHE_MB", "HALFV_MAX_PICTURES", "HALFV_MEDIA_SEC"):
        for wrong in ("lots", "-1", "99999999999999"):
            said = f'ended with 1: (.|\n)*{name} = "{wrong}" is not valid: it must be a whole number'
            with pytest.raises(RuntimeError, match=said):
                start(programs, "-np", "1", "-c", "2048", env={name: wrong})
