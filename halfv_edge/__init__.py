"""HalfV Edge: visual token pruning for llama.cpp."""

from importlib.metadata import version

__version__ = version("halfv-edge")
