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
from halfv_edge.profile.values import PREFIX, WHOLES, InvalidError, check_finite, check_types, complaint, to_f32

VERSION = 1
FROZEN: Final = "frozen"
DROPPED: Final = "dropped"
Rest = Literal["frozen", "dropped"]
REST = (FROZEN, DROPPED)  # in the order of enum halfv_rest
LAST: Final = "last"
QUESTION: Final = "question"
Query = Literal["last", "question"]
QUERIES: tuple[Query, ...] = (LAST, QUESTION)  # in the order of enum halfv_query
MAX_FURTHER = halfv_cpp.HALFV_MAX_FURTHER
MAX_WIDTH = halfv_cpp.HALFV_MAX_WIDTH

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
    "visual_share": ("visual_share", FLOAT32),
    "input_keep": ("input.keep", FLOAT32),
    "encoder_layer": ("encoder.layer", UINT32),
    "encoder_keep": ("encoder.keep", FLOAT32),
    "input_merge": ("input.merge", FLOAT32),
    "further_layers": ("further.layers", WHOLES),
    "further_keep": ("further.keep", ARRAY),
    "ffn_layer": ("ffn.layer", UINT32),
    "ffn_keep": ("ffn.keep", FLOAT32),
    "heads_layer": ("heads.layer", UINT32),
    "heads_keep": ("heads.keep", FLOAT32),
    "neighbours_layer": ("neighbours.layer", UINT32),
    "neighbours_width": ("neighbours.width", UINT32),
    "image_loss": ("image.loss", FLOAT32),
    "ivr_query": ("ivr.query", STRING),
    "ivr_bias": ("ivr.bias", FLOAT32),
    "frames_tau": ("frames.tau", FLOAT32),
}
# of visual tokens' networks, heads and keys, with what leaves them whole
NARROW = {
    ("ffn_layer", "ffn_keep"): (1, 1.0),
    ("heads_layer", "heads_keep"): (1, 1.0),
    ("neighbours_layer", "neighbours_width"): (1, 0),
}
NAMES = {"ssr_rest": REST, "ivr_query": QUERIES}  # fields that are text: what they can be
REQUIRED = ("ivr.layer", "ivr.keep", "ivr.anchors", "ssr.layer", "ssr.update", "ssr.rest")
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
        for name, (_, type_) in KEYS.items():
            value = getattr(self, name)
            if type_ == FLOAT32 and value is not None:
                object.__setattr__(self, name, to_f32(value))
            elif type_ in (ARRAY, WHOLES):
                object.__setattr__(
                    self, name, tuple(to_f32(item) for item in value) if type_ == ARRAY else tuple(value)
                )

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
        check_types("", {key: (value, type_) for key, type_, value in self._given()})
        check_further(self.further_layers, self.further_keep)
        if not 1 <= self.ivr_layer < n_layer:
            rule = f"it must be at least 1 and below the model's {n_layer} layers"
            raise complaint("ivr.layer", self.ivr_layer, rule)
        if not 0 < self.ivr_keep <= 1:
            raise complaint("ivr.keep", self.ivr_keep, "it must be above 0 and at most 1")
        if not 0 <= self.ivr_anchors <= 1:
            raise complaint("ivr.anchors", self.ivr_anchors, "it must be between 0 and 1")
        check_name("ivr_query", self.ivr_query)
        if not 0 <= self.ivr_bias <= 1:
            raise complaint("ivr.bias", self.ivr_bias, "it must be between 0 and 1")
        if not self.ivr_layer < self.ssr_layer <= n_layer:
            rule = f"it must be above halfv.ivr.layer ({self.ivr_layer}) and at most the model's {n_layer} layers"
            raise complaint("ssr.layer", self.ssr_layer, rule)
        if not 0 <= self.ssr_update <= 1:
            raise complaint("ssr.update", self.ssr_update, "it must be between 0 and 1")
        check_name("ssr_rest", self.ssr_rest)
        if self.pixel_tau is not None and not 0 <= self.pixel_tau <= 255:
            raise complaint("pixel.tau", self.pixel_tau, "it must be between 0 and 255")
        if not 0 <= self.visual_share <= 1:
            raise complaint("visual_share", self.visual_share, "it must be between 0 and 1")
        if not 0 < self.input_keep <= 1:
            raise complaint("input.keep", self.input_keep, "it must be above 0 and at most 1")
        if self.encoder_layer < 1:
            raise complaint("encoder.layer", self.encoder_layer, "it must be at least 1")
        if not 0 < self.encoder_keep <= 1:
            raise complaint("encoder.keep", self.encoder_keep, "it must be above 0 and at most 1")
        if not 0 < self.input_merge <= 1:
            raise complaint("input.merge", self.input_merge, "it must be above 0 and at most 1")
        self._check_further(n_layer)
        if not 0 < self.ffn_keep <= 1:
            raise complaint("ffn.keep", self.ffn_keep, "it must be above 0 and at most 1")
        later = f"it must be at least halfv.ivr.layer ({self.ivr_layer}) and below the model's {n_layer} layers"
        if self.ffn_keep < 1 and not self.ivr_layer <= self.ffn_layer < n_layer:
            raise complaint("ffn.layer", self.ffn_layer, later)
        if not 0 < self.heads_keep <= 1:
            raise complaint("heads.keep", self.heads_keep, "it must be above 0 and at most 1")
        if self.heads_keep < 1 and not self.ivr_layer <= self.heads_layer < n_layer:
            raise complaint("heads.layer", self.heads_layer, later)
        if self.neighbours_width and not (self.neighbours_width % 2 and self.neighbours_width <= MAX_WIDTH):
            raise complaint("neighbours.width", self.neighbours_width, f"it must be 0, or odd and at most {MAX_WIDTH}")
        if self.neighbours_width and not self.ivr_layer <= self.neighbours_layer < n_layer:
            raise complaint("neighbours.layer", self.neighbours_layer, later)
        if self.neighbours_width and self.ivr_bias:
            raise complaint("ivr.bias", self.ivr_bias, "with halfv.neighbours.width it must be 0")
        if not 0 <= self.image_loss <= 1:
            raise complaint("image.loss", self.image_loss, "it must be between 0 and 1")
        if self.frames_tau is not None and not 0 <= self.frames_tau <= 255:
            raise complaint("frames.tau", self.frames_tau, "it must be between 0 and 255")
        if self.calibration:
            self.calibration.validate(n_layer)
        return self

    def _check_further(self, n_layer: int) -> None:
        before, what = self.ssr_layer, "halfv.ssr.layer"
        for layer in self.further_layers:
            if not before < layer < n_layer:
                rule = f"it must be above the {what} before it ({before}) and below the model's {n_layer} layers"
                raise complaint("further.layers", layer, rule)
            before, what = layer, "one"
        for keep in self.further_keep:
            if not 0 <= keep <= 1:
                raise complaint("further.keep", keep, "it must be between 0 and 1")
            if self.ssr_rest == FROZEN and keep:
                raise complaint("further.keep", keep, "behind tokens that are frozen it must be 0")

    def _given(self) -> Iterator[tuple[str, int, Any]]:
        """Key, GGUF type and value of each that is not left out; later ones are, where they do nothing."""
        idle = {"encoder_layer", "encoder_keep"} if (self.encoder_layer, self.encoder_keep) == (1, 1.0) else set()
        for pair, off in NARROW.items():
            idle |= set(pair) if tuple(getattr(self, name) for name in pair) == off else set()
        usual = {"input_merge": 1.0, "image_loss": 0.0, "ivr_query": LAST, "ivr_bias": 0.0}
        idle |= {name for name, value in usual.items() if getattr(self, name) == value}
        idle |= set() if self.further_layers or self.further_keep else {"further_layers", "further_keep"}
        for name, (key, type_) in KEYS.items():
            if (value := getattr(self, name)) is not None and name not in idle:
                yield key, type_, list(value) if isinstance(value, tuple) else value

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
        return self.ffn_keep < 1 or self.heads_keep < 1 or self.neighbours_width > 0

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
        for key, type_, value in self._given():
            entries[PREFIX + key] = (ARRAY if type_ == WHOLES else type_, value)
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
        values = _read_json(flat, dict(KEYS.values()), "")
        for key, _ in KEYS.values():
            if key not in values and key in REQUIRED:
                raise missing(key)
        check_further(values.get("further.layers", ()), values.get("further.keep", ()))
        for name in (name for name in NAMES if KEYS[name][0] in values):
            check_name(name, values[KEYS[name][0]])
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
        values |= {name: known.index(values[name]) for name, known in NAMES.items()}
        values |= {"pixel_prune": self.pixel_tau is not None, "pixel_tau": self.pixel_tau or 0.0}
        values |= {"frames_prune": self.frames_tau is not None, "frames_tau": self.frames_tau or 0.0}
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
        values |= {name: known[values[name]] for name, known in NAMES.items()}
        values["pixel_tau"] = struct_.pixel_tau if struct_.pixel_prune else None
        values["frames_tau"] = struct_.frames_tau if struct_.frames_prune else None
        values |= {name: values[name][: struct_.n_further] for name in ("further_layers", "further_keep")}
        return cls(**values)


def missing(key: str) -> InvalidError:
    return InvalidError(f"{PREFIX}{key} is missing: a profile needs it")


def check_version(version: Any) -> None:
    if version is None:
        raise missing("version")
    if isinstance(version, bool) or version != VERSION:
        rule = f"this build reads version {VERSION}; a newer halfv-edge may read it, or set HALFV=off to run unpruned"
        raise complaint("version", quote(version), rule)


def check_name(field: str, value: str) -> None:
    if value not in (known := NAMES[field]):
        raise complaint(KEYS[field][0], quote(value), f'it must be "{known[0]}" or "{known[1]}"')


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
    groups = {"calibration", *(name.partition(".")[0] for name, _ in KEYS.values() if "." in name)}
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
