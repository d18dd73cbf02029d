"""Which tokens of a picture go on, as other methods choose them: small functions of what a selector may see.

Each takes what is seen and how many tokens to choose, and gives which ones, and what that took. docs/eval.md says how
near they are to their papers; tests hold each to a short statement of it in torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from halfv_edge.measure.arrays import Floats

Indices = npt.NDArray[np.int64]
TINY = 1e-12
SIEVE_SHARE = 0.75  # of the text's variance that its dominant directions hold
HOLOV_RUNS = 1.78  # for each token chosen, times the picture's tokens
HOLOV_SCALE, HOLOV_WEIGHT = 1000.0, 0.09  # of attention, and of the spread beside it
AIM_TEMPERATURE, AIM_ITERATIONS = 0.1, 5
HEADS_SHARE = 14 / 32  # of the heads that look at the picture most, for SparseVLM


@dataclass(frozen=True, slots=True)
class Seen:
    """What a selector may look at: rows of the picture's tokens, and of the text after it."""

    states: Floats  # [n, d] where they are pruned: entering a layer, or as the encoder gives them
    features: Floats  # [n, d] the same of length 1; in the language model after its last norm
    text: Floats  # [m, d] of text at the same place
    text_features: Floats  # [m, d]
    # [heads, m, n]: of the layer before, with the whole prompt in the softmax; None before the language model
    attention: Floats | None = None
    salience: Floats | None = None  # [n]: attention received inside the encoder, for those in BY_ENCODER
    # [heads, rows, rows]: its logits, of text before, picture, text after
    pairs: Callable[[], Floats] | None = None
    n_before: int = 0  # rows of text before


@dataclass(frozen=True, slots=True)
class Chosen:
    """Which tokens, in any order, and the FLOPs of choosing."""

    tokens: Indices
    flops: float


Selector = Callable[[Seen, int], Chosen]


def unit(rows: Floats) -> Floats:
    """Of length 1."""
    found: Floats = rows / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), TINY)
    return found


def top(scores: Floats, count: int) -> Indices:
    """The largest, the lower index first among equals."""
    return np.argsort(-scores, kind="stable")[:count]


def sieve(seen: Seen, count: int) -> Chosen:
    """SIEVE: what the text attends to and cannot say itself, each next token unlike those before.

    A token's residual is what is left of it without the dominant directions of the text. Score: the text's attention,
    and the residual's share of the token, both squared. Each choice multiplies the others' by 1 - cos^2 of residuals.
    """
    assert seen.attention is not None
    residual = text_residual(seen.states, seen.text)
    share = np.linalg.norm(residual, axis=1) / np.maximum(np.linalg.norm(seen.states, axis=1), TINY)
    scores = (seen.attention.sum(axis=(0, 1)) * share) ** 2
    directions, chosen = unit(residual), []
    for _ in range(count):
        at = int(np.argmax(scores))
        chosen.append(at)
        scores = scores * (1 - (directions @ directions[at]) ** 2)
        scores[chosen] = -np.inf
    (n, d), m = seen.states.shape, len(seen.text)
    return Chosen(np.array(chosen), 2.0 * d * (m * m + 2 * n * m + n * count) + m**3 / 3 + _attention_flops(seen))


def text_residual(states: Floats, text: Floats) -> Floats:
    """States without what a ridge regression on the centred text says of them; its weight is the smallest of the
    eigenvalues that hold SIEVE_SHARE of the text's variance."""
    mean = text.mean(axis=0)
    centred, own = text - mean, states - mean
    gram = centred @ centred.T
    values = np.linalg.eigvalsh(gram)[::-1].clip(min=0)
    enough = np.searchsorted(np.cumsum(values), SIEVE_SHARE * values.sum())
    ridge = values[min(int(enough), len(values) - 1)] + 1e-6
    fitted: Floats = own - (own @ centred.T) @ np.linalg.solve(gram + ridge * np.eye(len(gram)), centred)
    return fitted


def sparsevlm(seen: Seen, count: int) -> Chosen:
    """SparseVLM 2.0 without its correction for distance: attention of the text that looks at the picture more than the
    mean, over the heads that do so most."""
    assert seen.attention is not None
    dots = seen.text @ seen.states.T
    relevance = np.exp(dots - dots.max(axis=0))
    raters = (relevance / relevance.sum(axis=0)).mean(axis=1)
    looks = seen.attention[:, raters >= raters.mean()]
    heads = top(looks.sum(axis=(1, 2)), max(1, round(HEADS_SHARE * len(looks))))
    return Chosen(
        top(looks[heads].mean(axis=(0, 1)), count), 2.0 * dots.size * seen.states.shape[1] + _attention_flops(seen)
    )


def pagerank(seen: Seen, count: int) -> Chosen:
    """AIM's: where a walk along attention, sharpened by a temperature of 0.1, is after five steps from anywhere."""
    assert seen.pairs is not None
    logits = seen.pairs() / AIM_TEMPERATURE
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    heads, rows, _ = weights.shape
    walk = np.full((heads, rows), 1 / rows)
    for _ in range(AIM_ITERATIONS):
        walk = np.einsum("hq,hqk->hk", walk, weights)
    scores = np.sqrt((walk**2).mean(axis=0))[seen.n_before :][: len(seen.states)]
    pairs = rows * (rows + 1) / 2
    # heads together are as wide as a state, about
    return Chosen(top(scores, count), 2.0 * pairs * (seen.states.shape[1] + AIM_ITERATIONS * heads))


def scope(seen: Seen, count: int) -> Chosen:
    """SCOPE, all equally salient: each next token adds most to how well all are covered by their nearest choice."""
    likeness = seen.features @ seen.features.T
    chosen: list[int] = []
    covered = np.zeros(len(likeness))
    for _ in range(count):
        gain = np.maximum(0, likeness - covered[:, None]).sum(axis=0)
        gain[chosen] = -np.inf
        chosen.append(int(np.argmax(gain)))
        covered = np.maximum(covered, likeness[:, chosen[-1]])
    n, d = seen.features.shape
    return Chosen(np.array(chosen), 2.0 * n * n * d + 2.0 * n * n * count)


def coverage(seen: Seen, count: int) -> Chosen:
    """As libmtmd chooses for `input.keep`: from the last row on, always the one farthest from those chosen.

    It counts no FLOPs for that.
    """
    chosen = [len(seen.features) - 1]
    nearest = seen.features @ seen.features[-1]
    while len(chosen) < count:
        nearest[chosen] = np.inf
        chosen.append(int(np.argmin(nearest)))
        nearest = np.maximum(nearest, seen.features @ seen.features[chosen[-1]])
    return Chosen(np.array(chosen[:count]), 0.0)


def divprune(seen: Seen, count: int) -> Chosen:
    """DivPrune: first the token whose nearest neighbour is farthest, then always the one farthest from those chosen."""
    distance = 1 - seen.features @ seen.features.T
    np.fill_diagonal(distance, np.inf)
    chosen = [int(np.argmax(distance.min(axis=0)))]
    nearest = distance[chosen[0]].copy()
    while len(chosen) < count:
        nearest[chosen] = -np.inf
        chosen.append(int(np.argmax(nearest)))
        nearest = np.minimum(nearest, distance[chosen[-1]])
    n, d = seen.features.shape
    return Chosen(np.array(chosen[:count]), 2.0 * n * n * d)


def cdpruner(seen: Seen, count: int) -> Chosen:
    """CDPruner as OpenVINO has it: a determinantal point process over likeness, weighted half by likeness to the
    question; the picture in two halves with equal shares."""
    relevance = (seen.features @ seen.text_features.T).mean(axis=1)
    relevance = (relevance - relevance.min() + 1e-6) / (relevance.max() - relevance.min() + 1e-6)
    weight = 0.5 + 0.5 * relevance
    kernel = weight[:, None] * (seen.features @ seen.features.T) * weight
    n, d = seen.features.shape
    half, share = n // 2, min(n // 2, count // 2)
    first, rest = kernel[:half, :half], kernel[half:, half:]
    chosen = np.concatenate([_most_diverse(first, share), half + _most_diverse(rest, count - share)])
    return Chosen(chosen, 2.0 * n * (n + len(seen.text)) * d + 0.5 * n * count**2)


def _most_diverse(kernel: Floats, count: int) -> Indices:
    """Greedy search for the most probable set, by growing a Cholesky factor."""
    left = np.diag(kernel).astype(float)
    chosen: list[int] = []
    factor = np.zeros((count, len(kernel)))
    for step in range(count):
        left[chosen] = -np.inf
        at = int(np.argmax(left))
        chosen.append(at)
        factor[step] = (kernel[at] - factor[:step, at] @ factor[:step]) / math.sqrt(max(left[at], TINY))
        left = left - factor[step] ** 2
    return np.array(chosen, dtype=int)


def visionzip(seen: Seen, count: int) -> Chosen:
    """VisionZip's dominant tokens: those that receive most attention inside the encoder. Nothing is merged."""
    assert seen.salience is not None
    return Chosen(top(seen.salience, count), float(len(seen.salience)))


def holov(seen: Seen, count: int) -> Chosen:
    """HoloV as for Qwen2.5-VL: runs of the picture share the count by how much attention they receive and how their
    tokens' likenesses vary; in each run the most attended go on. What a run has no room for goes to the next best."""
    assert seen.salience is not None
    n, d = seen.features.shape
    n_runs = min(n, max(1, int(HOLOV_RUNS * n / count)))
    runs = np.array_split(np.arange(n), n_runs)
    attention = HOLOV_SCALE * seen.salience
    spread = np.concatenate([_spread(seen.features[run]) for run in runs])
    spread = spread * attention.mean() / max(spread.mean(), TINY)
    worth = attention + HOLOV_WEIGHT * spread
    shares = np.array([worth[run].mean() for run in runs])
    quota = np.floor(count * shares / shares.sum()).astype(int)
    order = top(shares, n_runs)
    quota[order[: count - quota.sum()]] += 1
    room = np.array([len(run) for run in runs])
    spare, quota = int(np.maximum(quota - room, 0).sum()), np.minimum(quota, room)
    for run in order:
        more = min(spare, int(room[run] - quota[run]))
        quota[run], spare = quota[run] + more, spare - more
    chosen = [run[top(seen.salience[run], int(share))] for run, share in zip(runs, quota, strict=True)]
    return Chosen(np.concatenate(chosen), 2.0 * n * (n // n_runs) * d)


def _spread(features: Floats) -> Floats:
    """Of a run's likenesses, those to itself as 0, about their mean."""
    likeness = features @ features.T
    np.fill_diagonal(likeness, 0)
    others = max(1, len(features) - 1)
    mean = likeness.sum(axis=1, keepdims=True) / others
    found: Floats = ((likeness - mean) ** 2).sum(axis=1) / others
    return found


def _attention_flops(seen: Seen) -> float:
    """The queries of all text against the picture's keys; heads together are as wide as a state, about."""
    assert seen.attention is not None
    return 2.0 * float(seen.attention.shape[1] * seen.states.size)


BOUNDARY: dict[str, Selector] = {
    "sieve": sieve,
    "sparsevlm": sparsevlm,
    "scope": scope,
    "pagerank": pagerank,
}  # where a stage begins
BY_ENCODER: dict[str, Selector] = {"visionzip": visionzip, "holov": holov}  # likewise, by the encoder's attention
INPUT: dict[str, Selector] = {
    "divprune": divprune,
    "cdpruner": cdpruner,
    "scope-input": scope,
    **BY_ENCODER,
}  # before the model
