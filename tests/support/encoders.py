"""Encoders of random weights, loaded in one way or another, and what they make of a picture."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path

import halfv_cpp
import numpy as np
from halfv_cpp import llama_h, log
from PIL import Image

from halfv_edge.engine.encoder import Encoder
from halfv_edge.engine.images import Picture
from halfv_edge.profile.profile import Intake, Profile
from tests.support.tiny_models import make_tiny

N_EMBD, N_LAYER = 64, 4  # of the language model that they belong to
STOCK, WINDOWS, FAST = 0, 1, 2  # enum halfv_attention


class Encoders(contextlib.ExitStack):
    """Encoders for one tiny language model."""

    def __init__(self, folder: Path, arch: str = "llama"):
        super().__init__()
        self.path = make_tiny(folder / "text.gguf", arch, n_embd=N_EMBD, n_layer=N_LAYER)
        params = llama_h.llama_model_default_params()
        self.model = llama_h.llama_model_load_from_file(str(self.path).encode(), params)
        assert self.model
        self.callback(llama_h.llama_model_free, self.model)

    @contextlib.contextmanager
    def open(
        self, mmproj: Path, weights: str = "off", attention: int = STOCK, flash: int = 1, use_gpu: bool = False,
        tau: float | None = None, reduction: tuple[int, float] = (1, 1.0), on_tensor: object = None,
    ) -> Iterator[Encoder]:  # fmt: skip
        intake = Intake(pixel_tau=tau, encoder_layer=reduction[0], encoder_keep=reduction[1])
        profile = intake.within(dataclasses.replace(Profile.default(N_LAYER), min_visual_tokens=0)).to_c()
        halfv_cpp.set_model_profile(self.model, None if intake == Intake() else profile)
        encoder = Encoder.load(
            mmproj, self.model, self.path, use_gpu=use_gpu, n_threads=1, flash_attn=flash, image_max_tokens=None,
            intake=intake, cache_bytes=0, weights=weights, attention=attention, on_tensor=on_tensor,
        )  # fmt: skip
        try:
            yield encoder
        finally:
            encoder.close()

    def embeddings(self, mmproj: Path, picture: Image.Image, **how: object) -> np.ndarray:
        """Of every token of a picture; halfv_cpp.log then has what loading and encoding have said."""
        log.capture()  # other tests may have taken the log
        log.clear()
        with self.open(mmproj, **how) as encoder:
            encoded = encoder.tokens(Picture("picture", picture))
            encoder.encode(encoded)
            return np.concatenate([chunk.embd for chunk in encoded.chunks])


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


def nmse(actual: np.ndarray, expected: np.ndarray) -> float:
    return float(((actual - expected) ** 2).sum() / (expected**2).sum())


def least_cosine(actual: np.ndarray, expected: np.ndarray) -> float:
    """Over the tokens."""
    norms = np.linalg.norm(actual, axis=1) * np.linalg.norm(expected, axis=1)
    return float(((actual * expected).sum(axis=1) / norms).min())
