"""Models that have a name for -m: where they are downloaded from, and what they take of memory by their shape.

GGUFs with a vision encoder that their publishers or llama.cpp's own documentation name. Nobody has run them here.
"""

from __future__ import annotations

from dataclasses import dataclass

BITS = 4.9  # of a weight in q4_k_m, on average
CONTEXT = 8192  # tokens, whose keys and values are halves


@dataclass(frozen=True, slots=True)
class Known:
    """A published file, and the shape of its model."""

    source: str
    n_layer: int
    n_embd: int
    n_ff: int
    n_head: int
    n_head_kv: int
    n_vocab: int
    encoder: float  # weights of the vision encoder, in billions
    head_dim: int = 128
    tied: bool = False  # one table for tokens that enter and that leave
    n_attention: int = 0  # layers with keys and values, where not all have them
    gates: float = 0  # weights beyond those of plain attention, in billions

    @property
    def weights(self) -> float:
        """Of the language model, in billions."""
        attention = 2 * self.n_embd * self.head_dim * (self.n_head + self.n_head_kv)
        tables = self.n_vocab * self.n_embd * (1 if self.tied else 2)
        return (tables + self.n_layer * (attention + 3 * self.n_embd * self.n_ff)) / 1e9 + self.gates

    @property
    def memory_gb(self) -> float:
        """Weights, the encoder's halves, and keys and values of a context, pruned or not; without working buffers."""
        cells = (self.n_attention or self.n_layer) * self.n_head_kv * self.head_dim * CONTEXT
        return self.weights * BITS / 8 + self.encoder * 2 + cells * 2 * 2 / 1e9


def _qwen(repo: str) -> str:
    return f"{repo}-Instruct-GGUF:Q4_K_M"


MODELS = {
    "qwen2-vl-2b": Known(_qwen("ggml-org/Qwen2-VL-2B"), 28, 1536, 8960, 12, 2, 151936, 0.67, tied=True),
    "qwen2-vl-7b": Known(_qwen("ggml-org/Qwen2-VL-7B"), 28, 3584, 18944, 28, 4, 152064, 0.68),
    "qwen2.5-vl-3b": Known(_qwen("ggml-org/Qwen2.5-VL-3B"), 36, 2048, 11008, 16, 2, 151936, 0.67, tied=True),
    "qwen2.5-vl-7b": Known(_qwen("ggml-org/Qwen2.5-VL-7B"), 28, 3584, 18944, 28, 4, 152064, 0.68),
    "qwen3-vl-2b": Known(_qwen("Qwen/Qwen3-VL-2B"), 28, 2048, 6144, 16, 8, 151936, 0.41, tied=True),
    "qwen3-vl-4b": Known(_qwen("Qwen/Qwen3-VL-4B"), 36, 2560, 9728, 32, 8, 151936, 0.42, tied=True),
    "qwen3-vl-8b": Known(_qwen("Qwen/Qwen3-VL-8B"), 36, 4096, 12288, 32, 8, 151936, 0.58),
    "qwen3.5-9b": Known("unsloth/Qwen3.5-9B-GGUF:Q4_K_M", 32, 4096, 12288, 16, 4, 248320, 0.46, 256,
                        n_attention=8, gates=0.74),
    "gemma-3-4b": Known("ggml-org/gemma-3-4b-it-GGUF:Q4_K_M", 34, 2560, 10240, 8, 4, 262208, 0.42, 256, tied=True),
    "gemma-3-12b": Known("ggml-org/gemma-3-12b-it-GGUF:Q4_K_M", 48, 3840, 15360, 16, 8, 262208, 0.42, 256, tied=True),
    "llava-1.5-7b": Known("second-state/Llava-v1.5-7B-GGUF:Q4_K_M", 32, 4096, 11008, 32, 32, 32064, 0.32),
    "llava-next-mistral-7b": Known("cjpais/llava-1.6-mistral-7b-gguf:Q4_K_M", 32, 4096, 14336, 32, 8, 32064, 0.32),
}  # fmt: skip
