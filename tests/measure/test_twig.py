"""A twig that chooses: the tokens with the best scores go on, and what the twig computes is counted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from halfv_convert import untrained_twig

from halfv_edge.engine.context import n_cells
from halfv_edge.engine.encoder import Chunk
from halfv_edge.engine.images import load
from halfv_edge.engine.loading import flops_of
from halfv_edge.measure import policies
from halfv_edge.measure.eval.asking import Asker
from halfv_edge.measure.policies import PolicyModel
from halfv_edge.measure.twig import TwigScores
from halfv_edge.profile.profile import Profile
from tests.support.vlm import KINDS, QUESTION, Vlms, picture


@pytest.mark.parametrize("kind", KINDS)
def test_the_best_go_on(kind: str, vlms: Vlms, tmp_path: Path) -> None:
    model = vlms.load(kind)
    twig = tmp_path / "twig.gguf"
    untrained_twig(vlms.path(kind), twig, after=1, layers=2)
    seen = load(picture())
    asker = Asker(model, max_tokens=4, kl_tokens=1)
    try:
        asked = PolicyModel(model.n_layer, model.profile)
        whole, pruned = policies.parse(f"unpruned,twig:{twig}/0.4", asked)
        answers = [asker.ask(policy, seen, QUESTION) for policy in (whole, pruned, pruned)]
        context = asker._contexts[pruned]
        kept, deep = context.image_tokens(0, 2), context.image_tokens(0, 3)
        prompt = model.runtime.prompt(seen, QUESTION)
        scores = TwigScores(model.runtime, str(twig))
        (expected,) = scores.read(prompt.items, model.encoder)
        cost = flops_of(scores.twig.pointer, Profile.default(3), 0, 0, n_cells(prompt.items))[0]
        scores.close()
    finally:
        asker.close()
    (chunk,) = [item for item in prompt.items if isinstance(item, Chunk)]
    count = int(pruned.profile.ivr_keep * chunk.n_tokens)
    assert 0 < count < chunk.n_tokens and len(expected) == chunk.n_tokens
    assert kept == sorted(np.argsort(-expected, kind="stable")[:count].tolist()) and deep == []
    assert answers[1].tokens == answers[2].tokens and answers[1].n_kept == count and answers[1].unpruned == ""
    schedule = model.runtime.flops(pruned.profile, 0, chunk.n_tokens, len(prompt.tail))[1]
    before = asker.flops(len(prompt.head) - 1) - asker.flops(0)
    assert answers[1].flops == pytest.approx(schedule + before + cost, rel=0.02)
    assert cost > 0.3 * schedule  # or this would say little
