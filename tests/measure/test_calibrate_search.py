"""The search for a frontier, on models that diverge as told."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from halfv_edge.errors import HalfVError
from halfv_edge.measure.calibrate import search
from halfv_edge.measure.calibrate.search import Check, Found, Search, Shape, surely_less
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

    def __init__(self, n_layer: int, divergence: Callable[[Profile], float], noise: float = 0.0):
        self.n_layer = n_layer
        self.divergence = divergence
        self.noise = noise
        self.prompts = 0
        self.measured: list[Profile] = []

    def search(
        self, ivr: int, ssr: int, taus: tuple[float | None, ...] = (None,),
        fits: Callable[[Profile], bool] = lambda _: True, inputs: tuple[float, ...] = (1.0,),
    ) -> Search:  # fmt: skip
        cost = speedup(self.n_layer)
        return Search(self.n_layer, ivr, ssr, self.measure, cost, N_SAMPLES, taus, inputs, fits)

    def measure(self, profile: Profile, count: int | None) -> Check:
        count = count or N_SAMPLES
        self.prompts += count
        self.measured.append(profile)
        each = [
            self.divergence(profile) * (1 + self.noise * math.sin(7 * at + hash(profile) % 5)) for at in range(count)
        ]
        return Check(profile, tuple(each), 0.9, speedup(self.n_layer)(profile))


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
    at_the_pick = Model(12, early).search(4, 12)._keeping_most(Shape(4, 12), 2.5)
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
    search_, shape = Model(28, qwen_like).search(2, 21), Shape(2, 21, 0.05)
    profile = search_._keeping_most(shape, 3.0)
    assert profile and speedup(28)(profile) >= 3.0
    assert speedup(28)(shape.keeping(profile.ivr_keep + 1 / search.KEEP_STEPS)) < 3.0
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
    faster = search_._keeping_most(Shape.of(found.best.profile), 1.05 * found.best.speedup)
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
