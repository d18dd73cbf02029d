"""ggml-rpc-server of the build on this machine, and what goes over the wire to it, counted."""

from __future__ import annotations

import contextlib
import ctypes
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from halfv_cpp import library


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


class Wire:
    """Listens where a client connects in place of the server, and passes on what both say."""

    def __init__(self, server: int) -> None:
        self.up = self.down = 0  # bytes to the server, and from it
        self._server = server
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._listen, daemon=True).start()

    def reset(self) -> None:
        self.up = self.down = 0

    def _listen(self) -> None:
        while True:
            client, _ = self._listener.accept()
            server = socket.create_connection(("127.0.0.1", self._server))
            for pair, name in (((client, server), "up"), ((server, client), "down")):
                for end in pair:
                    end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                threading.Thread(target=self._pass_on, args=(*pair, name), daemon=True).start()

    def _pass_on(self, source: socket.socket, target: socket.socket, name: str) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 20):
                setattr(self, name, getattr(self, name) + len(data))  # one thread for each direction
                target.sendall(data)
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_WR)


@contextlib.contextmanager
def running(program: Path, n: int, n_threads: int = 1) -> Iterator[list[int]]:
    """n servers, by their ports."""
    ports = [free_port() for _ in range(n)]
    servers = [
        subprocess.Popen(
            [program, "-H", "127.0.0.1", "-p", str(port), "-t", str(n_threads), "-d", "CPU"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for port in ports
    ]
    try:
        for server, port in zip(servers, ports, strict=True):
            _wait_for(server, port)
        yield ports
    finally:
        for server in servers:
            server.kill()
            server.wait()


def _wait_for(server: subprocess.Popen[bytes], port: int, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if server.poll() is not None:
            raise RuntimeError(f"ggml-rpc-server ended with {server.returncode}")
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", port)).close()
            return
        time.sleep(0.05)
    raise RuntimeError(f"ggml-rpc-server does not listen on port {port}")


def register(endpoints: list[str]) -> None:
    """Models of this process find them as GPUs. They stay until the process ends."""
    add = library.open_library("ggml-rpc").ggml_backend_rpc_add_server
    add.restype = ctypes.c_void_p
    for endpoint in endpoints:
        server = add(endpoint.encode())
        assert server, endpoint
        library.open_library("ggml").ggml_backend_register(ctypes.c_void_p(server))
