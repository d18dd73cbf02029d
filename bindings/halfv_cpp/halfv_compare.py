"""halfv-compare.h through ctypes."""

from __future__ import annotations

from ctypes import c_int32, c_uint32

from llama_cpp import llama_cpp

from halfv_cpp.halfv_h import ctypes_function

# enum halfv_choice {
#     HALFV_CHOICE_HALFV     = 0, // anchors and coverage in stage II, attention in stage III: the default
#     HALFV_CHOICE_RANDOM    = 1,
#     HALFV_CHOICE_UNIFORM   = 2, // evenly spread
#     HALFV_CHOICE_ATTENTION = 3, // the last token's attention to all tokens, as FastV and PyramidDrop rank them
#     HALFV_CHOICE_DART      = 4, // least like a few pivots; in stage III as ATTENTION
# };
HALFV_CHOICE_HALFV = 0
HALFV_CHOICE_RANDOM = 1
HALFV_CHOICE_UNIFORM = 2
HALFV_CHOICE_ATTENTION = 3
HALFV_CHOICE_DART = 4


# LLAMA_API int32_t halfv_set_choice(struct llama_context * ctx, int32_t choice, uint32_t seed);
@ctypes_function("halfv_set_choice", [llama_cpp.llama_context_p_ctypes, c_int32, c_uint32], c_int32)
def halfv_set_choice(ctx: int | None, choice: int, seed: int, /) -> int:
    """Another way to choose; before a picture, or when none waits."""
