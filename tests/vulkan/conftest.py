"""Tests that need a Vulkan build, as `make test-vulkan` makes; elsewhere nothing in this folder is collected."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from halfv_cpp import library, llama_h

from halfv_edge.cli import info

IS_VULKAN_BUILD = any(library.lib_dir().glob("*ggml-vulkan*"))
collect_ignore_glob = [] if IS_VULKAN_BUILD else ["test_*.py"]

NO_DEVICES = (ctypes.c_void_p * 1)(None)


@pytest.fixture(scope="session")
def vulkan_lib_dir() -> Path:
    """The libraries of this process, once it is sure that they see a Vulkan device."""
    found = info.collect()
    assert "Vulkan" in found["backends"], found
    assert any(device["name"] == "Vulkan0" for device in found["devices"]), found
    return library.lib_dir()


@pytest.fixture
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> Callable[[], AbstractContextManager[None]]:
    """`with on_cpu():` models loaded inside see no GPU; n_gpu_layers=0 alone still sends large batches there."""
    make_params = llama_h.llama_model_default_params

    def without_devices() -> llama_h.llama_model_params:
        params = make_params()
        params.devices = ctypes.addressof(NO_DEVICES)
        return params

    @contextlib.contextmanager
    def patched() -> Iterator[None]:
        with monkeypatch.context() as patch:
            patch.setattr(llama_h, "llama_model_default_params", without_devices)
            yield

    return patched
