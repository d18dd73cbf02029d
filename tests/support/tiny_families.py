"""The families of tiny checkpoints: each gives a model, and what writes the other files of its checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers

from tests.support import tiny_checkpoints as tiny
from tests.support.tiny_checkpoints import CLIP_MEAN, CLIP_STD, EXPERTS, SPM_WORDS, TEXT_SIZES, WIDTH
from tests.support.tiny_tokenizers import (
    write_bpe_tokenizer,
    write_json,
    write_llama_tokenizer,
    write_llama_tokenizer_json,
)

Made = tuple[Any, Callable[[Path], None]]
HALF = (0.5, 0.5, 0.5)
SIGLIP = {"hidden_size": WIDTH, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4}


def gemma3(changes: dict[str, Any]) -> Made:
    """Windows of 16 tokens in all layers but the last, which sees everything; pictures are not causal."""
    text = {
        **{"num_hidden_layers": 6, "head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 16},
        **{"vocab_size": SPM_WORDS + 4, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0},
    }
    config = transformers.Gemma3Config(
        text_config=TEXT_SIZES | text | changes,
        vision_config=SIGLIP | {"image_size": 96, "patch_size": 16, "vision_use_head": False},
        mm_tokens_per_image=9,
        image_token_index=SPM_WORDS,
        boi_token_index=SPM_WORDS + 1,
        eoi_token_index=SPM_WORDS + 2,
    )

    def files(folder: Path) -> None:
        specials = ("<image_soft_token>", "<start_of_image>", "<end_of_image>", "<unused0>")
        write_llama_tokenizer(folder, SPM_WORDS, specials)
        processor = {"size": {"height": 96, "width": 96}, "image_seq_length": 9, "resample": 2}
        write_json(folder / "preprocessor_config.json", pixels("Gemma3", HALF, HALF) | processor)

    return transformers.Gemma3ForConditionalGeneration(config), files


GEMMA4_ROPE = {
    "full_attention": {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1e6},
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
}
GEMMA4_TEXT: dict[str, Any] = {
    **{"num_hidden_layers": 6, "head_dim": 16, "global_head_dim": 32, "sliding_window": 16},
    **{"num_global_key_value_heads": 1, "attention_k_eq_v": True, "use_bidirectional_attention": "vision"},
    **{"hidden_size_per_layer_input": 0, "final_logit_softcapping": 30.0, "rope_parameters": GEMMA4_ROPE},
    **{"vocab_size": SPM_WORDS + 5, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0},
}


def gemma4(changes: dict[str, Any]) -> Made:
    """The larger ones: heads of two sizes, keys that are values where all is seen, nothing per layer."""
    vision = {
        **{"head_dim": 16, "num_key_value_heads": 4, "patch_size": 16, "pooling_kernel_size": 3},
        **{"position_embedding_size": 64},
    }
    config = transformers.Gemma4Config(
        text_config=TEXT_SIZES | GEMMA4_TEXT | changes,
        vision_config=SIGLIP | vision,
        image_token_id=SPM_WORDS,
        boi_token_id=SPM_WORDS + 1,
        eoi_token_id=SPM_WORDS + 2,
    )
    config.audio_config = None
    return transformers.Gemma4ForConditionalGeneration(config), gemma4_files("Gemma4")


def gemma4_small(changes: dict[str, Any]) -> Made:
    """E2B and E4B: embeddings per layer, and last layers that read the caches of those before them."""
    small = {
        **{"num_hidden_layers": 8, "num_kv_shared_layers": 2, "use_double_wide_mlp": True},
        **{"attention_k_eq_v": False, "num_global_key_value_heads": None},
        **{"hidden_size_per_layer_input": 16, "vocab_size_per_layer_input": SPM_WORDS + 5},
    }
    return gemma4(small | changes)


def gemma4_files(kind: str) -> Callable[[Path], None]:
    def files(folder: Path) -> None:
        specials = ("<|image|>", "<|image>", "<image|>", "<unused0>", "<unused1>")
        write_llama_tokenizer(folder, SPM_WORDS, specials)
        write_llama_tokenizer_json(folder)
        processor = {"patch_size": 16, "pooling_kernel_size": 3, "max_soft_tokens": 70}
        write_json(folder / "preprocessor_config.json", pixels(kind, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)) | processor)

    return files


def gemma4_unified(changes: dict[str, Any]) -> Made:
    """Gemma 4 12B: no encoder, but a projection of blocks of pixels."""
    text = {name: value for name, value in GEMMA4_TEXT.items() if name != "hidden_size_per_layer_input"}
    config = transformers.Gemma4UnifiedConfig(
        text_config=TEXT_SIZES | text | changes,
        vision_config={
            "patch_size": 16,
            "pooling_kernel_size": 3,
            "mm_embed_dim": 48,
            "output_proj_dims": 48,
            "mm_posemb_size": 64,
        },
        audio_config={"audio_embed_dim": 64},
        image_token_id=SPM_WORDS,
        boi_token_id=SPM_WORDS + 1,
        eoi_token_id=SPM_WORDS + 2,
    )
    return transformers.Gemma4UnifiedForConditionalGeneration(config), gemma4_files("Gemma4Unified")


def glm4v(kind: str, **more: Any) -> Callable[[dict[str, Any]], Made]:
    def make_one(changes: dict[str, Any]) -> Made:
        rope = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5, "mrope_section": [2, 1, 1]}
        ids = {"vocab_size": 308, "eos_token_id": 300, "pad_token_id": 300}
        config = getattr(transformers, f"{kind}Config")(
            text_config=TEXT_SIZES | {"rope_parameters": rope} | ids | more | changes,
            vision_config=tiny.QWEN_VISION | {"image_size": 84, "patch_size": 14},
            image_token_id=304,
            video_token_id=305,
            image_start_token_id=302,
            image_end_token_id=303,
        )

        def files(folder: Path) -> None:
            specials = ("<|endoftext|>", "<|user|>", "<|begin_of_image|>", "<|end_of_image|>", "<|image|>")
            write_bpe_tokenizer(folder, 300, (*specials, "<|video|>", "[gMASK]", "<|observation|>"), eos="<|user|>")
            size = {"size": {"shortest_edge": 12544, "longest_edge": 9633792}}
            write_json(folder / "preprocessor_config.json", tiny.qwen_processor("Glm4v", 14) | size)

        return getattr(transformers, f"{kind}ForConditionalGeneration")(config), files

    return make_one


def mistral3(kind: str, **more: Any) -> Callable[[dict[str, Any]], Made]:
    def make_one(changes: dict[str, Any]) -> Made:
        ids = {"vocab_size": 306, "bos_token_id": 300, "eos_token_id": 301, "pad_token_id": 302}
        config = transformers.Mistral3Config(
            text_config=TEXT_SIZES | {"model_type": kind, "head_dim": 16} | ids | more | changes,
            vision_config=SIGLIP | {"model_type": "pixtral", "image_size": 112, "patch_size": 14, "hidden_act": "silu"},
            image_token_index=303,
            spatial_merge_size=2,
            tie_word_embeddings=False,
        )

        def files(folder: Path) -> None:
            specials = ("<s>", "</s>", "<pad>", "[IMG]", "[IMG_BREAK]", "[IMG_END]")
            write_bpe_tokenizer(folder, 300, specials, eos="</s>", pad="<pad>")
            processor = {"patch_size": 14, "size": {"longest_edge": 1540}, "resample": 3}
            write_json(folder / "preprocessor_config.json", pixels("Pixtral", CLIP_MEAN, CLIP_STD) | processor)
            write_json(folder / "processor_config.json", {"patch_size": 14, "spatial_merge_size": 2})

        return transformers.Mistral3ForConditionalGeneration(config), files

    return make_one


def lfm2_vl(changes: dict[str, Any]) -> Made:
    """Layers of a short convolution and of attention in turn."""
    text = {
        **{"model_type": "lfm2", "layer_types": ["conv", "full_attention"] * 2, "block_auto_adjust_ff_dim": False},
        **{"vocab_size": 305, "bos_token_id": 300, "eos_token_id": 301, "pad_token_id": 300, "norm_eps": 1e-6},
    }
    config = transformers.Lfm2VlConfig(
        text_config=TEXT_SIZES | text | changes,
        vision_config=SIGLIP | {"model_type": "siglip2_vision_model", "num_patches": 256, "vision_use_head": False},
        image_token_id=303,
        projector_hidden_size=80,
    )

    def files(folder: Path) -> None:
        write_bpe_tokenizer(
            folder, 300, ("<|startoftext|>", "<|im_end|>", "<|image_start|>", "<image>", "<|endoftext|>")
        )
        write_json(folder / "preprocessor_config.json", pixels("Lfm2Vl", HALF, HALF))

    return transformers.Lfm2VlForConditionalGeneration(config), files


def minicpmv4_6(changes: dict[str, Any]) -> Made:
    """Of its encoder llama.cpp knows only one with 70 x 70 positions."""
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [4, 2, 2], "partial_rotary_factor": 0.5}
    specials = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>", "</image>", "<slice>", "</slice>", "<unk>")
    text = {"model_type": "qwen3_5_text", "vocab_size": 309, "eos_token_id": 302, "pad_token_id": 300}
    config = transformers.MiniCPMV4_6Config(
        text_config=TEXT_SIZES | tiny.QWEN3_5_TEXT | text | {"rope_parameters": rope} | changes,
        vision_config=SIGLIP | {"num_hidden_layers": 4, "image_size": 980, "patch_size": 14},
        insert_layer_id=1,
        image_token_id=307,
        tie_word_embeddings=False,
    )

    def files(folder: Path) -> None:
        write_bpe_tokenizer(folder, 300, (*specials, "<image_id>"))
        processor = {"scale_resolution": 112, "patch_size": 14, "max_slice_nums": 9, "downsample_mode": "16x"}
        write_json(folder / "preprocessor_config.json", pixels("MiniCPMV4_6", HALF, HALF) | processor)

    return transformers.MiniCPMV4_6ForConditionalGeneration(config), files


def paddleocr_vl(changes: dict[str, Any]) -> Made:
    rope = {"rope_type": "default", "rope_theta": 5e5, "mrope_section": [4, 2, 2]}
    text = {"head_dim": 16, "vocab_size": SPM_WORDS + 4, "rope_parameters": rope, "pad_token_id": 0}
    config = transformers.PaddleOCRVLConfig(
        text_config=TEXT_SIZES | text | {"bos_token_id": 1, "eos_token_id": 2} | changes,
        vision_config=SIGLIP | {"image_size": 84, "patch_size": 14},
        image_token_id=SPM_WORDS,
        video_token_id=SPM_WORDS + 3,
        vision_start_token_id=SPM_WORDS + 1,
        vision_end_token_id=SPM_WORDS + 2,
        tie_word_embeddings=False,
    )

    def files(folder: Path) -> None:
        specials = ("<|IMAGE_PLACEHOLDER|>", "<|IMAGE_START|>", "<|IMAGE_END|>", "<|VIDEO|>")
        write_llama_tokenizer(folder, SPM_WORDS, specials)
        processor = {"patch_size": 14, "temporal_patch_size": 1, "merge_size": 2}
        limits = {"min_pixels": 28 * 28 * 8, "max_pixels": 28 * 28 * 64}
        write_json(folder / "preprocessor_config.json", pixels("PaddleOCRVL", HALF, HALF) | processor | limits)

    return transformers.PaddleOCRVLForConditionalGeneration(config), files


def pixels(kind: str, mean: tuple[float, ...], std: tuple[float, ...]) -> dict[str, Any]:
    return {"image_processor_type": f"{kind}ImageProcessor", "image_mean": mean, "image_std": std}


HYBRID_ROPE = {"partial_rotary_factor": 0.5, "mrope_interleaved": True}
GLM_EXPERTS = {
    **{"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48, "n_shared_experts": 1},
    **{"first_k_dense_replace": 1, "head_dim": 16},
}
QWEN3_VISION = tiny.QWEN_VISION | tiny.QWEN3_POSITIONS
FAMILIES: dict[str, Callable[[dict[str, Any]], Made]] = {
    "llava": tiny.llava,
    "llava_next_mistral": tiny.llava_next("mistral"),
    "llava_next_vicuna": tiny.llava_next("llama"),
    "qwen2_vl": tiny.qwen("Qwen2VL", 14, tiny.QWEN2_VISION, [2, 3, 3]),
    "qwen2_5_vl": tiny.qwen("Qwen2_5_VL", 14, tiny.QWEN_VISION | tiny.QWEN2_5_WINDOWS, [2, 3, 3]),
    "qwen3_vl": tiny.qwen("Qwen3VL", 16, QWEN3_VISION | tiny.QWEN3_DEEPSTACK, [4, 2, 2], head_dim=16),
    "qwen3_vl_moe": tiny.qwen("Qwen3VLMoe", 16, QWEN3_VISION | tiny.QWEN3_DEEPSTACK, [4, 2, 2], head_dim=16, **EXPERTS),
    "qwen3_5": tiny.qwen("Qwen3_5", 16, QWEN3_VISION, [4, 2, 2], rope=HYBRID_ROPE, **tiny.QWEN3_5_TEXT),
    "smolvlm": tiny.smolvlm,
    "internvl": tiny.internvl,
    "gemma3": gemma3,
    "gemma4": gemma4,
    "gemma4_small": gemma4_small,
    "gemma4_unified": gemma4_unified,
    "glm4v": glm4v("Glm4v"),
    "glm4v_moe": glm4v("Glm4vMoe", **GLM_EXPERTS),
    "mistral3": mistral3("mistral"),
    "lfm2_vl": lfm2_vl,
    "minicpmv4_6": minicpmv4_6,
    "paddleocr_vl": paddleocr_vl,
}


def make(family: str, folder: Path, *, seed: int = 0, text_changes: dict[str, Any] | None = None) -> Any:
    """Write a checkpoint and return its model, float32 and ready to run."""
    folder.mkdir(parents=True)
    model, vocabulary = FAMILIES[family](text_changes or {})
    torch.manual_seed(seed)
    tiny.randomise(model)
    tiny.quiet(model.save_pretrained, folder)
    vocabulary(folder)
    return model.eval()
