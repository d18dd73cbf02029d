"""From a Hugging Face checkpoint to a GGUF that carries a HalfV profile."""
