"""Channels of feed-forward networks in the order in which pictures use them: the same model, another file."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest

from halfv_edge.cli.main import main
from halfv_edge.engine.model import Model
from halfv_edge.errors import HalfVError
from halfv_edge.gguf import channels
from halfv_edge.gguf.read import read_metadata
from halfv_edge.measure.calibrate.channels import channel_use
from halfv_edge.measure.calibrate.samples import find_samples
from halfv_edge.testing.client import Client
from tests.support.dialogue import feed, make_prompt
from tests.support.reference.halfv_torch import Reference
from tests.support.tiny_models import make_tiny
from tests.support.vlm import Vlms


def weights(path: Path) -> dict[str, np.ndarray]:
    return {t.name: gguf.quants.dequantize(t.data, t.tensor_type) for t in gguf.GGUFReader(path).tensors}


@pytest.mark.parametrize(("ftype", "block"), [("f32", 1), ("f16", 1), ("q8_0", 32), ("q4_0", 32)])
def test_another_order_is_the_same_model(tmp_path: Path, ftype: str, block: int) -> None:
    path = make_tiny(tmp_path / "model.gguf", "qwen2vl", n_layer=4, ftype=ftype)
    source = read_metadata(path)
    found = channels.networks(source)
    assert {layer: (each.count, each.block) for layer, each in found.items()} == dict.fromkeys(range(4), (128, block))
    rng = np.random.default_rng(0)
    orders = {layer: channels.by_use(3 * rng.random(128) + np.arange(128), found[layer]) for layer in (0, 1, 3)}
    assert all(sorted(order) == list(range(128)) and list(order) != sorted(order) for order in orders.values())
    other = tmp_path / "other.gguf"
    groups = channels.head_groups(source)
    assert groups == dict.fromkeys(range(4), channels.Parts(2, 1))
    channels.reorder(source, orders, other, heads={1: np.array([1, 0])}, progress=False)
    assert other.stat().st_size == path.stat().st_size

    before, after = weights(path), weights(other)
    for name, values in before.items():
        layer = int(name.split(".")[1]) if name.startswith("blk.") else -1
        order = orders.get(layer)
        if order is not None and "ffn_down" in name:
            values = values[:, order]
        elif order is not None and ("ffn_gate" in name or "ffn_up" in name):
            values = values[order]
        if name.startswith("blk.1.attn_") and name.endswith(
            ("q.weight", "k.weight", "v.weight", "q.bias", "k.bias", "v.bias")
        ):
            values = np.concatenate(np.split(values, 2)[::-1])
        elif name == "blk.1.attn_output.weight":
            values = np.concatenate(np.split(values, 2, axis=1)[::-1], axis=1)
        np.testing.assert_array_equal(after[name], values, name)

    said = []
    for file in (path, other):
        with Client(file) as client:
            said.append(feed(client, make_prompt(Reference(path), [(9, 12)])))
    np.testing.assert_allclose(said[0], said[1], atol=1e-4 if ftype == "f32" else 5e-2)


def test_what_is_used_most_comes_first(vlms: Vlms, tmp_path: Path) -> None:
    """Listening to the new file, channels are in order; of the last layer nothing of a picture is heard."""
    path = vlms.path("qwen2vl")
    out = tmp_path / "model.gguf"
    command = ["channels", "-m", str(path), "--mmproj", str(path.parent / "mmproj-model.gguf"), "--samples", "4"]
    assert main([*command, "--threads", "1", "-o", str(out)]) == 0
    samples = find_samples(None, n_samples=4, seed=0)
    use = {}
    for file in (path, out):
        with Model.load(file, path.parent / "mmproj-model.gguf", n_ctx=2048, profile="off", n_gpu_layers=0) as model:
            use[file] = channel_use(model, samples)
    heads = {}
    for file in (path, out):
        said = channels.uses_of(use[file].heads, read_metadata(file), "attn_output")
        heads[file] = np.stack([said[layer].reshape(2, -1).sum(axis=1) for layer in range(6)])  # two groups
    assert (heads[out][:, 0] >= heads[out][:, 1] * 0.999).all() and (heads[path][:, 0] < heads[path][:, 1]).any()
    np.testing.assert_allclose(np.sort(heads[path]), np.sort(heads[out]), rtol=1e-3)
    loud = {file: channels.uses_of(use[file].channels, read_metadata(file), "ffn_down") for file in (path, out)}
    assert sorted(loud[path]) == sorted(loud[out]) == list(range(5))
    for layer in range(5):
        before, after = (loud[file][layer] for file in (path, out))
        np.testing.assert_allclose(np.sort(before), np.sort(after), rtol=1e-3)
        assert (before > 0).all() and (np.diff(after) <= 1e-3 * after[0]).all()
        assert (np.diff(before) > 1e-3 * before.max()).any()


def test_what_cannot_be_ordered(tmp_path: Path) -> None:
    path = make_tiny(tmp_path / "model.gguf", "llama", n_layer=2)
    assert main(["channels", "-m", str(path), "--mmproj", str(path), "-o", str(path)]) != 0
    raw = path.read_bytes()
    path.write_bytes(raw.replace(b"blk.1.ffn_up.weight", b"blk.1.ffn_xx.weight"))
    with pytest.raises(HalfVError, match=r"has blk\.1\.ffn_xx\.weight, so its channels stay where they are"):
        channels.networks(read_metadata(path))
    path.write_bytes(raw.replace(b"blk.1.ffn_up.weight", b"blk.0.ffn_xp.weight"))
    with pytest.raises(HalfVError, match="so its channels stay where they are"):
        channels.networks(read_metadata(path))
