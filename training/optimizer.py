"""Muon for the matrices inside blocks, AdamW for the rest. Weights are bfloat16 with a float32 master here."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

MOMENTUM = 0.95
BETAS = (0.9, 0.98)
EPS = 1e-8
DECAY = 0.01
LANGUAGE = 0.5  # of Muon's rate for the language model, whose gradients are noisier than the encoder's
FUSED = {"qkv": 3, "gate_up": 2}  # matrices stored as one


def orthogonal(batch: Tensor) -> Tensor:
    """[n, rows, columns] to nearly orthogonal ones, by five steps of Newton and Schulz."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = batch.bfloat16()
    is_tall = x.shape[1] > x.shape[2]
    if is_tall:
        x = x.mT
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if is_tall else x


class Optimizer:
    def __init__(self, named: Iterable[tuple[str, nn.Parameter]]):
        self.named = {name: p for name, p in named if p.requires_grad}
        self.state: dict[str, dict[str, Tensor]] = {
            name: {"master": p.detach().float().clone()} for name, p in self.named.items()
        }
        self.steps: dict[str, int] = dict.fromkeys(self.named, 0)

    @staticmethod
    def _is_inner(name: str, p: Tensor) -> bool:
        is_matrix = p.dim() == 2 or (p.dim() == 4 and p.shape[1] > 1)
        return is_matrix and any(part in name for part in ("blocks.", "stages.", "projector."))

    @staticmethod
    def _sees(name: str) -> bool:
        return name.startswith(("model.vision.", "heads."))

    @torch.no_grad()
    def step(self, muon_rate: float, adam_rate: float, encoder: float) -> None:
        """encoder: factor of its rates, and of the heads that tell of its patches."""
        groups: dict[tuple[int, int], list[tuple[Tensor, Tensor, float]]] = {}
        for name, p in self.named.items():
            if p.grad is None:
                continue
            state = self.state[name]
            self.steps[name] += 1
            grad = p.grad.float()
            if not self._is_inner(name, p):
                self._adam(name, state, grad, adam_rate * (encoder if self._sees(name) else 1.0))
                continue
            momentum = state.setdefault("momentum", torch.zeros_like(grad))
            momentum.lerp_(grad, 1 - MOMENTUM)
            direction = grad.lerp(momentum, MOMENTUM)
            parts = FUSED.get(name.split(".")[-2], 1)
            pairs = zip(state["master"].flatten(1).chunk(parts), direction.flatten(1).chunk(parts), strict=True)
            for master, update in pairs:
                factor = encoder if self._sees(name) else LANGUAGE
                groups.setdefault(tuple(master.shape), []).append((master, update, factor))
        for (rows, columns), members in groups.items():
            updates = orthogonal(torch.stack([update for _, update, _ in members]))
            scale = muon_rate * max(1, rows / columns) ** 0.5
            for (master, _, factor), update in zip(members, updates, strict=True):
                master.mul_(1 - muon_rate * factor * DECAY).add_(update.float(), alpha=-scale * factor)
        for name, p in self.named.items():
            if p.grad is not None:
                p.copy_(self.state[name]["master"])
                p.grad = None

    def _adam(self, name: str, state: dict[str, Tensor], grad: Tensor, rate: float) -> None:
        first = state.setdefault("first", torch.zeros_like(grad))
        second = state.setdefault("second", torch.zeros_like(grad))
        first.lerp_(grad, 1 - BETAS[0])
        second.lerp_(grad.square(), 1 - BETAS[1])
        n = self.steps[name]
        scale = (second / (1 - BETAS[1] ** n)).sqrt_().add_(EPS)
        state["master"].addcdiv_(first, scale, value=-rate / (1 - BETAS[0] ** n))

    def state_dict(self) -> dict:
        return {"state": self.state, "steps": self.steps}

    def load_state_dict(self, saved: dict) -> None:
        """What the saved run did not train keeps its fresh start."""
        with torch.no_grad():
            for name in self.named:
                if name in saved["state"]:
                    self.state[name], self.steps[name] = saved["state"][name], saved["steps"][name]
                    self.named[name].copy_(self.state[name]["master"])
