"""Which of the pinned converter's model classes takes a checkpoint, and one of our own for what it lacks.

Imported in the worker only: `conversion` and `gguf` are those of the pinned llama.cpp.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import gguf
from conversion import TEXT_MODEL_MAP, ModelBase, ModelType, get_model_architecture, get_model_class
from conversion.base import MmprojModel
from conversion.internvl import InternVisionModel
from conversion.qwenvl import Qwen2VLVisionModel
from torch import Tensor

from halfv_edge.errors import HalfVError

Item = tuple[str, Callable[[], Tensor]]

# transformers leaves the language model's architecture out of what it saves; this is what it had been.
LANGUAGE_MODELS = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
}


def text_class(config: dict[str, Any]) -> type[ModelBase]:
    architecture = get_model_architecture(config, ModelType.TEXT)
    if architecture not in TEXT_MODEL_MAP:
        kind = config.get("text_config", {}).get("model_type")
        if kind not in LANGUAGE_MODELS:
            raise HalfVError(
                f"The language model in the checkpoint is a {kind!r}, which llama.cpp's converter does not know there: "
                f"those are {', '.join(LANGUAGE_MODELS)}."
            )
        architecture = LANGUAGE_MODELS[kind]
    return get_model_class(architecture)


def vision_class(config: dict[str, Any]) -> type[ModelBase]:
    architecture = config["architectures"][0]
    kind = config.get("vision_config", {}).get("model_type")
    if architecture.startswith("Llava"):
        if kind != "clip_vision_model":
            raise HalfVError(f"The vision encoder in the checkpoint is a {kind!r}: for LLaVA it has to be CLIP.")
        return LlavaVision
    if architecture.startswith("InternVL"):
        return InternVision
    if architecture.startswith("Qwen2"):
        return QwenVision
    return get_model_class(architecture, mmproj=True)


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


class QwenVision(Qwen2VLVisionModel):
    """Also takes the names of checkpoints that transformers saved as it holds them."""

    @classmethod
    def filter_tensors(cls, item: Item) -> Item | None:
        name, load = item
        return super().filter_tensors((name.removeprefix("model."), load))


class InternVision(InternVisionModel):
    """Also takes the names that transformers gives, with `model.` in front or without it."""

    @classmethod
    def filter_tensors(cls, item: Item) -> Item | None:
        name, load = item
        if name.startswith(("vision_tower.", "multi_modal_projector.")):
            name = f"model.{name}"
        return super().filter_tensors((name, load))
