"""What the commands that run a model share: flags and loading."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, cast

from halfv_edge import files
from halfv_edge.cli.console import Console
from halfv_edge.errors import HalfVError
from halfv_edge.gguf.read import ARRAY, STRING, UINT32
from halfv_edge.hub.demo import DEMO_FOLDER, DEMO_NOTE
from halfv_edge.hub.fetch import fetch, is_url
from halfv_edge.hub.find import find_files
from halfv_edge.profile import presets, resolve
from halfv_edge.profile.keys import ASKED, LEVELS, Key
from halfv_edge.profile.values import WHOLES

if TYPE_CHECKING:
    from halfv_edge.cli.errors import Parser
    from halfv_edge.engine.images import Picture
    from halfv_edge.engine.model import Model
    from halfv_edge.engine.options import ModelOptions, PruningFields

MAX_TEXT_BYTES = 1 << 20
PRUNING = ("profile", "keep", *ASKED)  # by their names in Python


Commands: TypeAlias = "argparse._SubParsersAction[Parser]"


class Loader(Protocol):
    """As Model.load."""

    def __call__(self, model: Path, mmproj: Path | None, *, options: ModelOptions) -> Model: ...


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Which model, how it is pruned, how it runs."""
    add_model(parser)
    pruning = add_pruning(parser)
    add_encoder_pruning(pruning)
    mode = pruning.add_mutually_exclusive_group()
    mode.add_argument(
        "--exact", action="store_true", help="choose tokens when the question is there, as published (default with -p)"
    )
    mode.add_argument(
        "--prepare", action="store_true", help="choose most of them before, which is faster (default in a conversation)"
    )
    add_running(parser)


def add_model(parser: argparse.ArgumentParser) -> None:
    """Which model."""
    model = parser.add_argument_group("model")
    which = model.add_mutually_exclusive_group()
    which.add_argument(
        "-m",
        "--model",
        metavar="MODEL",
        help="a GGUF, or a name from `halfv chat --list-models` (the small model that is built in)",
    )
    which.add_argument(
        "--hf", metavar="OWNER/REPO[:QUANT]", help="a Hugging Face repository, downloaded once into its usual cache"
    )
    model.add_argument("--mmproj", metavar="FILE", help="the vision encoder; else looked for beside the model")


def add_pruning(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """By which profile."""
    pruning = parser.add_argument_group("pruning")
    which = pruning.add_mutually_exclusive_group()
    which.add_argument(
        "--profile", metavar="FILE|PRESET|off", help="in place of what comes with the model; off runs it whole"
    )
    which.add_argument(
        "--speed", metavar="N", dest="profile", type=speed,
        help="of the profiles in the model's file the best that is N times faster",
    )  # fmt: skip
    pruning.add_argument("--keep", metavar="SHARE", type=number, help="of the visual tokens in stage II, up to 1")
    return pruning


def add_encoder_pruning(group: argparse._ArgumentGroup) -> None:
    """What the encoder leaves out, and what room pictures have."""
    for key in ASKED.values():
        text = key.help if key.asked is True else str(key.asked)
        group.add_argument(key.flag, metavar=key.metavar, type=type_of(key, positive, number), help=text)


def add_running(parser: argparse.ArgumentParser) -> None:
    """How it runs."""
    running = parser.add_argument_group("running")
    running.add_argument(
        "--ctx",
        metavar="N",
        type=positive,
        help="tokens of a conversation, pictures included (8192, if it was trained so)",
    )
    running.add_argument("--gpu-layers", metavar="N", type=integer, help="layers on the GPU (all)")
    running.add_argument("--threads", metavar="N", type=positive, help="on the CPU (one per core)")
    running.add_argument(
        "--kv-type", metavar="TYPE", default="f16", help="of the KV cache: f16, q8_0, ... (%(default)s)"
    )
    running.add_argument(
        "--mmproj-type",
        metavar="TYPE",
        default="auto",
        help="of the encoder in memory: auto (the fastest here), file, off, bf16, f16, q8_0, ... (%(default)s)",
    )
    running.add_argument(
        "--image-max-tokens", metavar="N", type=positive, help="per picture, for encoders that take any size"
    )
    running.add_argument("-v", "--verbose", action="store_true", help="llama.cpp's log on stderr")


def type_of(key: Key, whole: Callable[[str], int], share: Callable[[str], float]) -> Callable[[str], Any]:
    """How the flag of a key reads its value."""
    kinds: dict[int, Callable[[str], Any]] = {UINT32: whole, STRING: str, WHOLES: numbers(int), ARRAY: numbers(float)}
    return kinds.get(key.type) or (levels if key.range is LEVELS else share)


def positive(text: str) -> int:
    if not re.fullmatch(r"0*[1-9]\d{0,8}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not valid: it must be a whole number of at least 1")
    return int(text)


def count(text: str) -> int:
    if not re.fullmatch(r"\d{1,9}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not valid: it must be a whole number, 0 or more")
    return int(text)


def number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not valid: it must be a number") from None


def speed(text: str) -> str:
    """As `profile` takes it."""
    if not re.fullmatch(r"\d{1,3}(\.\d+)?", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not valid: it must be a number such as 4")
    return f"{text}x"


def levels(text: str) -> float | str:
    if text == "off":
        return text
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not valid: it must be a number, or off") from None


def integer(text: str) -> int:
    if not re.fullmatch(r"-?\d{1,10}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not valid: it must be a whole number")
    return int(text)


def words(text: str) -> tuple[str, ...]:
    """Between commas."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def numbers(kind: Callable[[str], Any]) -> Callable[[str], Any]:
    """Between commas."""

    def numbers(text: str) -> tuple[Any, ...]:
        return tuple(kind(part) for part in text.split(",") if part)

    return numbers


def model_options(args: argparse.Namespace) -> ModelOptions:
    from halfv_edge.engine.options import ModelOptions  # here, so that commands without a model start fast

    return ModelOptions(
        **pruning(args),
        n_ctx=args.ctx,
        n_gpu_layers=-1 if args.gpu_layers is None else args.gpu_layers,
        n_threads=args.threads,
        kv_type=args.kv_type,
        mmproj_type=args.mmproj_type.lower(),
        image_max_tokens=args.image_max_tokens,
        repack=getattr(args, "repack", True),
        draft=getattr(args, "draft", None),
        verbose=args.verbose,
    )


def pruning(args: argparse.Namespace) -> PruningFields:
    """By their names in Python."""
    fields = {name: getattr(args, name) for name in PRUNING} | {"profile": profile(args.profile)}
    return cast("PruningFields", fields)


def load(args: argparse.Namespace, console: Console, loader: Loader | None = None) -> Model:
    """The model of the flags; what a person should know of it is said on stderr."""
    files = find_files(args.model, args.hf, args.mmproj)
    from halfv_edge.engine.model import Model  # here, as it loads the libraries

    console.status(f"loading {files.model.name} ...")
    try:
        model = (loader or Model.load)(files.model, files.mmproj, options=model_options(args))
    finally:
        console.clear_status()
    built_in = [DEMO_NOTE] if files.model.parent == DEMO_FOLDER else []
    for note in [*built_in, *model.notes, *_without_effect(args, model)]:
        console.say(note)
    return model


def profile(given: str | None) -> str | Path | None:
    """A preset's name, off, or a file."""
    if given is None or given == "off" or given.lower() in presets.PRESETS:
        return given
    if given.endswith(".json"):
        check_there(given)
    return Path(given) if os.path.lexists(given) else given


def _without_effect(args: argparse.Namespace, model: Model) -> Iterator[str]:
    from halfv_cpp import devices

    given = [value for name, value in pruning(args).items() if not name.endswith("_layer")]
    if resolve.switched_off() and any(value not in (None, "off") for value in given):
        yield "HALFV=off is set in the environment, so the model runs whole whatever the flags say."
    else:
        for key in ASKED.values():
            value = getattr(args, key.name)
            if key.range is LEVELS and value not in (None, "off") and getattr(model.encoder.intake, key.name) is None:
                yield f"{key.flag} {value:g} has no effect: this encoder takes pictures whole."
    layer, last = model.encoder.intake.encoder_layer, model.encoder.last_cut
    if model.encoder.intake.encoder_keep < 1 and layer > last:
        why = f"of this encoder it can be {last} at most" if last else "this encoder always runs whole"
        yield f"--encoder-layer {layer} has no effect: {why}."
    if args.gpu_layers and not devices.gpus():
        yield f"--gpu-layers {args.gpu_layers} has no effect: these libraries see no GPU, as `halfv info` says."


def read_images(paths: list[str]) -> list[Picture]:
    """Before anything slow, so that a bad one is known at once."""
    if paths.count("-") > 1:
        raise HalfVError("stdin (-) was given twice: it has one picture.")
    return [read_image(path) for path in paths]


def read_image(name: str) -> Picture:
    """A picture or a video by its path or URL; - is stdin."""
    from halfv_edge.engine import images  # here, so that commands without pictures start fast

    if name == "-":
        if sys.stdin.isatty():
            raise HalfVError("- reads a picture from stdin, and nothing is piped into it: name a file.")
        raw = sys.stdin.buffer.read(images.MAX_FILE_BYTES + 1)
        if len(raw) > images.MAX_FILE_BYTES:
            raise HalfVError(f"The picture on stdin has more than {images.MAX_FILE_BYTES >> 20} MB: make it smaller.")
        return images.load(raw, "The picture on stdin", videos=True)
    return images.load(fetch(name) if is_url(name) else name, name, videos=True)


def check_there(path: str) -> None:
    if not os.path.lexists(path):
        raise HalfVError(f"{path} does not exist: check the name and the folder.")


def read_text(path: str, flag: str) -> str:
    """A small text file that a flag names."""
    check_there(path)
    raw = files.read_small(Path(path), MAX_TEXT_BYTES, f"is too long for {flag}")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise HalfVError(f"{path} is not UTF-8 text: {flag} needs a text file.") from error
