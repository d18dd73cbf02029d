"""The one way to import llama_cpp: with our libraries, so that a process has one llama.cpp."""

from __future__ import annotations

import importlib
from types import ModuleType

from halfv_cpp import library

from halfv_edge.engine import libraries
from halfv_edge.errors import HalfVError


def load() -> ModuleType:
    """llama_cpp with our libraries, or why that cannot be."""
    libraries.load()
    wanted = library.manifest().get("llama_cpp_python")
    found = library.installed_llama_cpp_python()
    if found is None:
        raise HalfVError(
            "llama-cpp-python is not installed, and the chat handler is for it: run "
            "`pip install halfv-edge[llama-cpp-python]`."
        )
    if found != wanted:
        raise HalfVError(
            f"llama-cpp-python {found} is installed, but the HalfV libraries need {wanted}: run "
            f"`pip install llama-cpp-python=={wanted}`."
        )
    return importlib.import_module("llama_cpp")
