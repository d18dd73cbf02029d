"""What the native taps give is what plain torch computes: states, attention, and one layer frozen at a time."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path
from typing import Any

import halfv_cpp
import numpy as np
import pytest
import torch
from halfv_cpp import halfv_compare_h, llama_h

from halfv_edge.engine.encoder import Chunk
from halfv_edge.engine.images import load
from halfv_edge.engine.model import Model
from halfv_edge.errors import HalfVError
from halfv_edge.measure.calibrate import entropy, taps
from halfv_edge.measure.calibrate.taps import OTHERS, NotANumberError, Probe, n_tokens
from halfv_edge.profile.profile import DROPPED, FROZEN, Intake, Profile
from halfv_edge.testing.client import Client
from tests.support import pruned
from tests.support.reference.halfv_torch import Image, Reference, Text
from tests.support.tiny_models import ARCHS, DROP, grid_positions, make_tiny, tiny_image
from tests.support.vlm import picture, poisoned

N_LAYER = 6
BEFORE, AFTER = [1, 40, 41], [50, 51, 52, 53]
WHOLE = {"ivr.layer": 1, "ssr.layer": N_LAYER}


class Seen:
    """Copies of all that an observer is shown."""

    def __init__(self) -> None:
        self.states: list[np.ndarray] = []
        self.attention: list[np.ndarray] = []
        self.logits: list[np.ndarray | None] = []
        self.visual: np.ndarray | None = None

    def __call__(self, pointer: Any, _user: object) -> bool:
        at = pointer.contents
        assert at.layer == len(self.states)
        self.states.append(np.ctypeslib.as_array(at.states, (at.n_tokens, at.n_embd)).copy())
        self.visual = np.ctypeslib.as_array(at.visual, (at.n_tokens,)) != 0
        if at.attention:
            self.attention.append(np.ctypeslib.as_array(at.attention, (at.n_tokens,)).copy())
        self.logits.append(np.ctypeslib.as_array(at.logits, (at.n_vocab,)).copy() if at.logits else None)
        return True


def hold(client: Client, embd: np.ndarray, pos: np.ndarray | None) -> None:
    halfv_cpp.check(halfv_compare_h.halfv_hold(client.ctx, True))
    client.text(BEFORE, logits_last=False)
    client.image(embd, pos)
    client.text(AFTER, logits_last=False)


def observe(client: Client, freeze: list[int]) -> Seen:
    seen = Seen()
    flags = (ctypes.c_uint8 * N_LAYER)(*freeze)
    assert (
        halfv_cpp.check(halfv_compare_h.halfv_observe(client.ctx, flags, halfv_compare_h.halfv_observer(seen), None))
        == pruned.OK
    )
    halfv_cpp.check(halfv_compare_h.halfv_hold(client.ctx, False))
    return seen


class Plain(Reference):
    """Layer by layer, with one layer that leaves visual tokens as they are, and the last token's attention."""

    def frozen(self, segments: list, frozen: int | None) -> tuple[np.ndarray, list[np.ndarray]]:
        table = self._embed(segments)
        hidden, pos, visual = table.hidden, table.pos, table.images[0]
        sees = self.precedes(pos, pos)
        looks = []
        for layer in range(self.n_layer):
            q, k, v = self.qkv(self.norm(hidden, f"blk.{layer}.attn_norm.weight"), layer)
            q, k = self.rope(q, pos), self.rope(k, pos)
            keys = k.repeat_interleave(self.n_head // self.n_head_kv, 0)
            looks.append(((q[:, -1:] @ keys.transpose(1, 2)) / self.head_dim**0.5).softmax(-1).mean(0)[0].numpy())
            after = self.rest_of_layer(hidden, q, k, v, sees, layer)
            if layer == frozen:
                after[visual] = hidden[visual]
            if layer < len(table.deepstack):
                after = after + table.deepstack[layer]
            hidden = after
        return self.logits(hidden[-1:])[0], looks


# three ubatches cut the picture, so order and cells matter
@pytest.mark.parametrize("arch", ARCHS)
def test_taps_are_what_torch_computes(arch: str, tmp_path: Path) -> None:
    path = make_tiny(tmp_path / "model.gguf", arch, seed=1, n_layer=N_LAYER)
    with Client(path, n_ubatch=40, on_model=lambda model: pruned.set_profile(model, WHOLE)) as client:
        embd = tiny_image(90, client.n_embd_inp)
        pos = grid_positions(len(BEFORE), 9, 10) if client.is_mrope else None
        hold(client, embd, pos)
        seen = observe(client, [1, 0, 1, 1, 0, 1])
        after = client.decode(60)

    reference = Plain(path)
    prompt = [Text(BEFORE), Image(embd, pos), Text(AFTER)]
    expected = reference.run(prompt, states=True)
    assert seen.visual.tolist() == [False] * 3 + [True] * 90 + [False] * 4
    for mine, theirs in zip(seen.states, expected.states, strict=True):
        np.testing.assert_allclose(mine, theirs.numpy(), atol=2e-5)
    np.testing.assert_allclose(seen.logits[-1], expected.logits, atol=2e-5)

    _, looks = reference.frozen(prompt, None)
    np.testing.assert_allclose(seen.attention, looks, atol=1e-6)
    for layer in (0, 2, 3, 5):
        logits, _ = reference.frozen(prompt, layer)
        np.testing.assert_allclose(seen.logits[layer], logits, atol=2e-5)
        assert layer == 5 or np.abs(logits - expected.logits).max() > 0.1
    assert seen.logits[1] is seen.logits[4] is None

    # and the sequence goes on as after an ordinary prompt
    following = reference.run([Text(BEFORE), Image(embd, pos), Text([*AFTER, 60])])
    np.testing.assert_allclose(after, following.logits, atol=2e-5)


def test_observing_leaves_pruning_alone(tmp_path: Path) -> None:
    """The same bits before and after, and while nothing is held."""
    path = make_tiny(tmp_path / "model.gguf", "llama", n_layer=N_LAYER, profile=DROP)
    logits = []
    with Client(path) as client:
        embd = tiny_image(90, client.n_embd_inp)
        for _ in range(2):
            llama_h.llama_memory_clear(client.memory, True)
            client.next_pos = [0]
            client.text(BEFORE, logits_last=False)
            client.image(embd)
            client.text(AFTER)
            logits.append(client.logits())
            llama_h.llama_memory_clear(client.memory, True)
            client.next_pos = [0]
            hold(client, embd, None)
            observe(client, [1] * N_LAYER)
    assert logits[0].tobytes() == logits[1].tobytes()


def test_a_held_prompt_in_a_small_context(tmp_path: Path) -> None:
    path = make_tiny(tmp_path / "model.gguf", "llama", n_layer=N_LAYER)
    with Client(path, n_ctx=256, on_model=lambda model: pruned.set_profile(model, WHOLE)) as client:
        hold(client, tiny_image(300, client.n_embd_inp), None)
        with pytest.raises(halfv_cpp.CallError, match="no room") as caught:
            observe(client, [0] * N_LAYER)
        assert caught.value.code == halfv_cpp.HALFV_ERR_MEMORY
        llama_h.llama_memory_clear(client.memory, True)
        client.next_pos = [0]
        halfv_cpp.check(halfv_compare_h.halfv_hold(client.ctx, False))
        client.text(BEFORE)


# --- the probe ---


@pytest.fixture(scope="module", params=["llava", "qwen2vl"])
def model(request: pytest.FixtureRequest, vlms: Any) -> Model:
    return vlms.load(request.param)


@pytest.fixture
def probe(model: Model) -> Any:
    probe = Probe(model)
    yield probe
    probe.close()
    kept = halfv_cpp.model_profile(model.runtime.pointer)
    assert Profile.from_c(kept) == model.profile


def test_observation_of_a_sample(probe: Probe) -> None:
    items = probe.items(load(picture(1)), "what is in the picture")
    before, n_visual, after = n_tokens(items)
    seen = probe.observe(items, freeze=True)
    assert (seen.n_visual, seen.n_text) == (n_visual, before + after)
    reference = Plain(probe.runtime.path)
    chunk = next(item for item in items if not isinstance(item, int))
    place = items.index(chunk)
    pos = None
    if reference.is_mrope:
        columns, rows = chunk.grid(True)
        pos = grid_positions(place, rows, columns)
    prompt = [Text(items[:place]), Image(chunk.embd, pos), Text(items[place + 1 :])]
    result = reference.run(prompt, states=True)
    visual = slice(place, place + n_visual)
    for boundary, states in enumerate(result.states):
        rows_ = reference.norm(states, "output_norm.weight").numpy()
        text = np.concatenate([rows_[:place], rows_[visual.stop :]])
        expected = [entropy.matrix_entropy(part) for part in (rows_[visual], text, rows_)]
        found = [seen.visual[boundary], seen.text[boundary], seen.all[boundary]]
        np.testing.assert_allclose(found, expected, atol=1e-5)
    for layer in range(probe.n_layer):
        logits, looks = reference.frozen(prompt, layer)
        assert seen.layer_kl[layer] == pytest.approx(entropy.kl(result.logits, logits), abs=1e-5, rel=1e-3)
    _, looks = reference.frozen(prompt, None)
    np.testing.assert_allclose(seen.attention, [look[visual].sum() for look in looks], atol=1e-6)


def test_without_freezing(probe: Probe) -> None:
    items = probe.items(load(picture(1)), "what is in the picture")
    assert probe.observe(items, freeze=False).layer_kl is None


def test_divergence(probe: Probe) -> None:
    """None for a profile that prunes nothing; of a pruned one that of its logits token by token."""
    answer = probe.answer(probe.items(load(picture(2)), "where is the cat"), 5)
    assert 1 <= len(answer.tokens) == len(answer.logits) <= 5
    whole = Profile(2, 1.0, 0.1, probe.n_layer, 1.0, DROPPED)
    divergence, agreement = probe.divergence(answer, whole)
    assert divergence == pytest.approx(0, abs=1e-8)
    assert agreement == 1

    profile = Profile(2, 0.3, 0.1, 4, 0.0, FROZEN, min_visual_tokens=1)
    context = probe.context(profile)
    context.evaluate(answer.items, output=True)
    rows = [probe.runtime.logits(context)]
    for token in answer.tokens[:-1]:
        context.evaluate([token], output=True)
        rows.append(probe.runtime.logits(context))
    divergence, agreement = probe.divergence(answer, profile)
    assert divergence == pytest.approx(entropy.kl(answer.logits, np.stack(rows)), rel=1e-3)
    assert divergence > 1e-3
    assert agreement == np.mean(np.stack(rows).argmax(1) == answer.tokens)


def test_a_share_that_goes_on(vlms: Any) -> None:
    """As libmtmd would choose, and one encoder at a time that only says how many."""
    probe = Probe(vlms.load("qwen2vl"))
    shown, question = load(picture(2, 336, 280)), "where is the cat"
    try:
        for share in (0.5, 0.3, 0.5):
            profile = Profile(2, 1.0, 0.1, probe.n_layer, 1.0, DROPPED, min_visual_tokens=1, input_keep=share)
            (chunk,) = (item for item in probe.items_under(profile, shown, question) if isinstance(item, Chunk))
            encoder = probe.encoder(Intake(input_keep=share))
            encoder.encode(left := encoder.tokens(shown))
            assert chunk.given() == left.chunks[0].given()
            np.testing.assert_array_equal(chunk.embd, left.chunks[0].embd)
            assert len(probe._others) <= OTHERS
    finally:
        probe.close()


def test_flops_are_those_of_the_statistics(probe: Probe) -> None:
    items = probe.items(load(picture(2)), "where is the cat")
    before, n_visual, after = n_tokens(items)
    for profile in (
        Profile(2, 0.3, 0.1, 4, 0.05, DROPPED, min_visual_tokens=1),
        Profile(1, 0.5, 0.2, 3, 0.05, FROZEN, min_visual_tokens=1),
        Profile(2, 1.0, 0.2, 3, 0.0, FROZEN, min_visual_tokens=1),
        Profile(3, 0.25, 0.0, probe.n_layer, 1.0, DROPPED, min_visual_tokens=1),
    ):
        context = probe.context(profile)
        context.evaluate(items, output=True)
        stats = context.stats()
        dense, spent = probe.flops(profile, before, n_visual, after)
        assert dense == pytest.approx(stats["flops_dense"], rel=1e-9)
        assert spent == pytest.approx(stats["flops_spent"], rel=1e-9)
    assert probe.flops_per_sec() > 1e6


def test_not_a_number(tmp_path: Path, vlms: Any) -> None:
    probe = Probe(poisoned(tmp_path, vlms))
    try:
        items = probe.items(load(picture(1)), "what is in the picture")
        with pytest.raises(NotANumberError, match="NaN or infinite values in the states that enter layer 4"):
            probe.observe(items, freeze=False)
        with pytest.raises(NotANumberError):  # the context can be used again
            probe.observe(items, freeze=False)
    finally:
        probe.close()
        probe.runtime.close()


def test_a_boundary_that_is_lost(probe: Probe, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C that arrives as native code calls back does not reach the callback; what it saw has a hole then."""
    look, lost = taps._Watch.__call__, []

    def interrupted(watch: Any, pointer: Any, user: object) -> bool:
        if not lost:
            lost.append(watch)
            raise KeyboardInterrupt
        return look(watch, pointer, user)

    items = probe.items(load(picture(1)), "what is in the picture")
    monkeypatch.setattr(sys, "unraisablehook", lambda _lost: None)
    monkeypatch.setattr(taps._Watch, "__call__", interrupted)
    with pytest.raises(KeyboardInterrupt):
        probe.observe(items, freeze=False)
    assert lost and len(probe.observe(items, freeze=False).all) == probe.n_layer + 1


def test_a_template_that_ends_with_the_picture(vlms: Any) -> None:
    model = vlms.load("llava", {"tokenizer.chat_template": "{{ messages[0].content[:30] }}"})
    probe = Probe(model)
    with pytest.raises(HalfVError, match="ends with the picture"):
        probe.items(load(picture(1)), "")
    probe.close()


def test_torch_and_numpy_agree_on_log_softmax() -> None:
    logits = np.random.default_rng(0).standard_normal((3, 50)) * 30
    np.testing.assert_allclose(
        entropy.log_softmax(logits), torch.from_numpy(logits).log_softmax(-1).numpy(), atol=1e-12
    )


@pytest.mark.parametrize("ftype", ["f16", "q8_0", "q4_0"])
def test_embeddings_of_quantised_models(ftype: str, tmp_path: Path) -> None:
    """What enters the first layer is read from the table and not computed."""
    path = make_tiny(tmp_path / "model.gguf", "llama", n_layer=N_LAYER, ftype=ftype)
    with Client(path, on_model=lambda model: pruned.set_profile(model, WHOLE)) as client:
        embd = tiny_image(90, client.n_embd_inp)
        hold(client, embd, None)
        seen = observe(client, [0] * N_LAYER)
    expected = Reference(path).run([Text(BEFORE), Image(embd), Text(AFTER)], states=True)
    np.testing.assert_allclose(seen.states[0], expected.states[0].numpy(), atol=1e-6)
    distance = np.abs(seen.logits[-1] - expected.logits).max() / expected.logits.std()
    assert distance < (0.2 if ftype != "f16" else 0.02)  # ggml also quantises what it multiplies with
