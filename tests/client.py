"""The plain client of llama.cpp that the bench measures with, under the name that tests know."""

from halfv_edge.testing.client import LOG, Client, DecodeError, log_text

__all__ = ["LOG", "Client", "DecodeError", "log_text"]
