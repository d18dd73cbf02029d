"""Encoders whose later layers see only some groups of patches: the rule in numpy, and transformers' own under it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from tests.support import hf_reference
from tests.support.converted import Pair
from tests.support.holes import masked

QWEN = hf_reference.QWEN


@dataclass
class Choice:
    kept: list[int]
    like: list[int]  # for each group, the kept one that it is like


def choose(states: np.ndarray, columns: int, keep: float, places: list[int] | None = None) -> Choice:
    """Groups that are least like one beside them; each other one is like the kept one with the greatest cosine."""
    n = len(states)
    places = list(range(n)) if places is None else places
    apart = states.astype(np.float64) - states.astype(np.float64).mean(axis=0)
    unit = apart / np.linalg.norm(apart, axis=1, keepdims=True)
    alike = unit @ unit.T
    at = [divmod(place, columns) for place in places]
    beside = [
        [j for j in range(n) if j != i and abs(at[i][0] - at[j][0]) <= 1 and abs(at[i][1] - at[j][1]) <= 1]
        for i in range(n)
    ]
    foretold = [max((alike[i, j] for j in beside[i]), default=-1.0) for i in range(n)]
    kept = sorted(sorted(range(n), key=lambda i: foretold[i])[: int(keep * n)])
    return Choice(kept, [i if i in set(kept) else kept[int(alike[i, kept].argmax())] for i in range(n)])


@dataclass
class _Reduced:
    """What is in force during one forward."""

    order: list[int]  # the group at each place of the encoder's own order
    columns: int
    layer: int
    keep: float
    inside: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    base: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    source: torch.Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.long))

    def begin(self, hidden: torch.Tensor) -> None:
        n, back = len(self.order), np.argsort(self.order)
        choice = choose(hidden.reshape(n, -1)[back].numpy(), self.columns, self.keep)
        kept = set(choice.kept)
        self.base = hidden.clone()
        self.inside = torch.tensor([group in kept for group in self.order]).repeat_interleave(4)
        self.source = torch.tensor([int(back[choice.like[group]]) for group in self.order])

    def rebuilt(self, hidden: torch.Tensor) -> torch.Tensor:
        n = len(self.order)
        change = (hidden - self.base).reshape(n, -1)[self.source]
        return self.base + change.reshape(hidden.shape)


@torch.no_grad()
def rows(family: str, model: Any, picture: np.ndarray, layer: int, keep: float) -> np.ndarray:
    """What the encoder gives the language model, with DeepStack's rows behind each."""
    patches, grid = hf_reference.qwen_patches(picture, QWEN[family])
    visual = model.model.visual if hasattr(model.model, "visual") else model.visual
    with _in_force(family, model, visual, (int(grid[0][1]) // 2, int(grid[0][2]) // 2), layer, keep):
        found = visual(patches, grid_thw=grid)
    if family == "qwen2_vl" or family == "qwen2_5_vl":
        return np.asarray(getattr(found, "pooler_output", found))
    deep = getattr(found, "deepstack_features", None)
    first = getattr(found, "pooler_output", None)
    if first is None:
        first, deep = found
    return torch.cat([first, *deep], dim=-1).numpy()


@torch.no_grad()
def rows_of_patches(pair: Pair, family: str, picture: np.ndarray, layer: int, keep: float) -> np.ndarray:
    """The same for encoders of CLIP's kind, where each patch is a group and no layer knows places."""
    model = pair.model.model
    tower, clip = model.vision_tower, family == "llava"
    lead, columns = int(clip), picture.shape[1] // tower.config.patch_size
    inside: list[int] = []
    source: list[int] = []
    base = torch.empty(0)

    def block(number: int, forward: Any) -> Any:
        def run(hidden: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
            nonlocal base
            if number == layer:
                base = hidden.clone()
                choice = choose(hidden[0, lead:].numpy(), columns, keep)
                inside[:] = [*range(lead), *(lead + i for i in choice.kept)]
                source[:] = [*range(lead), *(lead + i for i in choice.like)]
            out = hidden.clone()
            out[:, inside] = forward(hidden[:, inside], *args, **options)
            return out

        return run

    def rebuild(forward: Any) -> Any:
        def run(hidden: torch.Tensor) -> torch.Tensor:
            first = base.shape[1] - hidden.shape[1]  # a class token has gone
            return forward((base + (torch.cat([base[:, :first], hidden], 1) - base)[:, source])[:, first:])

        return run

    ends = model.multi_modal_projector if clip else tower.post_layernorm
    changed = [*tower.encoder.layers[layer:], ends]
    former = [part.forward for part in changed]
    for i, part in enumerate(changed):
        part.forward = rebuild(former[i]) if part is ends else block(layer + i, former[i])
    try:
        if clip:
            pixels = hf_reference.normalised(picture, hf_reference.CLIP_MEAN, hf_reference.CLIP_STD)[None]
        else:
            pixels = hf_reference.prepared(pair, picture)["pixel_values"]
        found = model.get_image_features(pixel_values=pixels)
        found = getattr(found, "pooler_output", found)
        return np.asarray(found[0] if isinstance(found, (list, tuple)) or found.dim() == 3 else found)
    finally:
        for part, forward in zip(changed, former, strict=True):
            part.forward = forward


@contextlib.contextmanager
def _in_force(family: str, model: Any, visual: Any, grid: tuple[int, int], layer: int, keep: float) -> Iterator[None]:
    order = [(y, x) for y in range(grid[0]) for x in range(grid[1])]
    if family == "qwen2_5_vl":  # window by window
        side = model.config.vision_config.window_size // QWEN[family] // 2
        order.sort(key=lambda place: (place[0] // side, place[1] // side))
    reduced = _Reduced([y * grid[1] + x for y, x in order], grid[1], layer, keep)
    changed = [*visual.blocks[layer:], visual.merger, *getattr(visual, "deepstack_merger_list", [])]
    former = [part.forward for part in changed]
    attentions = [block.attn for block in visual.blocks[layer:]]
    former_attentions = [each.forward for each in attentions]

    def block(number: int, forward: Any) -> Any:
        def run(hidden: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
            if number == layer:
                reduced.begin(hidden)
                for each in attentions:
                    each.forward = masked(each, reduced.inside)
            return torch.where(reduced.inside[:, None], forward(hidden, *args, **options), hidden)

        return run

    def merger(forward: Any) -> Any:
        return lambda hidden, *args, **options: forward(reduced.rebuilt(hidden), *args, **options)

    n_blocks = len(visual.blocks) - layer
    for i, part in enumerate(changed):
        part.forward = block(layer + i, former[i]) if i < n_blocks else merger(former[i])
    try:
        yield
    finally:
        for part, forward in zip([*changed, *attentions], [*former, *former_attentions], strict=True):
            part.forward = forward
