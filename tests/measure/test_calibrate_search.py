"""The search for a frontier, on models that diverge as told."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from halfv_edge.errors import HalfVError
from halfv_edge.measure.calibrate import parts, search
from halfv_edge.measure.calibrate.search import Check, Choices, Found, Search, keeping, staged, surely_less
from halfv_edge.profile.profile import DROPPED, FROZEN, Profile

N_SAMPLES = 8
LEFT = {None: 1.0, 0.0: 0.6}  # tokens that reach the language model, by tau


def speedup(n_layer: int) -> Callable[[Profile], float]:
    """Linear costs: of n_layer layers what each stage leaves."""

    def of(p: Profile) -> float:
        third = p.ssr_update + (0.15 * (p.ivr_keep - p.ssr_update) if p.ssr_rest == FROZEN else 0)
        third = p.ivr_keep if p.ssr_layer == n_layer else min(third, p.ivr_keep)
        layers = p.ivr_layer + (p.ssr_layer - p.ivr_layer) * p.ivr_keep + (n_layer - p.ssr_layer) * third
        return n_layer / (layers * LEFT[p.pixel_tau] * p.input_keep)

    return of


class Model:
    """Diverges as told, by a little more or less from sample to sample; counts what runs."""

    def __init__(
        self, n_layer: int, divergence: Callable[[Profile], float], noise: float = 0.0,
        cost: Callable[[Profile], float] | None = None,
    ):  # fmt: skip
        self.n_layer = n_layer
        self.cost = cost or speedup(n_layer)
        self.divergence = divergence
        self.noise = noise
        self.prompts = 0
        self.measured: list[Profile] = []

    def search(
        self, ivr: int, ssr: int, taus: tuple[float | None, ...] = (None,),
        fits: Callable[[Profile], bool] = lambda _: True, inputs: tuple[float, ...] = (1.0,),
        **more: Any,
    ) -> Search:  # fmt: skip
        return Search(
            self.n_layer, ivr, ssr, self.measure, self.cost, N_SAMPLES, Choices(taus, inputs, **more), fits
        )  # fmt: skip

    def measure(self, profile: Profile, count: int | None) -> Check:
        count = count or N_SAMPLES
        self.prompts += count
        self.measured.append(profile)
        each = [
            self.divergence(profile) * (1 + self.noise * math.sin(7 * at + hash(profile) % 5)) for at in range(count)
        ]
        return Check(profile, tuple(each), 0.9, self.cost(profile))


def qwen_like(p: Profile) -> float:
    """Dropping all or freezing is a disaster, a few updated tokens are nearly free from layer 21 on."""
    loss = 0.01 * (1 / p.ivr_keep - 1) + 2.0 * (p.ivr_layer < 2) + 1e-6
    if p.ssr_layer < 28:
        loss += 0.8 if p.ssr_update == 0 else 0.002 + 0.05 * max(0, 21 - p.ssr_layer)
    return loss


def vicuna_like(p: Profile) -> float:
    """Freezing is free from layer 15 on, dropping is not."""
    loss = 0.05 * (1 - p.ivr_keep) + 1.0 * (p.ivr_layer < 3) + 1e-6
    if p.ssr_layer < 32:
        loss += (0.0 if p.ssr_rest == FROZEN else 0.1) + 0.05 * max(0, 15 - p.ssr_layer)
    return loss


def early(p: Profile) -> float:
    """Shares are dear and early layers are not: as on the demo model, where less was kept than had to be."""
    return 0.05 * max(0, 3 - p.ivr_layer) + 2.0 * max(0.0, 0.3 - p.ivr_keep) + 1e-6


def ascends(found: Found) -> bool:
    speeds, losses = zip(*((check.speedup, check.divergence) for check in found.frontier), strict=True)
    return list(speeds) == sorted(set(speeds)) and list(losses) == sorted(set(losses))


def test_qwen_keeps_a_few() -> None:
    model = Model(28, qwen_like)
    found = model.search(2, 21).run(3.5, None)
    best = found.best
    assert (best.profile.ivr_layer, best.profile.ssr_layer) == (2, 21)
    assert best.profile.ssr_update > 0 and best.profile.ssr_rest == DROPPED
    assert 3.5 <= best.speedup < 3.7
    assert best in found.frontier and ascends(found)


def test_vicuna_freezes() -> None:
    best = Model(32, vicuna_like).search(3, 15).run(3.0, None).best
    assert (best.profile.ivr_layer, best.profile.ssr_layer) == (3, 15)
    assert (best.profile.ssr_update, best.profile.ssr_rest) == (0.0, FROZEN)


def test_a_wrong_pick_is_corrected() -> None:
    """Stage II from layer 1 costs much: a neighbour wins. Stage III from 18 does too."""
    best = Model(28, qwen_like).search(1, 18).run(3.0, None).best
    assert best.profile.ivr_layer == 2
    assert abs(best.profile.ssr_layer - 21) <= 1


@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_layers_move_before_shares_fall(noise: float) -> None:
    """From the pick, layer 4, 4 times fewer FLOPs would leave too few tokens; from layer 2 they do not."""
    found = Model(12, early, noise).search(4, 12).run(4.0, None)
    assert found.best.profile.ivr_layer < 3
    at_the_pick = Model(12, early).search(4, 12)._keeping_most(staged(4, 12), 2.5)
    assert found.best.divergence < early(at_the_pick)


def test_stages_that_a_model_cannot_have() -> None:
    """Like a hybrid: one layer in four has attention, nothing freezes. Like shared caches: none behind the middle."""

    def hybrid(p: Profile) -> bool:
        return p.ivr_layer in range(4, 28, 4) and (
            p.ssr_layer == 28 or (p.ssr_rest == DROPPED and p.ssr_layer in range(p.ivr_layer + 4, 28, 4))
        )

    model = Model(28, qwen_like)
    found = model.search(2, 6, fits=hybrid).run(1.5, None)
    assert all(hybrid(profile) for profile in model.measured)
    assert found.best.profile.ivr_layer == 4
    assert any(profile.ssr_layer < 28 for profile in model.measured)

    model = Model(28, vicuna_like)
    found = model.search(3, 20, fits=lambda p: p.ivr_layer <= 13 and not 13 < p.ssr_layer < 28).run(2.0, None)
    assert max(profile.ssr_layer for profile in model.measured if profile.ssr_layer < 28) <= 13
    assert found.best.speedup >= 2.0

    found = Model(28, qwen_like).search(2, 21, fits=lambda p: p.ssr_layer == 28).run(1.5, None)
    assert found.best.profile.ssr_layer == 28
    with pytest.raises(HalfVError, match="No layer of this model can begin a stage II"):
        Model(28, qwen_like).search(2, 21, fits=lambda p: False)


def test_no_stage3_when_each_kind_costs_more() -> None:
    loss = Model(28, lambda p: 0.1 * (1 - p.ivr_keep) + (p.ssr_layer < 28) + 1e-6)
    assert loss.search(2, 21).run(2.0, None).best.profile.ssr_layer == 28


def test_patches_stay_out_when_that_is_nearer() -> None:
    taus = (None, 0.0)
    assert Model(28, qwen_like).search(2, 21, taus).run(2.0, None).best.profile.pixel_tau == 0.0
    dear = Model(28, lambda p: qwen_like(p) + 5.0 * (p.pixel_tau is not None))
    assert dear.search(2, 21, taus).run(2.0, None).best.profile.pixel_tau is None


def test_fewer_enter_when_that_is_nearer() -> None:
    """Four times by what enters alone, but for what lies between two steps of it."""
    inputs = tuple(1.1**-step for step in range(20))
    loss = Model(10, lambda p: 0.01 * (1 / p.input_keep - 1) + 0.3 * (1 / p.ivr_keep - 1) + (p.ssr_layer < 10) + 1e-6)
    found = loss.search(2, 8, inputs=inputs).run(4.0, None)
    assert found.best.profile.ivr_keep > 0.85
    assert 1 / 4.4 < found.best.profile.input_keep <= 1 / 3.6


def test_the_search_all_over_runs_on_few_samples() -> None:
    """From layer 6 of 10 nothing is twice as fast."""
    model = Model(10, early)
    found = model.search(6, 10, inputs=(1.0, 0.9, 0.8)).run(4.0, None)
    assert found.best.speedup >= 4
    assert len(found.tried) * N_SAMPLES < model.prompts < 200 * N_SAMPLES


def test_keep_is_the_largest_that_reaches_the_target() -> None:
    search_, shape = Model(28, qwen_like).search(2, 21), replace(staged(2, 21), ssr_update=0.05)
    profile = search_._keeping_most(shape, 3.0)
    assert profile and speedup(28)(profile) >= 3.0
    assert speedup(28)(keeping(shape, profile.ivr_keep + 1 / search.KEEP_STEPS)) < 3.0
    assert search_._keeping_most(shape, 50.0) is None


def test_a_target_out_of_reach_names_the_closest() -> None:
    search_ = Model(28, qwen_like).search(2, 21)
    with pytest.raises(HalfVError, match=r"cannot become 60 times faster.*closest is ([\d.]+); ") as caught:
        search_.run(60.0, None)
    closest = float(str(caught.value).partition("closest is ")[2].partition(";")[0])
    assert search_.run(closest, None).best.speedup >= closest


@pytest.mark.parametrize("limit", [0.008, 0.016, 0.03, 0.5])
def test_a_divergence_is_used_up(limit: float) -> None:
    """No profile of the same shape that is a few percent faster would still be within it."""
    found = Model(28, qwen_like).search(2, 21).run(None, limit)
    assert found.best.divergence <= limit and ascends(found)
    search_ = Model(28, qwen_like).search(2, 21)
    faster = search_._keeping_most(found.best.profile, 1.05 * found.best.speedup)
    end = found.best.speedup >= search.LADDER[-1]
    assert end or faster is None or qwen_like(faster) > limit


def test_max_divergence_out_of_reach_names_the_closest() -> None:
    with pytest.raises(HalfVError, match=r"divergence of 1e-06: the closest has 0\.\d+ and is \d\.\d+ times faster"):
        Model(28, qwen_like).search(2, 21).run(None, 1e-6)


def test_most_candidates_run_on_few_samples() -> None:
    model = Model(28, qwen_like)
    found = model.search(2, 21).run(4.0, None)
    assert len(found.tried) * N_SAMPLES < model.prompts < 120 * N_SAMPLES


def test_what_replaces_is_surely_nearer() -> None:
    assert surely_less([1.0, 1.1, 0.9], [1.2, 1.3, 1.1])
    assert not surely_less([1.0, 2.0, 0.1], [1.1, 1.0, 1.1])  # less on average, by one sample alone
    assert not surely_less([1.0], [1.0])


@pytest.mark.parametrize("n", [2, 3, 4, 5, 6, 8])
def test_any_depth(n: int) -> None:
    best = Model(n, lambda p: 1 - p.ivr_keep + 1e-6).search(1, n).run(1.1, None).best
    best.profile.validate(n)


def test_others_decide_between_near_equals() -> None:
    """One sample likes early anchors by chance, more than the rest can tell; on samples that the search does not see
    they cost. Those also say how far the chosen profile is."""

    def each(p: Profile, count: int, liked: float) -> tuple[float, ...]:
        base = early(p) + 0.02
        odd = p.ivr_layer == 3 and p.ivr_anchors == 0.6
        return tuple(base - liked * odd * (at == count - 1) for at in range(count))

    def measure(p: Profile, count: int | None) -> Check:
        return Check(p, each(p, count or N_SAMPLES, 0.019), 0.9, speedup(12)(p))

    def confirm(p: Profile) -> Check:
        return Check(p, each(p, 1, -0.5), 0.9, speedup(12)(p))

    def found(confirm: Callable[[Profile], Check] | None) -> Check:
        return Search(12, 2, 12, measure, speedup(12), N_SAMPLES, confirm=confirm).run(2.0, None).best

    assert found(None).divergence < 0.5
    best = found(confirm)
    assert best.profile.ivr_anchors != 0.6 and best.each == confirm(best.profile).each


def test_all_of_the_question_chooses_when_that_is_nearer() -> None:
    loss = Model(12, lambda p: early(p) + 0.1 * (p.ivr_query == "last") + 0.1)
    assert loss.search(2, 12).run(3.0, None).best.profile.ivr_query == "question"


# --- the encoder and further parts ---

LOSSES = (0.0, 0.1, 0.2)
REDUCTIONS = ((1, 1.0), (16, 0.7), (16, 0.5), (8, 0.5), (8, 0.35))


def with_encoder(p: Profile) -> float:
    """An encoder of 32 layers that costs twice what the 28 layers of the language model do."""
    seen = 1 - p.image_loss  # of a picture
    encoder = 2 * seen * (p.encoder_layer + (32 - p.encoder_layer) * p.encoder_keep) / 32
    return 3 / (encoder + seen / speedup(28)(p))


def lossy_encoder(p: Profile) -> float:
    """Half from layer 16 on is nearly free, from layer 8 on it is not; small pictures cost."""
    early = 0.5 * (p.encoder_layer == 8) + 0.03 * (1 - p.encoder_keep)
    return qwen_like(p) + 0.2 * p.image_loss + (early if p.encoder_keep < 1 else 0)


def test_the_encoder_is_walked_with_the_stages() -> None:
    """What the language model alone cannot reach, the encoder gives; and it is spared before much is lost elsewhere."""
    walked = Model(28, lossy_encoder, cost=with_encoder).search(2, 21, losses=LOSSES, reductions=REDUCTIONS)
    found = walked.run(2.0, None)
    best = found.best
    assert best.speedup >= 2.0 and ascends(found)
    assert (best.profile.encoder_layer, best.profile.encoder_keep) == (16, 0.5)
    slowest = found.frontier[0]
    assert slowest.divergence < best.divergence
    with pytest.raises(HalfVError, match=r"cannot become 2 times faster.*closest is 1\.4"):
        Model(28, lossy_encoder, cost=with_encoder).search(2, 21).run(2.0, None)
    # of all that it may do to the encoder, with the stages of the best, none is nearer by much at that speed
    fitting = [walked._keeping_most(p, 2.0) for p in walked.choices.encoders(best.profile)]
    assert best.divergence <= 1.05 * min(lossy_encoder(p) for p in fitting if p)


def test_the_cheapest_encoder_is_the_last_resort() -> None:
    """From layer 6 of 10 nothing is so fast behind an encoder that sees all, whatever the stages."""

    def cost(p: Profile) -> float:
        return 2 / ((1 - p.image_loss) * (1 + 1 / speedup(10)(p)))

    model = Model(10, lambda p: 0.1 * p.image_loss + early(p), cost=cost)
    found = model.search(6, 10, losses=(0.0, 0.6)).run(3.0, None)
    assert found.best.speedup >= 3 and found.best.profile.image_loss == 0.6
    with pytest.raises(HalfVError, match=r"closest is 4\.") as caught:
        model.search(6, 10, losses=(0.0, 0.6)).run(9.0, None)
    assert "9 times" in str(caught.value)


def halved(p: Profile) -> float:
    """As fast as without channels, and the layers behind ffn_layer by what is left of them."""
    left = 1 - 0.5 * (1 - p.ffn_keep) * (28 - p.ffn_layer) / 28
    wiped = 0.9 if p.further_layers else 1.0
    return speedup(28)(p) / (left * wiped)


@pytest.mark.parametrize("dear", [0.0, 1.0])
def test_a_part_stays_where_it_is_nearer_at_the_same_speed(dear: float) -> None:
    loss = Model(28, lambda p: 3 * qwen_like(p) + dear * (p.ffn_keep < 1), cost=halved)
    found = loss.search(2, 21, parts=[parts.channels]).run(3.0, None)
    assert (found.best.profile.ffn_keep < 1) == (dear == 0)
    assert found.best.speedup >= 3.0
    assert any(profile.ffn_keep < 1 for profile in loss.measured)
    assert all(p.ffn_keep == 1 or p.ffn_layer >= p.ivr_layer for p in loss.measured)


def test_parts() -> None:
    plain = staged(4, 9)
    for part, n in ((parts.channels, 5), (parts.heads, 5), (parts.wipe, 3), (parts.bias, 4)):
        tried = list(part(plain, 12))
        assert len(set(tried)) == len(tried) == n and plain in tried  # what is on can be given up again
        for profile in tried:
            profile.validate(12)
            assert plain in part(profile, 12)
    assert [p.further_layers for p in parts.wipe(plain, 12)] == [(), (10,), (11,)]
    dropped = replace(plain, ssr_update=0.0)
    assert list(parts.wipe(dropped, 12)) == [dropped]  # it is text alone from stage III on
    assert set(parts.PARTS) >= set(parts.TAKE_PARTS)


def test_a_move_takes_parts_along() -> None:
    """Stage II can begin later though channels begin with it; stage III cannot pass the layers of text alone."""
    search_ = Model(28, qwen_like).search(2, 21)
    with_parts = replace(staged(2, 21), ffn_layer=2, ffn_keep=0.5, further_layers=(24,), further_keep=(0.0,))
    moved = {p.ivr_layer: p for p in search_._layers(with_parts)}
    assert moved[3].ffn_layer == 3 and moved[2].ffn_layer == 2
    assert max(p.ssr_layer for p in search_._deep_layers(replace(with_parts, ssr_layer=22))) == 23
