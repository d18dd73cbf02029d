"""GGUF files: their metadata, read and replaced, and vision encoders written in another type."""
