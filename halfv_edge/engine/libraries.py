"""Loading the native libraries, with the error that callers of the Python API expect."""

from __future__ import annotations

from halfv_cpp import library

from halfv_edge.errors import HalfVError


def load() -> None:
    """Load them, or say in one sentence why that cannot be."""
    try:
        library.load()
    except library.LibraryError as error:
        raise HalfVError(str(error)) from error
