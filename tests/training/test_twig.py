"""A twig for the demo model: what is written is what `halfv twig` reads, and only the twig learns."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from halfv_convert import convert_twig, untrained_twig

from halfv_edge.hub.demo import DEMO_FOLDER, MODEL

pytest.importorskip("safetensors")
from training import pictures, shipped
from training.batches import batches
from training.train_twig import AFTER, LAYERS, Run


@pytest.fixture
def model_and_words() -> tuple:
    return shipped.load(DEMO_FOLDER)


def test_weights_are_those_of_halfv_twig(model_and_words: tuple, tmp_path: Path) -> None:
    """Before its first step a trained twig is the untrained one."""
    Run(tmp_path, *model_and_words, 0.0, AFTER, LAYERS).save()
    convert_twig(DEMO_FOLDER / MODEL, tmp_path, tmp_path / "trained.gguf", after=AFTER)
    untrained_twig(DEMO_FOLDER / MODEL, tmp_path / "untrained.gguf", after=AFTER, layers=LAYERS)
    trained, untrained = (gguf.GGUFReader(tmp_path / f"{name}.gguf").tensors for name in ("trained", "untrained"))
    assert [tensor.name for tensor in trained] == [tensor.name for tensor in untrained]
    for ours, expected in zip(trained, untrained, strict=True):
        np.testing.assert_array_equal(ours.data, expected.data, ours.name)


def test_only_the_twig_learns_and_it_goes_on(model_and_words: tuple, tmp_path: Path) -> None:
    model, vocabulary = model_and_words
    torch.manual_seed(0)
    run = Run(tmp_path, model, vocabulary, 1.0, AFTER, LAYERS)
    before = {name: weight.clone() for name, weight in run.twig.state_dict().items()}
    batch = next(batches("train", 1, 0, vocabulary, most=10, side=pictures.SIZE))
    losses = [run.learn(batch)[0] for _ in range(3)]
    run.step, run.sec = 3, 2.5
    run.save()
    changed = {name for name, weight in run.twig.state_dict().items() if not torch.equal(weight, before[name])}
    shared = {name for name in before if name == "embed.weight" or name.startswith(("blocks.0.", "blocks.1."))}
    assert changed and not changed & shared
    assert changed >= {f"blocks.{number}.qkv.weight" for number in range(AFTER, AFTER + LAYERS)} | {"head.weight"}
    assert losses[2] < losses[0]
    again = Run(tmp_path, model, vocabulary, 1.0, AFTER, LAYERS)
    assert (again.step, again.sec) == (3, 2.5)
    assert all(torch.equal(weight, run.twig.state_dict()[name]) for name, weight in again.twig.state_dict().items())
