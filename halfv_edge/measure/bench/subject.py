"""What is measured: a model's files or one of random weights, and pictures."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from halfv_edge import files
from halfv_edge.engine import images as image_files
from halfv_edge.engine.encoder import find_mmproj
from halfv_edge.engine.model_profile import resolve_profile
from halfv_edge.engine.options import ProfileSource, Pruning, check_choice
from halfv_edge.errors import HalfVError
from halfv_edge.hub.find import locate_files
from halfv_edge.measure.bench import shapes
from halfv_edge.profile.model_file import ModelFile
from halfv_edge.profile.profile import Profile

SQUARE = (896, 896)  # pixels of the generated picture for a model that was given without one


@dataclass(frozen=True, slots=True, kw_only=True)
class RandomModel:
    """A model of random weights, written when it is not there yet: speed does not depend on what weights say."""

    shape: str
    """Whose sizes: "qwen2.5-vl-3b", ...; docs/bench.md lists them."""
    arch: str | None = None
    """Another architecture of the same sizes."""
    ftype: str = "q4_0"
    """Of the language model's weights."""
    tokens: tuple[int, ...] = ()
    """Visual tokens of the generated pictures."""
    no_encoder: bool = False
    """The language model alone."""
    folder: Path | None = None
    """Where its files go; None is a folder of the cache."""

    def __post_init__(self) -> None:
        check_choice("shape", self.shape, shapes.SHAPES)
        if self.arch is not None:
            check_choice("arch", self.arch, shapes.ARCHS)
        fixed = shapes.SHAPES[self.shape].tokens
        if self.tokens and self.tokens != fixed and not self.no_encoder and not self.any_size:
            raise HalfVError(
                f"does not fit: the encoder of {self.shape} always gives {fixed[0]}",
                parameter="tokens",
                value=self.tokens[0],
                hint="other numbers need {no_encoder}",
                settings={"no_encoder": None},
            )

    @property
    def any_size(self) -> bool:
        """Whether its encoder takes pictures of any size."""
        return bool(shapes.SHAPES[self.shape].vision.pixels_per_token)


@dataclass(frozen=True, slots=True)
class Picture:
    """A file, or one that is drawn; where there is no encoder its number of tokens is all that counts."""

    name: str
    file: str | None = None
    drawing: str = "photo"
    size: tuple[int, int] = (0, 0)
    n_visual: int | None = None


@dataclass(frozen=True, slots=True)
class Subject:
    """A language model, its encoder if it has one, and what both are shown."""

    name: str
    about: ModelFile
    mmproj: Path | None
    pictures: tuple[Picture, ...]
    profile: Profile | None  # the model's own, or the one in its place
    weights: str = "as given"


def given_model(
    model: str | os.PathLike[str] | None,
    mmproj: str | os.PathLike[str] | None,
    images: Sequence[str | os.PathLike[str]],
    draw: Sequence[str],
    profile: ProfileSource,
) -> Subject:
    """A model as `Model.load` takes it."""
    check_pictures(images, draw, None)
    located = locate_files(model, mmproj)
    about = ModelFile.read(located.model)
    pictures = _files(images) or tuple(_drawn(drawing, SQUARE) for drawing in draw or ("photo",))
    own = resolve_profile(about, Pruning(profile=profile)).profile
    return Subject(located.model.name, about, find_mmproj(located.mmproj, about), pictures, own)


def random_model(
    model: RandomModel, images: Sequence[str | os.PathLike[str]], draw: Sequence[str], profile: ProfileSource
) -> Subject:
    """One of random weights, whose files are written if need be."""
    check_pictures(images, draw, model)
    shape = shapes.SHAPES[model.shape]
    shape = dataclasses.replace(shape, arch=model.arch) if model.arch else shape
    folder = model.folder or files.cache_folder() / "shapes"
    about = ModelFile.read(shapes.model_file(model.shape, shape, model.ftype, folder))
    mmproj = None if model.no_encoder else shapes.mmproj_file(model.shape, shape, folder)
    pictures = _files(images) or tuple(
        _drawn(drawing, shape.vision.size(count)) if mmproj else Picture(f"{count} tokens", n_visual=count)
        for count in model.tokens or shape.tokens
        for drawing in draw or ("photo",)
    )
    own = resolve_profile(about, Pruning(profile=profile)).profile
    return Subject(model.shape, about, mmproj, pictures, own, f"random, {model.ftype}")


def check_pictures(images: Sequence[str | os.PathLike[str]], draw: Sequence[str], model: RandomModel | None) -> None:
    """Before anything slow: each can be read, and nothing else is asked for beside them."""
    generated = {"tokens": model and model.tokens, "no_encoder": model and model.no_encoder, "draw": draw}
    for name, value in generated.items():
        if images and value:
            raise HalfVError(
                f"{os.fspath(images[0])} cannot be used with {{{name}}}, for generated pictures: leave one out.",
                settings={name: None},
            )
    if draw and model and model.no_encoder:
        raise HalfVError(
            "needs the encoder",
            parameter="draw",
            value=",".join(draw),
            hint="leave out {no_encoder}",
            settings={"no_encoder": None},
        )
    for image in images:
        image_files.load(image)


def _files(images: Sequence[str | os.PathLike[str]]) -> tuple[Picture, ...]:
    return tuple(Picture(Path(image).name, str(Path(image).resolve())) for image in images)


def _drawn(drawing: str, size: tuple[int, int]) -> Picture:
    return Picture(f"{drawing} {size[0]}x{size[1]}", drawing=drawing, size=size)
