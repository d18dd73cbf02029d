"""Hugging Face checkpoints to GGUF, with a profile, through llama.cpp's own converter; and twigs."""

from halfv_convert.to_gguf import Converted, convert
from halfv_convert.twig import convert_twig, untrained_twig

__all__ = ["Converted", "convert", "convert_twig", "untrained_twig"]
