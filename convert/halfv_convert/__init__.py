"""Hugging Face checkpoints to GGUF, with a profile, through llama.cpp's own converter."""

from halfv_convert.to_gguf import Converted, convert

__all__ = ["Converted", "convert"]
