"""The profile of a model: which layers prune how much. docs/gguf-format.md is its specification.

Values are those of a C float, so that what Python validates is what the native library sees. Reading, validation and
their messages agree with native/src/halfv-profile.cpp; tests/files/profile_cases.json holds both to it.
"""

from __future__ import annotations

import json
import math
import os
import re
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import halfv_cpp

from halfv_edge.errors import HalfVError
from halfv_edge.gguf import read as gguf_read
from halfv_edge.gguf import write as gguf_write
from halfv_edge.gguf.read import ARRAY, FLOAT32, STRING, TYPE_NAMES, UINT32, Metadata, quote

VERSION = 1
PREFIX = "halfv."
FROZEN, DROPPED = "frozen", "dropped"
REST = (FROZEN, DROPPED)  # in the order of enum halfv_rest
SIDECAR_SUFFIX = ".halfv.json"
MAX_SIDECAR_BYTES = 1 << 20

# field: (key without the prefix, GGUF type), in the order in which they are checked
KEYS = {
    "ivr_layer": ("ivr.layer", UINT32),
    "ivr_keep": ("ivr.keep", FLOAT32),
    "ivr_anchors": ("ivr.anchors", FLOAT32),
    "ssr_layer": ("ssr.layer", UINT32),
    "ssr_update": ("ssr.update", FLOAT32),
    "ssr_rest": ("ssr.rest", STRING),
    "min_visual_tokens": ("min_visual_tokens", UINT32),
    "pixel_tau": ("pixel.tau", FLOAT32),
}
OPTIONAL = ("min_visual_tokens", "pixel.tau")
CALIBRATION_KEYS = {
    "samples": UINT32,
    "source": STRING,
    "visual_entropy": ARRAY,
    "text_entropy": ARRAY,
    "layer_kl": ARRAY,
    "divergence": FLOAT32,
}
TYPE_WORDS = {UINT32: "u32", FLOAT32: "f32", STRING: "string", ARRAY: "array of f32"}
TYPE_RULES = {
    UINT32: "a whole number from 0 to 4294967295",
    FLOAT32: "a number",
    STRING: "text",
    ARRAY: "a list of numbers",
}


@dataclass(frozen=True, slots=True)
class Calibration:
    """The evidence for a profile; it changes nothing at run time."""

    samples: int | None = None
    source: str | None = None
    visual_entropy: tuple[float, ...] | None = None
    text_entropy: tuple[float, ...] | None = None
    layer_kl: tuple[float, ...] | None = None
    divergence: float | None = None

    def __post_init__(self) -> None:
        for name, type_ in CALIBRATION_KEYS.items():
            value = getattr(self, name)
            if value is not None and type_ == ARRAY:
                object.__setattr__(self, name, tuple(to_f32(item) for item in value))
            elif value is not None and type_ == FLOAT32:
                object.__setattr__(self, name, to_f32(value))

    def validate(self, n_layer: int) -> None:
        """Finite numbers; entropy at every layer boundary, redundancy of every layer."""
        found = {name: (getattr(self, name), type_) for name, type_ in CALIBRATION_KEYS.items()}
        _check_types("calibration.", {name: pair for name, pair in found.items() if pair[0] is not None})
        for name, count in (("visual_entropy", n_layer + 1), ("text_entropy", n_layer + 1), ("layer_kl", n_layer)):
            values = getattr(self, name)
            if values is None:
                continue
            if len(values) != count:
                rule = f"a model of {n_layer} layers has {count}"
                raise _complaint(f"calibration.{name}", f"{len(values)} values", rule)
            _check_finite(f"calibration.{name}", values)
        if self.divergence is not None:
            _check_finite("calibration.divergence", (self.divergence,))

    def to_json(self) -> dict[str, Any]:
        values = {name: getattr(self, name) for name in CALIBRATION_KEYS}
        return {name: list(v) if isinstance(v, tuple) else v for name, v in values.items() if v is not None}


@dataclass(frozen=True, slots=True)
class Profile:
    """As struct halfv_profile."""

    ivr_layer: int  # first layer of stage II
    ivr_keep: float  # share of the visual tokens that stage II sees
    ivr_anchors: float  # share of the kept that attention chooses
    ssr_layer: int  # first layer of stage III; the number of layers: no stage III
    ssr_update: float  # share of the original tokens that stage III updates
    ssr_rest: Literal["frozen", "dropped"]  # what happens to the others
    min_visual_tokens: int = 64  # smaller pictures are left whole
    pixel_tau: float | None = None  # 8-bit levels by which a patch dropped before the encoder may differ; None: none is
    calibration: Calibration | None = None

    def __post_init__(self) -> None:
        for name, (_, type_) in KEYS.items():
            if type_ == FLOAT32 and getattr(self, name) is not None:
                object.__setattr__(self, name, to_f32(getattr(self, name)))

    @classmethod
    def default(cls, n_layer: int) -> Profile:
        """As halfv_cpp.default_profile: prunes nothing until it is changed."""
        return cls(1, 1.0, 0.1, n_layer, 1.0, DROPPED)

    def validate(self, n_layer: int) -> Profile:
        """Itself, when it fits a model of n_layer layers; else one sentence that names the key and the value."""
        _check_types("", {key: (value, type_) for key, type_, value in self._given()})
        if not 1 <= self.ivr_layer < n_layer:
            raise _complaint(
                "ivr.layer", self.ivr_layer, f"it must be at least 1 and below the model's {n_layer} layers"
            )
        if not 0 < self.ivr_keep <= 1:
            raise _complaint("ivr.keep", self.ivr_keep, "it must be above 0 and at most 1")
        if not 0 <= self.ivr_anchors <= 1:
            raise _complaint("ivr.anchors", self.ivr_anchors, "it must be between 0 and 1")
        if not self.ivr_layer < self.ssr_layer <= n_layer:
            rule = f"it must be above halfv.ivr.layer ({self.ivr_layer}) and at most the model's {n_layer} layers"
            raise _complaint("ssr.layer", self.ssr_layer, rule)
        if not 0 <= self.ssr_update <= 1:
            raise _complaint("ssr.update", self.ssr_update, "it must be between 0 and 1")
        _check_rest(self.ssr_rest)
        if self.pixel_tau is not None and not 0 <= self.pixel_tau <= 255:
            raise _complaint("pixel.tau", self.pixel_tau, "it must be between 0 and 255")
        if self.calibration:
            self.calibration.validate(n_layer)
        return self

    def _given(self) -> Iterator[tuple[str, int, Any]]:
        """Key, GGUF type and value of each, without those that are left out."""
        for name, (key, type_) in KEYS.items():
            if (value := getattr(self, name)) is not None:
                yield key, type_, value

    def prunes(self, n_layer: int) -> bool:
        return self.ivr_keep < 1 or (self.ssr_layer < n_layer and self.ssr_update < 1)

    def to_gguf(self) -> dict[str, tuple[int, Any]]:
        """key: (GGUF type, value), as `gguf_edit.replace_keys` takes them."""
        entries: dict[str, tuple[int, Any]] = {PREFIX + "version": (UINT32, VERSION)}
        for key, type_, value in self._given():
            entries[PREFIX + key] = (type_, value)
        for name, value in (self.calibration.to_json() if self.calibration else {}).items():
            entries[f"{PREFIX}calibration.{name}"] = (CALIBRATION_KEYS[name], value)
        return entries

    @classmethod
    def from_json(cls, value: Any) -> Profile:
        """The profile in a parsed JSON object. Unlike in a GGUF an unknown key is refused: people type these."""
        flat = _flatten(value)
        _check_version(flat.pop("version", None))
        measured = [key for key in flat if key.startswith("calibration.")]
        evidence = {key.removeprefix("calibration."): flat.pop(key) for key in measured}
        values = _read_json(flat, dict(KEYS.values()), "")
        for key, _ in KEYS.values():
            if key not in values and key not in OPTIONAL:
                raise _missing(key)
        _check_rest(values["ssr.rest"])
        calibration = Calibration(**_read_json(evidence, CALIBRATION_KEYS, "calibration.")) if evidence else None
        names = {key: name for name, (key, _) in KEYS.items()}
        return cls(**{names[key]: value for key, value in values.items()}, calibration=calibration)

    def to_json(self) -> dict[str, Any]:
        """As in the sidecar: nested, one level per dot of the GGUF keys."""
        out: dict[str, Any] = {"version": VERSION}
        for key, _, value in self._given():
            group, _, leaf = key.rpartition(".")
            (out.setdefault(group, {}) if group else out)[leaf] = value
        if self.calibration:
            out["calibration"] = self.calibration.to_json()
        return out

    def to_c(self) -> halfv_cpp.halfv_profile:
        """For halfv_model_set_profile."""
        values = {name: getattr(self, name) for name in KEYS}
        values |= {"ssr_rest": REST.index(self.ssr_rest), "pixel_prune": self.pixel_tau is not None}
        return halfv_cpp.halfv_profile(**values | {"pixel_tau": self.pixel_tau or 0.0})

    @classmethod
    def from_c(cls, struct_: halfv_cpp.halfv_profile) -> Profile:
        values = {name: getattr(struct_, name) for name in KEYS}
        tau = struct_.pixel_tau if struct_.pixel_prune else None
        return cls(**values | {"ssr_rest": REST[struct_.ssr_rest], "pixel_tau": tau})


@dataclass(frozen=True, slots=True)
class Model:
    """What a profile needs to know of a language model's GGUF."""

    path: Path
    architecture: str
    names: tuple[str, ...]  # general.name and general.basename, where given
    n_layer: int
    metadata: Metadata

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Model:
        metadata = gguf_read.read(path)
        path = metadata.path
        architecture = metadata.text("general.architecture")
        if not architecture:
            raise HalfVError(f"{path} has no general.architecture: a profile belongs in a language model's GGUF.")
        kind = metadata.text("general.type")
        if architecture == "clip" or kind in ("mmproj", "adapter"):
            what = "a vision projector" if kind != "adapter" else "an adapter"
            raise HalfVError(f"{path} is {what}: a profile belongs in the language model's GGUF.")
        if _integer(metadata, "split.no"):
            raise HalfVError(f"{path} is a later part of a split model: a profile belongs in its first part.")
        n_layer = _integer(metadata, f"{architecture}.block_count")
        if not n_layer:
            raise HalfVError(f"{path} does not say how many layers it has ({quote(architecture)}.block_count).")
        names = tuple(filter(None, map(metadata.text, ("general.name", "general.basename"))))
        return cls(path, architecture, names, n_layer, metadata)


@dataclass(frozen=True, slots=True)
class Resolved:
    """The profile in force and where it is from; "environment" is HALFV=off."""

    profile: Profile | None
    source: Literal["flag", "HALFV_PROFILE", "sidecar", "gguf", "preset", "off", "environment"]
    preset: str | None = None
    published: bool | None = None  # of a preset: used in the paper, not scaled from another size


def resolve(model: Model | str | os.PathLike[str], override: Profile | Literal["off"] | None = None) -> Resolved:
    """Which profile a model runs with: flag or API, HALFV_PROFILE, sidecar, GGUF, preset, off.

    What is found first is validated; when it is wrong that is an error and not a reason to go on to the next. The
    native library reads HALFV_PROFILE and the GGUF alone, so the caller sets the result, None too, with
    halfv_model_set_profile.
    """
    if switched_off():
        return Resolved(None, "environment")
    if override == "off":
        return Resolved(None, "flag")
    model = model if isinstance(model, Model) else Model.read(model)
    if override is not None:
        return Resolved(override.validate(model.n_layer), "flag")
    return find(model)


def switched_off() -> bool:
    """HALFV=off or HALFV=0 in the environment, as the native library reads it."""
    return os.environ.get("HALFV") in ("off", "0")


def find(model: Model) -> Resolved:
    """The profile of a model when no flag says otherwise: HALFV_PROFILE, sidecar, GGUF, preset, off."""
    from halfv_edge.profile import presets  # which needs Profile

    if profile := read_environment(model):
        return Resolved(profile, "HALFV_PROFILE")
    if profile := read_sidecar(model):
        return Resolved(profile, "sidecar")
    if profile := read_gguf(model):
        return Resolved(profile, "gguf")
    if preset := presets.match(model.architecture, model.names, model.n_layer):
        return Resolved(preset.profile.validate(model.n_layer), "preset", preset.name, preset.published)
    return Resolved(None, "off")


def read_environment(model: Model) -> Profile | None:
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
    return _validated(parse_json(raw, where), model, where)


def read_gguf(model: Model) -> Profile | None:
    """The profile in the model's GGUF, None when there is none. Evidence that is wrong is left out: see `notes`."""
    metadata = model.metadata
    if "halfv.version" not in metadata.entries:
        return None
    try:
        _check_version(_typed(metadata, "version", UINT32))
        values = {name: _typed(metadata, key, type_) for name, (key, type_) in KEYS.items()}
        _check_rest(values["ssr_rest"])
        values = {name: value for name, value in values.items() if value is not None}
        return Profile(**values, calibration=_evidence(model)[0]).validate(model.n_layer)
    except _InvalidError as error:
        raise HalfVError(f"{model.path}: {error}") from error


def sidecar_path(model: str | os.PathLike[str]) -> Path:
    """model.halfv.json beside model.gguf."""
    path = Path(model)
    return path.with_name((path.stem if path.suffix.lower() == ".gguf" else path.name) + SIDECAR_SUFFIX)


def read_sidecar(model: Model) -> Profile | None:
    """The profile beside the model's GGUF, validated against it."""
    path = sidecar_path(model.path)
    if not os.path.lexists(path):
        return None
    return _validated(read_json(path), model, str(path))


def _validated(profile: Profile, model: Model, where: str) -> Profile:
    try:
        return profile.validate(model.n_layer)
    except _InvalidError as error:
        raise HalfVError(f"{where}: {error}") from error


def write_sidecar(profile: Profile, model: str | os.PathLike[str]) -> Path:
    path = sidecar_path(model)
    text = json.dumps(profile.to_json(), indent=2) + "\n"
    with gguf_write.writing(path, len(text)) as out:
        out.write(text.encode())
    return path


def read_json(path: Path) -> Profile:
    """A profile from a JSON file, not yet validated against a model."""
    return parse_json(_read_bytes(path), str(path))


def _read_bytes(path: Path) -> bytes:
    with gguf_read.reading(path) as file:
        raw = file.read(MAX_SIDECAR_BYTES + 1)
    if len(raw) > MAX_SIDECAR_BYTES:
        raise HalfVError(f"{path} is too long for a profile.")
    return raw


def parse_json(raw: bytes, where: str) -> Profile:
    """A profile from JSON, not yet validated against a model; `where` is what messages call it."""
    try:
        text = raw.decode("utf-8-sig")
        return Profile.from_json(json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant))
    except (_InvalidError, _DuplicateError) as error:
        raise HalfVError(f"{where}: {error}") from error
    except UnicodeDecodeError as error:
        raise HalfVError(f"{where} is not a profile: it is not UTF-8 text.") from error
    except ValueError as error:
        raise HalfVError(f"{where} is not valid JSON: {error}.") from error
    except RecursionError as error:
        raise HalfVError(f"{where} is not a profile: it is nested too deep.") from error


def notes(model: Model) -> list[str]:
    """What a person should know about the halfv keys of a GGUF that is no error."""
    metadata = model.metadata
    if "halfv.version" not in metadata.entries:
        strays = [key for key in metadata.entries if key.startswith(PREFIX)]
        return [f"{strays[0]} is there without halfv.version, so it has no effect"] if strays else []
    return _evidence(model)[1]


def to_f32(value: float) -> float:
    """The shortest decimal of the nearest C float, so that 0.1 stays 0.1 through a GGUF."""
    try:
        value = float(value)
        packed = struct.pack("<f", value)
    except OverflowError:
        return math.copysign(math.inf, value)
    (exact,) = struct.unpack("<f", packed)
    if math.isfinite(exact):
        for digits in range(6, 10):
            short = float(f"{exact:.{digits}g}")
            if abs(short) < 3.4e38 and struct.pack("<f", short) == packed:
                return short
    return exact


class _InvalidError(HalfVError):
    """A value that a profile cannot have; the reader of a file adds its name."""


class _DuplicateError(ValueError):
    pass


def _complaint(key: str, value: Any, rule: str) -> _InvalidError:
    shown = f"{struct.unpack('<f', struct.pack('<f', value))[0]:g}" if isinstance(value, float) else value
    return _InvalidError(f"{PREFIX}{key} = {shown} is not valid: {rule}")


def _missing(key: str) -> _InvalidError:
    return _InvalidError(f"{PREFIX}{key} is missing: a profile needs it")


def _check_version(version: Any) -> None:
    if version is None:
        raise _missing("version")
    if isinstance(version, bool) or version != VERSION:
        rule = f"this build reads version {VERSION}; a newer halfv-edge may read it, or set HALFV=off to run unpruned"
        raise _complaint("version", quote(version), rule)


def _check_rest(rest: str) -> None:
    if rest not in REST:
        raise _complaint("ssr.rest", quote(rest), 'it must be "frozen" or "dropped"')


def _check_finite(key: str, values: Iterable[float]) -> None:
    for value in values:
        if not math.isfinite(value):
            raise _complaint(key, value, "it must be finite")


def _integer(metadata: Metadata, key: str) -> int:
    return metadata.value(key) if key in metadata.entries and metadata.type_name(key)[0] in "ui" else 0


def _typed(metadata: Metadata, key: str, type_: int) -> Any:
    """A value of the type that the specification gives it; some may be missing, and the evidence."""
    entry = metadata.entries.get(PREFIX + key)
    if entry is None:
        if key not in OPTIONAL and not key.startswith("calibration."):
            raise _missing(key)
        return None
    if entry.type != type_ or (type_ == ARRAY and entry.item_type != FLOAT32):
        raise _complaint(key, TYPE_NAMES[entry.type], f"its type must be {TYPE_WORDS[type_]}")
    return metadata.value(PREFIX + key)


def _evidence(model: Model) -> tuple[Calibration | None, list[str]]:
    """What can be used of halfv.calibration.*, and what is wrong with the rest."""
    found, complaints = {}, []
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


def _flatten(value: Any) -> dict[str, Any]:
    """{"ivr": {"layer": 2}} as {"ivr.layer": 2}."""
    if not isinstance(value, Mapping):
        raise _InvalidError(f"a profile is a JSON object, not {quote(value)}")
    out: dict[str, Any] = {}
    for key, item in value.items():
        if key in ("ivr", "ssr", "pixel", "calibration"):
            if not isinstance(item, Mapping):
                raise _complaint(key, quote(item), "it must be an object")
            out |= {f"{key}.{leaf}": leaf_value for leaf, leaf_value in item.items()}
        elif "." in key:
            raise _InvalidError(f"the key {quote(key)} has a dot: write it as an object in an object")
        else:
            out[key] = item
    return out


def _read_json(flat: Mapping[str, Any], types: Mapping[str, int], prefix: str) -> dict[str, Any]:
    """Values of the types that the specification gives them."""
    out = {}
    for key, value in flat.items():
        if key not in types:
            known = ", ".join(f"{PREFIX}{prefix}{name}" for name in types)
            raise _InvalidError(f"{quote(PREFIX + prefix + key)} is not a key of a profile: those are {known}")
        _check_types(prefix, {key: (value, types[key])})
        out[key] = value
    return out


def _check_types(prefix: str, values: Mapping[str, tuple[Any, int]]) -> None:
    for key, (value, type_) in values.items():
        if not _fits(value, type_):
            raise _complaint(prefix + key, quote(value), f"it must be {TYPE_RULES[type_]}")


def _fits(value: Any, type_: int) -> bool:
    if type_ == STRING:
        return isinstance(value, str) and not re.search("[\ud800-\udfff]", value)  # JSON can hold half a character
    if type_ == ARRAY:
        return isinstance(value, (list, tuple)) and all(_fits(item, FLOAT32) for item in value)
    if isinstance(value, bool):
        return False
    if type_ == UINT32:
        return isinstance(value, int) and 0 <= value < 1 << 32
    return isinstance(value, (int, float))
