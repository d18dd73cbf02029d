"""`halfv profile`: show, add or strip the profile of a GGUF."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import Any

from halfv_edge.cli import flags
from halfv_edge.errors import HalfVError, quote
from halfv_edge.gguf.write import replace_keys
from halfv_edge.profile import presets, resolve, stored
from halfv_edge.profile.keys import KEYS
from halfv_edge.profile.model_file import ModelFile
from halfv_edge.profile.profile import QUESTION, Calibration, Profile
from halfv_edge.profile.resolve import Resolved
from halfv_edge.profile.values import PREFIX

SOURCES = {
    "HALFV_PROFILE": "HALFV_PROFILE in the environment, for every model",
    "sidecar": "halfv itself takes the sidecar {sidecar}",
    "gguf": "in the file",
    "off": "none: the model runs unpruned",
}


def add_command(commands: flags.Commands) -> None:
    """Put `profile` among the commands."""
    command = commands.add_parser("profile", help="show, add or strip the profile of a GGUF")
    actions = command.add_subparsers(metavar="ACTION", required=True)

    _action(actions, "show", "say which profile a model runs with, and where it is from", _show)

    add = _action(actions, "add", "write a profile into a GGUF", _add)
    base = add.add_mutually_exclusive_group()
    base.add_argument("--preset", metavar="NAME", help="begin with a preset, scaled to the model's layers")
    base.add_argument("--from", dest="from_file", metavar="FILE", type=Path, help="begin with a JSON or another GGUF")
    for key in KEYS.values():
        add.add_argument(key.flag, type=flags.type_of(key, int, float), metavar=key.metavar, help=key.help)
    add.epilog = (
        "Without --preset and --from it begins with the profile in the file, or else the preset of the model's name. "
        f"Presets: {', '.join(presets.PRESETS)}."
    )
    _add_targets(add, "write a sidecar instead, FILE.halfv.json")

    strip = _action(actions, "strip", "take the profile out of a GGUF", _strip)
    _add_targets(strip, "delete the sidecar instead, FILE.halfv.json")


def _action(actions: flags.Commands, name: str, text: str, run: Any) -> argparse.ArgumentParser:
    parser = actions.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
    parser.add_argument("file", metavar="FILE.gguf", type=Path)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run)
    return parser


def _add_targets(parser: argparse.ArgumentParser, sidecar: str) -> None:
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument("-o", "--output", metavar="OUT.gguf", type=Path, help="a new file")
    target.add_argument(
        "--in-place", action="store_true", help="replace the file, at once, when the new one is complete"
    )
    target.add_argument("--sidecar", action="store_true", help=sidecar)


def _show(args: argparse.Namespace) -> None:
    model = ModelFile.read(args.file)
    found = resolve.find_profile(model)
    if args.json:
        print(json.dumps(_as_json(model, found), indent=2))
    else:
        print(as_text(model, found))
    for note in stored.notes(model):
        _say(f"{model.path}: {note}.")
    if found.source == "HALFV_PROFILE" and "halfv.version" in model.metadata.entries:
        _say("HALFV_PROFILE goes before the profile that is in the file.")
    if found.source == "sidecar" and "halfv.version" in model.metadata.entries:
        _say("the sidecar goes before the profile that is in the file.")
    if found.profile and resolve.switched_off():
        _say(f"HALFV={os.environ['HALFV']} is set, so models run unpruned here.")


def _add(args: argparse.Namespace) -> None:
    model = ModelFile.read(args.file)
    wanted = _wanted(args, model)
    if args.sidecar:
        target = stored.write_sidecar(wanted, model.path)
    else:
        target = _target(args, model)
        replace_keys(model.metadata, PREFIX, wanted.to_gguf(), target)
        _warn_of_sidecar(target)
    if args.json:
        print(json.dumps({"file": str(target), "profile": wanted.to_json()}, indent=2))
    _say(f"wrote {target}.")


def _strip(args: argparse.Namespace) -> None:
    model = ModelFile.read(args.file)
    if args.sidecar:
        target = stored.sidecar_path(model.path)
        try:
            target.unlink()
        except OSError as error:
            raise HalfVError(f"{target} cannot be deleted: {error.strerror}.") from error
        _say(f"deleted {target}.")
    else:
        target = _target(args, model)
        carries = any(key.startswith(PREFIX) for key in model.metadata.entries)
        if carries or not args.in_place:
            replace_keys(model.metadata, PREFIX, {}, target)
            _say(f"wrote {target}.")
        else:
            _say(f"{target} carries no profile: nothing to do.")
        _warn_of_sidecar(target)
    if args.json:
        print(json.dumps({"file": str(target), "profile": None}, indent=2))


def _wanted(args: argparse.Namespace, model: ModelFile) -> Profile:
    """The base, with the flags over it."""
    given = {name: value for name in KEYS if (value := getattr(args, name)) is not None}
    changes: dict[str, Any] = {name: None if value == "off" else value for name, value in given.items()}
    if args.preset:
        preset = presets.get(args.preset)
        if preset.architecture != model.architecture:
            _say(
                f"the preset {preset.name} is for models of the architecture {preset.architecture}, and this one is "
                f"{quote(model.architecture)}: the wrong stage III costs most of the quality, so measure it."
            )
        base = preset.scaled(model.n_layer).profile
    elif args.from_file:
        base = _from_file(args.from_file)
    else:
        base = stored.read_gguf(model) or _preset_of(model, bool(changes))
    changed = dataclasses.replace(base, **changes)
    if changed != base:  # the evidence was for another profile
        changed = dataclasses.replace(changed, calibration=None)
    return changed.validate(model.n_layer)


def _preset_of(model: ModelFile, has_changes: bool) -> Profile:
    preset = presets.match(model.architecture, model.names, model.n_layer)
    if preset:
        return preset.profile
    if has_changes:
        return Profile.default(model.n_layer)
    raise HalfVError(
        f"{model.path}: no preset is known for {quote(model.names[0] if model.names else model.architecture)}: "
        f"give --preset ({', '.join(presets.PRESETS)}), --from or the fields."
    )


def _from_file(path: Path) -> Profile:
    if path.suffix.lower() != ".gguf":
        return stored.read_json(path)
    found = stored.read_gguf(ModelFile.read(path))
    if found is None:
        raise HalfVError(f"{path} carries no profile.")
    return found


def _target(args: argparse.Namespace, model: ModelFile) -> Path:
    if args.in_place:
        if model.path.is_symlink():
            raise HalfVError(f"{model.path} is a link: name the file {model.path.resolve()}, or give -o OUT.gguf.")
        return model.path
    output: Path = args.output
    if os.path.isdir(output):  # which a name too long does not stop, unlike Path's
        raise HalfVError(f"{output} is a folder: name the file in it.")
    if os.path.lexists(output):
        is_source = os.path.realpath(output) == os.path.realpath(model.path)
        hint = "give --in-place" if is_source else "delete it, or choose another name"
        raise HalfVError(f"{output} exists already: {hint}.")
    return output


def _warn_of_sidecar(target: Path) -> None:
    sidecar = stored.sidecar_path(target)
    if os.path.exists(sidecar):
        _say(f"{sidecar} still goes before what is in the file.")


def _say(text: str) -> None:
    print(f"halfv: {text}", file=sys.stderr)


def _as_json(model: ModelFile, found: Resolved) -> dict[str, Any]:
    return {
        "file": str(model.path),
        "model": {"name": model.names[0] if model.names else None, "architecture": model.architecture}
        | {"n_layer": model.n_layer},
        "source": found.source,
        "preset": found.preset,
        "published": found.published,
        "profile": found.profile and found.profile.to_json(),
    }


def as_text(model: ModelFile, found: Resolved) -> str:
    """The profile in force, for people."""
    # ASCII, because a name from a file can hold anything
    name = quote(model.names[0]) if model.names else "no name"
    lines = [f"model      {name}, {quote(model.architecture)[1:-1]}, {model.n_layer} layers"]
    return "\n".join(lines + [f"{label:<11}{text}" for label, text in _rows(model, found)])


def _rows(model: ModelFile, found: Resolved) -> list[tuple[str, str]]:
    p = found.profile
    if found.source == "preset":
        how = "published" if found.published else "scaled from a published one, not measured"
        source = f"none in the file; halfv itself takes the preset {found.preset} ({how})"
    else:
        source = SOURCES[found.source].format(sidecar=stored.sidecar_path(model.path))
    rows = [("profile", source)]
    if p is None:
        return rows
    anchors = f"{_share(p.ivr_anchors)} of those by attention" + " of the whole question" * (p.ivr_query == QUESTION)
    rows.append(("stage II", f"from layer {p.ivr_layer}: keeps {_share(p.ivr_keep)} of the visual tokens, {anchors}"))
    if p.ivr_bias:
        rows.append(("", f"attention to a kept token that stands for n grows by {p.ivr_bias:g} log n"))
    if p.ssr_layer == model.n_layer:
        rows.append(("stage III", "none"))
    else:
        rows.append(
            ("stage III", f"from layer {p.ssr_layer}: updates {_share(p.ssr_update)}, the rest is {p.ssr_rest}")
        )
    for layer, keep in zip(p.further_layers, p.further_keep, strict=True):
        seen = f"{_share(keep)} of the visual tokens" if keep else "no visual tokens"
        rows.append(("behind it", f"from layer {layer}: {seen}"))
    if p.ffn_keep < 1:
        rows.append(
            ("networks", f"from layer {p.ffn_layer}: visual tokens take the first {_share(p.ffn_keep)} of channels")
        )
    if p.heads_keep < 1:
        rows.append(
            ("heads", f"from layer {p.heads_layer}: visual tokens have the first {_share(p.heads_keep)} of groups")
        )
    if p.neighbours_width:
        square = f"{p.neighbours_width} x {p.neighbours_width}"
        rows.append(("neighbours", f"from layer {p.neighbours_layer}: visual tokens see {square} of their picture"))
    rows.append(("pictures", f"of fewer than {p.min_visual_tokens} visual tokens are left whole"))
    if p.image_loss:
        rows.append(("", f"are made smaller while no part loses more than {_share(p.image_loss)} of its pixels"))
    if p.pixel_tau is not None:
        alike = f"within {p.pixel_tau:g} levels of" if p.pixel_tau else "equal to"
        rows.append(("encoder", f"is spared patches {alike} what their neighbours predict (Qwen-VL)"))
    if p.frames_tau is not None:
        alike = f"within {p.frames_tau:g} levels of" if p.frames_tau else "equal to"
        rows.append(("frames", f"are spared patches {alike} what the picture before showed there (Qwen-VL)"))
    if p.encoder_keep < 1:
        rows.append(("its layers", f"from {p.encoder_layer} on see {_share(p.encoder_keep)} of a picture"))
    if p.input_merge < 1:
        rows.append(("its rows", f"that are alike are averaged until {_share(p.input_merge)} are left"))
    if p.input_keep < 1:
        rows.append(("its output", f"{_share(p.input_keep)} of it goes on to the language model"))
    if p.visual_share:
        rows.append(("KV memory", f"{_share(p.visual_share)} of the context is set aside for visual tokens"))
    if p.calibration:
        rows.append(("calibrated", _evidence(p.calibration)))
    return rows


def _share(share: float) -> str:
    return f"{100 * share:.4g}%"


def _evidence(calibration: Calibration) -> str:
    parts = []
    if calibration.samples is not None:
        parts.append(f"{calibration.samples} samples")
    if calibration.source is not None:
        parts.append(f"from {quote(calibration.source)}")
    if calibration.divergence is not None:
        parts.append(f"divergence {calibration.divergence:.3g}")
    curves = [name for name in ("visual_entropy", "text_entropy", "layer_kl") if getattr(calibration, name) is not None]
    return ", ".join(parts + curves)
