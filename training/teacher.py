"""The teacher of the demo model in torch: a vision encoder of convolutions with attention, and a Llama.

The encoder is what llama.cpp builds for MobileNetV5: convolutions read small text from far fewer pictures than a vision
transformer of the same cost, which has to learn each letter anew for each place in a patch.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as functional
from PIL import Image
from torch import Tensor, nn

IMAGE_SIZE, PATCH = 256, 16
GRID = IMAGE_SIZE // PATCH
N_PATCHES = GRID * GRID
MEAN, STD = 0.8, 0.3  # of pixels in 0..1; most paper is light
EPS, VISION_EPS = 1e-5, 1e-6
HEAD_DIM = 64
SECTIONS = (8, 12, 12)  # of M-RoPE: frequencies that turn with time, row and column
ROPE_BASE = 10000.0
N_BEFORE, N_AFTER = 3, 1  # tokens around the picture: beginning of text, whose turn it is, the picture's marks
N_PREFIX = N_BEFORE + N_PATCHES + N_AFTER


@dataclass(frozen=True, slots=True)
class TeacherShape:
    n_vocab: int
    n_stem: int = 32
    n_first: int = 64
    n_second: int = 128
    n_embd: int = 256  # of encoder and language model: for this encoder llama.cpp wants them the same
    n_vision_layer: int = 3
    n_ff: int = 512
    n_layer: int = 12

    def to_dict(self) -> dict[str, int]:
        return dataclasses.asdict(self)


def sized(picture: Image.Image, side: int = IMAGE_SIZE) -> np.ndarray:
    """[side, side, 3] bytes of a square picture, as the runtime resizes it."""
    return np.array(picture.resize((side, side), Image.Resampling.BILINEAR))


def normalised(pixels: Tensor) -> Tensor:
    """[B, H, W, 3] bytes to numbers around zero."""
    return (pixels.float() / 255 - MEAN) / STD


def weighed(q: Tensor, k: Tensor, bias: Tensor | None = None) -> Tensor:
    """Attention's weights, spelled out: on a CPU in bfloat16 this is twice as fast as torch's fused kernel."""
    scores = (q * HEAD_DIM**-0.5) @ k.transpose(-1, -2)
    return (scores if bias is None else scores + bias).softmax(-1)


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    return weighed(q, k, bias) @ v


def hidden(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """What is added to scores so that only what the mask allows is seen."""
    return torch.zeros(mask.shape, dtype=dtype).masked_fill_(~mask, float("-inf"))


def heads(x: Tensor) -> Tensor:
    n, length, _ = x.shape
    return x.view(n, length, -1, HEAD_DIM).transpose(1, 2)


def joined(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(2)


def convolved(x: Tensor, kernel: Tensor, stride: int = 1, groups: int = 1) -> Tensor:
    """[B, H, W, C] to the same; with a stride of 2 the padding is behind, as TensorFlow has it."""
    planes, side = x.permute(0, 3, 1, 2), kernel.shape[-1]
    if stride == 2:
        planes = functional.pad(planes, (0, 1, 0, 1))
    planes = functional.conv2d(planes, kernel, stride=stride, padding=side // 2 if stride == 1 else 0, groups=groups)
    return planes.permute(0, 2, 3, 1)


def gelu(x: Tensor) -> Tensor:
    return functional.gelu(x, approximate="tanh")


def kernel(n_out: int, n_in: int, side: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(n_out, n_in, side, side) * (n_in * side * side) ** -0.5)


class Narrow(nn.Module):
    """Half the rows and columns, more channels."""

    def __init__(self, n_in: int, n_out: int):
        super().__init__()
        n_inner = 2 * n_out
        self.conv = kernel(n_inner, n_in, 3)
        self.norm = nn.RMSNorm(n_inner, VISION_EPS)
        self.down = nn.Linear(n_inner, n_out, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(gelu(self.norm(convolved(x, self.conv, stride=2))))


class Mix(nn.Module):
    """What lies around a place, channel by channel, then the channels with each other."""

    def __init__(self, n: int, n_inner: int):
        super().__init__()
        self.around = kernel(n, 1, 5)
        self.norm = nn.RMSNorm(n, VISION_EPS)
        self.up = nn.Linear(n, n_inner, bias=False)
        self.down = nn.Linear(n_inner, n, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        around = self.norm(convolved(x, self.around, groups=x.shape[-1]))
        return x + self.down(gelu(self.up(around)))


class PictureAttention(nn.Module):
    """Attention over the whole picture; all heads share keys and values."""

    def __init__(self, n: int):
        super().__init__()
        self.norm = nn.RMSNorm(n, VISION_EPS)
        self.query = nn.Linear(n, n, bias=False)
        self.key = nn.Linear(n, HEAD_DIM, bias=False)
        self.value = nn.Linear(n, HEAD_DIM, bias=False)
        self.out = nn.Linear(n, n, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x).flatten(1, 2)
        q, k, v = heads(self.query(y)), heads(self.key(y)), heads(self.value(y))
        return x + self.out(joined(attend(q, k, v))).view(x.shape)


class Vision(nn.Module):
    """From pixels to one feature per patch. It is told no places: it learns them from where the padding is."""

    def __init__(self, shape: TeacherShape):
        super().__init__()
        n = shape.n_embd
        self.stem = kernel(shape.n_stem, 3, 3)
        self.stem_bias = nn.Parameter(torch.zeros(shape.n_stem))
        self.stem_norm = nn.RMSNorm(shape.n_stem, VISION_EPS)
        first = [Narrow(shape.n_stem, shape.n_first)]
        second = [Narrow(shape.n_first, shape.n_second), Mix(shape.n_second, 3 * shape.n_second)]
        third = [Narrow(shape.n_second, n)]
        for _ in range(shape.n_vision_layer):
            third += [Mix(n, 4 * n), PictureAttention(n)]
        third.append(Mix(n, 4 * n))
        self.stages = nn.ModuleList(nn.ModuleList(blocks) for blocks in (first, second, third))
        self.norm = nn.RMSNorm(n, VISION_EPS)

    def forward(self, pixels: Tensor) -> Tensor:
        x = gelu(self.stem_norm(convolved(pixels, self.stem, stride=2) + self.stem_bias))
        for blocks in self.stages:
            for block in blocks:
                x = block(x)
        return self.norm(x.flatten(1, 2))


class Projector(nn.Module):
    def __init__(self, shape: TeacherShape):
        super().__init__()
        self.linear = nn.Linear(shape.n_embd, shape.n_embd, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.linear(x)
        return functional.rms_norm(x, x.shape[-1:], eps=VISION_EPS)


def rotation(positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Of positions [B, N], or of [B, N, 3] in time, row and column, each for its section of the frequencies."""
    device = positions.device
    frequency = ROPE_BASE ** (-torch.arange(0, HEAD_DIM, 2, dtype=torch.float32, device=device) / HEAD_DIM)
    if positions.dim() == 3:
        positions = positions.repeat_interleave(
            torch.tensor(SECTIONS, device=device), dim=-1, output_size=sum(SECTIONS)
        )
    else:
        positions = positions[..., None]
    angle = (positions * frequency)[:, None]
    return angle.cos().to(dtype), angle.sin().to(dtype)


def placed(positions: Tensor, rows: int, columns: int) -> Tensor:
    """[B, N, 3] of prefix and text; `positions` are those of the text as they would be after N_PREFIX tokens in a row.

    A picture takes as many positions as its longer side has tokens, as M-RoPE counts them.
    """
    device = positions.device
    y, x = torch.meshgrid(torch.arange(rows, device=device), torch.arange(columns, device=device), indexing="ij")
    picture = N_BEFORE + torch.stack([torch.zeros_like(y), y, x], dim=-1).flatten(0, 1)
    after = N_BEFORE + max(rows, columns)
    before, behind = torch.arange(N_BEFORE, device=device), after + torch.arange(N_AFTER, device=device)
    text = (positions - N_PREFIX + after + N_AFTER)[..., None].expand(-1, -1, 3)
    prefix = torch.cat([before[:, None].expand(-1, 3), picture, behind[:, None].expand(-1, 3)])
    return torch.cat([prefix.expand(len(text), -1, -1), text], dim=1)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)


class Layer(nn.Module):
    """What a transformer's layers are made of, whatever they attend to."""

    def __init__(self, n: int, n_ff: int, eps: float):
        super().__init__()
        self.attn_norm = nn.RMSNorm(n, eps)
        self.qkv = nn.Linear(n, 3 * n, bias=False)
        self.out = nn.Linear(n, n, bias=False)
        self.ffn_norm = nn.RMSNorm(n, eps)
        self.gate_up = nn.Linear(n, 2 * n_ff, bias=False)
        self.down = nn.Linear(n_ff, n, bias=False)

    def fed(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(self.ffn_norm(x)).chunk(2, dim=-1)
        return x + self.down(functional.silu(gate) * up)


class Block(Layer):
    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, causal: Tensor, bias: Tensor, is_last: bool
    ) -> tuple[Tensor, Tensor]:
        """causal: for the rows of the prefix among themselves; bias: for those of the text.

        Also how the first head of the text looks at the picture [B, T, patches].
        """
        n_prefix = len(causal)
        q, k, v = map(heads, self.qkv(self.attn_norm(x)).chunk(3, dim=-1))
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        weights = weighed(q[:, :, n_prefix:], k, bias)
        rest = weights @ v
        if is_last:  # nobody reads the prefix any more
            x, a = x[:, n_prefix:], rest
        else:
            first = attend(q[:, :, :n_prefix], k[:, :, :n_prefix], v[:, :, :n_prefix], causal)
            a = torch.cat([first, rest], dim=2)
        return self.fed(x + self.out(joined(a))), weights[:, 0, :, N_BEFORE : n_prefix - N_AFTER]


class Language(nn.Module):
    def __init__(self, shape: TeacherShape):
        super().__init__()
        self.embed = nn.Embedding(shape.n_vocab, shape.n_embd)
        self.blocks = nn.ModuleList(Block(shape.n_embd, shape.n_ff, EPS) for _ in range(shape.n_layer))
        self.norm = nn.RMSNorm(shape.n_embd, EPS)
        self.head = nn.Linear(shape.n_embd, shape.n_vocab, bias=False)

    def forward(
        self, around: Tensor, visual: Tensor, text: Tensor, positions: Tensor, mask: Tensor,
        grid: tuple[int, int] | None = None,
    ) -> tuple[Tensor, list]:  # fmt: skip
        """Hidden states of the text [B, T, n], and where the first head of each block looks.

        around [N_BEFORE + N_AFTER]: tokens before and after the picture, which all stand before the text;
        positions [B, T]: of the text; mask [B, T, prefix + T]: what each token of it sees;
        grid: rows and columns of the picture for M-RoPE, None for positions in a row.
        """
        n = len(visual)
        before, after = self.embed(around).expand(n, -1, -1).split([N_BEFORE, N_AFTER], dim=1)
        x = torch.cat([before, visual, after, self.embed(text)], dim=1)
        n_prefix = x.shape[1] - text.shape[1]
        if grid:
            everywhere = placed(positions, *grid)
        else:
            everywhere = torch.cat([torch.arange(n_prefix).expand(n, -1), positions], dim=1)
        cos, sin = rotation(everywhere, x.dtype)
        causal = hidden(torch.ones(n_prefix, n_prefix, dtype=torch.bool).tril(), x.dtype)
        bias = hidden(mask, x.dtype)[:, None]
        looked = []
        for i, block in enumerate(self.blocks):
            x, looks = block(x, cos, sin, causal, bias, i == len(self.blocks) - 1)
            looked.append(looks)
        return self.norm(x), looked


class Teacher(nn.Module):
    def __init__(self, shape: TeacherShape):
        super().__init__()
        self.shape, self.n_features = shape, shape.n_embd
        self.vision = Vision(shape)
        self.projector = Projector(shape)
        self.language = Language(shape)
        self._start()

    def _start(self) -> None:
        """What adds to a residual stream begins with nothing to add."""
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                nn.init.normal_(parameter, std=1.0 if "embed" in name else parameter.shape[1] ** -0.5)
        for module in self.modules():
            if isinstance(module, (Block, Mix)):
                nn.init.zeros_(module.down.weight)
            if isinstance(module, (Block, PictureAttention)):
                nn.init.zeros_(module.out.weight)
        nn.init.normal_(self.language.head.weight, std=0.02)
