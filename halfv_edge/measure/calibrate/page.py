"""The calibration on one page: curves with the boundaries drawn in, what was tried, and pictures with kept tokens."""

from __future__ import annotations

import contextlib
import html
import math
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from halfv_edge import files
from halfv_edge.draw.canvas import Canvas
from halfv_edge.draw.token_map import draw_token_map
from halfv_edge.engine.model import Model
from halfv_edge.engine.tokens import TokenMap
from halfv_edge.errors import HalfVError
from halfv_edge.measure.arrays import Floats
from halfv_edge.measure.calibrate.calibrator import spread_evenly
from halfv_edge.measure.calibrate.results import CalibrationResult
from halfv_edge.measure.calibrate.samples import Sample, Samples
from halfv_edge.measure.calibrate.search import Check
from halfv_edge.measure.calibrate.taps import Probe
from halfv_edge.profile.profile import Profile

PAPER, INK, DIM, GRID = "#ffffff", "#1f2328", "#6b7280", "#e5e7eb"
VISUAL, TEXT, ALL = "#d97706", "#2563eb", "#9ca3af"
STAGES = ("#f3f6fb", "#fdf3e3", "#eef7ee")
BEST = "#b91c1c"
WIDTH, GAP, SIDE = 1040, 32, 460
PLOT_HEIGHT = 230
KINDS = (".html", ".png")
N_PICTURES = 3
LEGEND = (
    "f: frozen, d: dropped; what enters is without patches that repeat (p), of smaller pictures (s), of an encoder "
    "that sees less (e); +: further parts"
)
ROW = 24


def calibration_page(path: Path, result: CalibrationResult, model: Model, samples: Samples) -> None:
    """Write how a profile was found: curves, candidates, and pictures with the tokens that are kept.

    Args:
        path: An .html or a .png.
        result: From `run_calibration`.
        model: As it was calibrated, still open.
        samples: Those it was calibrated on.
    """
    if path.suffix.lower() not in KINDS:
        raise HalfVError(f"{path} is neither .html nor .png: name it so.")
    picked = [samples.samples[at] for at in spread_evenly(N_PICTURES, len(samples))]
    with contextlib.closing(Probe(model)) as probe:
        drawn = [(sample, _kept(sample, result.profile, model, probe)) for sample in picked]
    page = draw(result, model.path.name, drawn)
    if path.suffix.lower() == ".png":
        raw = page.png()
    else:
        title = html.escape(f"Calibration of {model.path.name}")
        body = f'<body style="margin:24px;background:{PAPER}">\n{page.svg()}\n</body>'
        head = f'<head><meta charset="utf-8"><title>{title}</title></head>'
        raw = f'<!DOCTYPE html>\n<html lang="en">{head}\n{body}</html>\n'.encode()
    files.write(path, raw)


def _kept(sample: Sample, profile: Profile, model: Model, probe: Probe) -> TokenMap:
    picture = sample.load()
    encoder = probe.encoder(profile.intake)
    chosen = probe.kept(probe.items(picture, sample.question, encoder), profile)
    return encoder.token_map(encoder.tokens(picture), chosen)


def draw(result: CalibrationResult, name: str, pictures: Sequence[tuple[Sample, TokenMap]]) -> Canvas:
    drawn = [(sample, draw_token_map(token_map)) for sample, token_map in pictures]
    tables = 70 + ROW * max(len(result.found.frontier), len(_nearest(result)))
    below = _picture_height(drawn)
    top = 150
    page = Canvas(WIDTH, top + 2 * (PLOT_HEIGHT + 90) + tables + below + 40, PAPER)
    _heading(page, result, name)
    profile, curves = result.profile, result.curves
    left, right = GAP, GAP + SIDE + 2 * GAP - 8
    stages = (profile.ivr_layer, profile.ssr_layer, curves.n_layer)

    entropies = [("visual", VISUAL, curves.visual), ("text", TEXT, curves.text), ("all", ALL, result.all_entropy)]
    _plot(page, left, top, "Matrix entropy at each boundary", entropies, stages)
    scaled = [_zscore(curve) for curve in (curves.visual, curves.text, result.all_entropy)]
    zscores = [(word, color, curve) for (word, color, _), curve in zip(entropies, scaled, strict=True)]
    _plot(page, right, top, "The same, as z-scores over layers", zscores, stages)
    top += PLOT_HEIGHT + 90
    kl = np.log10(np.maximum(curves.layer_kl, 1e-9))[: curves.n_layer - 1]  # the last layer's is 0 by construction
    _plot(page, left, top, "Divergence when one layer is frozen for visual tokens", [("", VISUAL, kl)], stages, _power)
    share = [("", VISUAL, curves.attention)]
    _plot(page, right, top, "Attention of the last token to the picture", share, stages, lambda y: f"{y:.0%}")
    top += PLOT_HEIGHT + 90
    _table(page, left, top, "The frontier", result.found.frontier, result)
    _table(page, right, top, "What was tried about as fast", _nearest(result), result)
    page.text(left, top - 8, LEGEND, DIM, 12)
    _pictures(page, top + tables, drawn)
    return page


def _heading(page: Canvas, result: CalibrationResult, name: str) -> None:
    p, best = result.profile, result.best
    n_layer = result.curves.n_layer
    page.text(GAP, 44, f"Calibration of {name}", INK, 24, bold=True)
    third = "no stage III"
    if p.ssr_layer < n_layer:
        third = (
            f"stage III from layer {p.ssr_layer}: updates {p.ssr_update:.0%} of the tokens, the rest is {p.ssr_rest}"
        )
    page.text(
        GAP,
        74,
        f"Stage II from layer {p.ivr_layer} of {n_layer}: keeps {p.ivr_keep:.0%} of a picture; {third}.",
        INK,
        15,
    )
    page.text(
        GAP,
        98,
        f"{best.speedup:.2f} times fewer FLOPs for a picture of {result.n_visual} tokens, {result.text_speedup:.2f} "
        f"with 60 of text. Divergence {best.divergence:.3g} nats per token, {best.agreement:.0%} of answers kept.",
        INK,
        13,
    )
    samples = p.calibration.samples if p.calibration else result.n_samples
    source = p.calibration.source if p.calibration else ""
    page.text(
        GAP,
        120,
        f"{samples} samples ({source}): layers frozen on {result.n_frozen}, profiles tried on {result.n_tried}, "
        f"chosen on {result.n_held} others." + (" The encoder is counted." if result.admitted else ""),
        DIM,
        13,
    )


Series = tuple[str, str, Floats]


def _plot(
    page: Canvas,
    x: float,
    y: float,
    title: str,
    series: Sequence[Series],
    stages: tuple[int, int, int],
    label: Callable[[float], str] = lambda y: f"{y:.3g}",
) -> None:
    """Lines over layers, with the stages as bands."""
    ivr, ssr, n_layer = stages
    left, top, wide, high = x + 44, y + 30, SIDE - 44, PLOT_HEIGHT
    values = np.concatenate([curve[np.isfinite(curve)] for _, _, curve in series])
    if not len(values):
        page.text(x, y + 12, title, INK, 14, bold=True)
        page.text(x, y + 32, "this model has no layer that can be frozen", DIM, 12)
        return
    low, top_value = float(values.min()), float(values.max())
    span = max(top_value - low, 1e-6)
    low, span = low - 0.05 * span, 1.1 * span

    def across(layer: float) -> float:
        return left + wide * layer / n_layer

    def down(value: float) -> float:
        return top + high * (1 - (value - low) / span)

    page.text(x, y + 12, title, INK, 14, bold=True)
    for color, (first, last), word in zip(
        STAGES, ((0, ivr), (ivr, ssr), (ssr, n_layer)), ("I", "II", "III"), strict=True
    ):
        if first < last:
            page.rect(across(first), top, across(last) - across(first), high, color)
            page.text((across(first) + across(last)) / 2, top + 16, word, DIM, 12, "middle")
    for step in range(5):
        value = low + span * step / 4
        page.line([(left, down(value)), (left + wide, down(value))], GRID)
        page.text(left - 6, down(value) + 4, label(value), DIM, 11, "end")
    for layer in range(0, n_layer + 1, max(1, math.ceil(n_layer / 10))):
        page.text(across(layer), top + high + 18, str(layer), DIM, 11, "middle")
    for boundary in {ivr, ssr} - {n_layer}:
        page.line([(across(boundary), top), (across(boundary), top + high)], INK, 1.5)
    place = left + wide
    for _, color, curve in series:
        page.line([(across(layer), down(value)) for layer, value in enumerate(curve) if np.isfinite(value)], color, 2)
    for word, color, _ in reversed(series):
        if word:
            page.text(place, y + 12, word, color, 13, "end", bold=True)
            place -= 9 * len(word) + 12


def _zscore(curve: Floats) -> Floats:
    scaled: Floats = (curve - curve.mean()) / max(float(curve.std()), 1e-12)
    return scaled


def _power(exponent: float) -> str:
    value = 10**exponent
    return f"{value:.2g}" if value >= 0.01 else f"{value:.0e}".replace("e-0", "e-")


def _nearest(result: CalibrationResult) -> list[Check]:
    """Of what was tried, those about as fast as the profile, the best first."""
    found = result.found
    by_speed = sorted(found.tried, key=lambda check: abs(math.log(check.speedup / found.best.speedup)))
    return sorted(by_speed[:12], key=lambda check: check.divergence)


def _table(page: Canvas, x: float, y: float, title: str, checks: Sequence[Check], result: CalibrationResult) -> None:
    page.text(x, y + 12, title, INK, 14, bold=True)
    columns = (
        (0, "II from"),
        (50, "keep"),
        (96, "anchors"),
        (150, "III from"),
        (206, "enters"),
        (260, "speedup"),
        (322, "divergence"),
        (400, "same"),
    )
    for offset, word in columns:
        page.text(x + offset, y + 36, word, DIM, 12)
    for row, check in enumerate(checks):
        p = check.profile
        third = "none" if p.ssr_layer == result.curves.n_layer else f"{p.ssr_layer} {p.ssr_update:.0%} {p.ssr_rest[0]}"
        cells = (
            str(p.ivr_layer), f"{p.ivr_keep:.1%}", f"{p.ivr_anchors:.0%}", third,
            f"{_letters(p)} {p.input_keep:.0%}".strip(), f"{check.speedup:.2f}x",
            f"{check.divergence:.3g}", f"{check.agreement:.0%}",
        )  # fmt: skip
        is_best = p == result.best.profile
        for (offset, _), cell in zip(columns, cells, strict=True):
            page.text(x + offset, y + 36 + ROW * (row + 1), cell, BEST if is_best else INK, 13, bold=is_best)


def _letters(p: Profile) -> str:
    """What happens beside the columns of a table; LEGEND explains them."""
    further = p.narrows or p.further_layers or p.ivr_bias > 0
    marks = (("p", p.pixel_tau is not None), ("s", p.image_loss > 0), ("e", p.encoder_keep < 1), ("+", further))
    return "".join(letter for letter, on in marks if on)


def _fitted(drawn: Sequence[tuple[Sample, Image.Image]]) -> list[tuple[float, float]]:
    wide = (WIDTH - GAP * (N_PICTURES + 1)) / N_PICTURES
    return [(wide, wide * image.height / image.width) for _, image in drawn]


def _picture_height(drawn: Sequence[tuple[Sample, Image.Image]]) -> int:
    return 70 + math.ceil(max((high for _, high in _fitted(drawn)), default=0))


def _pictures(page: Canvas, y: float, drawn: Sequence[tuple[Sample, Image.Image]]) -> None:
    if not drawn:
        return
    page.text(GAP, y + 16, "Kept tokens", INK, 14, bold=True)
    x: float = GAP
    for (sample, image), (wide, high) in zip(drawn, _fitted(drawn), strict=True):
        page.image(x, y + 32, wide, high, image)
        page.text(x, y + high + 52, textwrap.shorten(sample.question, 48, placeholder=" ..."), DIM, 12)
        x += wide + GAP
