"""Checkpoint folder in, two GGUFs out: the parent's side of a conversion."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from halfv_cpp import library
from tqdm import tqdm

import halfv_edge
from halfv_convert import checkpoint
from halfv_convert.checkpoint import Checkpoint
from halfv_edge.errors import HalfVError
from halfv_edge.files import FULL_DISK
from halfv_edge.profile.profile import Profile

# bits per weight, of which only the disk space needed is reckoned
DIRECT = {"f32": 32.0, "f16": 16.0, "bf16": 16.0, "q8_0": 8.5}  # what the converter itself writes
QUANTISED = {
    **{"q6_k": 6.6, "q5_k_m": 5.7, "q5_k_s": 5.6, "q5_1": 6.0, "q5_0": 5.6, "q4_k_m": 4.9, "q4_k_s": 4.6},
    **{"q4_1": 5.1, "q4_0": 4.7, "iq4_nl": 4.6, "iq4_xs": 4.4, "q3_k_l": 4.3, "q3_k_m": 4.0, "q3_k_s": 3.7},
    **{"q2_k": 3.4},
}
TYPES = (*DIRECT, *QUANTISED)
NEEDS = {"torch": "torch", "transformers": "transformers", "sentencepiece": "sentencepiece", "yaml": "PyYAML"}
CHILD_ENV = {
    **{"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"},
    "GGML_NO_BACKTRACE": "1",  # a debugger's, which takes half a minute
}


@dataclass(frozen=True, slots=True)
class Converted:
    """What a conversion wrote."""

    model: Path
    mmproj: Path
    profile: Profile | None
    source: str  # of the profile, in words


def convert(
    folder: str | os.PathLike[str],
    output: str | os.PathLike[str] | None = None,
    mmproj: str | os.PathLike[str] | None = None,
    *,
    type: str = "f16",
    mmproj_type: str = "f16",
    profile: Profile | str | None = None,
    with_profile: bool = True,
    name: str | None = None,
    tokenizer_pre: str | None = None,
    log: IO[str] | None = None,
    progress: bool = True,
    say: Callable[[str], None] = lambda text: None,
) -> Converted:
    """Convert a checkpoint to a language model's GGUF and a vision encoder's.

    `profile` is a Profile or the name of a preset; None takes the preset of the model, if there is one. `log` receives
    the talk of the converter. Nothing is left behind when it fails.
    """
    if type not in TYPES:
        raise HalfVError(f"The type {type!r} is not one of {', '.join(TYPES)}.")
    if mmproj_type not in DIRECT:
        raise HalfVError(f"The type {mmproj_type!r} of the vision encoder is not one of {', '.join(DIRECT)}.")
    found = checkpoint.read(Path(folder))
    name = name or found.name
    stem = re.sub(r"[^\w.+-]+", "-", name)
    beside = f"mmproj-{Path(output).name}" if output else f"mmproj-{stem}-{mmproj_type}.gguf"
    output = Path(output or f"{stem}-{type}.gguf").absolute()
    mmproj = Path(mmproj or output.with_name(beside)).absolute()
    check_targets(output, mmproj)
    check_packages()
    size = round(found.n_weights / 8 * (DIRECT | QUANTISED)[type])
    check_space(output, size + (found.n_weights * 2 if type in QUANTISED else 0))
    say(f"{found.folder}: {found.architecture}, {found.n_weights / 1e6:,.1f} million weights.")

    with temporary_folder(output) as scratch, temporary_folder(mmproj) as vision_scratch:
        text, vision = scratch / "text.gguf", vision_scratch / "vision.gguf"
        quantised = scratch / "quantised.gguf" if type in QUANTISED else None
        job = {
            "checkpoint": str(found.folder.absolute()),
            "name": name,
            "text": str(text),
            "text_type": "auto" if quantised else type,
            "vision": str(vision),
            "vision_type": mmproj_type,
            "quantize": {"type": type, "path": str(quantised)} if quantised else None,
            "tokenizer_pre": tokenizer_pre,
            "with_profile": with_profile,
            "profile": profile.to_json() if isinstance(profile, Profile) else None,
            "preset": profile if isinstance(profile, str) else None,
        }
        chosen = run_worker(job, found, log, progress, {"vision encoder": mmproj.parent})
        publish(((quantised or text, output), (vision, mmproj)))
    carried = chosen["profile"] and Profile.from_json(chosen["profile"])
    return Converted(output, mmproj, carried, chosen["source"])


# --- before ---


def check_targets(output: Path, mmproj: Path) -> None:
    if output == mmproj:
        raise HalfVError(f"{output} cannot be both the language model and the vision encoder: give --mmproj a name.")
    for target in (output, mmproj):
        if target.is_dir():
            raise HalfVError(f"{target} is a folder: name the file in it.")
        if target.exists():
            raise HalfVError(f"{target} exists already: delete it, or choose another name.")
        if not target.parent.is_dir():
            raise HalfVError(f"{target.parent} is not a folder: make it first.")


def check_packages() -> None:
    missing = [package for module, package in NEEDS.items() if not importlib.util.find_spec(module)]
    if missing:
        raise HalfVError(f"{', '.join(missing)} must be installed to convert: run `pip install halfv-edge[convert]`.")
    converter_folder()


def converter_folder() -> Path:
    """The pinned llama.cpp's converter: in the package, or in the CMake build that HALFV_LIB_DIR names."""
    for place in (
        *(Path(folder) / "_upstream" for folder in halfv_edge.__path__),
        library.lib_dir().parent / "llama.cpp",
    ):
        if (place / "conversion").is_dir() and (place / "gguf-py" / "gguf").is_dir():
            return place
    raise HalfVError("llama.cpp's converter is not in this installation: install it again with `pip install .`.")


def check_space(target: Path, n_bytes: int) -> None:
    free = shutil.disk_usage(target.parent).free
    if free < n_bytes:
        raise no_room(target.parent, n_bytes)


def no_room(folder: Path, n_bytes: int | None = None) -> HalfVError:
    needs = f"about {n_bytes / 1e9:.1f} GB are needed" if n_bytes else "the disk became full"
    return HalfVError(f"There is not enough room in {folder}: {needs}, free some or choose another folder with -o.")


# --- the worker ---


def run_worker(
    job: dict[str, Any], found: Checkpoint, log: IO[str] | None, progress: bool, elsewhere: dict[str, Path]
) -> dict[str, Any]:
    """The profile that was chosen, as the worker tells it. `elsewhere` has stages that write to another folder."""
    scratch = Path(job["text"]).parent
    converter = converter_folder()
    path = [str(converter / "gguf-py"), str(converter), *(os.path.abspath(entry) for entry in sys.path if entry)]
    code = f"import sys; sys.path[:] = {path!r}; from halfv_convert import worker; worker.main()"
    child = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log or subprocess.DEVNULL,
        text=True,
        cwd=scratch,
        env=os.environ | CHILD_ENV,
    )
    chosen: dict[str, Any] = {}
    assert child.stdin and child.stdout
    with child, Bars(progress) as bars:
        try:
            with contextlib.suppress(BrokenPipeError):
                child.stdin.write(json.dumps(job))
                child.stdin.close()
            for line in child.stdout:
                event = json.loads(line)
                if "error" in event:
                    raise HalfVError(
                        event["error"] + (" --verbose keeps the log." if event.get("unforeseen") and not log else "")
                    )
                if event.get("full_disk"):
                    raise no_room(elsewhere.get(bars.stage, scratch.parent))
                if "profile" in event:
                    chosen = event
                bars.show(event)
            ended = child.wait()
        finally:
            child.kill()  # when we leave early; nothing happens to one that has ended
    if ended:
        raise HalfVError(
            f"The conversion of {found.folder} was ended by the system (code {ended}): most often memory ran out."
        )
    return chosen


class Bars(contextlib.AbstractContextManager["Bars"]):
    """A progress bar per stage; none in a log."""

    def __init__(self, wanted: bool):
        self.disable = None if wanted else True
        self.stage, self.bar = "", None

    def show(self, event: dict[str, Any]) -> None:
        self.stage = event.get("stage", self.stage)
        if "total" in event:
            self.close()
            unit = {"unit": event["unit"], "unit_scale": event["unit"] == "B"}
            self.bar = tqdm(total=event["total"], desc=self.stage, delay=1, disable=self.disable, **unit)
        if "done" in event and self.bar is not None:
            self.bar.update(event["done"])

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()

    def __exit__(self, *_: object) -> None:
        self.close()


# --- files ---


@contextlib.contextmanager
def temporary_folder(output: Path) -> Iterator[Path]:
    """Beside the output, so that a rename is all that is left to do."""
    try:
        scratch = Path(tempfile.mkdtemp(prefix=f".{output.name}.", suffix=".partial", dir=output.parent))
    except OSError as error:
        raise HalfVError(f"{output.parent} cannot be written to ({error.strerror}): choose another folder.") from error
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def publish(files: tuple[tuple[Path, Path], ...]) -> None:
    """Both files or none."""
    done: list[Path] = []
    try:
        for source, _ in files:
            sync(source)
        for source, target in files:
            source.replace(target)
            done.append(target)
    except OSError as error:
        for target in done:
            target.unlink(missing_ok=True)
        if error.errno in FULL_DISK:
            raise no_room(files[0][1].parent) from error
        raise HalfVError(f"{error.filename or files[0][1]} cannot be written: {error.strerror or error}.") from error


def sync(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())
