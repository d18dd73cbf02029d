"""Tokenizers of a few hundred words, in the forms in which checkpoints carry them."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import sentencepiece
import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, trainers

TEXT = (
    "what is in the picture? the cat and the dog look at a red house, yes. where is the image from? "
    "it's 1314 o'clock and we're here:\n\nno one knows the answer to this question, or do they?\n\nno.\n\nyes.\n\n"
)
# How Qwen2 cuts text before its byte pairs; llama.cpp calls it qwen2.
QWEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


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


def write_bpe_tokenizer(
    folder: Path, n_vocab: int, specials: tuple[str, ...], eos: str = "<|im_end|>", pad: str = "<|endoftext|>"
) -> None:
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
        "eos_token": eos,
        "pad_token": pad,
        "added_tokens_decoder": {str(n_vocab + i): _added(text) for i, text in enumerate(specials)},
    }
    write_json(folder / "tokenizer_config.json", config)


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2))
