"""What transformers computes from a picture and a prompt, from the same pixels and token ids as llama.cpp.

ggml's CPU kernels differ from torch's in two ways that are no mistake of a conversion: GELU is read from a table of
halves (in its tanh form, and quick GELU likewise), and a convolution takes its input as halves. `like_ggml` does the
same to torch, so that what is left is float noise.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from typing import Any
from unittest import mock

import numpy as np
import torch
import transformers
from PIL import Image

from tests.support.converted import Pair
from tests.support.mtmd_prompt import PromptRun
from tests.support.tiny_checkpoints import CLIP_MEAN, CLIP_STD, quiet

torch.set_num_threads(2)

exact_gelu = torch.nn.functional.gelu
exact_convolution = torch.nn.Conv2d._conv_forward
QWEN = {"qwen2_vl": 14, "qwen2_5_vl": 14, "qwen3_vl": 16}  # patch sizes
LATER_QWEN = {"qwen3_vl_moe": 16, "qwen3_5": 16}  # with the encoder of Qwen3-VL
# given what their own preprocessors make, with the name under which the model is told which tokens are a picture's
PREPARED = {
    "gemma3": "token_type_ids",
    **dict.fromkeys(("gemma4", "gemma4_small", "glm4v", "glm4v_moe", "paddleocr_vl"), "mm_token_type_ids"),
    **dict.fromkeys(("mistral3", "minicpmv4_6"), None),
}
EXACT_GELU = ("glm4v", "glm4v_moe")  # llama.cpp computes the error function there
# pictures that no preprocessor has to resize: (width, height)
SIZES = {
    **dict.fromkeys(("llava", "llava_next_mistral", "llava_next_vicuna", "internvl"), (84, 84)),
    **dict.fromkeys(("qwen2_vl", "qwen2_5_vl"), (224, 168)),
    **dict.fromkeys(("qwen3_vl", "qwen3_vl_moe", "qwen3_5"), (192, 128)),
    "gemma3": (96, 96),
    **dict.fromkeys(("gemma4", "gemma4_small", "gemma4_unified"), (480, 336)),  # 70 tokens, the fewest
    **dict.fromkeys(("glm4v", "glm4v_moe", "mistral3", "paddleocr_vl"), (112, 84)),
    "lfm2_vl": (256, 256),
    "minicpmv4_6": (112, 112),
    "smolvlm": (128, 128),
}


def random_picture(width: int, height: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@contextlib.contextmanager
def like_ggml(family: str = "") -> Iterator[None]:
    from transformers import activations

    exact = family in EXACT_GELU

    def gelu(x: torch.Tensor, approximate: str = "none") -> torch.Tensor:
        table = exact_gelu(x.half().float(), approximate="tanh").half().float()
        return torch.where(x <= -10, 0 * x, torch.where(x >= 10, x, table))

    def convolve(self: Any, x: torch.Tensor, *weights: Any) -> torch.Tensor:
        return exact_convolution(self, x.half().float(), *weights)

    def quick_gelu(self: Any, x: torch.Tensor) -> torch.Tensor:
        x = x.half().float()
        return (x * torch.sigmoid(1.702 * x)).half().float()

    with contextlib.ExitStack() as stack:
        if not exact:
            stack.enter_context(mock.patch.object(torch.nn.functional, "gelu", gelu))
            stack.enter_context(mock.patch.object(torch.nn.GELU, "forward", lambda self, x: gelu(x)))
        stack.enter_context(mock.patch.object(activations.QuickGELUActivation, "forward", quick_gelu))
        for name in ("GELUActivation", "GELUTanh", "PytorchGELUTanh"):
            if kind := getattr(activations, name, None):
                stack.enter_context(mock.patch.object(kind, "forward", lambda self, x: gelu(x)))
        stack.enter_context(mock.patch.object(torch.nn.Conv2d, "_conv_forward", convolve))
        stack.enter_context(mock.patch(f"{__name__}.halves", lambda pixels: pixels.half().float()))
        yield


def halves(pixels: torch.Tensor) -> torch.Tensor:
    """As they are, but for `like_ggml`."""
    return pixels


@torch.no_grad()
def logits(family: str, pair: Pair, seen: PromptRun, picture: np.ndarray) -> np.ndarray:
    """Of the last token, for the prompt and the picture that llama.cpp saw."""
    model = pair.model
    token = getattr(model.config, "image_token_id", None) or model.config.image_token_index
    ids = torch.tensor([seen.ids(token)])
    if family == "mistral3":
        ids = with_breaks(ids, token, picture)
    is_image = ids == token
    given: dict[str, Any] = {"input_ids": ids}
    if patch := (QWEN | LATER_QWEN).get(family):
        patches, grid = qwen_patches(picture, patch)
        given |= {"pixel_values": patches, "image_grid_thw": grid, "mm_token_type_ids": is_image.int()}
    elif family.startswith("llava_next"):
        embeddings = model.get_input_embeddings()(ids)
        embeddings[is_image] = torch.cat([llava_features(model, pixels) for pixels in llava_tiles(picture)])
        given = {"inputs_embeds": embeddings}
    elif family == "smolvlm":
        given["pixel_values"] = smolvlm_pixels(picture)[None]
    elif family == "lfm2_vl":
        given |= lfm2_patches(picture)
    elif family == "gemma4_unified":
        given |= gemma4_blocks(picture)
        given |= {"attention_mask": gemma4_masks(model, ids, is_image), "mm_token_type_ids": is_image.int()}
    elif family in PREPARED:
        given |= prepared(pair, picture)
        if kind := PREPARED[family]:
            given[kind] = is_image.int()
    else:
        given["pixel_values"] = normalised(picture, CLIP_MEAN, CLIP_STD)[None]
    try:
        out = model(**given)
    except TypeError:  # transformers 4 finds the pictures by itself
        given.pop("mm_token_type_ids")
        out = model(**given)
    return out.logits[0, -1].numpy()


def prepared(pair: Pair, picture: np.ndarray) -> dict[str, torch.Tensor]:
    """What the checkpoint's own preprocessor makes of a picture, of what its model takes."""
    load = transformers.AutoImageProcessor.from_pretrained
    made = quiet(quiet(load, pair.folder), images=Image.fromarray(picture), return_tensors="pt")
    taken = inspect.signature(pair.model.forward).parameters
    given = {name: value for name, value in made.items() if name in taken}
    pixels = given["pixel_values"]
    # Gemma 4's model itself makes -1 to 1 of 0 to 1
    given["pixel_values"] = (halves(2 * pixels - 1) + 1) / 2 if "image_position_ids" in given else halves(pixels)
    return given


def with_breaks(ids: torch.Tensor, token: int, picture: np.ndarray) -> torch.Tensor:
    """Rows of a picture end with [IMG_BREAK], whose embedding llama.cpp has among those of the picture."""
    columns = picture.shape[1] // 28
    places = (ids[0] == token).nonzero()[:, 0]
    ids = ids.clone()
    ids[0, places[columns :: columns + 1]] = token + 1
    return ids


def lfm2_patches(picture: np.ndarray) -> dict[str, torch.Tensor]:
    """transformers' own preprocessor needs torchvision."""
    rows, columns = picture.shape[0] // 16, picture.shape[1] // 16
    pixels = normalised(picture, (0.5,) * 3, (0.5,) * 3).reshape(3, rows, 16, columns, 16)
    patches = pixels.permute(1, 3, 2, 4, 0).reshape(1, rows * columns, -1)
    return {
        "pixel_values": patches,
        "spatial_shapes": torch.tensor([[rows, columns]]),
        "pixel_attention_mask": torch.ones(1, rows * columns, dtype=torch.int32),
    }


def gemma4_blocks(picture: np.ndarray) -> dict[str, torch.Tensor]:
    """Blocks of 48 x 48 pixels, which are projected at once; transformers' own preprocessor needs torchvision."""
    rows, columns = picture.shape[0] // 48, picture.shape[1] // 48
    pixels = halves(torch.from_numpy(picture.copy()).float() / 127.5 - 1)
    blocks = pixels.reshape(rows, 48, columns, 48, 3).permute(0, 2, 1, 3, 4).reshape(1, rows * columns, -1)
    y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    return {"pixel_values": blocks, "image_position_ids": torch.stack([x, y], -1).reshape(1, -1, 2)}


def gemma4_masks(model: Any, ids: torch.Tensor, is_image: torch.Tensor) -> dict[str, torch.Tensor]:
    """Those of generation: causal in layers that see everything, which a plain call of this class has not."""
    return model.create_masks_for_generate(
        config=model.config,
        inputs_embeds=model.get_input_embeddings()(torch.where(is_image, 0, ids)),
        attention_mask=torch.ones_like(ids),
        cache=None,
        position_ids=torch.arange(ids.shape[1])[None],
        mm_token_type_ids=is_image.int(),
    )


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
