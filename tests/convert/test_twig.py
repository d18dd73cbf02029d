"""Twigs: a trained one computes in llama.cpp what transformers computes from it, and scores as it attends; an untrained
one is the model's beginning."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from halfv_convert import convert_twig, untrained_twig
from safetensors.torch import save_file

from halfv_edge.cli.main import main
from halfv_edge.engine.images import load
from halfv_edge.engine.model import Model
from halfv_edge.errors import HalfVError
from halfv_edge.gguf.read import read_metadata
from halfv_edge.gguf.twig import AFTER
from halfv_edge.measure.twig import TwigScores
from tests.support import hf_reference, tiny_checkpoints
from tests.support.converted import Pair
from tests.support.hf_reference import SIZES, like_ggml, random_picture
from tests.support.mtmd_prompt import MARKER, PromptRun, run_prompt
from tests.support.tiny_models import ARCHS, make_tiny

SHARED, OWN = 1, 2
PROMPT = f"what is in {MARKER}the picture? yes."


@pytest.fixture
def grown(pairs: Callable[[str], Pair]) -> Callable[[str], tuple[Pair, Any]]:
    """A tiny model, and what it is with a random twig in place of its later layers."""

    def make(family: str) -> tuple[Pair, Any]:
        pair = pairs(family)
        model = copy.deepcopy(pair.model)
        language = model.model.language_model
        del language.layers[SHARED + OWN :]
        model.config.get_text_config().num_hidden_layers = SHARED + OWN
        shared = {name: weight.clone() for name, weight in model.state_dict().items() if not is_of_twig(name)}
        torch.manual_seed(3)
        tiny_checkpoints.randomise(model)
        model.load_state_dict(shared, strict=False)
        return pair, model

    return make


def is_of_twig(name: str) -> bool:
    if found := re.search(r"language_model\.layers\.(\d+)\.", name):
        return int(found[1]) >= SHARED
    return "language_model.norm" in name or "lm_head" in name


def save_released(model: Any, path: Path, dtype: torch.dtype = torch.float32) -> Path:
    """As TwigVLM publishes a twig."""
    language = model.model.language_model
    weights = {f"model.norm.{name}": weight for name, weight in language.norm.state_dict().items()}
    weights |= {f"lm_head.{name}": weight for name, weight in model.lm_head.state_dict().items()}
    for number, layer in enumerate(language.layers[SHARED:]):
        weights |= {f"model.layers.{number}.{name}": weight for name, weight in layer.state_dict().items()}
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(8)  # older checkpoints have it
    save_file({name: weight.to(dtype).contiguous() for name, weight in weights.items()}, path)
    return path


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_a_trained_twig(family: str, grown: Callable, tmp_path: Path) -> None:
    pair, model = grown(family)
    twig = tmp_path / "twig.gguf"
    shape = convert_twig(pair.text, save_released(model, tmp_path / "model.safetensors"), twig, after=SHARED)
    assert (shape.after, shape.layers) == (SHARED, OWN)
    picture = random_picture(*SIZES[family])
    seen = run_prompt(twig, pair.vision, picture, PROMPT)
    with like_ggml(family):
        expected = hf_reference.logits(family, Pair(model, pair.folder, twig, pair.vision), seen, picture)
    assert expected.std() > 1
    assert np.abs(seen.logits - expected).max() / expected.std() < 2e-3  # as whole checkpoints are held to


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_scores_of_a_trained_twig(family: str, grown: Callable, tmp_path: Path) -> None:
    """The last layer's attention of the prompt's last token, mean over heads, as transformers has it."""
    pair, model = grown(family)
    twig = tmp_path / "twig.gguf"
    convert_twig(pair.text, save_released(model, tmp_path / "model.safetensors"), twig, after=SHARED)
    picture = random_picture(*SIZES[family])
    seen: list[torch.Tensor] = []
    model.set_attn_implementation("eager")
    attention = model.model.language_model.layers[-1].self_attn
    attention.register_forward_hook(lambda _module, _given, found: seen.append(found[1]))
    options = {"n_ctx": 1024, "n_threads": 1, "flash_attn": False, "kv_type": "f32", "mmproj_type": "off"}
    with Model.load(pair.text, pair.vision, **options) as base:
        prompt = base.runtime.prompt(load(picture), "what is in the picture?")
        scores = TwigScores(base.runtime, str(twig))
        (ours,) = scores.read(prompt.items, base.encoder)
        (again,) = scores.read(prompt.items, base.encoder)
        scores.close()
    pieces: list[Any] = [item if isinstance(item, int) else item.embd for item in prompt.items]
    with like_ggml(family):
        hf_reference.logits(family, Pair(model, pair.folder, twig, pair.vision), as_seen(pieces), picture)
    n = next(len(piece) for piece in pieces if not isinstance(piece, int))
    before = next(at for at, piece in enumerate(pieces) if not isinstance(piece, int))
    expected = seen[0][0].mean(dim=0)[-1, before : before + n].numpy()
    assert len(ours) == n and expected.max() > 2 * expected.mean()
    np.testing.assert_allclose(ours, expected, rtol=2e-3, atol=1e-6)
    np.testing.assert_array_equal(ours, again)


def as_seen(pieces: list[Any]) -> PromptRun:
    """The prompt in the form that the reference takes."""
    joined: list[Any] = []
    for piece in pieces:
        if isinstance(piece, int) and joined and isinstance(joined[-1], list):
            joined[-1].append(piece)
        else:
            joined.append([piece] if isinstance(piece, int) else piece)
    return PromptRun(joined, np.zeros(0), 0)


def test_types_follow_the_model(grown: Callable, tmp_path: Path) -> None:
    """A twig in bfloat16 behind a model in float32, whose tensors' types it gets."""
    pair, model = grown("llava")
    weights = save_released(model, tmp_path / "model.safetensors", torch.bfloat16)
    convert_twig(pair.text, tmp_path, tmp_path / "twig.gguf", after=SHARED)
    made = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "twig.gguf").tensors}
    assert {tensor.tensor_type for tensor in made.values()} == {gguf.GGMLQuantizationType.F32}
    down = model.model.language_model.layers[SHARED].mlp.down_proj.weight
    np.testing.assert_array_equal(made[f"blk.{SHARED}.ffn_down.weight"].data, down.bfloat16().float().detach().numpy())
    assert weights.exists()


@pytest.mark.parametrize("arch", ARCHS)
def test_an_untrained_twig_is_the_model_cut_short(arch: str, tmp_path: Path) -> None:
    """Random models of the same seed begin alike, so the shorter one is what the twig has to be."""
    profile = {"ivr.layer": 1, "ivr.keep": 0.5}
    whole = make_tiny(tmp_path / "whole.gguf", arch, n_layer=6, profile=profile, ftype="q8_0")
    short = gguf.GGUFReader(make_tiny(tmp_path / "short.gguf", arch, n_layer=5, ftype="q8_0"))
    untrained_twig(whole, tmp_path / "twig.gguf")
    made = gguf.GGUFReader(tmp_path / "twig.gguf")
    assert [tensor.name for tensor in made.tensors] == [tensor.name for tensor in short.tensors]
    for ours, expected in zip(made.tensors, short.tensors, strict=True):
        assert ours.tensor_type == expected.tensor_type
        np.testing.assert_array_equal(ours.data, expected.data)
    keys = {name: field.contents() for name, field in made.fields.items()}
    expected_keys = {name: field.contents() for name, field in short.fields.items()}
    assert keys.pop(AFTER) == 2
    assert {name: value for name, value in keys.items() if not name.startswith("GGUF.")} == {
        name: value for name, value in expected_keys.items() if not name.startswith("GGUF.")
    }


def test_lists_by_layer_are_cut(tmp_path: Path) -> None:
    heads = {"llama.attention.head_count_kv": [2, 2, 2, 2, 1, 1]}
    whole = make_tiny(tmp_path / "whole.gguf", "llama", n_layer=6, **heads)
    untrained_twig(whole, tmp_path / "twig.gguf", after=1, layers=3)
    assert read_metadata(tmp_path / "twig.gguf").value("llama.attention.head_count_kv") == [2, 2, 2, 2]


def test_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = make_tiny(tmp_path / "whole.gguf", "llama", n_layer=6)
    out = tmp_path / "twig.gguf"
    assert main(["twig", str(whole), "--untrained", "3", "--after", "1", "-o", str(out)]) == 0
    said = capsys.readouterr()
    assert said.out == "" and "3 untrained layers behind the first 1 of whole.gguf" in said.err
    assert read_metadata(out).value("llama.block_count") == 4


def refused(spoil: Callable[[dict[str, torch.Tensor]], Any], said: str) -> Any:
    return pytest.param(spoil, said, id=said[:30])


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        refused(lambda w: w.pop("lm_head.weight"), r"has no lm_head\.weight: it is not the twig of such a model"),
        refused(lambda w: w.pop("model.layers.1.mlp.up_proj.weight"), r"has no model\.layers\.1\.mlp\.up_proj\.weight"),
        refused(lambda w: w.update({"leaf_proj.q": torch.zeros(2)}), r"has leaf_proj\.q, for which a twig of .* has"),
        refused(
            lambda w: w.update({"model.norm.weight": torch.zeros(65)}),
            r"has model\.norm\.weight of \[65\], and this model's is of \[64\]",
        ),
        refused(
            lambda w: w.update({"model.norm.weight": torch.zeros(64, dtype=torch.int32)}),
            r"has model\.norm\.weight as I32: F32, F16 or BF16 can be read",
        ),
        refused(
            lambda w: [w.pop(name) for name in list(w) if name.startswith("model.layers.0.")],
            r"has no layers model\.layers\.0 and on",
        ),
    ],
)
def test_mistaken_weights(spoil: Callable, said: str, grown: Callable, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    pair, model = grown("llava")
    path = save_released(model, tmp_path / "model.safetensors")
    weights = load_file(path)
    spoil(weights)
    save_file(weights, path)
    with pytest.raises(HalfVError, match=said):
        convert_twig(pair.text, path, tmp_path / "twig.gguf", after=SHARED, progress=False)
    assert not list(tmp_path.glob("*twig.gguf*"))


def test_other_mistakes(tmp_path: Path) -> None:
    whole = make_tiny(tmp_path / "whole.gguf", "llama", n_layer=4)
    other = make_tiny(tmp_path / "other.gguf", "gemma3", n_layer=4)
    out = tmp_path / "twig.gguf"
    with pytest.raises(HalfVError, match=r"A twig of 3 layers behind the first 2 of .* that model has 4 layers"):
        untrained_twig(whole, out)
    with pytest.raises(HalfVError, match="is of the architecture 'gemma3': twigs are made for llama, "):
        untrained_twig(other, out, layers=1)
    part = make_tiny(tmp_path / "part.gguf", "llama", **{"split.count": 2})
    with pytest.raises(HalfVError, match="is a part of a model in several files"):
        untrained_twig(part, out)
    with pytest.raises(HalfVError, match="is the model itself: give another file"):
        untrained_twig(whole, whole, layers=1)
    with pytest.raises(HalfVError, match="is not a safetensors file"):
        convert_twig(whole, whole, out)
    with pytest.raises(HalfVError, match=r"nothing\.safetensors cannot be read"):
        convert_twig(whole, tmp_path / "nothing.safetensors", out)
    assert not out.exists()
