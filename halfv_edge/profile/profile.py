"""The profile of a model: which layers prune how much. docs/gguf-format.md is its specification.

Values are those of a C float, so that what Python validates is what the native library sees. Reading, validation and
their messages agree with native/src/profile/halfv-profile.cpp; tests/support/profile_cases.json holds both to it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Final, Literal

import halfv_cpp

from halfv_edge.errors import quote
from halfv_edge.gguf.read import ARRAY, FLOAT32, STRING, UINT32
from halfv_edge.profile.keys import KEYS, LEVELS, PARTNERS, Key
from halfv_edge.profile.values import PREFIX, WHOLES, InvalidError, check_finite, check_types, complaint, to_f32

VERSION = 1
FROZEN: Final = "frozen"
DROPPED: Final = "dropped"
Rest = Literal["frozen", "dropped"]
LAST: Final = "last"
QUESTION: Final = "question"
Query = Literal["last", "question"]
MAX_FURTHER = halfv_cpp.HALFV_MAX_FURTHER
MAX_WIDTH = halfv_cpp.HALFV_MAX_WIDTH

# how much visual tokens have of networks, heads and keys, and from which layer on
NARROW = {"ffn_keep": "ffn_layer", "heads_keep": "heads_layer", "neighbours_width": "neighbours_layer"}
CALIBRATION_KEYS = {
    "samples": UINT32,
    "source": STRING,
    "visual_entropy": ARRAY,
    "text_entropy": ARRAY,
    "layer_kl": ARRAY,
    "divergence": FLOAT32,
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
        check_types("calibration.", {name: pair for name, pair in found.items() if pair[0] is not None})
        for name, count in (("visual_entropy", n_layer + 1), ("text_entropy", n_layer + 1), ("layer_kl", n_layer)):
            values = getattr(self, name)
            if values is None:
                continue
            if len(values) != count:
                rule = f"a model of {n_layer} layers has {count}"
                raise complaint(f"calibration.{name}", f"{len(values)} values", rule)
            check_finite(f"calibration.{name}", values)
        if self.divergence is not None:
            check_finite("calibration.divergence", (self.divergence,))

    def to_json(self) -> dict[str, Any]:
        values = {name: getattr(self, name) for name in CALIBRATION_KEYS}
        return {name: list(v) if isinstance(v, tuple) else v for name, v in values.items() if v is not None}


@dataclass(frozen=True, slots=True)
class Intake:
    """What becomes of a picture before the language model: fields of a Profile, which libmtmd goes by."""

    pixel_tau: float | None = None
    input_keep: float = 1.0
    encoder_layer: int = 1
    encoder_keep: float = 1.0
    input_merge: float = 1.0
    image_loss: float = 0.0
    frames_tau: float | None = None

    @property
    def keeps_rows(self) -> bool:
        """Whether the language model is given all that the encoder gives."""
        return self.input_keep == self.input_merge == 1

    def within(self, profile: Profile) -> Profile:
        """A profile with these in place of its own."""
        return replace(profile, **asdict(self))


WHOLE_INTAKE: Final = Intake()


@dataclass(frozen=True, slots=True)
class Profile:
    """Which layers of a model prune how much; the fields are those of struct halfv_profile in halfv.h."""

    ivr_layer: int  # first layer of stage II
    ivr_keep: float  # share of the visual tokens that stage II sees
    ivr_anchors: float  # share of the kept that attention chooses
    ssr_layer: int  # first layer of stage III; the number of layers: no stage III
    ssr_update: float  # share of the original tokens that stage III updates
    ssr_rest: Literal["frozen", "dropped"]  # what happens to the others
    min_visual_tokens: int = 64  # smaller pictures are left whole
    pixel_tau: float | None = None  # 8-bit levels by which a patch dropped before the encoder may differ; None: none is
    visual_share: float = 0.0  # of the context, set aside for visual tokens: deeper stages get fewer KV cells
    input_keep: float = 1.0  # share of a picture's rows that go on from the encoder; the shares above are of those
    encoder_layer: int = 1  # first layer of the encoder that sees only some of a picture
    encoder_keep: float = 1.0  # share of its tokens' patches that it sees
    input_merge: float = 1.0  # share of a picture's rows left when alike ones are averaged; input_keep is of those
    further_layers: tuple[int, ...] = ()  # first layers of stages behind III
    further_keep: tuple[float, ...] = ()  # share of the original tokens that each sees; 0: text alone
    ffn_layer: int = 1  # from this layer on visual tokens take only the first channels of feed-forward networks
    ffn_keep: float = 1.0  # share of them
    heads_layer: int = 1  # from this layer on visual tokens have only the first groups of heads
    heads_keep: float = 1.0  # share of them
    neighbours_layer: int = 1  # from this layer on visual tokens see of visual ones only neighbours
    neighbours_width: int = 0  # rows and columns of the square around a token in which those are; 0: all are seen
    image_loss: float = 0.0  # pictures are made smaller while no part of them loses more; 0: never
    ivr_query: Query = LAST  # whose attention chooses: of the last token, of all the question's
    ivr_bias: float = 0.0  # by which log n is added to attention to a kept token that stands for n; 0: nothing is
    frames_tau: float | None = None  # the like of pixel_tau, against the picture before; None: nothing is compared
    calibration: Calibration | None = None

    def __post_init__(self) -> None:
        for name, key in KEYS.items():
            value = getattr(self, name)
            if key.type == FLOAT32 and value is not None:
                object.__setattr__(self, name, to_f32(value))
            elif key.type == ARRAY:
                object.__setattr__(self, name, tuple(map(to_f32, value)))
            elif key.type == WHOLES:
                object.__setattr__(self, name, tuple(value))

    @classmethod
    def default(cls, n_layer: int) -> Profile:
        """The profile to begin with: it prunes nothing until it is changed.

        Args:
            n_layer: Layers of the model.

        Returns:
            A profile that keeps everything.

        Example:
            >>> Profile.default(28).prunes(28)
            False
        """
        return cls(1, 1.0, 0.1, n_layer, 1.0, DROPPED)

    def validate(self, n_layer: int) -> Profile:
        """Check it against a model.

        Args:
            n_layer: Layers of the model.

        Returns:
            The profile itself.

        Raises:
            HalfVError: A value does not fit; the sentence names the key and the value.
        """
        check_types("", {key.key: (value, key.type) for key, value in self._given()})
        check_further(self.further_layers, self.further_keep)
        for name, key in KEYS.items():
            key.check(getattr(self, name))
            self._check_beside_others(name, n_layer)
        if self.calibration:
            self.calibration.validate(n_layer)
        return self

    def _check_beside_others(self, name: str, n_layer: int) -> None:
        """What of a field depends on other fields and the model."""
        value, below = getattr(self, name), f"below the model's {n_layer} layers"
        if name == "ivr_layer" and not 1 <= value < n_layer:
            raise complaint("ivr.layer", value, f"it must be at least 1 and {below}")
        if name == "ivr_bias" and value and self.neighbours_width:
            raise complaint("ivr.bias", value, "with halfv.neighbours.width it must be 0")
        if name == "ssr_layer" and not self.ivr_layer < value <= n_layer:
            rule = f"it must be above halfv.ivr.layer ({self.ivr_layer}) and at most the model's {n_layer} layers"
            raise complaint("ssr.layer", value, rule)
        if name == "neighbours_width" and value and not (value % 2 and value <= MAX_WIDTH):
            raise complaint("neighbours.width", value, f"it must be 0, or odd and at most {MAX_WIDTH}")
        if name in NARROW and not self._is_usual(name):
            layer = getattr(self, NARROW[name])
            if not self.ivr_layer <= layer < n_layer:
                rule = f"it must be at least halfv.ivr.layer ({self.ivr_layer}) and {below}"
                raise complaint(KEYS[NARROW[name]].key, layer, rule)
        if name == "further_layers":
            before, what = self.ssr_layer, "halfv.ssr.layer"
            for layer in value:
                if not before < layer < n_layer:
                    rule = f"it must be above the {what} before it ({before}) and {below}"
                    raise complaint("further.layers", layer, rule)
                before, what = layer, "one"
        if name == "further_keep" and self.ssr_rest == FROZEN and any(value):
            raise complaint("further.keep", next(filter(None, value)), "behind tokens that are frozen it must be 0")

    def _is_usual(self, name: str) -> bool:
        """Whether a field is what it is where nothing is said."""
        return bool(getattr(self, name) == DEFAULTS[name])

    def _given(self) -> Iterator[tuple[Key, Any]]:
        """Keys and values of all that is not left out, as what does nothing is; a layer and its share go together."""
        for name, key in KEYS.items():
            pair = (name, PARTNERS.get(name, name))
            value = getattr(self, name)
            if value is not None and (key.needed or key.written or not all(map(self._is_usual, pair))):
                yield key, list(value) if isinstance(value, tuple) else value

    def prunes(self, n_layer: int) -> bool:
        """Whether it leaves any visual token out in the language model.

        Args:
            n_layer: Layers of the model.

        Returns:
            False when it keeps and updates all that the language model is given.
        """
        later = self.ssr_layer < n_layer and self.ssr_update < 1
        return self.ivr_keep < 1 or self.narrows or later or any(keep < 1 for keep in self.further_keep)

    @property
    def narrows(self) -> bool:
        """Whether visual tokens take only some channels, heads or neighbours."""
        return not all(self._is_usual(much) for much in NARROW)

    @property
    def takes_parts(self) -> bool:
        """Of matrices, which a processor must then not pack for itself."""
        return self.ffn_keep < 1 or self.heads_keep < 1

    @property
    def intake(self) -> Intake:
        """What it says of a picture before the language model."""
        return Intake(**{field.name: getattr(self, field.name) for field in fields(Intake)})

    def to_gguf(self) -> dict[str, tuple[int, Any]]:
        """Metadata of a GGUF, each key with its type and value."""
        entries: dict[str, tuple[int, Any]] = {PREFIX + "version": (UINT32, VERSION)}
        for key, value in self._given():
            entries[PREFIX + key.key] = (ARRAY if key.type == WHOLES else key.type, value)
        for name, value in (self.calibration.to_json() if self.calibration else {}).items():
            entries[f"{PREFIX}calibration.{name}"] = (CALIBRATION_KEYS[name], value)
        return entries

    @classmethod
    def from_json(cls, value: Any) -> Profile:
        """The profile in a parsed JSON object.

        Args:
            value: As `to_json` gives it. Unlike in a GGUF an unknown key is refused: people type these.

        Returns:
            The profile, not yet checked against a model.

        Raises:
            HalfVError: A key is missing, unknown or not valid.
        """
        flat = _flatten(value)
        check_version(flat.pop("version", None))
        measured = [key for key in flat if key.startswith("calibration.")]
        evidence = {key.removeprefix("calibration."): flat.pop(key) for key in measured}
        values = _read_json(flat, {key.key: key.type for key in KEYS.values()}, "")
        for key in KEYS.values():
            if key.key not in values and key.needed:
                raise missing(key.key)
        given = {name: values[key.key] for name, key in KEYS.items() if key.key in values}
        check_further(given.get("further_layers", ()), given.get("further_keep", ()))
        check_names(given)
        calibration = Calibration(**_read_json(evidence, CALIBRATION_KEYS, "calibration.")) if evidence else None
        return cls(**given, calibration=calibration)

    def to_json(self) -> dict[str, Any]:
        """As in the sidecar: nested, one level per dot of the GGUF keys."""
        out: dict[str, Any] = {"version": VERSION}
        for key, value in self._given():
            group, _, leaf = key.key.rpartition(".")
            (out.setdefault(group, {}) if group else out)[leaf] = value
        if self.calibration:
            out["calibration"] = self.calibration.to_json()
        return out

    def to_c(self) -> halfv_cpp.halfv_profile:
        """For halfv_model_set_profile."""
        values = {name: getattr(self, name) for name in KEYS}
        for name, key in KEYS.items():
            if key.names:
                values[name] = key.names.index(values[name])
            if key.range is LEVELS:
                values |= {_switch(name): values[name] is not None, name: values[name] or 0.0}
        return halfv_cpp.halfv_profile(**values, n_further=len(self.further_layers))

    def encoder_part(self, n_layer: int) -> Profile:
        """What it says of the encoder.

        Args:
            n_layer: Layers of the model.

        Returns:
            The same with stages that keep everything.
        """
        return self.intake.within(replace(Profile.default(n_layer), min_visual_tokens=self.min_visual_tokens))

    @classmethod
    def from_c(cls, struct_: halfv_cpp.halfv_profile) -> Profile:
        """The profile in a struct of halfv.h.

        Args:
            struct_: As the native library fills it.

        Returns:
            The profile, without the evidence for it.
        """
        values = {name: getattr(struct_, name) for name in KEYS}
        for name, key in KEYS.items():
            if key.names:
                values[name] = key.names[values[name]]
            if key.range is LEVELS and not getattr(struct_, _switch(name)):
                values[name] = None
            if key.type in (ARRAY, WHOLES):
                values[name] = values[name][: struct_.n_further]
        return cls(**values)


DEFAULTS = {field.name: field.default for field in fields(Profile)}  # of those that have one


def _switch(name: str) -> str:
    """The field in C that says whether there are levels: pixel_prune for pixel_tau."""
    return name.replace("_tau", "_prune")


def missing(key: str) -> InvalidError:
    return InvalidError(f"{PREFIX}{key} is missing: a profile needs it")


def check_version(version: Any) -> None:
    if version is None:
        raise missing("version")
    if isinstance(version, bool) or version != VERSION:
        rule = f"this build reads version {VERSION}; a newer halfv-edge may read it, or set HALFV=off to run unpruned"
        raise complaint("version", quote(version), rule)


def check_names(values: Mapping[str, Any]) -> None:
    """Of fields that are text, those that are there."""
    for name, key in KEYS.items():
        if key.names and name in values:
            key.check(values[name])


def check_further(layers: Sequence[int], keep: Sequence[float]) -> None:
    if len(layers) > MAX_FURTHER:
        raise complaint("further.layers", f"{len(layers)} values", f"there can be at most {MAX_FURTHER}")
    if len(keep) != len(layers):
        raise complaint("further.keep", f"{len(keep)} values", f"halfv.further.layers has {len(layers)}")


def _flatten(value: Any) -> dict[str, Any]:
    """{"ivr": {"layer": 2}} as {"ivr.layer": 2}."""
    if not isinstance(value, Mapping):
        raise InvalidError(f"a profile is a JSON object, not {quote(value)}")
    out: dict[str, Any] = {}
    groups = {"calibration", *(key.key.partition(".")[0] for key in KEYS.values() if "." in key.key)}
    for key, item in value.items():
        if key in groups:
            if not isinstance(item, Mapping):
                raise complaint(key, quote(item), "it must be an object")
            out |= {f"{key}.{leaf}": leaf_value for leaf, leaf_value in item.items()}
        elif "." in key:
            raise InvalidError(f"the key {quote(key)} has a dot: write it as an object in an object")
        else:
            out[key] = item
    return out


def _read_json(flat: Mapping[str, Any], types: Mapping[str, int], prefix: str) -> dict[str, Any]:
    """Values of the types that the specification gives them."""
    out = {}
    for key, value in flat.items():
        if key not in types:
            known = ", ".join(f"{PREFIX}{prefix}{name}" for name in types)
            raise InvalidError(f"{quote(PREFIX + prefix + key)} is not a key of a profile: those are {known}")
        check_types(prefix, {key: (value, types[key])})
        out[key] = value
    return out
