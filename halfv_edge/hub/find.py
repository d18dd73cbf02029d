"""Where a model's files are: a path, a name from a short list, or a Hugging Face repository."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from halfv_edge.errors import HalfVError
from halfv_edge.gguf.read import read_metadata
from halfv_edge.hub.demo import demo_model
from halfv_edge.hub.known import CONTEXT, MODELS
from halfv_edge.profile.presets import PRESETS

KNOWN = {name: model.source for name, model in MODELS.items()}

# what is taken when no quantisation is named: the usual compromise first
MODEL_TYPES = ("q4_k_m", "q4_0", "q5_k_m", "q8_0", "q6_k", "f16", "bf16")
MMPROJ_TYPES = ("f16", "bf16", "q8_0", "f32")
HUB = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(:(?P<type>[\w.-]+))?", re.ASCII)
TIMEOUT_SEC = 20
PART = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Files:
    """A language model and, where it was given or came along, its vision encoder."""

    model: Path
    mmproj: Path | None


def find_files(model: str | None, hub: str | None, mmproj: str | None) -> Files:
    """The files that -m, --hf and --mmproj mean, downloaded if need be; the built-in model's when none is given."""
    if model is not None and not os.path.lexists(model) and model.lower() in KNOWN:
        hub = KNOWN[model.lower()]
    given = Path(mmproj) if mmproj is not None else None
    if given is not None and not os.path.lexists(given):
        raise HalfVError(f"{given} does not exist: check the name and the folder, or get the mmproj of this model.")
    if hub is not None:
        return _from_hub(hub, given)
    if model is None and given is None and (default := demo_model()):
        return Files(*default)
    if model is None:
        raise HalfVError(
            "No model was given: name a GGUF with its mmproj beside it, a Hugging Face repository, or one of "
            "`halfv chat --list-models`."
        )
    path = Path(model)
    if not os.path.lexists(path):
        _refuse(model)
    if read_metadata(path).text("general.architecture") == "clip":
        raise HalfVError(
            f"{path} is a vision encoder",
            hint="give it with {mmproj}, and its language model with {model}",
            settings={"mmproj": None, "model": None},
        )
    return Files(path, given)


def locate_files(model: str | os.PathLike[str] | None, mmproj: str | os.PathLike[str] | None) -> Files:
    """The files of a path, a repository "owner/repo[:QUANT]" or a name; of nothing, the model that comes along."""
    name = None if model is None else os.fspath(model)
    hub = None
    if isinstance(model, str) and _is_repository(model):
        name, hub = None, model
    return find_files(name, hub, None if mmproj is None else os.fspath(mmproj))


def _is_repository(name: str) -> bool:
    """Where there is a folder of the owner's name it is a mistyped file in it."""
    return bool(HUB.fullmatch(name)) and not name.lower().endswith(".gguf") and not os.path.exists(Path(name).parent)


def _refuse(model: str) -> NoReturn:
    near = difflib.get_close_matches(model.lower(), KNOWN, 1)
    what = f"{model} does not exist"
    if near:
        raise HalfVError(what, hint="did you mean {model}", settings={"model": near[0]})
    if HUB.fullmatch(model) and not model.lower().endswith(".gguf"):
        raise HalfVError(what, hint="a Hugging Face repository is given with {hub}", settings={"hub": model})
    raise HalfVError(f"{what}: check the name and the folder, or choose one of `halfv chat --list-models`.")


#
# Hugging Face
#


def _from_hub(text: str, mmproj: Path | None) -> Files:
    """Downloaded once: huggingface_hub keeps the files in its cache, and finds them there without a network."""
    match = HUB.fullmatch(text)
    if not match:
        rule = f"OWNER/REPO or OWNER/REPO:QUANT, like {KNOWN['qwen3-vl-2b']}"
        raise HalfVError(parameter="hub", value=text, rule=rule)
    repo = match["repo"]
    names = _listing(repo)
    model = choose(repo, names, match["type"])
    encoders = [name for name in names if _is_mmproj(name)]
    if not encoders and mmproj is None:
        raise HalfVError(
            f"{repo} has no mmproj, so nothing to see pictures with",
            hint="give another, or a file with {mmproj}",
            settings={"mmproj": None},
        )
    encoder = mmproj or _download(repo, _best(encoders, MMPROJ_TYPES))
    downloaded = [_download(repo, part) for part in parts(model, names)]
    return Files(downloaded[0], encoder)


def choose(repo: str, names: Sequence[str], wanted: str | None) -> str:
    models = [name for name in names if not _is_mmproj(name) and _part(name) in (0, 1)]
    if not models:
        raise HalfVError(f"{repo} has no GGUF of a language model: look for a repository whose name ends in GGUF.")
    if wanted is None:
        return _best(models, MODEL_TYPES)
    found = [name for name in models if _has_type(name, wanted)]
    if not found:
        raise HalfVError(f"{repo} has no {wanted}: there is {', '.join(sorted(Path(name).name for name in models))}.")
    return found[0]


def _best(names: Sequence[str], types: Sequence[str]) -> str:
    for type_ in types:
        for name in names:
            if _has_type(name, type_):
                return name
    return names[0]


def _has_type(name: str, type_: str) -> bool:
    return re.search(rf"(^|[^a-z0-9]){re.escape(type_.lower())}([^a-z0-9_]|$)", Path(name).name.lower()) is not None


def _is_mmproj(name: str) -> bool:
    return "mmproj" in Path(name).name.lower()


def _part(name: str) -> int:
    """Which part of a split model a file is, 0 when it is all of it."""
    match = PART.search(name)
    return int(match[1]) if match else 0


def parts(first: str, names: Sequence[str]) -> Iterator[str]:
    """The files of a model; llama.cpp finds the later ones beside the first."""
    stem = PART.sub("", first)
    yield first
    yield from (name for name in names if name != first and _part(name) > 1 and PART.sub("", name) == stem)


def _listing(repo: str) -> list[str]:
    """The GGUFs of a repository; those in the cache when it cannot be asked."""
    hub = _hub()
    try:
        names = [file.rfilename for file in hub.HfApi().model_info(repo, timeout=TIMEOUT_SEC).siblings or ()]
    except Exception as error:  # its kinds, its HTTP library's kinds and OSErrors
        try:
            folder = Path(hub.snapshot_download(repo, local_files_only=True))
        except Exception:
            raise _trouble(repo, error) from error
        names = [path.relative_to(folder).as_posix() for path in folder.rglob("*")]
    return sorted(name for name in names if name.lower().endswith(".gguf"))


def _download(repo: str, name: str) -> Path:
    hub = _hub()
    try:
        return Path(hub.hf_hub_download(repo, name))
    except Exception as error:
        raise _trouble(f"{repo}/{name}", error) from error


def _trouble(what: str, error: Exception) -> HalfVError:
    """Names of its exceptions instead of imports, which have moved between its versions."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    if "GatedRepoError" in kinds:
        return HalfVError(f"{what} asks for an agreement first: accept it on its page, then `hf auth login`.")
    if kinds & {"RepositoryNotFoundError", "HFValidationError"}:
        return HalfVError(f"{what} is not on Hugging Face, or is private: check the name, or `hf auth login`.")
    if isinstance(error, OSError) and error.errno:
        return HalfVError(f"{what} cannot be downloaded: {error.strerror}.")
    first = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
    return HalfVError(f"{what} cannot be downloaded: {first}; check the network, or give a file.")


def _hub() -> Any:
    try:
        import huggingface_hub
    except ImportError as error:
        raise HalfVError(
            "Downloading needs the package huggingface_hub: `pip install huggingface_hub`, or download the GGUFs "
            "yourself and give the files."
        ) from error
    return huggingface_hub


def known_models() -> str:
    """The known ones for people, with what prunes them: a preset of that name, or nothing yet."""
    names, sources = max(map(len, KNOWN)), max(map(len, KNOWN.values()))
    return "\n".join(
        f"{name:<{names}}  {model.source:<{sources}}  {model.file_gb:4.1f} GB  {model.memory_gb:4.1f} GB  "
        f"{'preset' if name in PRESETS else 'no preset: calibrate'}"
        for name, model in MODELS.items()
    )


MEMORY_NOTE = (
    f"GB to download, and of memory with {CONTEXT} tokens of context: reckoned from shapes, without working buffers. "
    "Without a preset a model runs unpruned until `halfv calibrate` has found a profile, or --input-keep is given."
)
