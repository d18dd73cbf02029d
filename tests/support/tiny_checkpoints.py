"""Random Hugging Face checkpoints of vision-language models: complete, seeded, made on the fly with transformers.

Sizes are the smallest that every part of the vision encoders accepts. Weights are drawn so that attention is far from
uniform and position embeddings matter: a tensor that is swapped, shifted or transposed changes the logits at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers

from tests.support.tiny_tokenizers import write_bpe_tokenizer, write_json, write_llama_tokenizer

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
QWEN_SPECIALS = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>"),
    *("<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"),
)
WIDTH = 64
SPM_WORDS = 340  # without the added ones, and enough that the order of joining matters
TEXT_SIZES: dict[str, Any] = {
    "hidden_size": WIDTH,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-6,
}
# The last layer of the vision encoder is there to be left out by LLaVA.
CLIP_SIZES: dict[str, Any] = {
    "hidden_size": WIDTH,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "image_size": 84,
    "patch_size": 14,
}


@torch.no_grad()
def randomise(model: torch.nn.Module) -> None:
    for name, weight in sorted(model.named_parameters()):
        if "embed_tokens" in name:
            weight.normal_(0, 1)
        elif "embedding" in name or "pos_embed" in name:
            weight.normal_(0, 0.5)
        elif "norm" in name or "ln_q" in name or name.endswith("mlp1.0.weight"):
            weight.uniform_(0.6, 1.6) if name.endswith("weight") else weight.normal_(0, 0.2)
        elif "lambda_" in name or "image_newline" in name:
            weight.uniform_(0.5, 1.0)
        elif weight.ndim == 1:
            weight.normal_(0, 0.2)
        elif "experts" in name and weight.ndim == 3:  # one matrix per expert
            weight.normal_(0, 1.2 / math.sqrt(WIDTH))
        else:
            weight.normal_(0, (2.0 if "lm_head" in name else 1.2) / math.sqrt(weight[0].numel()))
        # a convolution's weights are halves in ggml, and Gemma 3's projection in its files, which so costs nothing here
        if weight.ndim > 2 or "patch_embed" in name or "input_projection" in name:
            weight.copy_(weight.half())


def quiet(call: Callable[..., Any], *args: Any, **named: Any) -> Any:
    """Without the progress bar and the advice of transformers."""
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        return call(*args, **named)
    finally:
        transformers.logging.set_verbosity(verbosity)
        transformers.logging.enable_progress_bar()


# --- families: each gives the model and what writes the other files of its checkpoint ---


def _llava(text: dict[str, Any], changes: dict[str, Any], **more: Any) -> tuple[Any, dict[str, Any]]:
    text = TEXT_SIZES | text | {"vocab_size": SPM_WORDS + 4, "bos_token_id": 1, "eos_token_id": 2} | changes
    config = {"vision_config": {"model_type": "clip_vision_model"} | CLIP_SIZES, "text_config": text}
    return config | {"image_token_index": SPM_WORDS, "image_seq_length": 36, "pad_token_id": SPM_WORDS + 1} | more


def llava(changes: dict[str, Any]) -> tuple[Any, Callable[[Path], None]]:
    config = _llava({"model_type": "llama", "num_key_value_heads": 4}, changes)

    def files(folder: Path) -> None:
        write_llama_tokenizer(folder, SPM_WORDS, ("<image>", "<pad>"))
        write_json(folder / "preprocessor_config.json", clip_processor(84))

    return transformers.LlavaForConditionalGeneration(transformers.LlavaConfig(**config)), files


def llava_next(kind: str) -> Callable[[dict[str, Any]], tuple[Any, Callable[[Path], None]]]:
    grid = [[84, 168], [168, 84], [168, 168], [252, 84], [84, 252]]

    def make_one(changes: dict[str, Any]) -> tuple[Any, Callable[[Path], None]]:
        heads = {"num_key_value_heads": 2 if kind == "mistral" else 4}
        config = _llava({"model_type": kind} | heads, changes, image_grid_pinpoints=grid)

        def files(folder: Path) -> None:
            write_llama_tokenizer(folder, SPM_WORDS, ("<image>", "<pad>"))
            processor = clip_processor(84) | {"image_processor_type": "LlavaNextImageProcessor"}
            write_json(folder / "preprocessor_config.json", processor | {"image_grid_pinpoints": grid})

        return transformers.LlavaNextForConditionalGeneration(transformers.LlavaNextConfig(**config)), files

    return make_one


def clip_processor(size: int) -> dict[str, Any]:
    return {
        "image_processor_type": "CLIPImageProcessor",
        "image_mean": CLIP_MEAN,
        "image_std": CLIP_STD,
        "size": {"shortest_edge": size},
        "crop_size": {"height": size, "width": size},
        "do_convert_rgb": True,
        "resample": 3,
    }


QWEN_IDS = {"vision_start_token_id": 303, "vision_end_token_id": 304, "image_token_id": 306, "video_token_id": 307}
QWEN_VISION = {"depth": 4, "hidden_size": WIDTH, "intermediate_size": 96, "num_heads": 4, "out_hidden_size": WIDTH}
QWEN2_VISION = {"depth": 3, "embed_dim": WIDTH, "hidden_size": WIDTH, "num_heads": 4, "mlp_ratio": 2}
QWEN2_5_WINDOWS = {"window_size": 112, "fullatt_block_indexes": [1, 3]}
QWEN3_POSITIONS = {"num_position_embeddings": 64}
QWEN3_DEEPSTACK = {"deepstack_visual_indexes": [1, 2]}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48}
# Three layers of a recurrence, and one of attention, of which half of each head is rotated.
QWEN3_5_TEXT: dict[str, Any] = {
    "head_dim": 32,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
}


def qwen(
    kind: str, patch_size: int, vision: dict[str, Any], sections: list[int], **text: Any
) -> Callable[[dict[str, Any]], tuple[Any, Callable[[Path], None]]]:
    """One of Qwen's families: they differ in names, in the vision encoder and in a few settings of the text model."""
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": sections} | text.pop("rope", {})
    ids = {"vocab_size": 308, "bos_token_id": None, "eos_token_id": 302, "pad_token_id": 300}
    sizes = TEXT_SIZES | {"rope_parameters": rope} | ids | text

    def make_one(changes: dict[str, Any]) -> tuple[Any, Callable[[Path], None]]:
        config = getattr(transformers, f"{kind}Config")(
            vision_config=vision | {"patch_size": patch_size},
            text_config=sizes | changes,
            tie_word_embeddings=False,
            **QWEN_IDS,
        )
        return getattr(transformers, f"{kind}ForConditionalGeneration")(config), files

    def files(folder: Path) -> None:
        write_bpe_tokenizer(folder, 300, QWEN_SPECIALS)
        write_json(folder / "preprocessor_config.json", qwen_processor("Qwen2VL", patch_size))

    return make_one


def qwen_processor(kind: str, patch_size: int) -> dict[str, Any]:
    return {
        "image_processor_type": f"{kind}ImageProcessor",
        "image_mean": CLIP_MEAN,
        "image_std": CLIP_STD,
        "patch_size": patch_size,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "size": {"shortest_edge": 3136, "longest_edge": 12845056},
    }


def smolvlm(changes: dict[str, Any]) -> tuple[Any, Callable[[Path], None]]:
    specials = ("<|im_start|>", "<|im_end|>", "<fake_token_around_image>", "<global-img>", "<image>")
    specials += tuple(f"<row_{y}_col_{x}>" for y in (1, 2) for x in (1, 2))
    text = TEXT_SIZES | {"model_type": "llama", "vocab_size": 312, "bos_token_id": 300, "eos_token_id": 301}
    vision = {
        "hidden_size": WIDTH,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "image_size": 64,
        "patch_size": 16,
        "max_image_size": {"longest_edge": 64},
    }
    config = transformers.SmolVLMConfig(
        vision_config=vision,
        text_config=text | {"pad_token_id": 301} | changes,
        scale_factor=2,
        image_token_id=304,
        pad_token_id=301,
        tie_word_embeddings=False,
    )

    def files(folder: Path) -> None:
        write_bpe_tokenizer(folder, 300, specials)
        processor = {
            "image_processor_type": "SmolVLMImageProcessor",
            "image_mean": (0.5, 0.5, 0.5),
            "image_std": (0.5, 0.5, 0.5),
            "size": {"longest_edge": 128},
            "max_image_size": {"longest_edge": 64},
        }
        write_json(folder / "preprocessor_config.json", processor)

    return transformers.SmolVLMForConditionalGeneration(config), files


def internvl(changes: dict[str, Any]) -> tuple[Any, Callable[[Path], None]]:
    specials = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>")
    text = TEXT_SIZES | {"model_type": "qwen2", "vocab_size": 308, "bos_token_id": None, "eos_token_id": 302}
    vision = {
        "hidden_size": WIDTH,
        "intermediate_size": 96,
        "num_hidden_layers": 4,  # the converter knows mlp1.3 only if there is a layer 3
        "num_attention_heads": 4,
        "attention_bias": True,
        "image_size": [84, 84],
        "patch_size": [14, 14],
        "use_absolute_position_embeddings": True,
        "use_mask_token": False,
    }
    config = transformers.InternVLConfig(
        vision_config=vision,
        text_config=text | {"pad_token_id": 300} | changes,
        image_token_id=305,
        image_seq_length=9,
        downsample_ratio=0.5,
        tie_word_embeddings=False,
    )

    def files(folder: Path) -> None:
        write_bpe_tokenizer(folder, 300, specials)
        processor = {
            "image_processor_type": "GotOcr2ImageProcessor",
            "image_mean": CLIP_MEAN,
            "image_std": CLIP_STD,
            "size": {"height": 84, "width": 84},
            "crop_to_patches": False,
        }
        write_json(folder / "preprocessor_config.json", processor)

    return transformers.InternVLForConditionalGeneration(config), files
