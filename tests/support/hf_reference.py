"""What transformers computes from a picture and a prompt, from the same pixels and token ids as llama.cpp.

ggml's CPU kernels differ from torch's in two ways that are no mistake of a conversion: GELU is read from a table of
halves (in its tanh form, and quick GELU likewise), and a convolution takes its input as halves. `like_ggml` does the
same to torch, so that what is left is float noise.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

import numpy as np
import torch
from PIL import Image

from tests.support.mtmd_prompt import PromptRun
from tests.support.tiny_checkpoints import CLIP_MEAN, CLIP_STD

torch.set_num_threads(2)

exact_gelu = torch.nn.functional.gelu
QWEN = {"qwen2_vl": 14, "qwen2_5_vl": 14, "qwen3_vl": 16}  # patch sizes
# pictures that no preprocessor has to resize: (width, height)
SIZES = {
    **dict.fromkeys(("llava", "llava_next_mistral", "llava_next_vicuna", "internvl"), (84, 84)),
    **dict.fromkeys(("qwen2_vl", "qwen2_5_vl"), (224, 168)),
    "qwen3_vl": (192, 128),
    "smolvlm": (128, 128),
}


def random_picture(width: int, height: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@contextlib.contextmanager
def like_ggml() -> Iterator[None]:
    from transformers import activations

    def gelu(x: torch.Tensor, approximate: str = "none") -> torch.Tensor:
        table = exact_gelu(x.half().float(), approximate="tanh").half().float()
        return torch.where(x <= -10, 0 * x, torch.where(x >= 10, x, table))

    def quick_gelu(self: Any, x: torch.Tensor) -> torch.Tensor:
        x = x.half().float()
        return (x * torch.sigmoid(1.702 * x)).half().float()

    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(torch.nn.functional, "gelu", gelu))
        stack.enter_context(mock.patch.object(torch.nn.GELU, "forward", lambda self, x: gelu(x)))
        stack.enter_context(mock.patch.object(activations.QuickGELUActivation, "forward", quick_gelu))
        for name in ("GELUActivation", "GELUTanh", "PytorchGELUTanh"):
            if kind := getattr(activations, name, None):
                stack.enter_context(mock.patch.object(kind, "forward", lambda self, x: gelu(x)))
        stack.enter_context(mock.patch(f"{__name__}.halves", lambda pixels: pixels.half().float()))
        yield


def halves(pixels: torch.Tensor) -> torch.Tensor:
    """As they are, but for `like_ggml`."""
    return pixels


@torch.no_grad()
def logits(family: str, model: Any, seen: PromptRun, picture: np.ndarray) -> np.ndarray:
    """Of the last token, for the prompt and the picture that llama.cpp saw."""
    token = getattr(model.config, "image_token_id", None) or model.config.image_token_index
    ids = torch.tensor([seen.ids(token)])
    is_image = ids == token
    if family in QWEN:
        patches, grid = qwen_patches(picture, QWEN[family])
        given = {"input_ids": ids, "pixel_values": patches, "image_grid_thw": grid}
        try:
            out = model(**given, mm_token_type_ids=is_image.int())
        except TypeError:  # transformers 4 finds the pictures by itself
            out = model(**given)
    elif family.startswith("llava_next"):
        embeddings = model.get_input_embeddings()(ids)
        embeddings[is_image] = torch.cat([llava_features(model, pixels) for pixels in llava_tiles(picture)])
        out = model(inputs_embeds=embeddings)
    elif family == "smolvlm":
        out = model(input_ids=ids, pixel_values=smolvlm_pixels(picture)[None])
    else:
        out = model(input_ids=ids, pixel_values=normalised(picture, CLIP_MEAN, CLIP_STD)[None])
    return out.logits[0, -1].numpy()


def normalised(picture: np.ndarray, mean: tuple[float, ...], std: tuple[float, ...]) -> torch.Tensor:
    """[3, height, width]"""
    scaled = torch.from_numpy(picture.copy()).float() / 255
    return halves(((scaled - torch.tensor(mean)) / torch.tensor(std)).permute(2, 0, 1).contiguous())


def qwen_patches(picture: np.ndarray, patch: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Patches in the order of the 2 x 2 blocks that become one token, each twice for the two frames."""
    height, width, _ = picture.shape
    rows, columns = height // patch, width // patch
    frames = normalised(picture, CLIP_MEAN, CLIP_STD).expand(2, -1, -1, -1)
    split = frames.reshape(2, 3, rows // 2, 2, patch, columns // 2, 2, patch)
    return split.permute(2, 5, 3, 6, 1, 0, 4, 7).reshape(rows * columns, -1), torch.tensor([[1, rows, columns]])


def llava_tiles(picture: np.ndarray) -> list[torch.Tensor]:
    """As llama.cpp has them: the tiles, row by row, and then all of it in small. transformers has that first."""
    height, width, _ = picture.shape
    small = np.asarray(Image.fromarray(picture).resize((84, 84), Image.Resampling.BICUBIC))
    tiles = [picture[y : y + 84, x : x + 84] for y in range(0, height, 84) for x in range(0, width, 84)]
    return [normalised(tile, CLIP_MEAN, CLIP_STD) for tile in [*(tiles if len(tiles) > 1 else []), small]]


def llava_features(model: Any, pixels: torch.Tensor) -> torch.Tensor:
    states = model.model.vision_tower(pixels[None], output_hidden_states=True).hidden_states
    return model.model.multi_modal_projector(states[model.config.vision_feature_layer][:, 1:])[0]


def smolvlm_pixels(picture: np.ndarray) -> torch.Tensor:
    """Tiles of 64, and all of it in small."""
    small = np.asarray(Image.fromarray(picture).resize((64, 64), Image.Resampling.LANCZOS))
    tiles = [picture[y : y + 64, x : x + 64] for y in (0, 64) for x in (0, 64)]
    return torch.stack([normalised(tile, (0.5,) * 3, (0.5,) * 3) for tile in [*tiles, small]])
