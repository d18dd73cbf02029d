"""The chat handler for llama-cpp-python."""
