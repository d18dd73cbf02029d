"""halfv.h through ctypes: in the header's order, the C declaration above each name.

It opens the libllama that llama_cpp has loaded, so that a process has one.
"""

from __future__ import annotations

from ctypes import (
    CDLL,
    POINTER,
    Structure,
    c_bool,
    c_char_p,
    c_double,
    c_float,
    c_int,
    c_int32,
    c_int64,
    c_uint32,
    c_uint64,
    sizeof,
)
from typing import Any

try:
    from llama_cpp import llama_cpp
    from llama_cpp._ctypes_extensions import ctypes_function_for_shared_library
except FileNotFoundError as error:
    raise ImportError(f"llama_cpp has no libraries ({error}): call halfv_edge.libs.load() first.") from error

# the same library, but our own view of it: ctypes keeps argtypes per object
_lib = CDLL(llama_cpp._lib._name)
if not hasattr(_lib, "halfv_version"):
    raise ImportError(
        f"{_lib._name} is a llama.cpp without HalfV: call halfv_edge.libs.load() before llama_cpp is imported."
    )
ctypes_function = ctypes_function_for_shared_library(_lib)

# #define HALFV_PROFILE_VERSION 1
HALFV_PROFILE_VERSION = 1

# #define HALFV_OK               0
# #define HALFV_NOTHING          1 // there is nothing of the kind asked for
# #define HALFV_ERR_ARGUMENT    -1 // an argument is null or out of range, or a profile is invalid
# #define HALFV_ERR_UNSUPPORTED -2 // this model or context runs unpruned
# #define HALFV_ERR_MEMORY      -3 // out of memory, or no room in the KV cache
# #define HALFV_ERR_COMPUTE     -4 // a graph failed or was aborted; memory is as it was before the call
HALFV_OK = 0
HALFV_NOTHING = 1
HALFV_ERR_ARGUMENT = -1
HALFV_ERR_UNSUPPORTED = -2
HALFV_ERR_MEMORY = -3
HALFV_ERR_COMPUTE = -4


# LLAMA_API const char * halfv_last_error(void);
@ctypes_function("halfv_last_error", [], c_char_p)
def halfv_last_error() -> bytes:
    """The last error of this thread, b"" when there was none."""


# LLAMA_API const char * halfv_version(void);
@ctypes_function("halfv_version", [], c_char_p)
def halfv_version() -> bytes: ...


#
# profile: which layers and shares
#

# enum halfv_rest {
#     HALFV_REST_FROZEN  = 0, // tokens that stage III does not update keep giving K and V from frozen states
#     HALFV_REST_DROPPED = 1, // they leave the deeper layers
# };
HALFV_REST_FROZEN = 0
HALFV_REST_DROPPED = 1


# struct halfv_profile {
#     uint32_t size;              // sizeof(struct halfv_profile)
#     uint32_t ivr_layer;         // first layer of stage II
#     float    ivr_keep;          // share of the visual tokens that stage II sees, (0, 1]
#     float    ivr_anchors;       // share of the kept that attention chooses, [0, 1]
#     uint32_t ssr_layer;         // first layer of stage III; the number of layers: no stage III
#     float    ssr_update;        // share of the original tokens that stage III updates, [0, 1]
#     int32_t  ssr_rest;          // enum halfv_rest
#     uint32_t min_visual_tokens; // smaller pictures are left whole
#     bool     pixel_prune;       // whether patches that their neighbours predict stay out of the encoder; for libmtmd,
#     float    pixel_tau;         // how far each of their 8-bit pixels may be from the prediction, [0, 255]
# };
class halfv_profile(Structure):  # noqa: N801
    _fields_ = (
        ("size", c_uint32),
        ("ivr_layer", c_uint32),
        ("ivr_keep", c_float),
        ("ivr_anchors", c_float),
        ("ssr_layer", c_uint32),
        ("ssr_update", c_float),
        ("ssr_rest", c_int32),
        ("min_visual_tokens", c_uint32),
        ("pixel_prune", c_bool),
        ("pixel_tau", c_float),
    )

    def __init__(self, **values: Any) -> None:
        super().__init__(sizeof(halfv_profile), **values)


# LLAMA_API int32_t halfv_profile_default(struct halfv_profile * out, uint32_t n_layer);
@ctypes_function("halfv_profile_default", [POINTER(halfv_profile), c_uint32], c_int32)
def halfv_profile_default(out: halfv_profile | None, n_layer: int, /) -> int:
    """keep = 1 and no stage III, for a model of n_layer layers: prunes nothing until it is changed."""


# LLAMA_API int32_t halfv_profile_validate(const struct halfv_profile * profile, uint32_t n_layer);
@ctypes_function("halfv_profile_validate", [POINTER(halfv_profile), c_uint32], c_int32)
def halfv_profile_validate(profile: halfv_profile | None, n_layer: int, /) -> int:
    """HALFV_OK, or HALFV_ERR_ARGUMENT with a sentence that names the key and the value."""


# LLAMA_API bool halfv_model_supported(const struct llama_model * model);
@ctypes_function("halfv_model_supported", [llama_cpp.llama_model_p_ctypes], c_bool)
def halfv_model_supported(model: int | None, /) -> bool:
    """Whether contexts of this model can be pruned (its architecture has the hooks)."""


# LLAMA_API int32_t halfv_model_get_profile(const struct llama_model * model, struct halfv_profile * out);
@ctypes_function("halfv_model_get_profile", [llama_cpp.llama_model_p_ctypes, POINTER(halfv_profile)], c_int32)
def halfv_model_get_profile(model: int | None, out: halfv_profile | None, /) -> int:
    """The profile that contexts made from now on will use; HALFV_NOTHING: the model has none."""


# LLAMA_API int32_t halfv_model_set_profile(struct llama_model * model, const struct halfv_profile * profile);
@ctypes_function("halfv_model_set_profile", [llama_cpp.llama_model_p_ctypes, POINTER(halfv_profile)], c_int32)
def halfv_model_set_profile(model: int | None, profile: halfv_profile | None, /) -> int:
    """Set it (None: none), in place of what the file says. Contexts that exist keep theirs."""


# LLAMA_API int32_t halfv_model_set_stage_cells(struct llama_model * model,
#                                               uint32_t stage1, uint32_t stage2, uint32_t stage3);
@ctypes_function("halfv_model_set_stage_cells", [llama_cpp.llama_model_p_ctypes, c_uint32, c_uint32, c_uint32], c_int32)
def halfv_model_set_stage_cells(model: int | None, stage1: int, stage2: int, stage3: int, /) -> int:
    """KV cells of each stage for contexts made from now on; 0 gives a stage as many as n_ctx asks for."""


#
# context
#


# LLAMA_API int32_t halfv_get_profile(const struct llama_context * ctx, struct halfv_profile * out);
@ctypes_function("halfv_get_profile", [llama_cpp.llama_context_p_ctypes, POINTER(halfv_profile)], c_int32)
def halfv_get_profile(ctx: int | None, out: halfv_profile | None, /) -> int:
    """The profile in force."""


# LLAMA_API int32_t halfv_set_enabled(struct llama_context * ctx, bool enabled);
@ctypes_function("halfv_set_enabled", [llama_cpp.llama_context_p_ctypes, c_bool], c_int32)
def halfv_set_enabled(ctx: int | None, enabled: bool, /) -> int:
    """Switch pruning at any time; pictures that still wait for their question follow the new setting."""


# LLAMA_API int32_t halfv_set_keep(struct llama_context * ctx, float keep);
@ctypes_function("halfv_set_keep", [llama_cpp.llama_context_p_ctypes, c_float], c_int32)
def halfv_set_keep(ctx: int | None, keep: float, /) -> int: ...


# enum halfv_media {
#     HALFV_MEDIA_VISUAL = 0, // the default for batches of embeddings
#     HALFV_MEDIA_OTHER  = 1, // audio and the like: never pruned
# };
HALFV_MEDIA_VISUAL = 0
HALFV_MEDIA_OTHER = 1


# LLAMA_API void halfv_begin_media(struct llama_context * ctx, enum halfv_media media);
@ctypes_function("halfv_begin_media", [llama_cpp.llama_context_p_ctypes, c_int], None)
def halfv_begin_media(ctx: int | None, media: int, /) -> None:
    """Says what the embedding batches from here on are, and that a new picture starts with them."""


# LLAMA_API int32_t halfv_prepare(struct llama_context * ctx, llama_seq_id seq);
@ctypes_function("halfv_prepare", [llama_cpp.llama_context_p_ctypes, llama_cpp.llama_seq_id], c_int32)
def halfv_prepare(ctx: int | None, seq: int, /) -> int:
    """Run what needs no question now; HALFV_NOTHING: no picture is waiting."""


# LLAMA_API int32_t halfv_set_topup_bytes(struct llama_context * ctx, uint64_t bytes);
@ctypes_function("halfv_set_topup_bytes", [llama_cpp.llama_context_p_ctypes, c_uint64], c_int32)
def halfv_set_topup_bytes(ctx: int | None, bytes: int, /) -> int:
    """Keep up to this many bytes (f16, host memory, per sequence) of pruned tokens for halfv_topup."""


# LLAMA_API int32_t halfv_topup(struct llama_context * ctx, llama_seq_id seq);
@ctypes_function("halfv_topup", [llama_cpp.llama_context_p_ctypes, llama_cpp.llama_seq_id], c_int32)
def halfv_topup(ctx: int | None, seq: int, /) -> int:
    """The next text of this sequence is a new question; HALFV_NOTHING: no pruned tokens are stored."""


#
# the vision encoder, in libmtmd
#

# enum halfv_attention {
#     HALFV_ATTENTION_STOCK   = 0, // as llama.cpp computes it
#     HALFV_ATTENTION_WINDOWS = 1, // window by window where the model has windows, not through a mask over all patches
#     HALFV_ATTENTION_FAST    = 2, // and in bfloat16 on CPUs that multiply it; the default
# };
HALFV_ATTENTION_STOCK = 0
HALFV_ATTENTION_WINDOWS = 1
HALFV_ATTENTION_FAST = 2


# LLAMA_API int32_t halfv_set_encoder(const char * weights, enum halfv_attention attention);
@ctypes_function("halfv_set_encoder", [c_char_p, c_int], c_int32)
def halfv_set_encoder(weights: bytes, attention: int, /) -> int:
    """How encoders that this thread loads from now on compute; weights: b"auto", b"file", b"off" or a type."""


#
# what happened
#

# enum halfv_outcome {
#     HALFV_OUTCOME_NONE     = 0, // no picture in this sequence
#     HALFV_OUTCOME_PENDING  = 1, // waits for the question
#     HALFV_OUTCOME_PRUNED   = 2,
#     HALFV_OUTCOME_UNPRUNED = 3, // see reason
# };
HALFV_OUTCOME_NONE = 0
HALFV_OUTCOME_PENDING = 1
HALFV_OUTCOME_PRUNED = 2
HALFV_OUTCOME_UNPRUNED = 3

# enum halfv_reason {
#     HALFV_REASON_NONE       = 0,
#     HALFV_REASON_SMALL      = 1, // fewer tokens than min_visual_tokens
#     HALFV_REASON_DISABLED   = 2, // switched off, or a profile that prunes nothing
#     HALFV_REASON_OUTPUTS    = 3, // the client asked for outputs on visual rows, or for embeddings of every row
#     HALFV_REASON_SHARED     = 4, // tokens that belong to several sequences at once
# };
HALFV_REASON_NONE = 0
HALFV_REASON_SMALL = 1
HALFV_REASON_DISABLED = 2
HALFV_REASON_OUTPUTS = 3
HALFV_REASON_SHARED = 4


# struct halfv_stats {
#     uint32_t size;           // sizeof(struct halfv_stats)
#     int32_t  outcome;        // enum halfv_outcome, of the last picture
#     int32_t  reason;         // enum halfv_reason
#     uint32_t n_images;
#     uint32_t n_visual;       // visual tokens given
#     uint32_t n_kept;         // of them in stage II
#     uint32_t n_deep;         // of them updated in stage III
#     uint32_t n_pending;      // tokens that wait for a question
#     uint32_t n_stored;       // pruned tokens kept for top-up
#     double   flops_dense;    // from the first picture on: what the whole model would have cost, and what was spent
#     double   flops_spent;
#     int64_t  us_stage1;
#     int64_t  us_select;
#     int64_t  us_stage2;
#     int64_t  us_frozen;      // the K and V of frozen tokens
#     int64_t  us_stage3;
#     uint32_t kv_cells[3];    // in use by this sequence, per stage
#     uint64_t kv_bytes[3];
# };
class halfv_stats(Structure):  # noqa: N801
    _fields_ = (
        ("size", c_uint32),
        ("outcome", c_int32),
        ("reason", c_int32),
        ("n_images", c_uint32),
        ("n_visual", c_uint32),
        ("n_kept", c_uint32),
        ("n_deep", c_uint32),
        ("n_pending", c_uint32),
        ("n_stored", c_uint32),
        ("flops_dense", c_double),
        ("flops_spent", c_double),
        ("us_stage1", c_int64),
        ("us_select", c_int64),
        ("us_stage2", c_int64),
        ("us_frozen", c_int64),
        ("us_stage3", c_int64),
        ("kv_cells", c_uint32 * 3),
        ("kv_bytes", c_uint64 * 3),
    )

    def __init__(self) -> None:
        super().__init__(sizeof(halfv_stats))


# LLAMA_API int32_t halfv_get_stats(const struct llama_context * ctx, llama_seq_id seq, struct halfv_stats * out);
@ctypes_function(
    "halfv_get_stats", [llama_cpp.llama_context_p_ctypes, llama_cpp.llama_seq_id, POINTER(halfv_stats)], c_int32
)
def halfv_get_stats(ctx: int | None, seq: int, out: halfv_stats | None, /) -> int: ...


# LLAMA_API int32_t halfv_image_size(const struct llama_context * ctx, llama_seq_id seq, uint32_t image);
@ctypes_function("halfv_image_size", [llama_cpp.llama_context_p_ctypes, llama_cpp.llama_seq_id, c_uint32], c_int32)
def halfv_image_size(ctx: int | None, seq: int, image: int, /) -> int:
    """Visual tokens of the i-th picture of a sequence."""


# LLAMA_API int32_t halfv_image_tokens(const struct llama_context * ctx, llama_seq_id seq, uint32_t image,
#                                      int32_t stage, int32_t * out, int32_t cap);
@ctypes_function(
    "halfv_image_tokens",
    [llama_cpp.llama_context_p_ctypes, llama_cpp.llama_seq_id, c_uint32, c_int32, POINTER(c_int32), c_int32],
    c_int32,
)
def halfv_image_tokens(ctx: int | None, seq: int, image: int, stage: int, out: object, cap: int, /) -> int:
    """Indices, within that picture, of the tokens that reached a stage (2 or 3); returns how many there are."""


# LLAMA_API int32_t halfv_flops(const struct llama_model * model, const struct halfv_profile * profile,
#                               uint32_t n_before, uint32_t n_visual, uint32_t n_after,
#                               double * dense, double * spent);
@ctypes_function(
    "halfv_flops",
    [
        llama_cpp.llama_model_p_ctypes,
        POINTER(halfv_profile),
        c_uint32,
        c_uint32,
        c_uint32,
        POINTER(c_double),
        POINTER(c_double),
    ],
    c_int32,
)
def halfv_flops(
    model: int | None,
    profile: halfv_profile | None,
    n_before: int,
    n_visual: int,
    n_after: int,
    dense: object,
    spent: object,
    /,
) -> int:
    """What halfv_stats would count for a prompt of text, one picture and text, from the picture on."""


__all__ = [name for name in dir() if name.lower().startswith("halfv_")]
