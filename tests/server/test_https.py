"""Pictures over https: only from a site whose certificate is signed by an authority that the server trusts."""

from __future__ import annotations

import http.server
import shutil
import ssl
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from halfv_edge.server import llama_server
from halfv_edge.testing.server import RunningServer
from tests.server.test_limits import Site, asking, data_uri
from tests.support.demo_server import PICTURES, complaint, post, start

ALLOWED = {"HALFV_MEDIA_HOSTS": "127.0.0.1,localhost"}
SMALL = ("-np", "1", "-c", "2048")


@pytest.mark.skipif(llama_server.has_https(), reason="this build has https")
def test_a_build_without(programs: Path) -> None:
    with start(programs, *SMALL, env=ALLOWED) as server:
        assert "https is not part of this build" in complaint(server, asking("https://127.0.0.1/a.png"))


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Signed by itself, for 127.0.0.1 alone; the key is in the same file."""
    if not llama_server.has_https():
        pytest.skip("this build has no https: OpenSSL's headers were not there")
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("there is no openssl to make a certificate with")
    path = tmp_path_factory.mktemp("certificate") / "site.pem"
    words = "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=127.0.0.1 -addext subjectAltName=IP:127.0.0.1"
    subprocess.run([openssl, *words.split(), "-keyout", path, "-out", path], check=True, capture_output=True)
    return path


@pytest.fixture(scope="module")
def site(certificate: Path) -> Iterator[str]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Site) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"https://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_a_certificate_that_nobody_vouches_for(programs: Path, site: str) -> None:
    with start(programs, *SMALL, env=ALLOWED) as server:
        said = complaint(server, asking(f"{site}/receipt"))
        assert said == '"127.0.0.1" cannot be asked: SSL server verification failed'
        assert post(server, asking())[0] == 200


def test_a_certificate_that_is_trusted(programs: Path, site: str, certificate: Path) -> None:
    env = ALLOWED | {"SSL_CERT_FILE": str(certificate)}
    with start(programs, *SMALL, env=env) as server:
        assert post(server, asking(f"{site}/receipt"))[0] == 200
        assert post(server, asking(f"{site}/to//receipt"))[0] == 200
        said = complaint(server, asking(f"{site.replace('127.0.0.1', 'localhost')}/receipt"))
    assert said == '"localhost" cannot be asked: SSL server hostname verification failed'


def test_serving_https(programs: Path, certificate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))  # which Python heeds as well
    monkeypatch.setattr(RunningServer, "url", property(lambda self: f"https://127.0.0.1:{self.port}"))
    keys = ("--ssl-key-file", str(certificate), "--ssl-cert-file", str(certificate))
    with start(programs, *SMALL, *keys) as server:
        assert post(server, asking(data_uri(PICTURES[0].read_bytes())))[0] == 200
