"""Files of models, and the commands run on them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.support import gguf_bytes
from tests.support.chat_command import ARCHS, ENDLESS
from tests.support.hostile import bomb
from tests.support.profile_command import Run
from tests.support.tiny_mmproj import make_tiny_mmproj
from tests.support.tiny_models import make_tiny
from tests.support.vlm import CHATML, PROFILE, picture


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with models, pictures and whatever can be wrong with them."""
    place = tmp_path_factory.mktemp("chat")
    for kind, arch in ARCHS.items():
        (place / kind).mkdir()
        meta = {"tokenizer.chat_template": CHATML}
        make_tiny(place / kind / "m.gguf", arch, seed=3, profile=PROFILE, **meta)  # this one answers at length
        make_tiny_mmproj(place / kind / "mmproj-m.gguf", kind, n_embd=64)
    (place / "alone").mkdir()
    shutil.copy(place / "llava" / "m.gguf", place / "alone" / "m.gguf")
    (place / "cut.gguf").write_bytes((place / "llava" / "m.gguf").read_bytes()[:200])
    make_tiny_mmproj(place / "wide.gguf", "llava", n_embd=128)
    make_tiny(place / "long.gguf", "llama", **{"llama.context_length": 1 << 28})

    picture(0).save(place / "cat.jpg", quality=95)
    picture(0).save(place / "cat.png")  # JPEGs are decoded a little differently by everyone
    picture(1, 200, 300).save(place / "dog.png")
    (place / "cut.jpg").write_bytes((place / "cat.jpg").read_bytes()[:2000])
    (place / "zero.png").write_bytes(b"")
    (place / "words.txt").write_text("just words\n")
    (place / "bomb.png").write_bytes(bomb(20000, 20000))
    (place / "endless.gbnf").write_text(ENDLESS)
    (place / "undefined.gbnf").write_text('root ::= "a" b')
    (place / "escape.gbnf").write_text(r'root ::= "cat\x1B]0;dog"')
    (place / "schema.json").write_text(
        '{"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}'
    )
    return place


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A file with a profile in the middle of its keys."""
    path = tmp_path / "model.gguf"
    keys = [*gguf_bytes.MODEL[:2], *gguf_bytes.PROFILE, gguf_bytes.MODEL[2]]
    path.write_bytes(gguf_bytes.gguf(keys, gguf_bytes.TENSORS))
    return path


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    path = tmp_path / "bare.gguf"
    path.write_bytes(gguf_bytes.gguf(gguf_bytes.MODEL, gguf_bytes.TENSORS))
    return path


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    return Run(capsys)
