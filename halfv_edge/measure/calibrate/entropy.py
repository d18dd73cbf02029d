"""Truncated matrix entropy and divergence, in float64."""

from __future__ import annotations

import numpy as np

from halfv_edge.measure.arrays import Floats

TOP = 50  # eigenvalues that count


def final_norm(states: Floats, weight: Floats, eps: float) -> Floats:
    """The model's final RMS norm of states [n, d]."""
    x = states.astype(np.float64)
    scale = np.sqrt(np.mean(x * x, axis=1, keepdims=True) + eps)
    normed: Floats = np.divide(x, scale, out=np.zeros_like(x), where=scale > 0) * weight.astype(np.float64)
    return normed


def matrix_entropy(rows: Floats) -> float:
    """Of tokens [n, d], centred: the 50 largest eigenvalues of the smaller Gram matrix as a distribution."""
    centred = rows - rows.mean(axis=0, keepdims=True, dtype=np.float64)
    n, d = centred.shape
    gram = centred.T @ centred if n >= d else centred @ centred.T
    values = np.linalg.eigvalsh(gram)[::-1][:TOP].clip(min=0.0)
    total = values.sum()
    if not total > 0:  # tokens that are all alike
        return 0.0
    p = values[values > 0] / total
    return float(-(p * np.log(p)).sum())


def log_softmax(logits: Floats) -> Floats:
    x = logits.astype(np.float64)
    x = x - x.max(axis=-1, keepdims=True)
    found: Floats = x - np.log(np.exp(x).sum(axis=-1, keepdims=True))
    return found


def kl(full: Floats, other: Floats) -> float:
    """KL divergence of the distribution of `other` from that of `full`, both logits [..., n_vocab]; mean over rows."""
    p, q = log_softmax(full), log_softmax(other)
    return float(np.maximum((np.exp(p) * (p - q)).sum(axis=-1), 0.0).mean())
