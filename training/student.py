"""The demo model in torch: Qwen2.5-VL's vision encoder, small, and the teacher's language model with M-RoPE.

Pictures have any size, most layers of the encoder see windows, and four patches make a token.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from training.teacher import HEAD_DIM, VISION_EPS, Language, Layer, Teacher, attend, gelu, heads, joined, rotate

PATCH, MERGE = 10, 2
TOKEN = PATCH * MERGE  # pixels of a token, along a side
WINDOW = 112 // PATCH // MERGE  # tokens along the side of a window; llama.cpp's windows are of 112 pixels
FULL_EVERY = 3  # layers that see the whole picture
ROPE_BASE = 10000.0


def patches(pixels: Tensor) -> Tensor:
    """[B, H, W, 3] to [B, rows, columns, 4, 3 * PATCH * PATCH]: the patches of each token."""
    n, height, width, _ = pixels.shape
    rows, columns = height // TOKEN, width // TOKEN
    x = pixels.view(n, rows, MERGE, PATCH, columns, MERGE, PATCH, 3)
    return x.permute(0, 1, 4, 2, 5, 7, 3, 6).reshape(n, rows, columns, MERGE * MERGE, -1)


def rotation(rows: int, columns: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """[rows, columns, 4, HEAD_DIM / 2]: half of the angles turn with the row of a patch, half with its column."""
    frequency = ROPE_BASE ** (-torch.arange(0, HEAD_DIM // 2, 2, dtype=torch.float32) / (HEAD_DIM // 2))
    inside = torch.arange(MERGE)
    y = (MERGE * torch.arange(rows)[:, None] + inside)[:, None, :, None].expand(rows, columns, MERGE, MERGE)
    x = (MERGE * torch.arange(columns)[:, None] + inside)[None, :, None, :].expand(rows, columns, MERGE, MERGE)
    angle = torch.cat([y[..., None] * frequency, x[..., None] * frequency], dim=-1).flatten(2, 3)
    return angle.cos().to(dtype), angle.sin().to(dtype)


def windows(rows: int, columns: int) -> list[tuple[slice, slice]]:
    """Whole windows together, then those that the right and the lower edge cut."""
    down, right = rows - rows % WINDOW, columns - columns % WINDOW
    cuts = [
        (slice(top, bottom), slice(left, end))
        for top, bottom in ((0, down), (down, rows))
        for left, end in ((0, right), (right, columns))
    ]
    return [(y, x) for y, x in cuts if y.stop > y.start and x.stop > x.start]


def by_window(x: Tensor) -> Tensor:
    """[B, rows, columns, 4, n], a whole number of windows, to [B * windows, tokens of a window, n]."""
    n, rows, columns, _, width = x.shape
    high, wide = min(rows, WINDOW), min(columns, WINDOW)
    x = x.view(n, rows // high, high, columns // wide, wide, MERGE * MERGE, width).transpose(2, 3)
    return x.reshape(-1, high * wide * MERGE * MERGE, width)


def from_windows(x: Tensor, shape: torch.Size) -> Tensor:
    n, rows, columns, _, width = shape
    high, wide = min(rows, WINDOW), min(columns, WINDOW)
    x = x.view(n, rows // high, columns // wide, high, wide, MERGE * MERGE, width).transpose(2, 3)
    return x.reshape(shape)


class Block(Layer):
    def __init__(self, n: int, n_ff: int, sees_all: bool):
        super().__init__(n, n_ff, VISION_EPS)
        self.sees_all = sees_all

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        q, k, v = self.qkv(self.attn_norm(x)).chunk(3, dim=-1)
        cos, sin = cos[:, :, :, None], sin[:, :, :, None]
        q, k = (rotate(each.unflatten(-1, (-1, HEAD_DIM)), cos, sin).flatten(-2) for each in (q, k))
        if self.sees_all:
            flat = [heads(each.flatten(1, 3)) for each in (q, k, v)]
            a = joined(attend(*flat)).view(x.shape)
        else:
            a = torch.empty_like(x)
            for y_, x_ in windows(x.shape[1], x.shape[2]):
                parts = [each[:, y_, x_] for each in (q, k, v)]
                found = joined(attend(*(heads(by_window(part)) for part in parts)))
                a[:, y_, x_] = from_windows(found, parts[0].shape)
        return self.fed(x + self.out(a))


class StudentVision(nn.Module):
    """From pixels to the four patches of each token, one after the other."""

    def __init__(self, n: int, n_ff: int, n_layer: int):
        super().__init__()
        self.patch = nn.Linear(3 * PATCH * PATCH, n, bias=False)
        self.blocks = nn.ModuleList(Block(n, n_ff, (i + 1) % FULL_EVERY == 0) for i in range(n_layer))
        self.norm = nn.RMSNorm(n, VISION_EPS)

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.patch(patches(pixels))
        cos, sin = rotation(x.shape[1], x.shape[2], x.dtype)
        for block in self.blocks:
            x = block(x, cos, sin)
        return self.norm(x).flatten(1, 2).flatten(2)


class Merger(nn.Module):
    def __init__(self, n: int, n_embd: int):
        super().__init__()
        self.up = nn.Linear(n, n)
        self.down = nn.Linear(n, n_embd)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(gelu(self.up(x)))


@dataclass(frozen=True, slots=True)
class StudentShape:
    n_vocab: int
    n_vision: int = 192
    n_vision_ff: int = 512
    n_vision_layer: int = 6
    n_embd: int = 256
    n_ff: int = 512
    n_layer: int = 12

    def to_dict(self) -> dict[str, int]:
        return dataclasses.asdict(self)


class Student(nn.Module):
    def __init__(self, shape: StudentShape):
        super().__init__()
        self.shape = shape
        self.n_features = MERGE * MERGE * shape.n_vision
        self.vision = StudentVision(shape.n_vision, shape.n_vision_ff, shape.n_vision_layer)
        self.projector = Merger(self.n_features, shape.n_embd)
        self.language = Language(shape)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2 and "embed" not in name:
                nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
        for module in self.modules():
            if isinstance(module, Block):
                nn.init.zeros_(module.down.weight)
                nn.init.zeros_(module.out.weight)
        for layer in (self.projector.up, self.projector.down):
            nn.init.zeros_(layer.bias)

    def start_from(self, taught: Teacher) -> None:
        """The language model that has learnt to answer from another encoder."""
        self.language.load_state_dict(taught.language.state_dict())
