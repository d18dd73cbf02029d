"""What `halfv convert` refuses, before it begins and when the converter finds it."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import resource
import shutil
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from halfv_convert import checks, worker
from safetensors.torch import load_file, save_file

from halfv_edge.cli.main import main
from halfv_edge.errors import HalfVError
from tests.support import tiny_tokenizers
from tests.support.checkpoint_edits import MINE, published_llava, weights
from tests.support.converted import Pair


def no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def bad_json(folder: Path) -> None:
    (folder / "config.json").write_text('{"architectures": [')


def list_config(folder: Path) -> None:
    (folder / "config.json").write_text("[]")


def set_config(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "config.json"
        tiny_tokenizers.write_json(path, json.loads(path.read_text()) | changes)

    return change


def no_file(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def no_mean(folder: Path) -> None:
    tiny_tokenizers.write_json(folder / "preprocessor_config.json", {"image_mean": 0.5})


def no_shard(folder: Path) -> None:
    published_llava(folder)
    (folder / "model-00002-of-00002.safetensors").unlink()


def wrong_index(folder: Path) -> None:
    published_llava(folder)
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["extra.weight"] = "model-00001-of-00002.safetensors"
    tiny_tokenizers.write_json(path, index)


def header(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def spoil(data: bytes) -> bytes:
        (length,) = struct.unpack("<Q", data[:8])
        fields = json.loads(data[8 : 8 + length])
        change(fields)
        new = json.dumps(fields).encode()
        return struct.pack("<Q", len(new)) + new + data[8 + length :]

    return weights(spoil)


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n"
NORM = "language_model.model.norm.weight"


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (no_config, r"tiny has no config\.json: it is not a Hugging Face checkpoint"),
        (bad_json, r"config\.json is not valid JSON"),
        (list_config, r"config\.json is not a JSON object"),
        (set_config(architectures=["LlavaLlamaForCausalLM"]), r"take the checkpoint of llava-hf"),
        (set_config(architectures=None), r"holds None"),
        (no_file("tokenizer.model"), r"has no tokenizer \(none of tokenizer\.json"),
        (no_file("preprocessor_config.json"), r"has no processor_config\.json or preprocessor_config\.json"),
        (no_mean, r"has image_mean = 0\.5: three numbers are needed"),
        (no_file("model.safetensors"), r"has no weights"),
        (no_shard, r"has 1 of 2 shards: model-00002-of-00002\.safetensors is missing"),
        (wrong_index, r"has no tensor extra\.weight"),
        (weights(lambda data: data[:-1000]), r"is cut short: \S+ ends at byte \d+ of \d+"),
        (weights(lambda data: data[:5]), r"header cannot be 0 bytes long"),
        (weights(lambda data: b"\xff" * 8 + data[8:]), r"header cannot be 18446744073709551615 bytes long"),
        (weights(lambda data: data[:8] + b"{[" + data[10:]), r"its header cannot be read"),
        (weights(lambda data: LFS), r"is a Git LFS pointer"),
        (header(lambda fields: fields[NORM].update(shape=[65])), rf"is damaged: 256 bytes for {NORM} of \[65\]"),
        (header(lambda fields: fields[NORM].update(shape=[-64])), rf"the shape or place of {NORM}"),
        (header(lambda fields: fields[NORM].pop("shape")), r"its header cannot be read \('shape'\)"),
        (header(lambda fields: fields.update({NORM: 7})), r"its header cannot be read"),
    ],
)
def test_bad_checkpoint(
    spoil: Callable[[Path], None], sentence: str, llava: Path, capsys: pytest.CaptureFixture
) -> None:
    spoil(llava)
    refused(["convert", str(llava)], sentence, llava.parent, capsys)


@contextlib.contextmanager
def working_in(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def refused(arguments: list[str], sentence: str, folder: Path, capsys: pytest.CaptureFixture) -> None:
    """Exit code 2, one sentence and nothing new in the folder, which is where outputs go by default."""
    before = sorted(folder.rglob("*"))
    with working_in(folder):
        assert main(arguments) == 2
    said = capsys.readouterr()
    assert said.out == ""
    last = said.err.splitlines()[-1]
    assert re.search(sentence, last), said.err
    assert last.startswith("halfv: ")
    assert "Traceback" not in said.err
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["absent"], r"absent does not exist"),
        (["tiny/tokenizer.model"], r"is a file and not the folder"),
        (["other.gguf"], r"for a GGUF there is `halfv profile add`"),
        (["tiny", "--type", "q9"], r"The type 'q9' is not one of f32, f16"),
        (["tiny", "--mmproj-type", "q4_k_m"], r"The type 'q4_k_m' of the vision encoder is not one of f32"),
        (["tiny", "-o", "other.gguf"], r"other\.gguf exists already: delete it"),
        (["tiny", "--mmproj", "other.gguf"], r"other\.gguf exists already"),
        (["tiny", "-o", "new.gguf", "--mmproj", "new.gguf"], r"cannot be both"),
        (["tiny", "-o", "tiny"], r"tiny is a folder: name the file in it"),
        (["tiny", "-o", "absent/new.gguf"], r"absent is not a folder: make it first"),
        (["tiny", "--profile", "llava-1.5-7"], r"There is no preset 'llava-1\.5-7': did you mean llava-1\.5-7b"),
        (["tiny", "--profile", "absent.json"], r"absent\.json"),
        (["tiny", "--profile", "other.gguf"], r"other\.gguf is not valid JSON"),
    ],
)
def test_bad_arguments(arguments: list[str], sentence: str, llava: Path, capsys: pytest.CaptureFixture) -> None:
    (llava.parent / "other.gguf").write_bytes(b"x")
    refused(["convert", *arguments], sentence, llava.parent, capsys)


def test_too_little_room(llava: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    usage = shutil.disk_usage(llava)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    refused(["convert", str(llava)], r"not enough room in \S+: about 0\.0 GB are needed", llava.parent, capsys)


def test_missing_package(llava: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    sentence = r"transformers must be installed to convert: run `pip install halfv-edge\[convert\]`"
    refused(["convert", str(llava)], sentence, llava.parent, capsys)


def test_worker_dies(llava: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    refused(["convert", str(llava)], r"was ended by the system \(code 1\)", llava.parent, capsys)


# --- mistakes that the converter finds ---


def wrong_shape(name: str, *shape: int) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        assert name in tensors
        tensors[name] = torch.zeros(shape)
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})

    return change


def missing(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        del tensors[name]
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})

    return change


UP = "language_model.model.layers.1.mlp.up_proj.weight"
FC1 = "vision_tower.encoder.layers.1.mlp.fc1.weight"
GOOD_SHAPES = {
    **{f"v.blk.{i}.attn_q.weight": (8, 8) for i in range(3)},
    **{f"v.blk.{i}.ffn_up.weight": (12, 8) for i in range(3)},
    **{f"v.blk.{i}.ffn_up.bias": (12,) for i in range(3)},
    **{f"v.blk.{i}.ffn_down.weight": (8, 12) for i in range(3)},
    **{f"v.blk.{i}.ln1.weight": (8,) for i in range(3)},
    **{"v.patch_embd.weight": (8, 3, 14, 14), "v.position_embd.weight": (5, 8)},
    **{"mm.0.weight": (20, 8), "mm.2.weight": (16, 20), "mm.2.bias": (16,)},
}


@pytest.mark.parametrize(
    ("name", "shape", "sentence"),
    [
        ("v.blk.1.attn_q.weight", (8, 9), r"attn_q\.weight has the shape \[8, 9\]: in the other layers it is \[8, 8\]"),
        ("v.blk.2.ffn_up.bias", (13,), r"ffn_up\.bias has the shape \[13\]: expected \[12\]"),
        ("v.blk.0.ln1.weight", None, r"Layer 0 of the vision encoder lacks a tensor that the others have: ln1\.weight"),
        ("v.patch_embd.weight", (8, 3, 16, 16), r"expected \[8, 3, 14, 14\]"),
        ("v.position_embd.weight", (5, 7), r"each position needs 8 numbers"),
        ("mm.2.weight", (16, 21), r"projector\.weight has the shape \[16, 21\]: expected \[16, 20\]"),
        ("mm.2.weight", (15, 20), r"has the shape \[1[56]"),
        ("v.blk.*.ffn_down.weight", (8, 13), r"ffn_down\.weight has the shape \[8, 13\]: expected \[8, 12\]"),
        ("v.blk.*.attn_q.weight", (9, 8), r"attn_q\.weight has the shape \[9, 8\]: expected \[8, 8\]"),
    ],
)
def test_shapes_of_the_vision_encoder(name: str, shape: tuple[int, ...] | None, sentence: str) -> None:
    """llama.cpp would abort at the first picture."""

    def model(shapes: dict[str, tuple[int, ...]]) -> Any:
        hparams = {"hidden_size": 8, "layers": 3, "patch_size": 14}
        tensors = {name: SimpleNamespace(shape=shape) for name, shape in shapes.items()}
        return SimpleNamespace(
            gguf_writer=SimpleNamespace(tensors=[tensors]),
            find_vparam=lambda keys: hparams[keys[0]],
            n_block_keys=["layers"],
            n_embd_text=16,
        )

    checks.vision_shapes(model(GOOD_SHAPES), {})
    names = [name.replace("*", str(i)) for i in range(3)]
    bad = {key: value for key, value in GOOD_SHAPES.items() if key not in names} | dict.fromkeys(names, shape)
    bad = {key: value for key, value in bad.items() if value is not None}
    with pytest.raises(HalfVError, match=sentence):
        checks.vision_shapes(model(bad), {"mm.2.weight": "projector.weight"})


@pytest.mark.parametrize(
    ("spoil", "arguments", "sentence"),
    [
        (wrong_shape(UP, 96, 60), [], r"up_proj\.weight has the shape \[96, 60\]: expected \[96, 64\]"),
        (missing(UP), [], r"lacks a tensor: .*blk\.1\.ffn_up\.weight"),
        (wrong_shape(FC1, 96, 64), [], r"fc1\.(weight|bias) has the shape"),
        (
            set_config(architectures=["BertModel"]),
            [],
            r"holds 'BertModel', which llama\.cpp does not convert",
        ),
        (set_config(architectures=["Qwen2AudioForConditionalGeneration"]), [], r"which hears and does not see"),
        (set_config(vision_config={"model_type": "siglip"}), [], r"encoder is a 'siglip': .* CLIP or Pixtral"),
        (set_config(vision_feature_layer=[-2, -5]), [], r"vision_feature_layer = \[-2, -5\] .*only one"),
        (lambda folder: None, ["--profile", "mine.json"], r"halfv\.ssr\.layer = 9 is not valid.*4 layers"),
    ],
)
def test_converter_refuses(
    spoil: Callable[[Path], None], arguments: list[str], sentence: str, llava: Path, capsys: pytest.CaptureFixture
) -> None:
    spoil(llava)
    deep = MINE.to_json()
    deep["ssr"]["layer"] = 9
    (llava.parent / "mine.json").write_text(json.dumps(deep))
    refused(["convert", str(llava), *arguments], sentence, llava.parent, capsys)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], r"tokenizer is not one that llama\.cpp knows by its fingerprint.*--tokenizer-pre qwen2"),
        (["--tokenizer-pre", "qwen9"], r"unknown pre-tokenizer type: 'qwen9'"),
    ],
)
def test_unknown_tokenizer(
    arguments: list[str], sentence: str, pairs: Callable[[str], Pair], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    refused(["convert", str(pairs("qwen2_5_vl").folder), *arguments], sentence, tmp_path, capsys)


@contextlib.contextmanager
def no_file_above(n_bytes: int) -> Iterator[None]:
    """Stands for a full disk: writing fails, in this process and its children."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_disk_becomes_full(llava: Path, capsys: pytest.CaptureFixture) -> None:
    with no_file_above(200_000):
        refused(["convert", str(llava)], r"not enough room in \S+: the disk became full", llava.parent, capsys)


def test_numpy_tells_of_a_full_disk_in_words() -> None:
    assert worker.is_full_disk(OSError("4352 requested and 3712 written"))
    assert not worker.is_full_disk(OSError(errno.EACCES, "Permission denied"))


def test_log_is_kept_when_asked_for(
    llava: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    logs = tmp_path_factory.mktemp("logs")
    monkeypatch.setattr("tempfile.tempdir", str(logs))
    path = llava / "tokenizer.model"
    path.write_bytes(path.read_bytes()[:100])
    before = sorted(llava.parent.rglob("*"))
    with working_in(llava.parent):
        assert main(["convert", str(llava), "--verbose"]) == 2
    said = capsys.readouterr().err
    (log,) = logs.iterdir()
    assert f"the converter's log is {log}." in said
    assert "Traceback" in log.read_text()
    assert "Traceback" not in said
    assert sorted(llava.parent.rglob("*")) == before
