"""What an answer took, and how many visual tokens it had."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from halfv_edge.engine.context import Item, n_cells
from halfv_edge.engine.encoder import Chunk


@dataclass(frozen=True, slots=True)
class Stats:
    """What an answer took. Times are seconds of wall clock."""

    ttft_sec: float = 0.0
    """From `ask()` to the first token."""
    encode_sec: float = 0.0
    """In the vision encoder, for the pictures that are new in this turn."""
    prefill_sec: float = 0.0
    """In the language model up to the first token: ahead of the question too, and selection."""
    select_sec: float = 0.0
    """Of `prefill_sec`: the choice of tokens."""
    ahead_sec: float = 0.0
    """Of encoder and prefill: what ran before `ask()`, while the person typed."""
    n_patches: int = 0
    """Visual tokens that the conversation's pictures could be."""
    n_grid: int = 0
    """Visual tokens of the sizes in which they were encoded: fewer where one was made smaller, as it shows little."""
    n_rows: int = 0
    """Visual tokens that the encoder gave: without the patches that stayed out of it."""
    n_groups: int = 0
    """Groups of patches in pictures of which the encoder's later layers saw some: none where they saw all."""
    n_seen: int = 0
    """Of those, the groups that they saw."""
    n_visual: int = 0
    """Visual tokens that the language model was given: the share of those that `input_keep` is."""
    n_kept: int = 0
    """Visual tokens that stage II has."""
    n_deep: int = 0
    """Visual tokens that stage III updates."""
    n_prompt: int = 0
    """Tokens evaluated before the first token of the answer, visual ones included."""
    n_encoded: int = 0
    """Pictures that went through the encoder."""
    n_generated: int = 0
    """Tokens of the answer."""
    tokens_per_sec: float = 0.0
    """Of the answer, after its first token."""
    n_drafted: int = 0
    """Tokens that a twig drafted."""
    n_accepted: int = 0
    """Of those, the ones that were what the model says."""
    flops_dense: float = 0.0
    """FLOPs of this turn from the first picture on, were it unpruned; 0 without pruning."""
    flops_spent: float = 0.0
    """FLOPs of this turn from the first picture on; 0 without pruning."""
    unpruned: str = ""
    """Why the last picture was not pruned: "small", "disabled", ...; "off" without a profile."""
    stopped: str = ""
    """How the answer ended: "end" (by itself), "stop" (before a stop string), "length" or "interrupted"."""

    @property
    def dense_prefill_sec(self) -> float:
        """An estimate of the prefill without pruning: the measured time less selection, at the same FLOPS.

        It leaves out that text before the first picture costs the same either way, and that larger batches may run
        at a better rate; the bench measures instead of estimating.
        """
        if not self.flops_spent:
            return self.prefill_sec
        return max(self.prefill_sec - self.select_sec, 0.0) * self.flops_dense / self.flops_spent


def visual_counts(items: Iterable[Item]) -> dict[str, int]:
    """Fields of Stats before any pruning in the language model."""
    chunks = [item for item in items if isinstance(item, Chunk)]
    counts = dict.fromkeys(("n_visual", "n_kept", "n_deep"), n_cells(chunks))
    before = "n_patches", "n_grid", "n_rows", "n_groups", "n_seen"
    return counts | {name: sum(getattr(chunk, name) for chunk in chunks) for name in before}


def pruning_between(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of Stats from halfv_stats before and after."""
    if not after:
        return {"unpruned": "off"}

    def spent(name: str) -> float:
        return max(float(after[name] - before.get(name, 0)), 0.0)

    return {
        "select_sec": spent("us_select") / 1e6,
        "flops_dense": spent("flops_dense"),
        "flops_spent": spent("flops_spent"),
        "unpruned": after["reason"] if after["outcome"] == "unpruned" else "",
    } | {name: after[name] for name in ("n_visual", "n_kept", "n_deep")}
