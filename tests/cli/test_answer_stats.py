"""Why nothing was pruned, in words."""

from __future__ import annotations

from types import SimpleNamespace

import halfv_cpp
import pytest

from halfv_edge.cli import answer_stats
from halfv_edge.engine.model import Model
from halfv_edge.profile.profile import Profile
from tests.support.vlm import Vlms

WHOLE = [SimpleNamespace(n_rows=120, n_visual=120, n_deep=120)]


def test_why_a_picture_stayed_whole(vlms: Vlms, monkeypatch: pytest.MonkeyPatch) -> None:
    with Model.load(vlms.path("llava"), profile="off", n_ctx=256, n_threads=1) as model:
        assert answer_stats.why_whole(model.runtime, WHOLE) == "--profile off"
        model.runtime.profile_source = "off"
        assert (
            answer_stats.why_whole(model.runtime, WHOLE)
            == "no profile is known for this model: --profile names one, --input-keep needs none"
        )
        monkeypatch.setattr(halfv_cpp, "halfv_model_supported", lambda _: False)
        assert answer_stats.why_whole(model.runtime, WHOLE) == "this architecture cannot be, --input-keep can"
        model.runtime.profile = Profile.default(model.n_layer)
        assert answer_stats.why_whole(model.runtime, WHOLE) == "the profile keeps everything"
        given = [SimpleNamespace(n_rows=120, n_visual=60, n_deep=60)]
        assert answer_stats.why_whole(model.runtime, given) == ""
        monkeypatch.setenv("HALFV", "off")
        model.runtime.profile = None
        assert answer_stats.why_whole(model.runtime, WHOLE) == "HALFV=off is set in the environment"
