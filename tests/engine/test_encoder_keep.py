"""Fewer groups in an encoder's later layers, asked for in Python and by commands."""

from __future__ import annotations

import argparse
import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from halfv_edge.cli import flags
from halfv_edge.engine.images import load as load_image
from halfv_edge.engine.model import Model
from halfv_edge.engine.model_profile import resolve_profile
from halfv_edge.engine.options import Pruning
from halfv_edge.errors import HalfVError
from halfv_edge.profile.model_file import ModelFile
from halfv_edge.profile.profile import Profile
from halfv_edge.server import llama_server
from halfv_edge.server.outlook import look
from tests.support.holes import noise
from tests.support.tiny_mmproj import make_tiny_mmproj
from tests.support.tiny_models import make_tiny
from tests.support.vlm import CHATML, PROFILE, QUESTION, Vlms

PICTURE = Image.fromarray(noise(14 * 28, 12 * 28, 28))
N_LAYERS = 3  # of the encoders
WHOLE = Profile(1, 1.0, 0.1, 6, 1.0, "dropped", min_visual_tokens=1)  # prunes nothing


def rows(model: Model) -> np.ndarray:
    encoded = model.encoder.tokens(load_image(PICTURE))
    model.encoder.encode(encoded)
    return np.concatenate([chunk.embd for chunk in encoded.chunks])


def test_which_layer_and_share(vlms: Vlms) -> None:
    about = ModelFile.read(vlms.path("qwen2vl"))

    def found(**wanted: object) -> tuple[int, float]:
        profile = resolve_profile(about, Pruning(**wanted)).profile
        return (profile.encoder_layer, profile.encoder_keep) if profile else (1, 1.0)

    with_keys = dataclasses.replace(WHOLE, encoder_layer=2, encoder_keep=0.5)
    assert found() == found(encoder_keep=1.0) == (1, 1.0) and found(profile=with_keys, encoder_keep=1)[1] == 1
    assert found(profile="off", encoder_layer=3, encoder_keep=0.25) == (3, 0.25)
    assert found(profile=with_keys) == (2, 0.5)
    assert found(profile=with_keys, encoder_keep=0.25) == (2, 0.25)
    assert found(profile=with_keys, encoder_layer=3) == (3, 0.5)


def test_merging_and_channels(vlms: Vlms) -> None:
    """As asked for they are in force, and what needs weights as the file has them gets them so."""
    whole = vlms.load("qwen2vl")
    asked = vlms.load("qwen2vl", input_merge=0.5, ffn_layer=3, ffn_keep=0.5)
    assert whole.profile and asked.profile
    expected = dataclasses.replace(whole.profile, input_merge=0.5, ffn_layer=3, ffn_keep=0.5)
    assert asked.profile == dataclasses.replace(expected, calibration=None)
    assert asked.encoder.intake.input_merge == 0.5
    counts = []
    for model in (whole, asked):
        with model.chat() as chat:
            chat.answer(QUESTION, [PICTURE], max_tokens=2)
            counts.append(chat.stats.n_visual)
    assert counts[1] == counts[0] // 2
    outlook = look(vlms.path("qwen2vl"), None, Pruning(ffn_layer=3, ffn_keep=0.5))
    assert "--no-repack" in llama_server.command(outlook, [])
    assert "--no-repack" not in llama_server.command(look(vlms.path("qwen2vl"), None, Pruning()), [])


def test_stages_behind_the_third(vlms: Vlms) -> None:
    whole = vlms.load("qwen2vl")
    asked = vlms.load("qwen2vl", further_layers=[5], further_keep=[0])
    assert whole.profile and asked.profile
    expected = dataclasses.replace(whole.profile, further_layers=(5,), further_keep=(0.0,), calibration=None)
    assert asked.profile == expected
    with asked.chat() as chat:
        chat.answer(QUESTION, [PICTURE], max_tokens=2)
        stats = chat._conversation.context.stats()
    assert stats["n_deep"] == 16 and stats["n_further"] == [0]
    about = ModelFile.read(vlms.path("qwen2vl"))
    none = Pruning(profile=expected, further_layers=(), further_keep=())
    assert resolve_profile(about, none).profile == dataclasses.replace(whole.profile, calibration=None)
    args = argparse.ArgumentParser()
    flags.add_flags(args)
    given = args.parse_args(["--further-layers", "5", "--further-keep", "0"])
    assert resolve_profile(about, Pruning(**flags.pruning(given))).profile == expected


@pytest.mark.parametrize(
    ("wanted", "says"),
    [
        (
            {"further_layers": 5, "further_keep": [0]},
            r"further_layers = 5 is not valid: it must be a list of numbers",
        ),
        (
            {"further_layers": [5.5], "further_keep": [0]},
            r"further_layers = 5\.5 is not valid: it must be a whole",
        ),
        ({"further_layers": [5], "further_keep": [2]}, r"further_keep = 2 is not valid: it must be between 0 and 1\."),
        ({"further_layers": [5]}, r"halfv\.further\.keep = 0 values is not valid: halfv\.further\.layers has 1"),
        ({"further_layers": [3], "further_keep": [0]}, r"halfv\.further\.layers = 3 is not valid: it must be "),
        ({"encoder_keep": 0.0}, r"encoder_keep = 0\.0 is not valid: it must be above 0 and at most 1\."),
        ({"encoder_layer": 0}, r"encoder_layer = 0 is not valid: it must be at least 1\."),
        ({"encoder_keep": 0.5}, r"encoder_keep = 0\.5 says nothing without .*: give encoder_layer as well\."),
        ({"ffn_keep": 0.5}, r"ffn_keep = 0\.5 says nothing without .*: give ffn_layer as well\."),
        ({"ffn_layer": 2}, r"ffn_layer = 2 says nothing without .*: give ffn_keep as well\."),
        ({"ffn_keep": 0.5, "ffn_layer": 1}, r"halfv\.ffn\.layer = 1 is not valid: it must be at least halfv"),
        ({"input_merge": 1.5}, r"input_merge = 1\.5 is not valid: it must be above 0 and at most 1\."),
        ({"encoder_layer": 2}, r"encoder_layer = 2 says nothing without .*: give encoder_keep as well\."),
    ],
)
def test_mistakes(wanted: dict[str, float], says: str, vlms: Vlms) -> None:
    with pytest.raises(HalfVError, match=says):
        resolve_profile(ModelFile.read(vlms.path("qwen2vl")), Pruning(**wanted))


def test_from_python(vlms: Vlms) -> None:
    whole = vlms.load("llava", profile=WHOLE)
    reduced = vlms.load("llava", profile=WHOLE, encoder_layer=1, encoder_keep=0.5)
    assert (reduced.encoder.intake.encoder_keep, reduced.encoder.last_cut) == (0.5, N_LAYERS - 2)
    assert rows(reduced).shape == rows(whole).shape and not np.array_equal(rows(reduced), rows(whole))
    assert np.array_equal(rows(vlms.load("llava", profile=WHOLE, encoder_keep=1.0)), rows(whole))


def test_counted(vlms: Vlms) -> None:
    """Of each picture of the conversation, also where another chat had it encoded."""
    for n_encoded in (1, 0):
        with vlms.load("qwen2vl", profile=WHOLE, encoder_layer=1, encoder_keep=0.4).chat() as chat:
            chat.answer(QUESTION, [PICTURE], max_tokens=1)
            assert (chat.stats.n_groups, chat.stats.n_seen, chat.stats.n_encoded) == (168, int(0.4 * 168), n_encoded)
    with vlms.load("qwen2vl", profile=WHOLE).chat() as chat:
        chat.answer(QUESTION, [PICTURE], max_tokens=1)
        assert (chat.stats.n_groups, chat.stats.n_seen) == (0, 0)


def test_commands(tmp_path: Path) -> None:
    make_tiny(tmp_path / "m.gguf", "llama", seed=3, profile=PROFILE, **{"tokenizer.chat_template": CHATML})
    make_tiny_mmproj(tmp_path / "mmproj-m.gguf", "llava", n_embd=64)
    PICTURE.save(tmp_path / "a.png")

    def chat(*flags: str) -> subprocess.CompletedProcess[str]:
        line = [sys.executable, "-m", "halfv_edge", "chat", "-m", "m.gguf", "a.png", "-p", QUESTION, "--threads", "1"]
        return subprocess.run([*line, "--max-tokens", "2", *flags], cwd=tmp_path, capture_output=True, text=True)

    done = chat("--encoder-layer", "1", "--encoder-keep", "0.5")
    assert " | 50 of 100 groups through the encoder | " in done.stderr
    done = chat("--encoder-layer", "9", "--encoder-keep", "0.5")
    assert "groups" not in done.stderr
    assert f"--encoder-layer 9 has no effect: of this encoder it can be {N_LAYERS - 2} at most." in done.stderr
    done = chat("--encoder-keep", "0.5")
    assert done.returncode == 2
    assert done.stderr.endswith("which the profile does not name: give --encoder-layer as well.\n")
