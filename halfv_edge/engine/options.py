"""How a model is loaded and how it answers: the settings, checked as they are made."""

from __future__ import annotations

import math
import numbers
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypedDict

from halfv_cpp.tensor_types import KV_TYPES

from halfv_edge.engine.encoder import MMPROJ_TYPES
from halfv_edge.errors import HalfVError
from halfv_edge.gguf.read import ARRAY, FLOAT32
from halfv_edge.profile.keys import ASKED, KEYS, LEVELS, Key
from halfv_edge.profile.profile import Profile
from halfv_edge.profile.values import WHOLES

FIRST_VISUAL_SHARE = 0.75  # of a context that may grow
FLASH = {"auto": -1, False: 0, True: 1}
LEAST = {
    "n_ctx": 1,
    "n_threads": 1,
    "n_batch": 1,
    "n_ubatch": 1,
    "image_max_tokens": 1,
    "image_cache_mb": 0,
    "undo_mb": 0,
}

ProfileSource = Profile | Mapping[str, Any] | str | os.PathLike[str] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Pruning:
    """A profile, and what is asked for in place of some of its numbers."""

    profile: ProfileSource = None
    """A Profile, its JSON as a dict or a file, a preset's name, "4x" for the profile in the file that is so many times
    faster, or "off"; None is what comes with the model."""
    keep: float | None = None
    """The share of visual tokens in stage II, in place of the profile's."""
    pixel_tau: float | Literal["off"] | None = None
    """In place of the profile's, for Qwen-VL: patches within so many of 255 levels of what their neighbours predict
    stay out of the encoder; 0 are equal ones, "off" is none."""
    input_keep: float | None = None
    """The share of a picture's visual tokens that the language model is given, in place of the profile's; 1 is all."""
    encoder_layer: int | None = None
    """In place of the profile's: the first layer of the encoder that sees only some of a picture."""
    encoder_keep: float | None = None
    """The share of it that this layer and later ones see, in place of the profile's; 1 is all."""
    input_merge: float | None = None
    """The share of a picture's rows that is left when alike ones are averaged, in place of the profile's; 1 is all."""
    ffn_layer: int | None = None
    """In place of the profile's: from this layer on visual tokens take only some channels of feed-forward networks."""
    ffn_keep: float | None = None
    """The share of the channels, the first ones, in place of the profile's; 1 is all."""
    further_layers: Sequence[int] | None = None
    """In place of the profile's: the layers at which stages behind III begin, at most four; () is none."""
    further_keep: Sequence[float] | None = None
    """For each of those the share of a picture's visual tokens that it sees; 0 is text alone."""
    image_loss: float | None = None
    """In place of the profile's: pictures are made smaller as far as no part of them loses more than this share of its
    pixels; 0 leaves them as they are."""
    frames_tau: float | Literal["off"] | None = None
    """In place of the profile's, for Qwen-VL: of pictures of one message, patches within so many of 255 levels of what
    the picture before showed in the same place stay out of the encoder; 0 are equal ones, "off" is none."""
    visual_share: float | None = None
    """Of n_ctx, set aside for visual tokens: with 0.75 text has a quarter of it, and the KV cache of deeper layers is
    as much smaller as tokens are pruned. 0: text may fill all of it from the start. None: the profile's; where that
    names none, a chat begins with 0.75 and moves to 0 when its text needs that, so that nothing is refused."""

    def __post_init__(self) -> None:
        for name, key in {"keep": KEYS["ivr_keep"], **ASKED}.items():
            value = getattr(self, name)
            if value is None or (key.range is LEVELS and value == "off"):
                continue
            if key.type in (ARRAY, WHOLES):
                value = tuple(_checked(name, key, item) for item in _listed(name, value))
            else:
                value = _checked(name, key, value)
            if key.type != FLOAT32:  # a number stays as it was given
                _set(self, name, value)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelOptions(Pruning):
    """What `Model.load` takes beside the files; every field may be given to it by name.

    Example:
        >>> ModelOptions(n_ctx=4096).n_ctx
        4096
    """

    n_ctx: int | None = None
    """Tokens of a conversation, pictures included; None is 8192, or what the model was trained for if that is less."""
    n_gpu_layers: int = -1
    """Layers on the GPU; -1 is all."""
    n_threads: int | None = None
    """On the CPU; None is one per core."""
    n_batch: int = 2048
    """Tokens of a prompt that are given to llama.cpp at once."""
    n_ubatch: int = 512
    """Tokens of a batch that are computed at once."""
    flash_attn: Literal["auto"] | bool = "auto"
    """Flash attention in the language model; "auto" is where it helps."""
    kv_type: str = "f16"
    """Type of the KV cache: f16, q8_0, ..."""
    seed: int | None = None
    """Of every answer that names none."""
    mmproj_type: str = "auto"
    """Type of the encoder's weights in memory: "auto" is the fastest here that keeps its output, "file" as they are
    stored, "off" as llama.cpp loads and computes them, else bf16, f16, q8_0, ..."""
    image_max_tokens: int | None = None
    """Visual tokens per picture, for encoders that take any size."""
    image_cache_mb: int = 512
    """Memory for encoded pictures that no chat uses."""
    repack: bool = True
    """Let processors lay out weights for products of their own; none does where a profile takes parts of matrices."""
    undo_mb: int = 512
    """For choosing again when a question is removed; a picture without room there is not pruned. 0: nothing is chosen
    again, and no room is needed: pictures keep the tokens of the question that they were first asked."""
    draft: str | os.PathLike[str] | None = None
    """A twig of this model, from `halfv twig`, which drafts the answers of chats: several tokens are then checked at
    once, and answers are what they were."""
    verbose: bool = False
    """llama.cpp's log on stderr, that of every model, as long as this one is open."""

    def __post_init__(self) -> None:
        Pruning.__post_init__(self)  # super() knows nothing of the class that slots=True makes
        check_choice("kv_type", self.kv_type, KV_TYPES)
        check_choice("flash_attn", self.flash_attn, FLASH)
        check_choice("mmproj_type", self.mmproj_type, MMPROJ_TYPES)
        for name, least in LEAST.items():
            _set(self, name, check_whole(name, getattr(self, name), least))


class PruningFields(TypedDict, total=False):
    """The fields of Pruning."""

    profile: ProfileSource
    keep: float | None
    pixel_tau: float | Literal["off"] | None
    input_keep: float | None
    encoder_layer: int | None
    encoder_keep: float | None
    input_merge: float | None
    ffn_layer: int | None
    ffn_keep: float | None
    further_layers: Sequence[int] | None
    further_keep: Sequence[float] | None
    image_loss: float | None
    frames_tau: float | Literal["off"] | None
    visual_share: float | None


class ModelFields(PruningFields, total=False):
    """The fields of ModelOptions, for type checkers and editors; a test holds the two together."""

    n_ctx: int | None
    n_gpu_layers: int
    n_threads: int | None
    n_batch: int
    n_ubatch: int
    flash_attn: Literal["auto"] | bool
    kv_type: str
    seed: int | None
    mmproj_type: str
    image_max_tokens: int | None
    image_cache_mb: int
    repack: bool
    undo_mb: int
    draft: str | os.PathLike[str] | None
    verbose: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerOptions:
    r"""How an answer is made; every field may be given by name to whatever answers.

    Example:
        >>> AnswerOptions(max_tokens=100, stop="\n\n").stop
        ('\n\n',)
    """

    max_tokens: int | None = None
    """The answer ends after so many; None is as many as fit."""
    stop: str | Sequence[str] = ()
    """The answer ends before any of these, and no part of them is given."""
    temperature: float = 0.2  # as llama-mtmd-cli: pictures are described better than at 0.8
    """0 always takes the likeliest token."""
    top_k: int = 40
    """Only so many of the likeliest tokens; 0 is all."""
    top_p: float = 0.95
    """Only the likeliest tokens that have this share together; 1 is all."""
    min_p: float = 0.05
    """Only tokens with this share of the likeliest one's; 0 is all."""
    seed: int | None = None
    """The same seed gives the same answer; None is the model's, or a new one every time."""
    grammar: str | None = None
    """GBNF that the answer follows, with a rule named root."""
    json_schema: Mapping[str, Any] | str | None = None
    """The answer is JSON of this schema."""

    def __post_init__(self) -> None:
        _set(self, "max_tokens", check_whole("max_tokens", self.max_tokens, 1))
        _set(self, "stop", _stop_strings(self.stop))
        _set(self, "temperature", check_number("temperature", self.temperature, 0, math.inf))
        _set(self, "top_k", check_whole("top_k", self.top_k, 0, optional=False))
        _set(self, "top_p", check_number("top_p", self.top_p, 0, 1))
        _set(self, "min_p", check_number("min_p", self.min_p, 0, 1))
        _set(self, "seed", check_whole("seed", self.seed, 0, 0xFFFFFFFE))
        if self.grammar is not None and not isinstance(self.grammar, str):
            raise HalfVError(parameter="grammar", value=self.grammar, rule="GBNF as text")
        if self.grammar is not None and self.json_schema is not None:
            both = {"grammar": None, "json_schema": None}
            raise HalfVError(
                "{grammar} and {json_schema} were both given", hint="an answer follows one of them", settings=both
            )


class AnswerFields(TypedDict, total=False):
    """The fields of AnswerOptions, for type checkers and editors; a test holds the two together."""

    max_tokens: int | None
    stop: str | Sequence[str]
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    seed: int | None
    grammar: str | None
    json_schema: Mapping[str, Any] | str | None


def _set(options: Pruning | AnswerOptions, name: str, value: object) -> None:
    """Instead of what was given for a field of a frozen object that is being made."""
    object.__setattr__(options, name, value)


def _listed(name: str, given: object) -> Sequence[object]:
    if not isinstance(given, Sequence) or isinstance(given, (str, bytes)):
        raise HalfVError(parameter=name, value=given, rule="a list of numbers")
    return given


def _checked(name: str, key: Key, value: object) -> float | None:
    if key.range and key.type in (FLOAT32, ARRAY):
        return check_number(name, value, key.range.low, key.range.high, key.range.rule)
    return check_whole(name, value, 1)


def _stop_strings(given: str | Sequence[str]) -> tuple[str, ...]:
    rule = "a text, or a list of texts, none of them empty"
    if isinstance(given, (bytes, Mapping)):
        raise HalfVError(parameter="stop", value=given, rule=rule)
    try:
        texts = (given,) if isinstance(given, str) else tuple(given)
    except TypeError as error:
        raise HalfVError(parameter="stop", value=given, rule=rule) from error
    if not all(isinstance(text, str) and text for text in texts):
        raise HalfVError(parameter="stop", value=given, rule=rule)
    return texts


def check_choice(name: str, value: object, choices: Collection[Any]) -> None:
    """The value is one of these."""
    if not isinstance(value, (str, bool)) or value not in choices:
        raise HalfVError(parameter=name, value=value, rule=f"one of {', '.join(map(str, choices))}")


def check_whole(name: str, value: object, least: int, most: int | None = None, *, optional: bool = True) -> int | None:
    """A whole number in this range, or None where that is allowed."""
    if value is None and optional:
        return None
    rule = f"at least {least}" if most is None else f"from {least} to {most}"
    if not isinstance(value, numbers.Integral) or isinstance(value, bool):
        raise HalfVError(parameter=name, value=value, rule=f"a whole number, {rule}")
    if int(value) < least or (most is not None and int(value) > most):
        raise HalfVError(parameter=name, value=value, rule=rule)
    return int(value)  # one of numpy's is none for ctypes


def check_number(name: str, value: object, low: float, high: float, rule: str = "") -> float:
    """A finite number in this range."""
    rule = rule or (f"between {low} and {high}" if high < math.inf else f"at least {low}")
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        raise HalfVError(parameter=name, value=value, rule=f"a number, {rule}")
    if not math.isfinite(value) or not low <= float(value) <= high:
        raise HalfVError(parameter=name, value=value, rule=rule)
    return float(value)
