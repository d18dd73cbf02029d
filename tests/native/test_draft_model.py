"""A model that drafts from the cache of another: refused with a sentence alone, and beside a cache that is split."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import halfv_cpp
import numpy as np
import pytest
from gguf import GGUFReader, GGUFValueType, GGUFWriter
from halfv_cpp import llama_h

from halfv_edge.testing.client import LOG, Client, log_text
from tests.support import architectures, pruned
from tests.support.architectures import TOP

N_EMBD, N_FF = 32, 48
OF_ATTENTION = ("head_count", "head_count_kv", "sliding_window", "key_length_swa", "value_length_swa")


@pytest.fixture
def target(build_dir: Path, tmp_path: Path) -> Path:
    """A small Gemma 4 with embeddings per layer."""
    return architectures.save(build_dir / "bin" / "save-archs", "gemma4", tmp_path)[0]


def write_model(
    path: Path, like: Path, arch: str, keys: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]
) -> Path:
    """A random model with the vocabulary of another."""
    writer = GGUFWriter(path, arch)
    for name, field in GGUFReader(like).fields.items():
        if name.startswith("tokenizer.") and field.contents() != []:
            writer.add_key_value(name, field.contents(), field.types[0], field.types[-1] if field.types[1:] else None)
    for name, value in keys.items():
        if isinstance(value, list):
            writer.add_key_value(f"{arch}.{name}", value, GGUFValueType.ARRAY, GGUFValueType.UINT32)
        elif isinstance(value, float):
            writer.add_float32(f"{arch}.{name}", value)
        else:
            writer.add_uint32(f"{arch}.{name}", value)
    rng = np.random.default_rng(0)
    for name, shape in shapes.items():
        writer.add_tensor(name, rng.normal(0, 0.1, shape[::-1]).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def assistant(path: Path, target: Path) -> Path:
    """Two layers, of which one has a window, that attend to the caches of the target's last ones."""
    fields = GGUFReader(target).fields

    def of_target(name: str) -> Any:
        return fields[f"gemma4.{name}"].contents()

    n_head, n_target, n_vocab = (of_target(name) for name in ("attention.head_count", "embedding_length", "vocab_size"))
    width = of_target("attention.key_length_swa")  # of all heads
    same = ("vocab_size", "context_length", *(f"attention.{name}" for name in OF_ATTENTION))
    keys = {name: of_target(name) for name in same} | {
        "attention.key_length": width,
        "attention.value_length": width,
        "block_count": 2,
        "nextn_predict_layers": 2,
        "embedding_length": N_EMBD,
        "embedding_length_out": n_target,
        "feed_forward_length": N_FF,
        "attention.sliding_window_pattern": [1, 0],
        "attention.layer_norm_rms_epsilon": 1e-5,
        "rope.freq_base": 10000.0,
        "rope.freq_base_swa": 10000.0,
    }
    shapes = {
        "token_embd.weight": (N_EMBD, n_vocab),
        "output_norm.weight": (N_EMBD,),
        "nextn.pre_projection.weight": (2 * n_target, N_EMBD),
        "nextn.post_projection.weight": (N_EMBD, n_target),
        "rope_freqs.weight": (width // 2,),
    }
    for il in range(2):
        shapes |= {
            f"blk.{il}.attn_norm.weight": (N_EMBD,),
            f"blk.{il}.attn_q.weight": (N_EMBD, n_head * width),
            f"blk.{il}.attn_output.weight": (n_head * width, N_EMBD),
            f"blk.{il}.attn_q_norm.weight": (width,),
            f"blk.{il}.post_attention_norm.weight": (N_EMBD,),
            f"blk.{il}.layer_output_scale.weight": (1,),
            f"blk.{il}.ffn_norm.weight": (N_EMBD,),
            f"blk.{il}.ffn_gate.weight": (N_EMBD, N_FF),
            f"blk.{il}.ffn_up.weight": (N_EMBD, N_FF),
            f"blk.{il}.ffn_down.weight": (N_FF, N_EMBD),
            f"blk.{il}.post_ffw_norm.weight": (N_EMBD,),
        }
    return write_model(path, target, "gemma4-assistant", keys, shapes)


def context_beside(model: int, client: Client) -> int:
    params = llama_h.llama_context_default_params()
    params.n_ctx, params.ctx_other = 256, client.ctx
    return llama_h.llama_init_from_model(model, params) or 0


@pytest.mark.parametrize("profile", [None, TOP])
def test_a_draft_from_the_cache_of_another(profile: dict[str, Any] | None, target: Path, tmp_path: Path) -> None:
    path = assistant(tmp_path / "assistant.gguf", target)
    with Client(
        target, n_ctx=256, on_model=lambda model: pruned.set_profile(model, profile) if profile else None
    ) as client:
        LOG.clear()
        model = llama_h.llama_model_load_from_file(str(path).encode(), llama_h.llama_model_default_params())
        assert model, log_text()
        assert not halfv_cpp.halfv_model_supported(model)  # alone, its builder would end the process
        ctx = context_beside(model, client)
        if profile is None:
            assert ctx, log_text()
            llama_h.llama_free(ctx)
        else:
            assert not ctx
            assert (
                "halfv: gemma4-assistant drafts from the KV cache of its target, which a profile splits" in log_text()
            )
        llama_h.llama_model_free(model)
        client.text([1, 5, 6])  # and the target goes on
        assert np.isfinite(client.logits()).all()
