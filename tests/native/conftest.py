"""Tiny models, made once per module."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.dialogue import Model, model_maker
from tests.support.tiny_models import FREEZE, make_tiny


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Callable[..., Path]:
    """Makes each model once."""
    folder = tmp_path_factory.mktemp("models")
    made: dict[str, Path] = {}

    def make(arch: str = "llama", profile: dict | None = FREEZE, **kwargs) -> Path:
        key = repr((arch, profile, kwargs))
        if key not in made:
            made[key] = make_tiny(folder / f"{len(made)}.gguf", arch, profile=profile, **kwargs)
        return made[key]

    return make


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Model]:
    """Makes each with its reference."""
    return model_maker(tmp_path_factory.mktemp("models"))
