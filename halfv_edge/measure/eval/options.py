"""How an evaluation is run."""

from __future__ import annotations

from dataclasses import dataclass

from halfv_edge.errors import HalfVError


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalOptions:
    """What `run_eval` takes beside the model and the questions.

    Example:
        >>> EvalOptions(policies=("profile", "fastv:0.25")).max_tokens
        32
    """

    policies: tuple[str, ...] = ("profile",)
    """What is asked beside the unpruned model; docs/eval.md lists them."""
    against: str | None = None
    """One of the policies, with which all others are paired; None: each that leads with its runner-up."""
    follow_up: bool = False
    """Questions on one picture as a conversation: exact, prepared, topped up."""
    max_tokens: int = 32
    """Of an answer."""
    kl_tokens: int = 4
    """Of an answer whose divergence is measured."""

    def __post_init__(self) -> None:
        for name in ("max_tokens", "kl_tokens"):
            if getattr(self, name) < 1:
                raise HalfVError(parameter=name, value=getattr(self, name), rule="at least 1")
