"""The names that people import, and the settings behind keyword arguments."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import get_type_hints

import pytest

import halfv_edge
from halfv_edge.engine import options
from halfv_edge.engine.model import Model
from halfv_edge.errors import HalfVError
from halfv_edge.hub.demo import DEMO_FOLDER
from halfv_edge.hub.find import KNOWN, locate_files
from tests.support.vlm import Vlms


def test_every_public_name_is_there() -> None:
    for name in halfv_edge._HOME:
        assert getattr(halfv_edge, name).__name__ == name
    assert set(halfv_edge._HOME) <= set(dir(halfv_edge))
    with pytest.raises(AttributeError, match="no attribute 'Modle'"):
        halfv_edge.Modle  # noqa: B018


def test_importing_the_package_imports_nothing_heavy() -> None:
    check = "import sys, halfv_edge; print([m for m in ('numpy', 'PIL', 'halfv_cpp', 'llama_cpp') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", check], capture_output=True, text=True).stdout == "[]\n"


def test_the_package_has_types() -> None:
    assert any(Path(folder, "py.typed").is_file() for folder in halfv_edge.__path__)


def test_options_and_their_names_for_type_checkers_are_the_same() -> None:
    for made, named in ((options.ModelOptions, options.ModelFields), (options.AnswerOptions, options.AnswerFields)):
        assert [field.name for field in dataclasses.fields(made)] == list(named.__annotations__)
        assert get_type_hints(made) == get_type_hints(named)


def test_options_are_checked_as_they_are_made() -> None:
    for field, value in (("n_batch", 0), ("keep", 1.5), ("pixel_tau", -1), ("kv_type", "q9"), ("undo_mb", -1)):
        with pytest.raises(HalfVError, match=f"^{field} = ") as caught:
            options.ModelOptions(**{field: value})
        assert (caught.value.parameter, caught.value.value) == (field, value)


def test_names_go_before_options(vlms: Vlms) -> None:
    wanted = options.ModelOptions(n_ctx=512, n_threads=1, profile="off")
    with Model.load(vlms.path("llava"), options=wanted, n_ctx=256) as model, model.chat() as chat:
        assert chat.n_ctx == 256 and model.profile is None


def test_a_chat_outlives_the_name_of_its_model(vlms: Vlms) -> None:
    chat = Model.load(vlms.path("llava"), n_ctx=256, n_threads=1).chat()
    assert isinstance(chat.answer("why", max_tokens=2), str)
    chat.close()


def test_what_a_model_may_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, Path | None]] = []
    monkeypatch.setattr("halfv_edge.hub.find._from_hub", lambda hub, mmproj: asked.append((hub, mmproj)))
    monkeypatch.chdir(tmp_path)
    locate_files("owner/repo", None)
    locate_files("owner/repo:Q8_0", None)
    locate_files("qwen3-vl-2b", None)
    assert asked == [("owner/repo", None), ("owner/repo:Q8_0", None), (KNOWN["qwen3-vl-2b"], None)]
    (tmp_path / "models").mkdir()
    for path in ("models/mistyped", "owner/repo.gguf", Path("owner/repo")):
        with pytest.raises(HalfVError, match="does not exist"):
            locate_files(path, None)
    assert locate_files(None, None).model.parent == DEMO_FOLDER
    assert len(asked) == 3
