"""`halfv convert` on tiny random checkpoints: layouts, types and profiles."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from halfv_convert import convert, profiles

from halfv_edge.cli.main import main
from halfv_edge.profile import presets, stored
from halfv_edge.profile.model_file import ModelFile
from halfv_edge.testing.client import Client
from tests.support import tiny_checkpoints, tiny_tokenizers
from tests.support.checkpoint_edits import MINE, published_llava, read, rename, value
from tests.support.converted import Pair, tokenizer_pre
from tests.support.hf_reference import SIZES, random_picture
from tests.support.mtmd_prompt import MARKER, run_prompt


def published_qwen(folder: Path) -> None:
    """As Qwen has it: the language model's settings at the top."""
    config = json.loads((folder / "config.json").read_text())
    text = config.pop("text_config")
    rope = text.pop("rope_parameters")
    text["rope_theta"] = rope["rope_theta"]
    text["rope_scaling"] = {"type": "mrope", "mrope_section": rope["mrope_section"]}
    del text["layer_types"], text["model_type"]
    tiny_tokenizers.write_json(folder / "config.json", text | config | {"torch_dtype": "bfloat16"})


def published_qwen3(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    text = config["text_config"]
    rope = text.pop("rope_parameters")
    text |= {"rope_theta": rope.pop("rope_theta"), "rope_scaling": rope | {"mrope_interleaved": True}}
    tiny_tokenizers.write_json(folder / "config.json", config)


def published_internvl(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["architectures"] = ["Qwen2ForCausalLM"]
    config["vision_config"]["architectures"] = ["InternVisionModel"]
    tiny_tokenizers.write_json(folder / "config.json", config)
    rename(folder, lambda name: name if name.startswith("language_model.") else f"model.{name}")


def published_smolvlm(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config |= {"architectures": ["Idefics3ForConditionalGeneration"], "model_type": "idefics3"}
    config["text_config"]["architectures"] = ["VLlama3ForCausalLM"]
    config["vision_config"]["model_type"] = "idefics3"
    tiny_tokenizers.write_json(folder / "config.json", config)


def held_by_transformers(folder: Path) -> None:
    """Names as some versions of transformers saved them."""

    def name(old: str) -> str:
        if old.startswith("visual."):
            return f"model.{old}"
        return re.sub(r"^model\.", "model.language_model.", old)

    rename(folder, name)


@pytest.mark.parametrize(
    ("family", "change"),
    [
        ("llava", published_llava),
        ("qwen2_5_vl", published_qwen),
        ("qwen2_5_vl", held_by_transformers),
        ("qwen3_vl", published_qwen3),
        ("smolvlm", published_smolvlm),
        ("internvl", published_internvl),
    ],
)
def test_other_layouts_give_the_same_model(
    family: str, change: Callable[[Path], None], pairs: Callable[[str], Pair], tmp_path: Path
) -> None:
    pair = pairs(family)
    folder = Path(shutil.copytree(pair.folder, tmp_path / "tiny"))
    change(folder)
    pre = tokenizer_pre(family)
    out = tmp_path / "out.gguf"
    done = convert(folder, out, type="f32", mmproj_type="f32", with_profile=False, tokenizer_pre=pre)
    for before, after in ((pair.text, done.model), (pair.vision, done.mmproj)):
        assert contents(before) == contents(after)


def contents(path: Path) -> tuple[dict[str, Any], dict[str, bytes]]:
    reader = read(path)
    keys = {key: field.contents() for key, field in reader.fields.items() if not key.startswith("GGUF.")}
    return keys, {tensor.name: tensor.data.tobytes() for tensor in reader.tensors}


# --- types ---


@pytest.mark.parametrize(
    ("type_", "mmproj_type", "file_type", "closeness"),
    [("q8_0", "q8_0", 7, 0.99), ("q4_k_m", "bf16", 15, 0.6)],
)
def test_types(
    type_: str, mmproj_type: str, file_type: int, closeness: float, pairs: Callable[[str], Pair], tmp_path: Path
) -> None:
    pair = pairs("llava")
    done = convert(pair.folder, tmp_path / "out.gguf", type=type_, mmproj_type=mmproj_type, name="tiny")
    assert value(done.model, "general.file_type") == file_type
    types = {tensor.tensor_type.name for tensor in read(done.model).tensors if len(tensor.shape) == 2}
    assert types.isdisjoint({"F32", "F16"})
    assert {tensor.tensor_type.name for tensor in read(done.mmproj).tensors} - {"F32"} == {mmproj_type.upper()}
    assert done.model.stat().st_size < pair.text.stat().st_size * 0.4

    picture, prompt = random_picture(*SIZES["llava"]), f"what is in {MARKER}the picture?"
    rough = run_prompt(done.model, done.mmproj, picture, prompt).logits
    exact = run_prompt(pair.text, pair.vision, picture, prompt).logits
    assert np.corrcoef(rough, exact)[0, 1] > closeness


# --- profiles ---


def test_profile_of_the_family(pairs: Callable[[str], Pair], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """And the command's own talk: JSON on stdout, sentences on stderr."""
    folder, out = pairs("qwen2_5_vl").folder, tmp_path / "out.gguf"
    assert main(["convert", str(folder), "-o", str(out), "--tokenizer-pre", "qwen2", "--json"]) == 0
    expected = presets.get("qwen2.5-vl-7b").scaled(4).profile
    said = capsys.readouterr()
    assert json.loads(said.out) == {
        "model": str(out),
        "mmproj": str(tmp_path / "mmproj-out.gguf"),
        "profile": expected.to_json(),
    }
    assert "the preset qwen2.5-vl-7b (scaled from a published one, not measured)" in said.err
    assert stored.read_gguf(ModelFile.read(out)) == expected
    assert value(out, "halfv.ivr.keep") == 0.25
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mmproj-out.gguf", "out.gguf"]


def test_no_preset(pairs: Callable[[str], Pair], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "out.gguf"
    assert main(["convert", str(pairs("mistral3").folder), "-o", str(out), "--tokenizer-pre", "qwen2"]) == 0
    said = capsys.readouterr().err.splitlines()[-1]
    assert "no preset for Mistral3ForConditionalGeneration: `halfv calibrate` finds a profile for it" in said
    assert stored.read_gguf(ModelFile.read(out)) is None


def test_profile_from_a_file_survives_quantisation(
    pairs: Callable[[str], Pair], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    mine = tmp_path / "mine.json"
    mine.write_text(json.dumps(MINE.to_json()))
    out = tmp_path / "out.gguf"
    assert main(["convert", str(pairs("llava").folder), "-o", str(out), "--type", "q4_0", "--profile", str(mine)]) == 0
    assert stored.read_gguf(ModelFile.read(out)) == MINE
    assert "profile: as given." in capsys.readouterr().err
    with Client(out, n_ctx=256) as client:  # our libllama took the profile
        assert client.n_vocab == tiny_checkpoints.SPM_WORDS + 4


@pytest.mark.parametrize(
    ("config", "family"),
    [
        ({"model_type": "llava", "text_config": "vicuna"}, "llava-1.5"),
        ({"model_type": "llava", "text_config": "mistral"}, None),
        ({"model_type": "llava_next", "text_config": "vicuna"}, "llava-next-vicuna"),
        ({"model_type": "llava_next", "text_config": "mistral"}, "llava-next-mistral"),
        ({"model_type": "llava_next", "text_config": "yi"}, None),
        ({"model_type": "qwen2_vl"}, "qwen2-vl"),
        ({"model_type": "qwen3_vl"}, "qwen3-vl"),
        ({"model_type": "smolvlm"}, None),
        ({"model_type": "internvl"}, None),
    ],
)
def test_family(config: dict[str, Any], family: str | None) -> None:
    texts = {
        "vicuna": {"model_type": "llama", "vocab_size": 32064, "num_attention_heads": 32, "num_key_value_heads": 32},
        "mistral": {"model_type": "mistral", "vocab_size": 32064, "num_attention_heads": 32, "num_key_value_heads": 8},
        "yi": {"model_type": "llama", "vocab_size": 64064, "num_attention_heads": 56, "num_key_value_heads": 8},
    }
    config = config | {"text_config": texts.get(config.get("text_config"), {})}
    assert profiles.family_of(config) == family
    architecture = {"qwen2-vl": "qwen2vl", "qwen3-vl": "qwen3vl"}.get(str(family), "llama")
    wanted = {"with_profile": True, "profile": None, "preset": None, "name": "Any-2B-Instruct"}
    chosen = profiles.choose(wanted, config, architecture, 28)
    assert (chosen.profile is None) == (family is None)
    if family == "qwen2-vl":
        assert "qwen2-vl-2b" in chosen.source
