"""The demo model's forward pass for training on a GPU: what `training.student` computes, with holes, in few kernels.

Rows of all pictures of a batch lie one after the other, in the encoder ordered by window, so that windows are views.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor

from training import student, teacher
from training.student import MERGE, Student
from training.teacher import EPS, HEAD_DIM, N_AFTER, N_BEFORE, N_PREFIX, VISION_EPS, Layer, rotate

SLOTS = MERGE * MERGE  # patches of a token
FORBIDDEN = -30000.0  # added to a score: a weight of nothing, yet no infinity where nothing at all is seen


def before_attention(x: Tensor, norm: Tensor, qkv: Tensor, cos: Tensor, sin: Tensor, eps: float) -> tuple[Tensor, ...]:
    """[M, n] to three of [M, heads, HEAD_DIM]; cos and sin [M, 1, HEAD_DIM / 2]."""
    y = functional.rms_norm(x, x.shape[-1:], norm, eps)
    q, k, v = functional.linear(y, qkv).unflatten(-1, (3, -1, HEAD_DIM)).unbind(1)
    return rotate(q, cos, sin), rotate(k, cos, sin), v.contiguous()


def after_attention(
    x: Tensor, a: Tensor, out: Tensor, norm: Tensor, gate_up: Tensor, down: Tensor, eps: float
) -> Tensor:
    x = x + functional.linear(a, out)
    y = functional.rms_norm(x, x.shape[-1:], norm, eps)
    gate, up = functional.linear(y, gate_up).chunk(2, dim=-1)
    return x + functional.linear(functional.silu(gate) * up, down)


def before_seeing(x: Tensor, norm: Tensor, qkv: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, ...]:
    """The encoder's; a function of its own, as what is compiled for one width is not for another."""
    return before_attention(x, norm, qkv, cos, sin, VISION_EPS)


def after_seeing(x: Tensor, a: Tensor, out: Tensor, norm: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    return after_attention(x, a, out, norm, gate_up, down, VISION_EPS)


def before_speaking(x: Tensor, norm: Tensor, qkv: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, ...]:
    return before_attention(x, norm, qkv, cos, sin, EPS)


def after_speaking(x: Tensor, a: Tensor, out: Tensor, norm: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    return after_attention(x, a, out, norm, gate_up, down, EPS)


PLAIN = {each.__name__: each for each in (before_seeing, after_seeing, before_speaking, after_speaking)}


class Reordered(torch.autograd.Function):
    """Rows in another order; torch's own backward of that would add them up one by one."""

    @staticmethod
    def forward(context: Any, x: Tensor, order: Tensor, back: Tensor) -> Tensor:
        context.save_for_backward(back)
        return x[order]

    @staticmethod
    def backward(context: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return grad[context.saved_tensors[0]], None, None


@dataclass(frozen=True)
class Windows:
    """Where the patches of one picture are, ordered by window."""

    order: Tensor  # [patches]: of the picture's patches, token by token and row by row
    back: Tensor
    parts: tuple[tuple[int, int, int], ...]  # first patch, windows, patches of a window; whole windows first


@lru_cache(maxsize=256)
def windows(rows: int, columns: int, device: torch.device) -> Windows:
    numbers = torch.arange(rows * columns * SLOTS).view(1, rows, columns, SLOTS, 1)
    order, parts, first = [], [], 0
    for y, x in student.windows(rows, columns):
        found = student.by_window(numbers[:, y, x])  # [windows, patches of a window, 1]
        order.append(found.flatten())
        parts.append((first, found.shape[0], found.shape[1]))
        first += found.numel()
    flat = torch.cat(order)
    return Windows(flat.to(device), flat.argsort().to(device), tuple(parts))


@lru_cache(maxsize=256)
def turns(rows: int, columns: int, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the encoder's positions, ordered by window: [patches, HEAD_DIM / 2]."""
    order = windows(rows, columns, device).order
    cos, sin = student.rotation(rows, columns, dtype)
    return tuple(each.reshape(-1, HEAD_DIM // 2).to(device)[order] for each in (cos, sin))


class Fast:
    """A student's weights, run quickly: with its functions as they are, or compiled."""

    def __init__(self, model: Student):
        self.model, self.is_compiled = model, False
        self._compiled = {name: torch.compile(function) for name, function in PLAIN.items()}

    def run(self, name: str, *tensors: Tensor) -> Any:
        if not self.is_compiled:
            return PLAIN[name](*tensors)
        for each in tensors:
            if len(each) == len(tensors[0]):  # rows differ from batch to batch
                torch._dynamo.maybe_mark_dynamic(each, 0)
        return self._compiled[name](*tensors)

    def before(self, name: str, block: Layer, x: Tensor, cos: Tensor, sin: Tensor) -> Any:
        return self.run("before_" + name, x, block.attn_norm.weight, block.qkv.weight, cos, sin)

    def after(self, name: str, block: Layer, x: Tensor, a: Tensor) -> Any:
        return self.run(
            "after_" + name, x, a, block.out.weight, block.ffn_norm.weight, block.gate_up.weight, block.down.weight
        )

    def see(self, pixels: Tensor, alive: Tensor | None) -> Tensor:
        """[B, H, W, 3] to [B, tokens, features]; alive [B, tokens]: those that are there."""
        vision = self.model.vision
        found = student.patches(pixels)
        n, rows, columns = found.shape[:3]
        where, per = windows(rows, columns, found.device), rows * columns * SLOTS
        cos, sin = turns(rows, columns, found.device, found.dtype)
        x = vision.patch(found.reshape(n, per, -1)[:, where.order])  # [B, patches, n]
        # windows of all pictures side by side: parts first, then pictures
        x = torch.cat([x[:, first : first + m * size].reshape(-1, x.shape[-1]) for first, m, size in where.parts])
        cos, sin = (
            torch.cat([each[first : first + m * size].repeat(n, 1) for first, m, size in where.parts])[:, None]
            for each in (cos, sin)
        )
        together = self._rows_of_pictures(n, where, per)  # [B, patches]
        by_picture, by_part = together.flatten(), together.flatten().argsort()
        there = None
        if alive is not None:
            there = alive.repeat_interleave(SLOTS, dim=1)[:, where.order]  # [B, patches], ordered by window
        for block in vision.blocks:
            q, k, v = self.before("seeing", block, x, cos, sin)
            if block.sees_all:
                flat = [
                    Reordered.apply(each, by_picture, by_part).unflatten(0, (n, per)).transpose(1, 2)
                    for each in (q, k, v)
                ]
                mask = None if there is None else additive(there, x.dtype)[:, None, None].expand(-1, 1, per, -1)
                a = functional.scaled_dot_product_attention(*flat, attn_mask=mask)
                a = Reordered.apply(a.transpose(1, 2).reshape(n * per, -1), by_part, by_picture)
            else:
                a = self._in_windows(q, k, v, where, there, n)
            x = self.after("seeing", block, x, a)
        x = functional.rms_norm(x, x.shape[-1:], vision.norm.weight, VISION_EPS)
        row_by_row = together[:, where.back].flatten()
        return Reordered.apply(x, row_by_row, row_by_row.argsort()).reshape(n, rows * columns, -1)

    @staticmethod
    def _rows_of_pictures(n: int, where: Windows, per: int) -> Tensor:
        """Row of each patch of each picture, its patches ordered by window."""
        found, start = [], 0
        for _, m, size in where.parts:
            found.append(start + torch.arange(n * m * size, device=where.order.device).view(n, m * size))
            start += n * m * size
        return torch.cat(found, dim=1)

    @staticmethod
    def _in_windows(q: Tensor, k: Tensor, v: Tensor, where: Windows, there: Tensor | None, n: int) -> Tensor:
        found, start = [], 0
        for first, m, size in where.parts:
            end = start + n * m * size
            parts = [each[start:end].view(n * m, size, -1, HEAD_DIM).transpose(1, 2) for each in (q, k, v)]
            if there is None:
                a = functional.scaled_dot_product_attention(*parts)
            else:
                seen = additive(there[:, first : first + m * size].reshape(n * m, 1, 1, size), q.dtype)
                scores = (parts[0] * HEAD_DIM**-0.5) @ parts[1].transpose(-1, -2) + seen
                a = scores.softmax(-1) @ parts[2]
            found.append(a.transpose(1, 2).reshape(end - start, -1))
            start = end
        return torch.cat(found)

    def speak(
        self, visual: Tensor, batch: Any, grid: tuple[int, int], around: Tensor, pointing: dict[int, str]
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """Hidden states of the text [B, T, n], and for the layers named in `pointing` how their first head looks at the
        picture [B, T, patches]."""
        language = self.model.language
        n, t = batch.text.shape
        start, end = language.embed(around).expand(n, -1, -1).split([N_BEFORE, N_AFTER], dim=1)
        x = torch.cat([start, visual, end, language.embed(batch.text)], dim=1)
        length, width = x.shape[1:]
        mask = self.mask(batch, visual.shape[1], x.dtype)
        places = teacher.placed(batch.positions + N_PREFIX, *grid)
        cos, sin = teacher.rotation(places, x.dtype)
        cos, sin = (each.reshape(n * length, 1, -1) for each in (cos, sin))
        x, looked = x.reshape(n * length, width), {}
        for i, block in enumerate(language.blocks):
            q, k, v = self.before("speaking", block, x, cos, sin)
            q, k, v = (each.view(n, length, -1, HEAD_DIM).transpose(1, 2) for each in (q, k, v))
            a = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
            if i in pointing:
                scores = (q[:, 0, -t:] * HEAD_DIM**-0.5) @ k[:, 0].transpose(-1, -2) + mask[:, 0, -t:]
                looked[i] = scores.softmax(-1)[:, :, N_BEFORE : N_BEFORE + visual.shape[1]]
            x = self.after("speaking", block, x, a.transpose(1, 2).reshape(n * length, width))
        states = x.view(n, length, width)[:, -t:]
        return functional.rms_norm(states, states.shape[-1:], language.norm.weight, EPS), looked

    @staticmethod
    def mask(batch: Any, n_visual: int, dtype: torch.dtype) -> Tensor:
        """[B, 1, L, L], added to scores: only what came before, is there, and is no other group of the text is seen."""
        n, t = batch.group.shape
        n_prefix = N_BEFORE + n_visual + N_AFTER
        device = batch.group.device
        seen = torch.ones(n, n_prefix + t, n_prefix + t, dtype=torch.bool, device=device).tril_()
        seen[:, n_prefix:, n_prefix:] &= batch.group[:, :, None] == batch.group[:, None, :]
        if batch.alive is not None:
            seen[:, :, N_BEFORE : N_BEFORE + n_visual] &= batch.alive[:, None, :]
            seen.diagonal(dim1=1, dim2=2).fill_(True)
        return additive(seen, dtype)[:, None]


def additive(seen: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, FORBIDDEN)
