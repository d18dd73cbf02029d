"""Models that have a name for -m: where they are downloaded from, and what they take of memory.

GGUFs with a vision encoder that their publishers, llama.cpp's own documentation or many users name; those that are run
most come first. Nobody has run them here: weights are counted from shapes, or as their publishers count them.
"""

from __future__ import annotations

from dataclasses import dataclass

BITS = 4.9  # of a weight in q4_k_m, on average
CONTEXT = 8192  # tokens, whose keys and values are halves


@dataclass(frozen=True, slots=True)
class Known:
    """A published file, and the size of its model."""

    source: str
    weights: float  # of the language model, in billions
    encoder: float  # of what comes in the mmproj
    keys: int  # floats of a token in the caches of all layers, and as many values

    @property
    def file_gb(self) -> float:
        """Weights, and the encoder's halves."""
        return self.weights * BITS / 8 + self.encoder * 2

    @property
    def memory_gb(self) -> float:
        """Those, with the keys and values of a context, pruned or not; without working buffers."""
        return self.file_gb + self.keys * 2 * CONTEXT * 2 / 1e9


def keys(*caches: tuple[int, int, int]) -> int:
    """Of so many layers with so many heads of such a width."""
    return sum(n_layer * n_head_kv * head_dim for n_layer, n_head_kv, head_dim in caches)


def plain(
    source: str, n_layer: int, n_embd: int, n_ff: int, n_head: int, n_head_kv: int, n_vocab: int, encoder: float,
    head_dim: int = 128, tied: bool = False,
) -> Known:  # fmt: skip
    """A model of attention and three matrices in each layer. tied: one table for tokens that enter and that leave."""
    attention = 2 * n_embd * head_dim * (n_head + n_head_kv)
    tables = n_vocab * n_embd * (1 if tied else 2)
    weights = (tables + n_layer * (attention + 3 * n_embd * n_ff)) / 1e9
    return Known(source, weights, encoder, keys((n_layer, n_head_kv, head_dim)))


def _qwen(repo: str) -> str:
    return f"{repo}-Instruct-GGUF:Q4_K_M"


# Of Qwen3.5 and later one layer in four has keys and values. Windows are counted whole, as pruned contexts have them.
MODELS = {
    "qwen3.8-27b": Known("unsloth/Qwen3.8-27B-GGUF:Q4_K_M", 26.9, 0.46, keys((16, 4, 256))),
    "qwen3.6-27b": Known("unsloth/Qwen3.6-27B-GGUF:Q4_K_M", 26.9, 0.46, keys((16, 4, 256))),
    "qwen3.6-35b-a3b": Known("unsloth/Qwen3.6-35B-A3B-GGUF:Q4_K_M", 34.6, 0.45, keys((10, 2, 256))),
    "qwen3.5-4b": Known("unsloth/Qwen3.5-4B-GGUF:Q4_K_M", 4.2, 0.33, keys((8, 4, 256))),
    "qwen3.5-9b": Known("unsloth/Qwen3.5-9B-GGUF:Q4_K_M", 8.95, 0.46, keys((8, 4, 256))),
    "gemma-4-e2b": Known("unsloth/gemma-4-E2B-it-GGUF:Q4_K_M", 4.6, 0.45, keys((12, 1, 256), (3, 1, 512))),
    "gemma-4-e4b": Known("unsloth/gemma-4-E4B-it-GGUF:Q4_K_M", 7.5, 0.45, keys((20, 2, 256), (4, 2, 512))),
    "gemma-4-12b": Known("unsloth/gemma-4-12b-it-GGUF:Q4_K_M", 11.9, 0.03, keys((40, 8, 256), (8, 1, 512))),
    "gemma-4-26b-a4b": Known("unsloth/gemma-4-26B-A4B-it-GGUF:Q4_K_M", 25.2, 0.6, keys((25, 8, 256), (5, 2, 512))),
    "gemma-4-31b": Known("unsloth/gemma-4-31B-it-GGUF:Q4_K_M", 30.7, 0.6, keys((50, 16, 256), (10, 4, 512))),
    "qwen3-vl-2b": plain(_qwen("Qwen/Qwen3-VL-2B"), 28, 2048, 6144, 16, 8, 151936, 0.41, tied=True),
    "qwen3-vl-4b": plain(_qwen("Qwen/Qwen3-VL-4B"), 36, 2560, 9728, 32, 8, 151936, 0.42, tied=True),
    "qwen3-vl-8b": plain(_qwen("Qwen/Qwen3-VL-8B"), 36, 4096, 12288, 32, 8, 151936, 0.58),
    "qwen3-vl-30b-a3b": Known(_qwen("unsloth/Qwen3-VL-30B-A3B"), 30.5, 0.54, keys((48, 4, 128))),
    "gemma-3-4b": plain("ggml-org/gemma-3-4b-it-GGUF:Q4_K_M", 34, 2560, 10240, 8, 4, 262208, 0.42, 256, tied=True),
    "gemma-3-12b": plain("ggml-org/gemma-3-12b-it-GGUF:Q4_K_M", 48, 3840, 15360, 16, 8, 262208, 0.42, 256, tied=True),
    "gemma-3-27b": plain("ggml-org/gemma-3-27b-it-GGUF:Q4_K_M", 62, 5376, 21504, 32, 16, 262208, 0.42, tied=True),
    "qwen2.5-vl-3b": plain(_qwen("ggml-org/Qwen2.5-VL-3B"), 36, 2048, 11008, 16, 2, 151936, 0.67, tied=True),
    "qwen2.5-vl-7b": plain(_qwen("ggml-org/Qwen2.5-VL-7B"), 28, 3584, 18944, 28, 4, 152064, 0.68),
    "minicpm-v-4.6": Known("openbmb/MiniCPM-V-4_6-gguf:Q4_K_M", 0.8, 0.55, keys((6, 2, 256))),
    "glm-4.6v-flash-9b": Known("ggml-org/GLM-4.6V-Flash-GGUF:Q4_K_M", 9.4, 0.92, keys((40, 2, 128))),
    "ministral-3-3b": Known("mistralai/Ministral-3-3B-Instruct-2512-GGUF:Q4_K_M", 3.4, 0.42, keys((26, 8, 128))),
    "ministral-3-8b": Known("mistralai/Ministral-3-8B-Instruct-2512-GGUF:Q4_K_M", 8.4, 0.42, keys((34, 8, 128))),
    "lfm2.5-vl-1.6b": Known("LiquidAI/LFM2.5-VL-1.6B-GGUF:Q4_K_M", 1.17, 0.43, keys((6, 8, 64))),
    "smolvlm2-2.2b": plain("ggml-org/SmolVLM2-2.2B-Instruct-GGUF:Q4_K_M", 24, 2048, 8192, 32, 32, 49280, 0.43, 64),
    "internvl3-8b": plain("ggml-org/InternVL3-8B-Instruct-GGUF:Q4_K_M", 28, 3584, 18944, 28, 4, 151674, 0.33),
    "qwen2-vl-2b": plain(_qwen("ggml-org/Qwen2-VL-2B"), 28, 1536, 8960, 12, 2, 151936, 0.67, tied=True),
    "qwen2-vl-7b": plain(_qwen("ggml-org/Qwen2-VL-7B"), 28, 3584, 18944, 28, 4, 152064, 0.68),
    "llava-1.5-7b": plain("second-state/Llava-v1.5-7B-GGUF:Q4_K_M", 32, 4096, 11008, 32, 32, 32064, 0.32),
    "llava-next-mistral-7b": plain("cjpais/llava-1.6-mistral-7b-gguf:Q4_K_M", 32, 4096, 14336, 32, 8, 32064, 0.32),
}  # fmt: skip
