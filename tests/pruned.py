"""What the tests ask of halfv.h, on a Client."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from typing import Any

import llama_cpp
from client import Client

LIB = llama_cpp.llama_cpp._lib
OK, NOTHING = 0, 1
ARGUMENT, UNSUPPORTED, MEMORY, COMPUTE = -1, -2, -3, -4
OUTCOME = {name: i for i, name in enumerate(("none", "pending", "pruned", "unpruned"))}
REASON = {name: i for i, name in enumerate(("none", "small", "disabled", "outputs", "shared"))}
REST = {"frozen": 0, "dropped": 1}
MEDIA = {"visual": 0, "other": 1}


class Profile(ctypes.Structure):
    _fields_ = [
        ("ivr_layer", ctypes.c_uint32),
        ("ivr_keep", ctypes.c_float),
        ("ivr_anchors", ctypes.c_float),
        ("ssr_layer", ctypes.c_uint32),
        ("ssr_update", ctypes.c_float),
        ("ssr_rest", ctypes.c_int32),
        ("min_visual_tokens", ctypes.c_uint32),
    ]


class Stats(ctypes.Structure):
    _fields_ = [
        ("outcome", ctypes.c_int32),
        ("reason", ctypes.c_int32),
        ("n_images", ctypes.c_uint32),
        ("n_visual", ctypes.c_uint32),
        ("n_kept", ctypes.c_uint32),
        ("n_deep", ctypes.c_uint32),
        ("n_pending", ctypes.c_uint32),
        ("n_stored", ctypes.c_uint32),
        ("flops_dense", ctypes.c_double),
        ("flops_spent", ctypes.c_double),
        ("us_stage1", ctypes.c_int64),
        ("us_select", ctypes.c_int64),
        ("us_stage2", ctypes.c_int64),
        ("us_frozen", ctypes.c_int64),
        ("us_stage3", ctypes.c_int64),
        ("kv_cells", ctypes.c_uint32 * 3),
        ("kv_bytes", ctypes.c_uint64 * 3),
    ]


def _bind(name: str, result: Any, *arguments: Any) -> Any:
    function = getattr(LIB, name)
    function.restype, function.argtypes = result, list(arguments)
    return function


_void, _i32, _u32 = ctypes.c_void_p, ctypes.c_int32, ctypes.c_uint32
_last_error = _bind("halfv_last_error", ctypes.c_char_p)
_default = _bind("halfv_profile_default", Profile, _u32)
_set_profile = _bind("halfv_model_set_profile", _i32, _void, ctypes.POINTER(Profile))
_set_stage_cells = _bind("halfv_model_set_stage_cells", _i32, _void, _u32, _u32, _u32)
_set_enabled = _bind("halfv_set_enabled", _i32, _void, ctypes.c_bool)
_set_keep = _bind("halfv_set_keep", _i32, _void, ctypes.c_float)
_begin_media = _bind("halfv_begin_media", None, _void, ctypes.c_int)
_prepare = _bind("halfv_prepare", _i32, _void, _i32)
_set_topup_bytes = _bind("halfv_set_topup_bytes", _i32, _void, ctypes.c_uint64)
_topup = _bind("halfv_topup", _i32, _void, _i32)
_get_stats = _bind("halfv_get_stats", _i32, _void, _i32, ctypes.POINTER(Stats))
_image_size = _bind("halfv_image_size", _i32, _void, _i32, _u32)
_image_tokens = _bind("halfv_image_tokens", _i32, _void, _i32, _u32, _i32, ctypes.POINTER(_i32), _i32)


class PrunedError(RuntimeError):
    def __init__(self, code: int):
        super().__init__(_last_error().decode())
        self.code = code


def _checked(code: int) -> int:
    if code < 0:
        raise PrunedError(code)
    return code


def set_profile(model: int, profile: Mapping[str, Any] | None) -> None:
    """For Client's on_model. Keys as in the GGUF metadata, `ivr.layer`; those left out have the default."""
    struct = None
    if profile is not None:
        struct = _default(llama_cpp.llama_model_n_layer(model))
        for key, value in profile.items():
            setattr(struct, key.replace(".", "_"), REST[value] if key == "ssr.rest" else value)
    _checked(_set_profile(model, struct))


def set_stage_cells(model: int, stage1: int = 0, stage2: int = 0, stage3: int = 0) -> None:
    _checked(_set_stage_cells(model, stage1, stage2, stage3))


def set_enabled(client: Client, enabled: bool) -> None:
    _checked(_set_enabled(client.ctx, enabled))


def set_keep(client: Client, keep: float) -> None:
    _checked(_set_keep(client.ctx, keep))


def begin_media(client: Client, media: str = "visual") -> None:
    _begin_media(client.ctx, MEDIA[media])


def prepare(client: Client, seq: int = 0) -> int:
    """OK or NOTHING."""
    return _checked(_prepare(client.ctx, seq))


def set_topup_bytes(client: Client, n_bytes: int) -> None:
    _checked(_set_topup_bytes(client.ctx, n_bytes))


def topup(client: Client, seq: int = 0) -> int:
    """OK or NOTHING."""
    return _checked(_topup(client.ctx, seq))


def stats(client: Client, seq: int = 0) -> Stats:
    result = Stats()
    _checked(_get_stats(client.ctx, seq, result))
    return result


def image_size(client: Client, image: int = 0, seq: int = 0) -> int:
    return _checked(_image_size(client.ctx, seq, image))


def kept(client: Client, image: int = 0, stage: int = 2, seq: int = 0) -> list[int]:
    """Indices, within the picture, of the tokens that reached stage 2 or 3."""
    count = _checked(_image_tokens(client.ctx, seq, image, stage, None, 0))
    indices = (ctypes.c_int32 * count)()
    _image_tokens(client.ctx, seq, image, stage, indices, count)
    return list(indices)
