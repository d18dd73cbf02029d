"""Calibration's numbers on known matrices, and its rule on curves of known shape."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from halfv_edge.measure.calibrate import entropy, picking
from halfv_edge.measure.calibrate.calibrator import spread_evenly
from halfv_edge.measure.calibrate.picking import Curves

# --- entropy ---


def torch_entropy(rows: np.ndarray) -> float:
    """The definition by another way: squared singular values of the centred tokens."""
    centred = torch.from_numpy(rows).double()
    values = torch.linalg.svdvals(centred - centred.mean(0))[:50] ** 2
    p = values / values.sum()
    return float(-(p[p > 0] * p[p > 0].log()).sum())


@pytest.mark.parametrize("shape", [(40, 90), (90, 40), (60, 60), (2, 7), (200, 120), (120, 200)])
def test_entropy_is_that_of_the_singular_values(shape: tuple[int, int]) -> None:
    rows = np.random.default_rng(0).standard_normal(shape) * np.linspace(0.2, 3, shape[1]) + 5
    assert entropy.matrix_entropy(rows) == pytest.approx(torch_entropy(rows), abs=1e-10)


def test_entropy_of_equal_directions_is_the_log_of_their_number() -> None:
    rows = np.concatenate([np.eye(30), -np.eye(30)])  # centred, 30 equal eigenvalues
    assert entropy.matrix_entropy(rows) == pytest.approx(math.log(30), abs=1e-12)


def test_entropy_counts_the_fifty_largest() -> None:
    rows = np.concatenate([np.eye(80), -np.eye(80)])
    assert entropy.matrix_entropy(rows) == pytest.approx(math.log(50), abs=1e-12)
    rows[:, 50:] *= 1e-3
    assert entropy.matrix_entropy(rows) == pytest.approx(math.log(50), abs=1e-12)
    rows[:, :50] *= 1e-6  # now the others are the largest, and only 30
    assert entropy.matrix_entropy(rows) == pytest.approx(math.log(30), abs=1e-3)


def test_entropy_is_centred() -> None:
    rows = np.random.default_rng(1).standard_normal((50, 20))
    assert entropy.matrix_entropy(rows + 1000) == pytest.approx(entropy.matrix_entropy(rows), abs=1e-7)


@pytest.mark.parametrize("rows", [np.ones((5, 3)), np.zeros((1, 4)), np.full((3, 9), 7.0)])
def test_entropy_of_tokens_that_are_alike(rows: np.ndarray) -> None:
    assert entropy.matrix_entropy(rows) == 0.0


def test_final_norm() -> None:
    rng = np.random.default_rng(2)
    states, weight = rng.standard_normal((6, 16)).astype(np.float32), rng.uniform(0.5, 2, 16).astype(np.float32)
    expected = torch.nn.functional.rms_norm(
        torch.from_numpy(states).double(), (16,), torch.from_numpy(weight).double(), 1e-5
    )
    np.testing.assert_allclose(entropy.final_norm(states, weight, 1e-5), expected.numpy(), rtol=1e-12)
    assert not entropy.final_norm(np.zeros((1, 16), np.float32), weight, 0.0).any()


def test_kl() -> None:
    rng = np.random.default_rng(3)
    full, other = 3 * rng.standard_normal((2, 4, 100)).astype(np.float32)
    p, q = (torch.from_numpy(x).double().log_softmax(-1) for x in (full, other))
    expected = torch.nn.functional.kl_div(q, p, reduction="none", log_target=True).sum(-1).mean()
    assert entropy.kl(full, other) == pytest.approx(float(expected), rel=1e-12)
    assert entropy.kl(full, full + 8) == pytest.approx(0, abs=1e-10)


# --- picking: curves as the paper describes them ---


def valley_curve(n: int, ivr: int, low: float, rise: float = 0.6, sharp: bool = False) -> np.ndarray:
    """High and flat up to ivr, falling to a minimum at `low` of the depth, rising by a share of the fall."""
    layer, bottom = np.arange(n + 1.0), low * n
    ease = (lambda t: t) if sharp else (lambda t: (1 - np.cos(np.pi * t)) / 2)
    fall = ease(np.clip((layer - ivr) / (bottom - ivr), 0, 1))
    back = ease(np.clip((layer - bottom) / (n - bottom), 0, 1))
    return 3.6 - 1.6 * fall + 1.6 * rise * back


def collapse(n: int, end: int) -> np.ndarray:
    """Text entropy: gone within the first `end` layers."""
    layer = np.arange(n + 1)
    return 0.6 + 2.4 * np.clip(1 - layer / end, 0, 1) + 0.1 * np.sin(layer)


def slope(n: int) -> np.ndarray:
    """LLaVA's redundancy: from 1e-2 to 1e-6, without a cliff."""
    return 10 ** np.linspace(-2, -6, n)


def cliff(n: int) -> np.ndarray:
    """Qwen2.5-VL's: about 10 in the first two layers, 0.1 after, never under 1e-3, rising at the end."""
    layer = np.arange(n)
    tail = 10 ** (-1 - 2 * np.sin(np.pi * np.clip((layer - 2) / (n - 3), 0, 1)))
    return np.where(layer < 2, 10.0, np.maximum(tail, 1e-3))


def looks(n: int, end: int) -> np.ndarray:
    """Attention to the picture: strong in the first layers, weak after."""
    return np.where(np.arange(n) < end, 0.6, 0.08) + 0.02 * np.cos(np.arange(n))


PUBLISHED = {
    "LLaVA-1.5-7B": (Curves(valley_curve(32, 3, 0.42), collapse(32, 3), looks(32, 2), slope(32)), 3, 15),
    "LLaVA-NeXT-Mistral-7B": (Curves(valley_curve(32, 2, 0.45), collapse(32, 2), looks(32, 2), slope(32)), 2, 16),
    "Qwen2.5-VL-7B": (Curves(valley_curve(28, 2, 0.70), collapse(28, 2), looks(28, 2), cliff(28)), 2, 21),
    "Qwen2.5-VL-3B": (Curves(valley_curve(36, 2, 0.70), collapse(36, 2), looks(36, 2), cliff(36)), 2, 27),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_layers(name: str) -> None:
    curves, ivr, ssr = PUBLISHED[name]
    assert picking.stage2(curves).layer == ivr
    assert picking.stage3(curves, ivr).layer == ssr


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_layers_through_noise(name: str) -> None:
    """Means of 100 samples wobble by about this much: stage II stays, stage III moves by one layer at most."""
    curves, ivr, ssr = PUBLISHED[name]
    for seed in range(20):
        rng = np.random.default_rng(seed)
        noisy = Curves(
            curves.visual + rng.normal(0, 0.02, curves.visual.shape),
            curves.text + rng.normal(0, 0.02, curves.text.shape),
            curves.attention + rng.normal(0, 0.01, curves.attention.shape),
            curves.layer_kl * np.exp(rng.normal(0, 0.1, curves.layer_kl.shape)),
        )
        assert picking.stage2(noisy).layer == ivr
        assert abs(picking.stage3(noisy, ivr).layer - ssr) <= 1


@pytest.mark.parametrize("sharp", [False, True])
@pytest.mark.parametrize("n", [16, 24, 28, 32, 40, 64, 80])
@pytest.mark.parametrize("low", [0.4, 0.5, 0.6, 0.7, 0.8])
def test_stage3_follows_the_minimum(n: int, low: float, sharp: bool) -> None:
    visual = valley_curve(n, 2, low, sharp=sharp)
    curves = Curves(visual, collapse(n, 2), looks(n, 2), cliff(n))
    assert abs(picking.stage3(curves, 2).layer - (low + picking.MARGIN) * n) <= 1 + 0.02 * n


FLAT, FALLING, RISING = np.full(29, 3.0), np.linspace(4, 2, 29), np.linspace(2, 4, 29)


@pytest.mark.parametrize("visual", [FLAT, FALLING, RISING, FLAT + 0.01 * np.sin(np.arange(29))])
def test_no_stage3_without_a_turn(visual: np.ndarray) -> None:
    pick = picking.stage3(Curves(visual, FLAT, FLAT[1:], slope(28)), 2)
    assert pick.layer == 28
    assert "does not turn" in pick.reason


@pytest.mark.parametrize(("n", "layer"), [(28, 2), (80, 2), (12, 1), (6, 1), (2, 1)])
def test_stage2_by_depth_without_a_cliff(n: int, layer: int) -> None:
    flat = np.full(n + 1, 3.0)
    assert picking.stage2(Curves(flat, flat, flat[1:], slope(n))).layer == layer


@pytest.mark.parametrize(("n", "layer"), [(6, 2), (8, 2), (12, 3), (28, 3)])
def test_stage2_starts_in_the_first_quarter(n: int, layer: int) -> None:
    assert picking.stage2(Curves(np.full(n + 1, 3.0), collapse(n, 3), looks(n, 3), slope(n))).layer == layer


def test_one_odd_signal_is_outvoted() -> None:
    odd = looks(28, 6)
    pick = picking.stage2(Curves(FLAT, collapse(28, 2), odd, cliff(28)))
    assert pick.layer == 2
    assert "attention to the picture 6" in pick.reason


def test_slopes_steps_and_notches() -> None:
    assert picking.cliff_end(np.linspace(1, 0, 9)) is None
    assert picking.cliff_end(np.linspace(0, 1, 9)) is None
    assert picking.cliff_end(np.zeros(9)) is None
    assert picking.cliff_end(np.array([3, 3, 3, 1, 1, 1, 1, 1.0])) == 3
    assert picking.cliff_end(np.array([1, 3, 1, 1, 1, 1, 1, 1.0])) == 2
    assert picking.cliff_end(np.array([3, 1, 3, 1, 3, 3, 3, 3.0])) is None


def test_cliffs_of_layers_that_say_something() -> None:
    """Of a hybrid only every fourth layer has attention: the cliff ends at the first of these where it is over."""
    curve = np.full(28, np.nan)
    curve[3::4] = [0.9, 0.2, 0.2, 0.19, 0.2, 0.2, 0.2]
    assert picking.cliff_end(curve) == 7
    assert picking.cliff_end(np.full(28, np.nan)) is None


def test_spread() -> None:
    assert spread_evenly(8, 100) == [0, 14, 28, 42, 56, 70, 84, 99]
    assert spread_evenly(16, 5) == [0, 1, 2, 3, 4]
    assert spread_evenly(1, 5) == [0]
