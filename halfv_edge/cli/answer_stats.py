"""What an answer took, in one line, in full, and as JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from halfv_edge.profile import resolve

if TYPE_CHECKING:
    from halfv_edge.engine.chat import Chat
    from halfv_edge.engine.images import Picture
    from halfv_edge.engine.runtime import Runtime
    from halfv_edge.engine.stats import Stats
    from halfv_edge.engine.tokens import TokenMap


def one_line(stats: Stats, wait_sec: float, why_whole: str) -> str:
    """wait_sec: between the question and its beginning, for pictures that were still being prepared."""
    parts = [f"first token {_seconds(stats.ttft_sec + wait_sec)} ({_spent(stats, wait_sec)})"]
    if stats.n_visual and why_whole:
        parts.append(f"{stats.n_visual} visual tokens, not pruned: {why_whole}")
    elif stats.n_visual:
        parts.append(f"{funnel(stats)} visual tokens")
    if stats.n_grid < stats.n_patches:
        parts.append(f"shrunk {stats.n_patches} -> {stats.n_grid} tokens: little detail")
    if stats.n_seen:
        parts.append(f"{stats.n_seen} of {stats.n_groups} groups through the encoder")
    if stats.tokens_per_sec:
        parts.append(f"{stats.tokens_per_sec:.1f} tokens/s")
    if stats.flops_spent and not why_whole:
        parts.append(f"unpruned: prefill ~{_seconds(stats.dense_prefill_sec)}")
    return " | ".join(parts)


def in_full(
    stats: Stats, wait_sec: float, pictures: Sequence[Picture], maps: Sequence[TokenMap], runtime: Runtime
) -> str:
    """For /stats."""
    rows = [("first token", f"{_seconds(stats.ttft_sec + wait_sec)} after the question")]
    rows.append(("of it", _spent(stats, wait_sec)))
    if stats.n_grid < stats.n_patches:
        rows.append(("shrunk", f"{stats.n_patches} -> {stats.n_grid} tokens: little detail"))
    if stats.n_seen:
        layer = runtime.encoder.intake.encoder_layer
        rows.append(("encoder", f"{stats.n_seen} of {stats.n_groups} groups of patches from layer {layer} on"))
    rows.append(("prompt", f"{stats.n_prompt} tokens evaluated, pictures encoded: {stats.n_encoded}"))
    rate = f", {stats.tokens_per_sec:.1f} tokens/s" if stats.tokens_per_sec else ""
    rows.append(("answer", f"{stats.n_generated} tokens{rate}, {ENDS[stats.stopped]}"))
    if stats.n_drafted:
        rows.append(("drafted", f"{stats.n_drafted} tokens, {stats.n_accepted} of them taken"))
    for picture, token_map in zip(pictures, maps, strict=False):
        rows.append(("picture", f"{funnel(token_map)} visual tokens, {picture.name}"))
    if stats.flops_spent:
        ratio = stats.flops_dense / stats.flops_spent
        rows.append(("unpruned", f"prefill ~{_seconds(stats.dense_prefill_sec)}, {ratio:.2f}x the FLOPs"))
    rows.append(("profile", _profile(runtime)))
    return "\n".join(f"{label:<12} {text}" for label, text in rows)


def as_json(answer: str, stats: Stats, pictures: Sequence[Picture], chat: Chat, why_whole: str) -> dict[str, Any]:
    """For --json."""
    return {
        "answer": answer,
        "model": model_json(chat),
        "images": [
            picture_json(picture, token_map) for picture, token_map in zip(pictures, chat.token_maps, strict=True)
        ],
        "stats": dataclasses.asdict(stats) | {"dense_prefill_sec": stats.dense_prefill_sec},
        "not_pruned": why_whole or None,
    }


def model_json(chat: Chat) -> dict[str, Any]:
    runtime = chat.runtime
    return {
        "path": str(runtime.path),
        "mmproj": str(runtime.encoder.path),
        "mode": chat.mode,
        "profile": runtime.profile and runtime.profile.to_json(),
        "profile_source": runtime.profile_source,
    }


def picture_json(picture: Picture, token_map: TokenMap) -> dict[str, Any]:
    width, height = picture.image.size
    counts = {name: getattr(token_map, name) for name in ("n_patches", "n_rows", "n_visual", "n_kept", "n_deep")}
    return {"name": picture.name, "width": width, "height": height} | counts


def why_whole(runtime: Runtime, maps: Sequence[TokenMap]) -> str:
    """Why nothing was pruned, "" when something was."""
    if not maps or any(token_map.n_deep < token_map.n_rows for token_map in maps):
        return ""
    if runtime.profile is None:
        if resolve.switched_off():
            return "HALFV=off is set in the environment"
        if runtime.profile_source == "flag":
            return "--profile off"
        return _no_profile(runtime)
    if not runtime.profile.prunes(runtime.n_layer):
        return "the profile keeps everything"
    least = runtime.profile.min_visual_tokens
    if all(token_map.n_visual < least for token_map in maps):
        return f"the profile leaves pictures of fewer than {least} tokens whole"
    return f"{100 * runtime.profile.ivr_keep:g}% of so few tokens is all of them"


def _no_profile(runtime: Runtime) -> str:
    import halfv_cpp

    if not halfv_cpp.halfv_model_supported(runtime.pointer):
        return "this architecture cannot be, --input-keep can"
    return "no profile is known for this model: --profile names one, --input-keep needs none"


def size_note(limit: int | None, maps: Sequence[TokenMap]) -> str:
    """When --image-max-tokens had no effect."""
    over = [token_map.n_visual for token_map in maps if limit is not None and token_map.n_visual > limit]
    return f"--image-max-tokens {limit} has no effect: this encoder gives a picture {over[0]} tokens." if over else ""


ENDS = {
    "end": "ended by the model",
    "length": "cut off at the limit",
    "stop": "ended by a stop string",
    "interrupted": "stopped",
}


def _spent(stats: Stats, wait_sec: float) -> str:
    parts = [f"encoder {_seconds(stats.encode_sec)}"] if stats.n_encoded else []
    parts.append(f"prefill {_seconds(max(stats.prefill_sec - stats.select_sec, 0.0))}")
    if stats.select_sec:
        parts.append(f"selection {_seconds(stats.select_sec)}")
    hidden = stats.ahead_sec - wait_sec
    if hidden > 0.005:
        parts.append(f"{_seconds(hidden)} of it before you asked")
    return ", ".join(parts)


def funnel(counts: Stats | TokenMap) -> str:
    steps = [counts.n_visual, counts.n_kept, counts.n_deep]
    if counts.n_rows > counts.n_visual:
        steps.insert(0, counts.n_rows)
    if counts.n_patches > counts.n_rows:
        steps.insert(0, counts.n_patches)
    return " -> ".join(map(str, steps))


def _seconds(seconds: float) -> str:
    if seconds < 0.1:
        return f"{1000 * seconds:.0f} ms" if seconds >= 0.001 else "<1 ms"
    return f"{seconds:.2f} s" if seconds < 10 else f"{seconds:.1f} s"


def _profile(runtime: Runtime) -> str:
    p = runtime.profile
    if p is None:
        return "none"
    deep = "" if p.ssr_layer == runtime.n_layer else f", {100 * p.ssr_update:g}% updated from {p.ssr_layer}"
    intake = runtime.encoder.intake
    encoder = "" if intake.pixel_tau is None else f", pixel tau {intake.pixel_tau:g}"
    if intake.frames_tau is not None:
        encoder += f", frames tau {intake.frames_tau:g}"
    if intake.image_loss:
        encoder += f", image loss {intake.image_loss:g}"
    if intake.input_keep < 1:
        encoder += f", {100 * intake.input_keep:g}% of the encoder's rows"
    if intake.encoder_keep < 1:
        encoder += f", {100 * intake.encoder_keep:g}% of a picture from the encoder's layer {intake.encoder_layer} on"
    return (
        f"{runtime.profile_source}: keeps {100 * p.ivr_keep:g}% from layer {p.ivr_layer}{deep} ({p.ssr_rest}){encoder}"
    )
