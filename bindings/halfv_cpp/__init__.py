"""What we call of llama.cpp and HalfV, through ctypes. A module per header; of halfv.h the names are here too.

Nothing is loaded before the first call. HALFV_LIB_DIR names another folder of libraries than the one in this package.
"""

from ctypes import Array, byref, c_int32
from typing import Any

from halfv_cpp import halfv_h
from halfv_cpp.halfv_h import *  # noqa: F403
from halfv_cpp.library import LibraryError as LibraryError


def _words(prefix: str) -> dict[int, str]:
    """The values of an enum of the header as lower-case words."""
    names = (name for name in vars(halfv_h) if name.startswith(prefix))
    return {getattr(halfv_h, name): name.removeprefix(prefix).lower() for name in names}


OUTCOMES = _words("HALFV_OUTCOME_")
REASONS = _words("HALFV_REASON_")


class CallError(RuntimeError):
    """A call that failed: `code` is its HALFV_ERR_*, the text the library's sentence."""

    def __init__(self, code: int, text: str):
        super().__init__(text)
        self.code = code


def check(rc: int) -> int:
    """Pass on HALFV_OK, HALFV_NOTHING and counts; raise on HALFV_ERR_*."""
    if rc < 0:
        raise CallError(rc, halfv_h.halfv_last_error().decode() or f"halfv: error {rc}")
    return rc


def default_profile(n_layer: int) -> halfv_h.halfv_profile:
    """For a model of n_layer layers: prunes nothing until it is changed."""
    out = halfv_h.halfv_profile()
    check(halfv_h.halfv_profile_default(byref(out), n_layer))
    return out


def model_profile(model: int) -> halfv_h.halfv_profile | None:
    """The profile of contexts made from now on, None when there is none."""
    out = halfv_h.halfv_profile()
    rc = check(halfv_h.halfv_model_get_profile(model, byref(out)))
    return None if rc == halfv_h.HALFV_NOTHING else out


def set_model_profile(model: int, profile: halfv_h.halfv_profile | None) -> None:
    check(halfv_h.halfv_model_set_profile(model, byref(profile) if profile is not None else None))


def stats(ctx: int, seq: int = 0) -> dict[str, Any]:
    """halfv_stats as plain values; outcome and reason as words. kv_* have the stages behind III as well."""
    out = halfv_h.halfv_stats()
    check(halfv_h.halfv_get_stats(ctx, seq, byref(out)))
    values = {name: getattr(out, name) for name, *_ in out._fields_ if name != "size"}
    values = {name: list(value) if isinstance(value, Array) else value for name, value in values.items()}
    n_further = sum(size > 0 for size in values["further_size"])
    for name in ("cells", "bytes", "size"):
        values[f"kv_{name}"] += values.pop(f"further_{name}")[:n_further]
    values["n_further"] = values["n_further"][:n_further]
    return values | {"outcome": OUTCOMES[out.outcome], "reason": REASONS[out.reason]}


def image_tokens(ctx: int, seq: int, image: int, stage: int) -> list[int]:
    """The tokens of a picture that reached stage 2, 3 or one behind that, ascending."""
    count = check(halfv_h.halfv_image_tokens(ctx, seq, image, stage, None, 0))
    tokens = (c_int32 * count)()
    check(halfv_h.halfv_image_tokens(ctx, seq, image, stage, tokens, count))
    return list(tokens)
