"""The demo model in torch: a vision transformer, a two-layer projector and a Llama, all in forms llama.cpp runs."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

IMAGE_SIZE, PATCH = 320, 16
GRID = IMAGE_SIZE // PATCH
N_PATCHES = GRID * GRID
MEAN, STD = 0.8, 0.3  # of pixels in 0..1; most paper is light
EPS = 1e-5
HEAD_DIM = 64
ROPE_BASE = 10000.0
LOCAL = 1.3  # how sharply the first vision blocks begin with their neighbours
N_BEFORE = 2  # tokens before the picture: beginning of text, and whose turn it is


@dataclass(frozen=True, slots=True)
class Shape:
    n_vocab: int
    n_vision: int = 256
    n_vision_ff: int = 768
    n_vision_layer: int = 6
    n_embd: int = 192
    n_ff: int = 512
    n_layer: int = 12

    def to_dict(self) -> dict[str, int]:
        return dataclasses.asdict(self)


def patches_of(pixels: Tensor) -> Tensor:
    """[B, H, W, 3] bytes to [B, patches, 3 * PATCH * PATCH], each as a convolution's kernel sees it."""
    n = len(pixels)
    x = pixels.view(n, GRID, PATCH, GRID, PATCH, 3).permute(0, 1, 3, 5, 2, 4).reshape(n, N_PATCHES, -1)
    return (x.float() / 255 - MEAN) / STD


def frequencies(n_embd: int) -> Tensor:
    return torch.logspace(0.3, -1, n_embd // 4)


def grid_embedding(n_embd: int) -> Tensor:
    """Sines and cosines of row and column: a start from which neighbours can be found."""
    angle = torch.arange(GRID)[:, None] * frequencies(n_embd)
    axis = torch.cat([angle.sin(), angle.cos()], dim=1)
    rows = axis[:, None].expand(GRID, GRID, -1)
    return 2 * torch.cat([rows, rows.transpose(0, 1)], dim=2).reshape(N_PATCHES, n_embd)


def shifted(weight: Tensor, rows: int, columns: int) -> Tensor:
    """A matrix for grid embeddings that gives for a place what `weight` gives for the one so far away."""
    parts = []
    for part, distance in zip(weight.chunk(2, dim=1), (rows, columns), strict=True):
        angle = distance * frequencies(weight.shape[1])
        sin, cos = part.chunk(2, dim=1)
        parts += [sin * angle.cos() - cos * angle.sin(), sin * angle.sin() + cos * angle.cos()]
    return torch.cat(parts, dim=1)


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """Spelled out: on a CPU in bfloat16 the two products are twice as fast as torch's fused kernel."""
    scores = (q * HEAD_DIM**-0.5) @ k.transpose(-1, -2)
    return (scores if bias is None else scores + bias).softmax(-1) @ v


def hidden(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """What is added to scores so that only what the mask allows is seen."""
    return torch.zeros(mask.shape, dtype=dtype).masked_fill_(~mask, float("-inf"))


def heads(x: Tensor) -> Tensor:
    n, length, _ = x.shape
    return x.view(n, length, -1, HEAD_DIM).transpose(1, 2)


def joined(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(2)


class VisionBlock(nn.Module):
    def __init__(self, n: int, n_ff: int):
        super().__init__()
        self.ln1 = nn.LayerNorm(n, EPS, bias=False)
        self.qkv = nn.Linear(n, 3 * n, bias=False)
        self.out = nn.Linear(n, n, bias=False)
        self.ln2 = nn.LayerNorm(n, EPS, bias=False)
        self.up = nn.Linear(n, n_ff, bias=False)
        self.down = nn.Linear(n_ff, n, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = map(heads, self.qkv(self.ln1(x)).chunk(3, dim=-1))
        x = x + self.out(joined(attend(q, k, v)))
        return x + self.down(functional.gelu(self.up(self.ln2(x)), approximate="tanh"))


class Vision(nn.Module):
    """From patches to one feature per patch; the projector is separate, as the training's extra heads sit between."""

    def __init__(self, shape: Shape):
        super().__init__()
        n = shape.n_vision
        self.patch = nn.Linear(3 * PATCH * PATCH, n, bias=False)
        self.position = nn.Parameter(grid_embedding(n))
        self.blocks = nn.ModuleList(VisionBlock(n, shape.n_vision_ff) for _ in range(shape.n_vision_layer))
        self.post_ln = nn.LayerNorm(n, EPS, bias=False)

    def forward(self, patches: Tensor) -> Tensor:
        x = self.patch(patches) + self.position
        for block in self.blocks:
            x = block(x)
        return self.post_ln(x)


class Projector(nn.Module):
    def __init__(self, shape: Shape):
        super().__init__()
        self.up = nn.Linear(shape.n_vision, 2 * shape.n_embd)
        self.down = nn.Linear(2 * shape.n_embd, shape.n_embd)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(functional.gelu(self.up(x), approximate="tanh"))


def rotation(positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    frequency = ROPE_BASE ** (-torch.arange(0, HEAD_DIM, 2, dtype=torch.float32) / HEAD_DIM)
    angle = positions[:, None, :, None] * frequency
    return angle.cos().to(dtype), angle.sin().to(dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)


class Block(nn.Module):
    def __init__(self, n: int, n_ff: int):
        super().__init__()
        self.attn_norm = nn.RMSNorm(n, EPS)
        self.qkv = nn.Linear(n, 3 * n, bias=False)
        self.out = nn.Linear(n, n, bias=False)
        self.ffn_norm = nn.RMSNorm(n, EPS)
        self.gate_up = nn.Linear(n, 2 * n_ff, bias=False)
        self.down = nn.Linear(n_ff, n, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, causal: Tensor, bias: Tensor, is_last: bool) -> Tensor:
        """causal: for the rows of the prefix among themselves; bias: for those of the text."""
        n_prefix = len(causal)
        q, k, v = map(heads, self.qkv(self.attn_norm(x)).chunk(3, dim=-1))
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        rest = attend(q[:, :, n_prefix:], k, v, bias)
        if is_last:  # nobody reads the prefix any more
            x, a = x[:, n_prefix:], rest
        else:
            first = attend(q[:, :, :n_prefix], k[:, :, :n_prefix], v[:, :, :n_prefix], causal)
            a = torch.cat([first, rest], dim=2)
        x = x + self.out(joined(a))
        gate, up = self.gate_up(self.ffn_norm(x)).chunk(2, dim=-1)
        return x + self.down(functional.silu(gate) * up)


class Language(nn.Module):
    def __init__(self, shape: Shape):
        super().__init__()
        self.embed = nn.Embedding(shape.n_vocab, shape.n_embd)
        self.blocks = nn.ModuleList(Block(shape.n_embd, shape.n_ff) for _ in range(shape.n_layer))
        self.norm = nn.RMSNorm(shape.n_embd, EPS)
        self.head = nn.Linear(shape.n_embd, shape.n_vocab, bias=False)

    def forward(self, before: Tensor, visual: Tensor, text: Tensor, positions: Tensor, mask: Tensor) -> Tensor:
        """Hidden states of the text [B, T, n]: `before` [N_BEFORE] and the picture stand before it.

        positions [B, T]: of the text; mask [B, T, N_BEFORE + N_PATCHES + T]: what each token of it sees.
        """
        n = len(visual)
        first = self.embed(before).expand(n, -1, -1)
        x = torch.cat([first, visual, self.embed(text)], dim=1)
        n_prefix = x.shape[1] - text.shape[1]
        everywhere = torch.cat([torch.arange(n_prefix).expand(n, -1), positions], dim=1)
        cos, sin = rotation(everywhere, x.dtype)
        causal = hidden(torch.ones(n_prefix, n_prefix, dtype=torch.bool).tril(), x.dtype)
        bias = hidden(mask, x.dtype)[:, None]
        for i, block in enumerate(self.blocks):
            x = block(x, cos, sin, causal, bias, i == len(self.blocks) - 1)
        return self.norm(x)


class DemoModel(nn.Module):
    def __init__(self, shape: Shape):
        super().__init__()
        self.shape = shape
        self.vision = Vision(shape)
        self.projector = Projector(shape)
        self.language = Language(shape)
        self._start()

    def _start(self) -> None:
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2 and "position" not in name:
                nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5 if "embed" not in name else 1.0)
            if "blocks" in name and name.endswith((".out.weight", ".down.weight")):
                nn.init.zeros_(parameter)
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
        nn.init.normal_(self.language.head.weight, std=0.02)
        self._look_around()

    @torch.no_grad()
    def _look_around(self) -> None:
        """Heads of the vision blocks begin by looking at a neighbour each, as a convolution would."""
        sides = ((0, -1), (0, 1), (-1, 0), (1, 0))
        for block in self.vision.blocks[: self.shape.n_vision_layer // 2]:
            for head in range(self.shape.n_vision // HEAD_DIM):
                query, key, _ = (part[head * HEAD_DIM : (head + 1) * HEAD_DIM] for part in block.qkv.weight.chunk(3))
                key.mul_(LOCAL)
                query.copy_(shifted(key, *sides[head % len(sides)]))
