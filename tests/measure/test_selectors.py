"""Selectors against short statements of them in torch, written from the papers."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import cosine_similarity

from halfv_edge.measure import selectors
from halfv_edge.measure.selectors import Seen

N, M, D, HEADS, BEFORE = 60, 7, 24, 4, 3


@pytest.fixture(params=[0, 1, 2])
def seen(request: pytest.FixtureRequest) -> Seen:
    """Tokens of a picture that are alike in groups, and text."""
    rng = np.random.default_rng(request.param)
    groups = rng.standard_normal((9, D))
    states = groups[rng.integers(0, 9, N)] + 0.4 * rng.standard_normal((N, D))
    text = rng.standard_normal((M, D)) + 0.5 * groups[0]
    logits = 2 * rng.standard_normal((HEADS, M, N + M))
    attention = np.exp(logits) / np.exp(logits).sum(axis=2, keepdims=True)
    salience = rng.dirichlet(np.full(N, 0.3))
    pairs = 0.2 * rng.standard_normal((HEADS, BEFORE + N + M, BEFORE + N + M))
    pairs[:, np.triu(np.ones(pairs.shape[1:], dtype=bool), 1)] = -np.inf
    parts = states, selectors.unit(states), text, selectors.unit(text)
    return Seen(*parts, attention[:, :, :N], salience, lambda: pairs, BEFORE)


def sieve(seen: Seen, count: int) -> list[int]:
    t, v = torch.from_numpy(seen.text), torch.from_numpy(seen.states)
    centred, own = t - t.mean(0), v - t.mean(0)
    gram = centred @ centred.T
    held = torch.linalg.eigvalsh(gram).flip(0).clamp(min=0)
    k = int((held.cumsum(0) < 0.75 * held.sum()).sum())
    weights = own @ centred.T @ torch.linalg.inv(gram + (held[k] + 1e-6) * torch.eye(M, dtype=gram.dtype))
    residual = own - weights @ centred
    score = torch.from_numpy(seen.attention).sum((0, 1)) ** 2 * (residual.norm(dim=1) / v.norm(dim=1)) ** 2
    chosen: list[int] = []
    while len(chosen) < count:
        chosen.append(max((i for i in range(N) if i not in chosen), key=lambda i: float(score[i])))
        score = score * (1 - cosine_similarity(residual, residual[chosen[-1]][None], dim=1) ** 2)
    return sorted(chosen)


def sparsevlm(seen: Seen, count: int) -> list[int]:
    text, states = torch.from_numpy(seen.text), torch.from_numpy(seen.states)
    mean = (text @ states.T).softmax(0).mean(1)
    attention = torch.from_numpy(seen.attention)[:, mean >= mean.mean()]
    best = attention.sum((1, 2)).topk(max(1, round(HEADS * 14 / 32))).indices
    return sorted(attention[best].mean((0, 1)).topk(count).indices.tolist())


def pagerank(seen: Seen, count: int) -> list[int]:
    assert seen.pairs is not None
    step = (torch.from_numpy(seen.pairs()) / 0.1).softmax(-1)
    walk = torch.ones(HEADS, 1, len(step[0]), dtype=step.dtype) / len(step[0])
    for _ in range(5):
        walk = walk @ step
    return sorted(walk[:, 0].square().mean(0).sqrt()[BEFORE : BEFORE + N].topk(count).indices.tolist())


def scope(seen: Seen, count: int) -> list[int]:
    """The definition: the set whose sum of best likenesses grows most."""
    likeness = torch.from_numpy(seen.features @ seen.features.T).clamp(min=0)
    chosen: list[int] = []
    while len(chosen) < count:
        chosen.append(max((i for i in range(N) if i not in chosen),
                          key=lambda i: float(likeness[:, [*chosen, i]].amax(1).sum())))  # fmt: skip
    return sorted(chosen)


def divprune(seen: Seen, count: int) -> list[int]:
    distance = 1 - torch.from_numpy(seen.features @ seen.features.T)
    others = distance + torch.diag(torch.full((N,), torch.inf, dtype=distance.dtype))
    chosen = [int(others.amin(1).argmax())]
    while len(chosen) < count:
        chosen.append(max((i for i in range(N) if i not in chosen), key=lambda i: float(distance[i, chosen].min())))
    return sorted(chosen)


def cdpruner(seen: Seen, count: int) -> list[int]:
    """By determinants: each half grows by the token that makes the chosen ones' kernel largest."""
    features, text = torch.from_numpy(seen.features), torch.from_numpy(seen.text_features)
    relevance = (features @ text.T).mean(1)
    relevance = (relevance - relevance.min() + 1e-6) / (relevance.max() - relevance.min() + 1e-6)
    weight = 0.5 + 0.5 * relevance
    kernel = weight[:, None] * (features @ features.T) * weight
    found = []
    for half, share in ((range(N // 2), count // 2), (range(N // 2, N), count - count // 2)):
        chosen: list[int] = []
        while len(chosen) < share:
            rows = [[*chosen, i] for i in half if i not in chosen]
            chosen = max(rows, key=lambda row: float(torch.logdet(kernel[row][:, row])))
        found += chosen
    return sorted(found)


def visionzip(seen: Seen, count: int) -> list[int]:
    return sorted(torch.from_numpy(seen.salience).topk(count).indices.tolist())


def holov(seen: Seen, count: int) -> list[int]:
    """Token by token: each goes to the run that is owed most, by its share, and has room."""
    looked_at, features = torch.from_numpy(seen.salience), torch.from_numpy(seen.features)
    runs = torch.arange(N).tensor_split(min(N, max(1, int(1.78 * N / count))))
    spreads = []
    for run in runs:
        likeness = (features[run] @ features[run].T).fill_diagonal_(0)
        mean = likeness.sum(1, keepdim=True) / max(1, len(run) - 1)
        spreads.append((likeness - mean).square().sum(1) / max(1, len(run) - 1))
    spread = torch.cat(spreads)
    worth = 1000 * looked_at
    if spread.mean() > 0:
        worth = worth + 0.09 * spread * worth.mean() / spread.mean()
    shares = [float(worth[run].mean()) for run in runs]
    owed = [count * share / sum(shares) for share in shares]
    best = sorted(range(len(runs)), key=lambda run: -shares[run])
    quota = [int(amount) for amount in owed]
    for run in best[: count - sum(quota)]:
        quota[run] += 1
    over = sum(max(0, amount - len(run)) for amount, run in zip(quota, runs, strict=True))
    quota = [min(amount, len(run)) for amount, run in zip(quota, runs, strict=True)]
    for _ in range(over):
        quota[next(run for run in best if quota[run] < len(runs[run]))] += 1
    return sorted(int(run[i]) for run, k in zip(runs, quota, strict=True) for i in looked_at[run].topk(k).indices)


STATEMENTS = [sieve, sparsevlm, pagerank, scope, divprune, cdpruner, visionzip, holov]


@pytest.mark.parametrize(
    ("statement", "count"),
    [*itertools.product(STATEMENTS, [1, 8, 15]), (visionzip, 50), (holov, 30), (holov, 50)],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_chooses_what_the_statement_does(seen: Seen, statement: Any, count: int) -> None:
    chosen = getattr(selectors, statement.__name__)(seen, count)
    assert len(set(chosen.tokens.tolist())) == len(chosen.tokens) == count
    expected = statement(seen, count)
    if statement is scope:  # of two tokens that are each other's nearest either adds the same
        likeness = np.maximum(0, seen.features @ seen.features.T)
        sums = [likeness[:, tokens].max(axis=1).sum() for tokens in (chosen.tokens.tolist(), expected)]
        assert sums[0] == pytest.approx(sums[1], rel=1e-12)
    else:
        assert sorted(chosen.tokens.tolist()) == expected
    assert chosen.flops > 0


@pytest.mark.parametrize("name", [*selectors.BOUNDARY, *selectors.INPUT])
def test_all_of_them_when_all_are_wanted(seen: Seen, name: str) -> None:
    select = (selectors.BOUNDARY | selectors.INPUT)[name]
    assert sorted(select(seen, N).tokens.tolist()) == list(range(N))
