"""Which of the pinned converter's model classes takes a checkpoint, and one of our own for what it lacks.

Imported in the worker only: `conversion` and `gguf` are those of the pinned llama.cpp.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable
from typing import Any

import gguf
from conversion import MMPROJ_MODEL_MAP, TEXT_MODEL_MAP, ModelBase, ModelType, get_model_architecture, get_model_class
from conversion.base import MmprojModel
from conversion.gemma import Gemma3VisionModel, Gemma4UnifiedModel, Gemma4VisionAudioModel
from conversion.internvl import InternVisionModel
from conversion.lfm2 import LFM2VLModel
from conversion.llava import LlavaVisionModel
from conversion.qwen3vl import Qwen3VLMoeTextModel
from conversion.qwenvl import Qwen2VLVisionModel
from torch import Tensor
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CAUSAL_MODELS

from halfv_edge.errors import HalfVError

Item = tuple[str, Callable[[], Tensor]]

# transformers leaves the architectures of the two halves out of what it saves; these are what they had been
VISION_MODELS = {
    "InternVLForConditionalGeneration": "InternVisionModel",
    "InternVLChatModel": "InternVisionModel",
    "PaddleOCRVLForConditionalGeneration": "PaddleOCRVisionModel",
}


def text_class(config: dict[str, Any], names: Collection[str]) -> type[ModelBase]:
    """`names` are those of the checkpoint's tensors."""
    architecture = get_model_architecture(config, ModelType.TEXT)
    if architecture not in TEXT_MODEL_MAP:
        kind = config.get("text_config", {}).get("model_type")
        architecture = CAUSAL_MODELS.get(kind, "")
        if architecture not in TEXT_MODEL_MAP:
            raise HalfVError(
                f"The language model in the checkpoint is a {kind!r}, which llama.cpp's converter does not know."
            )
    found = OUR_TEXT.get(architecture) or get_model_class(architecture)
    found.no_mtp = not any(is_mtp(name, config) for name in names)
    return found


def is_mtp(name: str, config: dict[str, Any]) -> bool:
    """Whether a tensor is of the layers that draft tokens ahead.

    transformers leaves them out of what it saves, and their number in config.json: the converter would look for them.
    """
    n_layer = (config | config.get("text_config", {})).get("num_hidden_layers")
    match = re.match(r"(?:model\.|language_model\.)*layers\.(\d+)\.", name)
    return bool(re.match(r"(?:model\.)?mtp\.", name) or (match and n_layer and int(match[1]) >= n_layer))


def vision_class(config: dict[str, Any]) -> type[MmprojModel]:
    whole = config["architectures"][0]
    kind = config.get("vision_config", {}).get("model_type")
    if whole.startswith("Llava") and kind != "pixtral":
        if kind != "clip_vision_model":
            raise HalfVError(f"The checkpoint's vision encoder is a {kind!r}: for LLaVA it has to be CLIP or Pixtral.")
        return LlavaVision
    architecture = get_model_architecture(config, ModelType.MMPROJ)
    if architecture not in MMPROJ_MODEL_MAP:
        architecture = VISION_MODELS.get(whole, whole)
    if architecture not in MMPROJ_MODEL_MAP:
        raise HalfVError(f"The checkpoint holds {whole!r}, which llama.cpp does not convert as a model that sees.")
    found = OUR_VISION.get(architecture) or get_model_class(architecture, mmproj=True)
    if not found.has_vision_encoder:
        raise HalfVError(f"The checkpoint holds {whole!r}, which hears and does not see.")
    return found


class LlavaVision(MmprojModel):
    """CLIP and the two-layer projector of LLaVA, named as llama.cpp's clip loader wants them.

    The pinned converter has only a script for the authors' own layout. What is chosen here follows from its clip.cpp:
    `feature_layer` says at which layer the encoder ends, and the layers and the norm after it are left out.
    """

    def get_vision_config(self) -> dict[str, Any]:
        config, vision = self.global_config, dict(self.global_config["vision_config"])
        layer = config["vision_feature_layer"]
        if not isinstance(layer, int):
            raise HalfVError(f"vision_feature_layer = {layer} in config.json: only one layer can be converted.")
        self.n_blocks = layer if layer >= 0 else vision["num_hidden_layers"] + 1 + layer
        if not 0 < self.n_blocks <= vision["num_hidden_layers"]:
            raise HalfVError(f"vision_feature_layer = {layer} in config.json is not a layer of the vision encoder.")
        for key, wanted in (("vision_feature_select_strategy", "default"), ("projector_hidden_act", "gelu")):
            if config[key] != wanted:
                raise HalfVError(f"{key} = {config[key]!r} in config.json: llama.cpp knows only {wanted!r}.")
        return vision | {"num_hidden_layers": self.n_blocks}

    def set_gguf_parameters(self) -> None:
        super().set_gguf_parameters()
        writer, vision = self.gguf_writer, self.hparams_vision
        writer.add_clip_projector_type("mlp")
        writer.add_vision_attention_layernorm_eps(vision["layer_norm_eps"])
        writer.add_vision_feature_layers([self.n_blocks])
        activation = vision["hidden_act"]
        if activation not in ("quick_gelu", "gelu", "gelu_pytorch_tanh"):
            raise HalfVError(f"hidden_act = {activation!r} of the vision encoder is not one that llama.cpp knows.")
        writer.add_vision_use_gelu(activation != "quick_gelu")
        grid = self.global_config.get("image_grid_pinpoints")
        if grid:
            # width before height here, the other way round in transformers
            writer.add_vision_image_grid_pinpoints([side for height, width in grid for side in (width, height)])

    @classmethod
    def filter_tensors(cls, item: Item) -> Item | None:
        name, load = item
        name = name.removeprefix("model.").replace("vision_tower.vision_model.", "vision_tower.")
        if not name.startswith(("vision_tower.", "multi_modal_projector.", "image_newline")):
            return None
        if ".post_layernorm." in name or name.endswith(".position_ids"):
            return None
        return super().filter_tensors((name, load))

    def modify_tensors(self, data_torch: Tensor, name: str, bid: int | None) -> Iterable[tuple[str, Tensor]]:
        if ".layers." in name and bid is not None and bid >= self.n_blocks:
            return
        if name.startswith("multi_modal_projector."):
            _, layer, kind = name.split(".")
            place = {"linear_1": 0, "linear_2": 2}.get(layer)
            if place is None:
                raise HalfVError(f"The projector has a tensor {name}: llama.cpp knows one of two layers only.")
            yield self.format_tensor_name(gguf.MODEL_TENSOR.V_MMPROJ, place, suffix=f".{kind}"), data_torch
        else:
            name = name.replace("vision_tower.", "vision_tower.vision_model.")
            yield from super().modify_tensors(data_torch, name, bid)


def also_known_as(*pairs: tuple[str, str]) -> Callable[[Item], Item]:
    """Names of tensors as transformers saves them, turned into the published ones: patterns and what replaces them."""

    def rename(item: Item) -> Item:
        name, load = item
        for pattern, published in pairs:
            name = re.sub(pattern, published, name)
        return name, load

    return rename


SIGLIP = also_known_as((r"vision_tower\.(embeddings|encoder|post_layernorm|head)\.", r"vision_tower.vision_model.\1."))


class QwenVision(Qwen2VLVisionModel):
    published = staticmethod(also_known_as((r"^model\.", "")))

    @classmethod
    def filter_tensors(cls, item: Item) -> Item | None:
        return super().filter_tensors(cls.published(item))


class InternVision(InternVisionModel):
    published = staticmethod(also_known_as((r"^(vision_tower|multi_modal_projector)\.", r"model.\1.")))

    @classmethod
    def filter_tensors(cls, item: Item) -> Item | None:
        return super().filter_tensors(cls.published(item))


class Gemma3Vision(Gemma3VisionModel):
    @classmethod
    def filter_tensors(cls, item: Item) -> Item | None:
        return super().filter_tensors(SIGLIP(item))


class Gemma4Vision(Gemma4VisionAudioModel):
    """With its activation, without which llama.cpp computes another: quick GELU in place of GELU."""

    def set_gguf_parameters(self) -> None:
        super().set_gguf_parameters()
        self.gguf_writer.add_vision_use_gelu(True)


class Lfm2Vision(LFM2VLModel):
    @classmethod
    def filter_tensors(cls, item: Item) -> Item | None:
        return super().filter_tensors(SIGLIP(item))


class PixtralVision(LlavaVisionModel):
    """With the embedding of [IMG_BREAK], which the pinned converter wants and drops with the language model."""

    @classmethod
    def filter_tensors(cls, item: Item) -> Item | None:
        name, load = item
        if name.endswith("embed_tokens.weight"):
            return name, load
        return super().filter_tensors((re.sub(r"^model\.", "", name), load))


class Qwen3VLMoeText(Qwen3VLMoeTextModel):
    """Experts' matrices also with the output first, as newer transformers have them; published ones have it last."""

    model_arch = Qwen3VLMoeTextModel.model_arch

    def modify_tensors(self, data_torch: Tensor, name: str, bid: int | None) -> Iterable[tuple[str, Tensor]]:
        width, inner = self.hparams["hidden_size"], self.hparams["moe_intermediate_size"]
        ours = {"gate_up_proj": (2 * inner, width), "down_proj": (width, inner)}
        kind = re.search(r"experts\.(\w+)", name)
        if kind and tuple(data_torch.shape[1:]) == ours.get(kind[1]):
            data_torch = data_torch.permute(0, 2, 1)
        yield from super().modify_tensors(data_torch, name, bid)


class Gemma4UnifiedText(Gemma4UnifiedModel):
    """Without experts, of which the pinned converter looks for the width in the config."""

    model_arch = Gemma4UnifiedModel.model_arch

    def set_gguf_parameters(self) -> None:
        self.hparams.setdefault("moe_intermediate_size", None)
        super().set_gguf_parameters()


OUR_TEXT: dict[str, type[ModelBase]] = {
    "Gemma4UnifiedForConditionalGeneration": Gemma4UnifiedText,
    "Qwen3VLMoeForConditionalGeneration": Qwen3VLMoeText,
}
OUR_VISION: dict[str, type[MmprojModel]] = {
    "Gemma3ForConditionalGeneration": Gemma3Vision,
    "Gemma4ForConditionalGeneration": Gemma4Vision,
    "InternVisionModel": InternVision,
    "Lfm2VlForConditionalGeneration": Lfm2Vision,
    "LlavaForConditionalGeneration": PixtralVision,
    "Mistral3ForConditionalGeneration": PixtralVision,
    "Qwen2VLForConditionalGeneration": QwenVision,
    "Qwen2_5_VLForConditionalGeneration": QwenVision,
}
