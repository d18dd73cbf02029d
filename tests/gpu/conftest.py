"""Tests that need a build for a GPU, as `make test-vulkan` makes; elsewhere nothing in this folder is collected."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from halfv_cpp import library, llama_h

from halfv_edge.cli import info
from tests.support import pretend_device
from tests.support.defaults import changed

IS_GPU_BUILD = any(any(library.lib_dir().glob(f"*ggml-{name}*")) for name in ("cuda", "hip", "metal", "vulkan"))
collect_ignore_glob = [] if IS_GPU_BUILD or pretend_device.asked_for() else ["test_*.py"]

NO_DEVICES = (ctypes.c_void_p * 1)(None)


@pytest.fixture(scope="session")
def gpu_device() -> str:
    """The name of the device that models are loaded to, as in llama.cpp's log: Vulkan0, CUDA0."""
    devices = info.collect()["devices"]
    found = next((device for device in devices if device["type"] in ("gpu", "igpu")), None)
    assert found, f"this build is for a GPU and sees none, only {devices}"
    return str(found["name"])


@pytest.fixture
def gpu(gpu_device: str, request: pytest.FixtureRequest) -> str:
    """The same, for tests of an architecture: without those that a device cannot run unpruned."""
    arch = getattr(request.node, "callspec", None) and request.node.callspec.params.get("arch")
    if arch == "qwen3vl" and "llvmpipe" in str(info.collect()["devices"]):
        pytest.skip("on Mesa 22.3's lavapipe the unpatched pin, too, corrupts the heap in qwen3vl")
    return gpu_device


@pytest.fixture(scope="session")
def stock_lib_dir() -> Path:
    """An unpatched libllama and libmtmd beside the same ggml."""
    if not (given := os.environ.get("HALFV_STOCK_DIR")):
        pytest.skip("HALFV_STOCK_DIR names no folder of unpatched libraries for this GPU")
    return Path(given).resolve()


@pytest.fixture
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> Callable[[], AbstractContextManager[None]]:
    """`with on_cpu():` models loaded inside see no GPU; n_gpu_layers=0 alone still sends large batches there."""
    without_devices = changed(llama_h.llama_model_default_params, devices=ctypes.addressof(NO_DEVICES))

    @contextlib.contextmanager
    def patched() -> Iterator[None]:
        with monkeypatch.context() as patch:
            patch.setattr(llama_h, "llama_model_default_params", without_devices)
            yield

    return patched
