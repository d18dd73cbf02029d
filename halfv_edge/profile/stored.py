"""Where a profile is kept: in the model's GGUF, in a sidecar beside it, in a JSON file."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from halfv_edge import files
from halfv_edge.errors import HalfVError, quote
from halfv_edge.gguf.read import ARRAY, FLOAT32, STRING, TYPE_NAMES, UINT32, Metadata
from halfv_edge.profile.keys import KEYS
from halfv_edge.profile.model_file import ModelFile
from halfv_edge.profile.profile import (
    CALIBRATION_KEYS,
    Calibration,
    Profile,
    check_further,
    check_names,
    check_version,
    missing,
)
from halfv_edge.profile.values import PREFIX, WHOLES, InvalidError, complaint

SIDECAR_SUFFIX = ".halfv.json"
MAX_SIDECAR_BYTES = 1 << 20
TYPE_WORDS = {UINT32: "u32", FLOAT32: "f32", STRING: "string", ARRAY: "array of f32", WHOLES: "array of u32"}


def read_gguf(model: ModelFile) -> Profile | None:
    """The profile in the model's GGUF, None when there is none. Evidence that is wrong is left out: see `notes`."""
    metadata = model.metadata
    if "halfv.version" not in metadata.entries:
        return None
    try:
        check_version(_typed(metadata, "version", UINT32, needed=True))
        values = {name: _typed(metadata, key.key, key.type, needed=key.needed) for name, key in KEYS.items()}
        check_further(values["further_layers"] or (), values["further_keep"] or ())
        values = {name: value for name, value in values.items() if value is not None}
        check_names(values)
        return Profile(**values, calibration=_evidence(model)[0]).validate(model.n_layer)
    except InvalidError as error:
        raise HalfVError(f"{model.path}: {error}") from error


def sidecar_path(model: str | os.PathLike[str]) -> Path:
    """model.halfv.json beside model.gguf."""
    path = Path(model)
    return path.with_name((path.stem if path.suffix.lower() == ".gguf" else path.name) + SIDECAR_SUFFIX)


def read_environment(model: ModelFile) -> Profile | None:
    """The profile in HALFV_PROFILE, a file or the JSON itself, validated against a model."""
    given = os.environ.get("HALFV_PROFILE", "")
    if not given.strip():
        return None
    raw, where = given.encode("utf-8", "surrogateescape"), "HALFV_PROFILE"
    if not given.lstrip().startswith("{"):
        try:
            raw, where = _read_bytes(Path(given)), f"HALFV_PROFILE ({given})"
        except HalfVError as error:
            raise HalfVError(f"HALFV_PROFILE: {error}") from error
    name = quote((*model.names, model.architecture)[0])  # as it is for every model of a process
    return _validated(parse_json(raw, where), model, f"{where}, for the model {name}")


def read_sidecar(model: ModelFile) -> Profile | None:
    """The profile beside the model's GGUF, validated against it."""
    path = sidecar_path(model.path)
    if not os.path.lexists(path):
        return None
    return _validated(read_json(path), model, str(path))


def _validated(profile: Profile, model: ModelFile, where: str) -> Profile:
    try:
        return profile.validate(model.n_layer)
    except InvalidError as error:
        raise HalfVError(f"{where}: {error}") from error


def write_sidecar(profile: Profile, model: str | os.PathLike[str]) -> Path:
    path = sidecar_path(model)
    text = json.dumps(profile.to_json(), indent=2) + "\n"
    files.write(path, text.encode())
    return path


def read_json(path: Path) -> Profile:
    """A profile from a JSON file, not yet validated against a model."""
    return parse_json(_read_bytes(path), str(path))


def _read_bytes(path: Path) -> bytes:
    return files.read_small(path, MAX_SIDECAR_BYTES, "is too long for a profile")


def parse_json(raw: bytes, where: str) -> Profile:
    """A profile from JSON, not yet validated against a model; `where` is what messages call it."""
    try:
        text = raw.decode("utf-8-sig")
        return Profile.from_json(json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant))
    except (InvalidError, _DuplicateError) as error:
        raise HalfVError(f"{where}: {error}") from error
    except UnicodeDecodeError as error:
        raise HalfVError(f"{where} is not a profile: it is not UTF-8 text.") from error
    except ValueError as error:
        raise HalfVError(f"{where} is not valid JSON: {error}.") from error
    except RecursionError as error:
        raise HalfVError(f"{where} is not a profile: it is nested too deep.") from error


def notes(model: ModelFile) -> list[str]:
    """What a person should know about the halfv keys of a GGUF that is no error."""
    metadata = model.metadata
    if "halfv.version" not in metadata.entries:
        strays = [key for key in metadata.entries if key.startswith(PREFIX)]
        return [f"{strays[0]} is there without halfv.version, so it has no effect"] if strays else []
    return _evidence(model)[1]


def _typed(metadata: Metadata, key: str, type_: int, *, needed: bool = False) -> Any:
    """A value of the type that the specification gives it; None where there is none."""
    entry = metadata.entries.get(PREFIX + key)
    if entry is None:
        if needed:
            raise missing(key)
        return None
    wanted = {ARRAY: (ARRAY, FLOAT32), WHOLES: (ARRAY, UINT32)}.get(type_, (type_, entry.item_type))
    if (entry.type, entry.item_type) != wanted:
        raise complaint(key, TYPE_NAMES[entry.type], f"its type must be {TYPE_WORDS[type_]}")
    return metadata.value(PREFIX + key)


def _evidence(model: ModelFile) -> tuple[Calibration | None, list[str]]:
    """What can be used of halfv.calibration.*, and what is wrong with the rest."""
    found: dict[str, Any] = {}
    complaints: list[str] = []
    for name, type_ in CALIBRATION_KEYS.items():
        try:
            value = _typed(model.metadata, f"calibration.{name}", type_)
            Calibration(**{name: value}).validate(model.n_layer)
            found |= {name: value} if value is not None else {}
        except HalfVError as error:
            complaints.append(f"{error}, so it is left out")
    return (Calibration(**found) if found else None), complaints


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no number")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out = dict(pairs)
    if len(out) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise _DuplicateError(f"the key {quote(twice)} is there twice")
    return out


class _DuplicateError(ValueError):
    pass
