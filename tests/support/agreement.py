"""How far two devices may be apart: in logits, and in the tokens that they keep."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

MAX_NMSE = 1e-4  # upstream's bound for whole models on another device (tests/test-llama-archs.cpp)
# Tokens whose scores nearly tie change places, and then those that are compared with them: GPUs multiply f32 with 10
# bits of mantissa (TF32 in cuBLAS, halves in ggml's Vulkan shaders).
MOST_KEPT_OTHERWISE = 0.1
MAX_DIVERGENCE = 0.5  # nats, of two prompts that are the same but for those

Record = Callable[[str, object], None]


@dataclasses.dataclass
class Answers:
    """Logits of some tokens, and the tokens kept of pictures."""

    logits: list[np.ndarray] = dataclasses.field(default_factory=list)
    kept: list[list[int]] = dataclasses.field(default_factory=list)


def nmse(actual: np.ndarray, expected: np.ndarray) -> np.ndarray:
    return ((actual - expected) ** 2).sum(axis=-1) / (expected**2).sum(axis=-1)


def divergence(actual: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Kullback-Leibler, of the next token, in nats."""
    p, q = (_log_probabilities(logits) for logits in (expected, actual))
    return (np.exp(p) * (p - q)).sum(axis=-1)


def _log_probabilities(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def assert_agree(record: Record, actual: Answers, expected: Answers, least_std: float = 0.1) -> None:
    """`record` is pytest's record_property, from which scripts/gpu-proof makes its table."""
    assert [len(one) for one in actual.kept] == [len(one) for one in expected.kept]
    n_kept = sum(len(one) for one in expected.kept)
    n_other = sum(len(set(a) - set(b)) for a, b in zip(actual.kept, expected.kept, strict=True))
    there, here = np.stack(actual.logits), np.stack(expected.logits)
    errors = nmse(there, here)
    for name, value in (
        ("kept", n_kept),
        ("kept_otherwise", n_other),
        ("max_nmse", float(errors.max())),
        ("max_kl", float(divergence(there, here).max())),
        ("max_difference", float(np.abs(there - here).max())),
    ):
        record(name, value)
    assert np.isfinite(here).all() and (here.std(axis=1) > least_std).all()
    assert n_other <= MOST_KEPT_OTHERWISE * n_kept, f"{n_other} of {n_kept} tokens are others"
    if n_other:
        assert divergence(there, here).max() <= MAX_DIVERGENCE
    else:
        assert errors.max() <= MAX_NMSE
