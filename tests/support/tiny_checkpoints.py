"""Random Hugging Face checkpoints of vision-language models: complete, seeded, made on the fly with transformers.

Sizes are the smallest that every part of the vision encoders accepts. Weights are drawn so that attention is far from
uniform and position embeddings matter: a tensor that is swapped, shifted or transposed changes the logits at once.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import sentencepiece
import tokenizers
import torch
import transformers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, trainers

TEXT = (
    "what is in the picture? the cat and the dog look at a red house, yes. where is the image from? "
    "it's 1314 o'clock and we're here:\n\nno one knows the answer to this question, or do they?\n\nno.\n\nyes.\n\n"
)
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
QWEN_SPECIALS = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>"),
    *("<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"),
)
# How Qwen2 cuts text before its byte pairs; llama.cpp calls it qwen2.
QWEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
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


def make(family: str, folder: Path, *, seed: int = 0, text_changes: dict[str, Any] | None = None) -> Any:
    """Write a checkpoint and return its model, float32 and ready to run."""
    folder.mkdir(parents=True)
    model, vocabulary = FAMILIES[family](text_changes or {})
    torch.manual_seed(seed)
    randomise(model)
    quiet(model.save_pretrained, folder)
    vocabulary(folder)
    return model.eval()


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
        else:
            weight.normal_(0, (2.0 if "lm_head" in name else 1.2) / math.sqrt(weight[0].numel()))
        if weight.ndim > 2:  # a convolution: ggml's has halves for weights, which so cost nothing here
            weight.copy_(weight.half())


def quiet(call: Callable[..., Any], *args: Any) -> Any:
    """Without the progress bar and the advice of transformers."""
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        return call(*args)
    finally:
        transformers.logging.set_verbosity(verbosity)
        transformers.logging.enable_progress_bar()


# --- tokenizers ---


def write_llama_tokenizer(folder: Path, n_vocab: int, specials: tuple[str, ...]) -> None:
    """A SentencePiece tokenizer.model with byte fallback, and tokens added behind it."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT.split("? ")),
        model_writer=model,
        model_type="bpe",
        vocab_size=n_vocab,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    config = {
        "tokenizer_class": "LlamaTokenizer",
        "add_bos_token": True,
        "add_eos_token": False,
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "legacy": False,
        "added_tokens_decoder": {str(n_vocab + i): _added(text) for i, text in enumerate(specials)},
    }
    write_json(folder / "tokenizer_config.json", config)


def write_llama_tokenizer_json(folder: Path) -> None:
    """The same tokenizer as tokenizer.json, as newer transformers save it."""
    model = sentencepiece.SentencePieceProcessor(str(folder / "tokenizer.model"))
    pieces = [model.id_to_piece(id_) for id_ in range(model.get_piece_size())]
    vocabulary = {piece: id_ for id_, piece in enumerate(pieces)}
    merges = []
    for piece in pieces[3 + 256 :]:
        splits = [(piece[:at], piece[at:]) for at in range(1, len(piece))]
        pairs = [pair for pair in splits if all(half in vocabulary for half in pair)]
        merges += sorted(pairs, key=lambda pair: [vocabulary[half] for half in pair])
    bpe = models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    tokenizer = tokenizers.Tokenizer(bpe)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    config = json.loads((folder / "tokenizer_config.json").read_text())
    added = ["<unk>", "<s>", "</s>", *(token["content"] for token in config["added_tokens_decoder"].values())]
    tokenizer.add_special_tokens([tokenizers.AddedToken(text, special=True, normalized=False) for text in added])
    tokenizer.save(str(folder / "tokenizer.json"))


def _added(text: str) -> dict[str, Any]:
    flags = dict.fromkeys(("lstrip", "normalized", "rstrip", "single_word"), False)
    return {"content": text, "special": True} | flags


def write_bpe_tokenizer(folder: Path, n_vocab: int, specials: tuple[str, ...]) -> None:
    """Byte pairs cut as Qwen2 does. The specials follow from id n_vocab on."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(QWEN_SPLIT), behavior="isolated")
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, bytes_])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=n_vocab, initial_alphabet=alphabet, min_frequency=1, show_progress=False)
    tokenizer.train_from_iterator([TEXT], trainer)
    assert tokenizer.get_vocab_size() == n_vocab
    tokenizer.add_special_tokens([tokenizers.AddedToken(text, special=True, normalized=False) for text in specials])
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "Qwen2Tokenizer",
        "add_bos_token": False,
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "added_tokens_decoder": {str(n_vocab + i): _added(text) for i, text in enumerate(specials)},
    }
    write_json(folder / "tokenizer_config.json", config)


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2))


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


def _qwen_text(changes: dict[str, Any], sections: list[int]) -> dict[str, Any]:
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": sections}
    ids = {"vocab_size": 308, "bos_token_id": None, "eos_token_id": 302, "pad_token_id": 300}
    return TEXT_SIZES | {"rope_parameters": rope} | ids | changes


def _qwen_files(patch_size: int) -> Callable[[Path], None]:
    def files(folder: Path) -> None:
        write_bpe_tokenizer(folder, 300, QWEN_SPECIALS)
        processor = {
            "image_processor_type": "Qwen2VLImageProcessor",
            "image_mean": CLIP_MEAN,
            "image_std": CLIP_STD,
            "patch_size": patch_size,
            "temporal_patch_size": 2,
            "merge_size": 2,
            "size": {"shortest_edge": 3136, "longest_edge": 12845056},
        }
        write_json(folder / "preprocessor_config.json", processor)

    return files


QWEN_IDS = {"vision_start_token_id": 303, "vision_end_token_id": 304, "image_token_id": 306, "video_token_id": 307}


def qwen2_vl(changes: dict[str, Any]) -> tuple[Any, Callable[[Path], None]]:
    vision = {"depth": 3, "embed_dim": WIDTH, "hidden_size": WIDTH, "num_heads": 4, "mlp_ratio": 2, "patch_size": 14}
    config = transformers.Qwen2VLConfig(
        vision_config=vision, text_config=_qwen_text(changes, [2, 3, 3]), tie_word_embeddings=False, **QWEN_IDS
    )
    return transformers.Qwen2VLForConditionalGeneration(config), _qwen_files(14)


def qwen2_5_vl(changes: dict[str, Any]) -> tuple[Any, Callable[[Path], None]]:
    vision = {
        "depth": 4,
        "hidden_size": WIDTH,
        "intermediate_size": 96,
        "num_heads": 4,
        "out_hidden_size": WIDTH,
        "patch_size": 14,
        "window_size": 112,
        "fullatt_block_indexes": [1, 3],
    }
    config = transformers.Qwen2_5_VLConfig(
        vision_config=vision, text_config=_qwen_text(changes, [2, 3, 3]), tie_word_embeddings=False, **QWEN_IDS
    )
    return transformers.Qwen2_5_VLForConditionalGeneration(config), _qwen_files(14)


def qwen3_vl(changes: dict[str, Any]) -> tuple[Any, Callable[[Path], None]]:
    vision = {
        "depth": 4,
        "hidden_size": WIDTH,
        "intermediate_size": 96,
        "num_heads": 4,
        "out_hidden_size": WIDTH,
        "patch_size": 16,
        "num_position_embeddings": 64,
        "deepstack_visual_indexes": [1, 2],
    }
    config = transformers.Qwen3VLConfig(
        vision_config=vision,
        text_config=_qwen_text({"head_dim": 16} | changes, [4, 2, 2]),
        tie_word_embeddings=False,
        **QWEN_IDS,
    )
    return transformers.Qwen3VLForConditionalGeneration(config), _qwen_files(16)


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


FAMILIES: dict[str, Callable[[dict[str, Any]], tuple[Any, Callable[[Path], None]]]] = {
    "llava": llava,
    "llava_next_mistral": llava_next("mistral"),
    "llava_next_vicuna": llava_next("llama"),
    "qwen2_vl": qwen2_vl,
    "qwen2_5_vl": qwen2_5_vl,
    "qwen3_vl": qwen3_vl,
    "smolvlm": smolvlm,
    "internvl": internvl,
}
