"""Pictures by their URLs, from a server of this process."""

from __future__ import annotations

import contextlib
import http.server
import io
import threading
from collections.abc import Iterator

import pytest
from PIL import Image

from halfv_edge.cli import flags
from halfv_edge.errors import HalfVError
from halfv_edge.hub.fetch import MAX_URL_BYTES, fetch


def png() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (4, 3), "red").save(file, "png")
    return file.getvalue()


PNG = png()


class Server(http.server.BaseHTTPRequestHandler):
    picture = PNG

    def do_GET(self) -> None:
        if self.path == "/photo.png":
            self.reply(200, self.picture)
        elif self.path == "/moved":
            self.send_response(302)
            self.send_header("Location", "file:///etc/hostname")
            self.end_headers()
        elif self.path == "/large":
            self.reply(200, bytes(MAX_URL_BYTES + 2))
        elif self.path == "/page":
            self.reply(200, b"<html>a page</html>")
        elif self.path == "/garbage":
            self.wfile.write(b"what is this?\r\n\r\n")
        else:
            self.reply(404, b"")

    def reply(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.end_headers()
        with contextlib.suppress(OSError):  # the client hangs up when it has read enough
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_pictures_are_fetched(site: str) -> None:
    assert fetch(f"{site}/photo.png") == PNG
    picture = flags.read_image(f"{site}/photo.png")
    assert picture.image.size == (4, 3) and picture.name == f"{site}/photo.png"


def test_what_cannot_be_fetched_is_one_sentence(site: str) -> None:
    for url, expected in {
        f"{site}/missing": "404 Not Found",
        f"{site}/moved": "cannot be fetched",
        f"{site}/large": "is larger than 64 MB",
        f"{site}/page": f"{site}/page is not an image that can be read",
        f"{site}/garbage": "cannot be fetched",
        "http://127.0.0.1:1/a.png": "http://127.0.0.1:1/a.png cannot be fetched",
        "http://": "cannot be fetched",
    }.items():
        with pytest.raises(HalfVError, match=expected) as error:
            flags.read_image(url)
        assert "\n" not in str(error.value)
