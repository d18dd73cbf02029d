"""What bench and eval set side by side: ways to spend less on a picture, as text like `keep:0.25`."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from halfv_edge.errors import HalfVError
from halfv_edge.gguf.read import read_metadata
from halfv_edge.gguf.twig import AFTER
from halfv_edge.measure.schedules import aim_schedule, share, share_or_none, staged, twig_schedule, whole, yopo
from halfv_edge.measure.visual_bits import VisualBits, parse_bits, parse_calibrated
from halfv_edge.profile.profile import DROPPED, FROZEN, MAX_FURTHER, QUESTION, WHOLE_INTAKE, Intake, Profile, Rest

STOCK, UNPRUNED = "stock", "unpruned"
CHOICES = ("halfv", "random", "uniform", "attention", "dart", "given")  # in the order of enum halfv_choice
# the names in selectors.py, which needs numpy
AT_A_BOUNDARY = ("sieve", "sparsevlm", "scope", "pagerank")
BEFORE_THE_MODEL = ("divprune", "cdpruner", "scope-input", "visionzip", "holov")
FLOPS = "flops"  # in place of a number: as many as the profile spends
STEPS = 400  # shares that are tried for it
FASTV_LAYER = 2  # where FastV and DART prune
ASKED_ANCHORS = 0.5
TWIG_LAYER = 2  # where TwigVLM prunes
DART_PIVOTS = 4  # of the picture, and as many of the text


@dataclass(frozen=True, slots=True)
class TwigFile:
    """A twig as it was when it was named: results belong to that one."""

    path: str
    size: int
    mtime_ns: int


@dataclass(frozen=True, slots=True)
class Policy:
    """One way. Without a profile the model runs whole."""

    name: str
    profile: Profile | None = None
    max_tokens: int | None = None  # of a picture, by a smaller picture
    weights: str | None = None  # of the vision encoder in memory, as --mmproj-type; None: as that says
    prepared: bool = False  # most tokens are chosen before the question
    choice: str = CHOICES[0]  # how the profile's shares are chosen
    seed: int = 0
    twig: TwigFile | None = None  # which chooses
    selector: str | None = None  # at a boundary under the choice "given", else before the model
    bits: VisualBits | None = None  # of visual tokens' keys and values, from the prompt's end on

    @property
    def holds_text(self) -> bool:
        """Text before a picture waits as well, so that the library's statistics start with the prompt."""
        return self.choice in ("attention", "dart", "given")

    @property
    def chooses_input(self) -> bool:
        """Before the language model, otherwise than libmtmd."""
        return self.selector in BEFORE_THE_MODEL

    @property
    def intake(self) -> Intake:
        """What becomes of a picture before the language model."""
        return self.profile.intake if self.profile else WHOLE_INTAKE


@dataclass(frozen=True, slots=True)
class PolicyModel:
    """The model that a policy is for, as far as policies refer to it."""

    n_layer: int
    profile: Profile | None  # the model's own
    flops: Callable[[Profile | None, int], float] | None = None  # of a picture of so many tokens
    n_visual: int = 0  # for which FLOPs are matched
    at_speed: Callable[[float], Profile] | None = None  # from the frontier that the model carries

    def own(self, name: str) -> Profile:
        if self.profile is None:
            raise HalfVError(
                f"The policy {name} needs a profile, and this model has none",
                hint="give one with {profile}",
                settings={"profile": None},
            )
        return self.profile

    def cost(self, name: str, profile: Profile | None, n_visual: int) -> float:
        """FLOPs of a picture of so many tokens under a profile."""
        if self.flops is None:
            raise HalfVError(f"The policy {name!r} is not valid: eval alone can match FLOPs; give a number.")
        return self.flops(profile, n_visual)


Maker = Callable[[PolicyModel, str, str], Policy]  # from the model, the policy's text, and what follows its colon


def _stock(_model: PolicyModel, name: str, _value: str) -> Policy:
    return Policy(name, weights="off")


def _unpruned(_model: PolicyModel, name: str, _value: str) -> Policy:
    return Policy(name)


def _profile(model: PolicyModel, name: str, _value: str) -> Policy:
    return Policy(name, model.own(name))


def _prepared(model: PolicyModel, name: str, _value: str) -> Policy:
    return Policy(name, model.own(name), prepared=True)


def _speed(model: PolicyModel, name: str, value: str) -> Policy:
    if not re.fullmatch(r"[1-9]\d{0,2}(\.\d+)?", value):
        raise HalfVError(f"The policy {name!r} is not valid: {value} must be a number of at least 1.")
    if model.at_speed is None:
        raise HalfVError(f"The policy {name!r} is not valid: eval alone knows the frontier of a model.")
    return Policy(name, model.at_speed(float(value)))


def _keep(model: PolicyModel, name: str, value: str) -> Policy:
    return Policy(name, dataclasses.replace(model.own(name), ivr_keep=share(name, value)))


def _downscale(model: PolicyModel, name: str, value: str) -> Policy:
    if value == FLOPS:
        limit = _limit(model, name)
        sizes = range(1, model.n_visual + 1)
        return Policy(name, max_tokens=max(n for n in sizes if model.cost(name, None, n) <= limit))
    return Policy(name, max_tokens=whole(name, value))


def _ivr(model: PolicyModel, name: str, _value: str) -> Policy:
    """Only what the start of stage II prunes."""
    return Policy(name, dataclasses.replace(model.own(name), ssr_layer=model.n_layer, ssr_update=1.0))


def _ssr(model: PolicyModel, name: str, _value: str) -> Policy:
    """Only what stage III saves."""
    return Policy(name, dataclasses.replace(model.own(name), ivr_keep=1.0))


def _wrong_mode(model: PolicyModel, name: str, _value: str) -> Policy:
    """Stage III as it is for the other kind of backbone: all frozen, or 5% updated and the rest dropped."""
    own = model.own(name)
    if own.ssr_rest == FROZEN:
        return Policy(name, dataclasses.replace(own, ssr_update=0.05, ssr_rest=DROPPED))
    return Policy(name, dataclasses.replace(own, ssr_update=0.0, ssr_rest=FROZEN))


def _pixel(model: PolicyModel, name: str, value: str) -> Policy:
    if not re.fullmatch(r"\d{1,3}(\.\d+)?", value) or float(value) > 255:
        raise HalfVError(f"The policy {name!r} is not valid: {value} must be a number from 0 to 255.")
    return Policy(name, dataclasses.replace(Profile.default(model.n_layer), pixel_tau=float(value)))


def _input(model: PolicyModel, name: str, value: str) -> Policy:
    """The choice before the language model, and nothing in it."""
    return Policy(name, dataclasses.replace(Profile.default(model.n_layer), input_keep=share(name, value)))


def _input_chosen(model: PolicyModel, name: str, value: str) -> Policy:
    return dataclasses.replace(_input(model, name, value), selector=name.partition(":")[0])


def _cut(model: PolicyModel, name: str, value: str) -> Policy:
    """Layers and shares as they are given, the rest of the profile; without any, the profile's."""
    kind = name.partition(":")[0]
    own = _placed(model, name, value) if value else model.own(name)
    if kind == "asked":
        return Policy(name, dataclasses.replace(own, ivr_query=QUESTION, ivr_anchors=ASKED_ANCHORS))
    return Policy(name, own) if kind == "cut" else Policy(name, own, choice="given", selector=kind)


def _placed(model: PolicyModel, name: str, value: str) -> Profile:
    """`2/0.2` or `2/0.2/6/0.05/9/0`: where stages from II on begin, and the share that each sees, the rest dropped; or
    `frozen` for stage III, where all are."""
    parts = value.split("/")
    if len(parts) % 2 or len(parts) > 2 * (2 + MAX_FURTHER):
        kind = name.partition(":")[0]
        raise HalfVError(f"The policy {name!r} is not valid: it is like {kind}:2/0.2 or :2/0.2/6/0.05 or :2/0.2/6/0.")
    layers = [whole(name, part) for part in parts[::2]]
    if frozen := parts[3:4] == [FROZEN]:
        parts[3] = "0"
    own = staged(model.n_layer, layers, [share(name, parts[1]), *(share_or_none(name, part) for part in parts[3::2])])
    return dataclasses.replace(own, ssr_rest=FROZEN) if frozen else own


def _encoder(model: PolicyModel, name: str, value: str) -> Policy:
    """Later layers of the encoder see a share of the picture; nothing is pruned in the language model."""
    layer, slash, keep = value.partition("/")
    if not slash:
        raise HalfVError(f"The policy {name!r} is not valid: give LAYER/SHARE, as in encoder:8/0.5.")
    base = Profile.default(model.n_layer)
    return Policy(name, dataclasses.replace(base, encoder_layer=whole(name, layer), encoder_keep=share(name, keep)))


def _bias(model: PolicyModel, name: str, value: str) -> Policy:
    """The profile, with attention to a kept token by what it stands for."""
    return Policy(
        name, dataclasses.replace(model.profile or Profile.default(model.n_layer), ivr_bias=share(name, value))
    )


def _image(model: PolicyModel, name: str, value: str) -> Policy:
    """Pictures as small as what they show allows."""
    return Policy(name, dataclasses.replace(Profile.default(model.n_layer), image_loss=share(name, value)))


def _otherwise(model: PolicyModel, name: str, value: str) -> Policy:
    """The profile's layers, tokens chosen without looking."""
    own = model.own(name)

    def make(keep: float) -> Profile:
        return dataclasses.replace(own, ivr_keep=keep)

    kind = name.partition(":")[0]
    return Policy(name, _of_share(model, name, value, own.ivr_keep, make), choice=kind)


def _once(model: PolicyModel, name: str, value: str) -> Policy:
    """FastV and DART: one cut after two layers; half of the tokens, as FastV has it, if nothing else is said."""

    def make(keep: float) -> Profile:
        return Profile(FASTV_LAYER, keep, 0.0, model.n_layer, 1.0, DROPPED, 1)

    if not name.startswith("dart"):
        return Policy(name, _of_share(model, name, value, 0.5, make), choice="attention")

    def cost(profile: Profile) -> float:
        """DART keeps eight pivots' equal parts and four pivots."""
        kept = DART_PIVOTS + 2 * DART_PIVOTS * (int(profile.ivr_keep * model.n_visual) // (2 * DART_PIVOTS))
        return model.cost(name, make(min(1.0, kept / model.n_visual)), model.n_visual)

    own = _matched(model, name, make, cost) if value == FLOPS else _of_share(model, name, value, 0.5, make)
    return Policy(name, own, choice="dart")


def _pyramid(model: PolicyModel, name: str, value: str) -> Policy:
    """PyramidDrop: to a half, a quarter, an eighth at 1/4, 1/2, 3/4 of the depth."""

    def make(keep: float) -> Profile:
        layers = [max(number, number * model.n_layer // 4) for number in (1, 2, 3)]
        own = staged(model.n_layer, layers, [keep, keep**2, keep**3])
        return dataclasses.replace(own, ivr_anchors=0.0, min_visual_tokens=1)

    return Policy(name, _of_share(model, name, value, 0.5, make), choice="attention")


def _vtw(model: PolicyModel, name: str, value: str) -> Policy:
    """Visual tokens leave after a layer; half of the depth, as published for LLaVA-1.5."""
    if value == FLOPS:
        return Policy(name, _matched(model, name, lambda kept: _from(model, round(kept * model.n_layer), 0.0, DROPPED)))
    return Policy(name, _from(model, whole(name, value) if value else model.n_layer // 2, 0.0, DROPPED))


def _shortv(model: PolicyModel, name: str, value: str) -> Policy:
    """Visual tokens frozen in a share of the layers, the last ones; 19 of 32, as published for LLaVA-1.5-7B."""

    def make(updated: float) -> Profile:
        return _from(model, round(updated * model.n_layer), 0.0, FROZEN)

    if value == FLOPS:
        return Policy(name, _matched(model, name, make))
    return Policy(name, make(1 - (share(name, value) if value else 19 / 32)))


def _wipe(model: PolicyModel, name: str, value: str) -> Policy:
    """YOPO's lazy layers, TwigVLM's FinalWipe: from a layer on there is only text, whatever the profile does before."""
    own, layer = model.own(name), whole(name, value)
    if own.ssr_layer == model.n_layer:
        return Policy(name, dataclasses.replace(own, ssr_layer=layer, ssr_update=0.0, ssr_rest=DROPPED))
    layers, keep = (*own.further_layers, layer), (*own.further_keep, 0.0)
    return Policy(name, dataclasses.replace(own, further_layers=layers, further_keep=keep))


def _narrow(model: PolicyModel, name: str, value: str) -> Policy:
    """YOPO's parts: from a layer on visual tokens take the first channels, have the first heads, see neighbours."""
    kind = name.partition(":")[0]
    layer, slash, much = value.partition("/")
    if not slash:
        raise HalfVError(
            f"The policy {name!r} is not valid: it is like {kind}:4/{'5' if kind == 'neighbour' else '0.5'}."
        )
    given = whole(name, layer), whole(name, much) if kind == "neighbour" else share(name, much)
    fields: dict[str, Any] = dict(zip(BEFORE[kind], given, strict=True))
    own = model.profile or Profile.default(model.n_layer)
    return Policy(name, dataclasses.replace(own, **fields))


def _yopo(model: PolicyModel, name: str, _value: str) -> Policy:
    return Policy(name, yopo(model.n_layer))


def _twigvlm(model: PolicyModel, name: str, value: str) -> Policy:
    return Policy(name, twig_schedule(model.n_layer, name, value, TWIG_LAYER), choice="attention")


def _twig(model: PolicyModel, name: str, value: str) -> Policy:
    """The same, chosen by a twig: where the last prompt token looks in its last layer."""
    file, slash, wanted = value.rpartition("/")
    if not slash or not re.fullmatch(r"[\d.]+", wanted):
        file, wanted = value, ""
    about = read_metadata(file)
    after = about.value(AFTER)
    if not isinstance(after, int):
        raise HalfVError(f"{file} is not a twig, as it has no {AFTER}: `halfv twig` makes one.")
    made = TwigFile(str(about.path), about.size, about.path.stat().st_mtime_ns)
    profile = twig_schedule(model.n_layer, name, wanted, after)
    return Policy(name, profile, choice="given", selector="twig", twig=made)


def _merge(model: PolicyModel, name: str, value: str) -> Policy:
    """Rows that are alike are averaged before the language model; nothing is pruned in it."""
    return Policy(name, dataclasses.replace(Profile.default(model.n_layer), input_merge=share(name, value)))


def _aim(model: PolicyModel, name: str, value: str) -> Policy:
    """AIM: rows merged, to a quarter as published, and then fewer in each layer of the second half, by PageRank."""
    layers, keep = aim_schedule(model.n_layer)
    merge = share(name, value) if value else 0.25
    own = dataclasses.replace(staged(model.n_layer, layers, keep), min_visual_tokens=1, input_merge=merge)
    return Policy(name, own, choice="given", selector="pagerank")


def _bits(_model: PolicyModel, name: str, value: str) -> Policy:
    """The prompt is computed as ever, then visual tokens keep their keys and values in fewer bits."""
    parse = parse_bits if name.startswith("kv") else parse_calibrated
    return Policy(name, bits=parse(name, value))


def _of_share(model: PolicyModel, name: str, value: str, usual: float, make: Callable[[float], Profile]) -> Profile:
    if value == FLOPS:
        return _matched(model, name, make)
    return make(share(name, value) if value else usual)


def _limit(model: PolicyModel, name: str) -> float:
    return model.cost(name, model.own(name), model.n_visual)


def _matched(
    model: PolicyModel, name: str, make: Callable[[float], Profile], cost: Callable[[Profile], float] | None = None
) -> Profile:
    """The largest share that costs no more than the model's profile."""
    limit = _limit(model, name)
    cost = cost or (lambda profile: model.cost(name, profile, model.n_visual))
    made = (make(step / STEPS) for step in range(STEPS, 0, -1))
    fitting = next((profile for profile in made if cost(profile) <= limit), None)
    if fitting is None:
        raise HalfVError(f"The policy {name!r} cannot be as cheap as the profile: leave it out.")
    return fitting


def _from(model: PolicyModel, layer: int, update: float, rest: Rest) -> Profile:
    """Everything up to a layer, and from there stage III."""
    layer = min(max(layer, 2), model.n_layer)
    return dataclasses.replace(
        Profile.default(model.n_layer), ssr_layer=layer, ssr_update=update, ssr_rest=rest, min_visual_tokens=1
    )


# name: (what makes it, whether a value follows: "" never, "?" may, "!" must, what it is)
POLICIES: dict[str, tuple[Maker, str, str]] = {
    STOCK: (_stock, "", "as an unpatched llama.cpp computes it, vision encoder too"),
    UNPRUNED: (_unpruned, "", "all tokens, all layers"),
    "profile": (_profile, "", "the model's profile"),
    "speed": (_speed, "!", "the profile that --speed takes from the model's frontier, speed:3 (eval only)"),
    "prepared": (_prepared, "", "the profile, most tokens chosen before the question (eval only)"),
    "keep": (_keep, "!", "the profile with another share in stage II, keep:0.1"),
    "ivr": (_ivr, "", "the profile's stage II alone"),
    "ssr": (_ssr, "", "the profile's stage III alone"),
    "wrong-ssr": (_wrong_mode, "", "the profile with the stage III of the other kind of backbone"),
    "pixel": (_pixel, "!", "patches that their neighbours predict stay out of the encoder, pixel:0, nothing else"),
    "input": (_input, "!", "this share of the encoder's rows goes on to the language model, input:0.5, nothing else"),
    "encoder": (_encoder, "!", "later layers of the encoder see this share of a picture, encoder:8/0.5, nothing else"),
    "image": (_image, "!", "pictures as small as no part of them loses more than this share, image:0.15, nothing else"),
    "downscale": (_downscale, "!", "a smaller picture of at most so many tokens, downscale:256"),
    "bias": (
        _bias,
        "!",
        "the profile, attention to a kept token that stands for n raised by so much of log n, bias:0.5",
    ),
    "random": (_otherwise, "?", "the profile's layers and shares, tokens drawn by lot"),
    "uniform": (_otherwise, "?", "the profile's layers and shares, tokens evenly spread"),
    "fastv": (_once, "?", "FastV: one cut after two layers by attention, fastv:0.25; half"),
    "dart": (_once, "?", "DART: the same by unlikeness to pivots"),
    "pyramiddrop": (_pyramid, "?", "PyramidDrop: three cuts, each to this share of what is left; half"),
    "vtw": (_vtw, "?", "no visual tokens from a layer on, vtw:16; the middle"),
    "wipe": (_wipe, "!", "the profile, and text alone from a layer on, wipe:21"),
    "channels": (_narrow, "!", "the profile, and visual tokens take the first channels from a layer, channels:4/0.5"),
    "heads": (_narrow, "!", "the profile, and visual tokens have the first groups of heads from a layer, heads:4/0.5"),
    "neighbour": (_narrow, "!", "the profile, and visual tokens see a square around them from a layer, neighbour:4/5"),
    "yopo": (_yopo, "", "YOPO's four parts as published; in yopo+profile three of them on top of the profile"),
    "twigvlm": (_twigvlm, "?", "TwigVLM's schedule by this mean share, chosen by attention, twigvlm:0.3; 1/3"),
    "twig": (_twig, "!", "the same, chosen by a twig of `halfv twig`, twig:FILE/0.3 (eval only)"),
    "merge": (_merge, "!", "rows that are alike are averaged until this share is left, merge:0.25, nothing else"),
    "aim": (_aim, "?", "AIM: merged to this share, then ever fewer by PageRank, aim:1; 0.25 (eval only)"),
    "kv": (
        _bits,
        "!",
        "visual tokens' keys and values in fewer bits, kv:q8_0, kv:1 or from layer 4 kv:1/4 (eval only)",
    ),
    "calibquant": (_bits, "?", "CalibQuant: kv:1, or kv:2, and their logits mapped to another range (eval only)"),
    "shortv": (_shortv, "?", "visual tokens frozen in the last share of the layers, shortv:0.6; 19/32"),
}
POLICIES["cut"] = (
    _cut,
    "!",
    "HalfV's own choice with other layers and shares, cut:2/0.2, 2/0.2/6/0.05/9/0 or 2/0.2/6/frozen (eval only)",
)
POLICIES["asked"] = (_cut, "?", "the same, or the profile, half of it chosen by all of the question (eval only)")
POLICIES |= {name: (_cut, "?", f"the same, or the profile, chosen by {name} (eval only)") for name in AT_A_BOUNDARY}
POLICIES |= {name: (_input_chosen, "!", f"like input:0.5, chosen by {name} (eval only)") for name in BEFORE_THE_MODEL}
MATCHED = "flops in place of a number, as in fastv:flops, matches the FLOPs of the profile (eval only)"


# what may stand before a plus sign, and what of a profile it changes
BEFORE = {
    "image": ("image_loss",),
    "pixel": ("pixel_tau",),
    "encoder": ("encoder_layer", "encoder_keep"),
    "merge": ("input_merge",),
    "input": ("input_keep",),
    "channels": ("ffn_layer", "ffn_keep"),
    "heads": ("heads_layer", "heads_keep"),
    "neighbour": ("neighbours_layer", "neighbours_width"),
    "bias": ("ivr_bias",),
}
BEFORE["yopo"] = BEFORE["channels"] + BEFORE["heads"] + BEFORE["neighbour"]
BEFORE |= {"kv": (), "calibquant": ()}  # nothing of it, as that comes after the prompt
BEHIND = f"{', '.join(BEFORE)} with a + before any go with it, as in pixel:0+input:0.5+profile"


def parse(text: str, model: PolicyModel) -> list[Policy]:
    """Policies between commas, each once."""
    found: dict[str, Policy] = {}
    for name in filter(None, (part.strip() for part in text.split(","))):
        found[name] = parse_one(name, model)
    if not found:
        raise HalfVError(f"{text!r} names no policy: give some of {', '.join(POLICIES)}.")
    return list(found.values())


def parse_one(name: str, model: PolicyModel) -> Policy:
    first, plus, rest = name.partition("+")
    policy = _known(first, model)
    if plus:
        policy = _behind(policy, parse_one(rest, model), name, model)
    if policy.profile:
        policy.profile.validate(model.n_layer)
    return policy


def _behind(first: Policy, policy: Policy, name: str, model: PolicyModel) -> Policy:
    """What `pixel:0`, `encoder:8/0.5`, `merge:0.5` or `input:0.5` leaves out, and then another policy."""
    fields = BEFORE.get(first.name.partition(":")[0])
    if first.bits and not policy.bits and not policy.weights:
        return dataclasses.replace(policy, name=name, bits=first.bits)
    if not fields or policy.weights or first.profile is None:
        raise HalfVError(f"The policy {name!r} is not valid: what stands before + must be one of {', '.join(BEFORE)}.")
    taken = {field: getattr(first.profile, field) for field in fields}
    profile = dataclasses.replace(policy.profile or Profile.default(model.n_layer), **taken)
    if profile.ivr_layer > 1 and first.name == "yopo":  # its layers are those of a profile that begins with the second
        layers = {field: max(profile.ivr_layer, taken[field]) for field in fields if field.endswith("_layer")}
        profile = dataclasses.replace(profile, **layers)
    return dataclasses.replace(policy, name=name, profile=profile)


def _known(name: str, model: PolicyModel) -> Policy:
    kind, colon, value = name.partition(":")
    if kind not in POLICIES:
        raise HalfVError(f"There is no policy {kind!r}: it must be one of {', '.join(POLICIES)}.")
    maker, takes, what = POLICIES[kind]
    if bool(value) != bool(colon) or (value and not takes) or (takes == "!" and not value):
        raise HalfVError(f"The policy {name!r} is not valid: {kind} is {what}.")
    return maker(model, name, value)


def describe() -> str:
    """For --help."""
    return "; ".join([*(f"{name}: {what}" for name, (_, _, what) in POLICIES.items()), MATCHED, BEHIND])


def takes_parts(names: Sequence[str]) -> bool:
    """Whether some need weights that no processor has packed for itself."""
    kinds = {part.strip().partition(":")[0] for name in names for part in name.replace(",", "+").split("+")}
    return not kinds.isdisjoint(("channels", "heads", "yopo"))


def names(policies: Sequence[Policy]) -> list[str]:
    return [policy.name for policy in policies]
