"""halfv-compare.h, in the header's order, the C declaration above each name."""

# mypy: disable-error-code="empty-body"

from ctypes import CFUNCTYPE, POINTER, Structure, c_bool, c_double, c_int32, c_uint8, c_void_p
from typing import Annotated, Any

from halfv_cpp.c_types import (
    Address,
    Bool,
    Float,
    FloatField,
    Floats,
    Handle,
    Int32,
    Int32Field,
    MaybeHandle,
    UInt8s,
    UInt32,
    functions_of,
    structure,
)

function = functions_of("llama")

# enum halfv_choice {
#     HALFV_CHOICE_HALFV     = 0, // anchors and coverage in stage II, attention in stage III: the default
#     HALFV_CHOICE_RANDOM    = 1,
#     HALFV_CHOICE_UNIFORM   = 2, // evenly spread
#     HALFV_CHOICE_ATTENTION = 3, // the last token's attention to all tokens, as FastV and PyramidDrop rank them
#     HALFV_CHOICE_DART      = 4, // least like a few pivots; in stage III as ATTENTION
#     HALFV_CHOICE_GIVEN     = 5, // by the chooser of halfv_set_chooser
# };
HALFV_CHOICE_HALFV = 0
HALFV_CHOICE_RANDOM = 1
HALFV_CHOICE_UNIFORM = 2
HALFV_CHOICE_ATTENTION = 3
HALFV_CHOICE_DART = 4
HALFV_CHOICE_GIVEN = 5


# LLAMA_API int32_t halfv_set_choice(struct llama_context * ctx, int32_t choice, uint32_t seed);
@function
def halfv_set_choice(ctx: MaybeHandle, choice: Int32, seed: UInt32, /) -> Int32:
    """Another way to choose; before a picture, or when none waits."""


# struct halfv_choosing {
#     uint32_t        size;      // sizeof(struct halfv_choosing), set by the library
#     int32_t         stage;     // that begins: 2, 3 or one behind that
#     int32_t         n_before;  // rows of text
#     int32_t         n_visual;
#     int32_t         n_after;   // rows of text
#     int32_t         n_keep;    // how many visual ones to choose
#     int32_t         n_embd;
#     int32_t         n_head;
#     int32_t         n_head_kv;
#     int32_t         head_dim;
#     const int32_t * index;     // [n_visual], which tokens of the picture these are
#     const float   * states;    // [rows][n_embd], entering the stage, before any norm
#     const float   * features;  // the same after the model's last norm, each of length 1
#     const float   * keys;      // [rows][n_head_kv][head_dim], of the layer before, with RoPE
#     const float   * queries;   // [n_before + n_after][n_head][head_dim], of text, likewise
#     const float   * visual_queries; // [n_visual][n_head][head_dim]
# };
@structure
class halfv_choosing(Structure):  # noqa: N801
    size: UInt32
    stage: Int32
    n_before: Int32
    n_visual: Int32
    n_after: Int32
    n_keep: Int32
    n_embd: Int32
    n_head: Int32
    n_head_kv: Int32
    head_dim: Int32
    index: Int32Field
    states: FloatField
    features: FloatField
    keys: FloatField
    queries: FloatField
    visual_queries: FloatField


# typedef int32_t (*halfv_chooser)(const struct halfv_choosing * seen, int32_t * chosen, double * flops, void * user);
halfv_chooser = CFUNCTYPE(c_int32, POINTER(halfv_choosing), POINTER(c_int32), POINTER(c_double), c_void_p)


# LLAMA_API int32_t halfv_set_chooser(struct llama_context * ctx, halfv_chooser chooser, void * user);
@function
def halfv_set_chooser(ctx: MaybeHandle, chooser: Annotated[Any, halfv_chooser], user: Address, /) -> Int32:
    """Who chooses under HALFV_CHOICE_GIVEN; the caller keeps it alive."""


# LLAMA_API int32_t halfv_token_embedding(const struct llama_model * model, int32_t token, float * row);
@function
def halfv_token_embedding(model: Handle, token: Int32, row: Floats, /) -> Int32:
    """The row of a token in the model's table of embeddings."""


#
# looking inside an unpruned prompt, for calibration
#


# struct halfv_boundary {
#     uint32_t        size;      // sizeof(struct halfv_boundary), set by the library
#     int32_t         layer;     // which layer's input this is; the number of layers: the output of the last
#     int32_t         n_tokens;
#     int32_t         n_embd;
#     int32_t         n_vocab;
#     float           norm_eps;
#     const float   * norm;      // [n_embd], of the model's final RMS norm
#     const float   * states;    // [n_tokens][n_embd], in prompt order, before any norm; the first of several
#     const uint8_t * visual;    // [n_tokens], 1 where a token is visual
#     const float   * attention; // [n_tokens]: where the last token looks here, mean over heads, or null
#     const float   * logits;    // [n_vocab], of the last token. At the end the model's; before that what they would
#                                // be if this layer left the visual tokens as they are, null where not asked for
# };
@structure
class halfv_boundary(Structure):  # noqa: N801
    size: UInt32
    layer: Int32
    n_tokens: Int32
    n_embd: Int32
    n_vocab: Int32
    norm_eps: Float
    norm: FloatField
    states: FloatField
    visual: Annotated[Any, POINTER(c_uint8)]
    attention: FloatField
    logits: FloatField


# typedef bool (*halfv_observer)(const struct halfv_boundary * boundary, void * user);
halfv_observer = CFUNCTYPE(c_bool, POINTER(halfv_boundary), c_void_p)


# LLAMA_API int32_t halfv_hold(struct llama_context * ctx, bool hold);
@function
def halfv_hold(ctx: MaybeHandle, hold: Bool, /) -> Int32:
    """From here on llama_decode only keeps what it is given: one sequence, into empty memory, without outputs."""


# LLAMA_API int32_t halfv_observe(struct llama_context * ctx, const uint8_t * freeze, halfv_observer observer,
#                                 void * user);
@function
def halfv_observe(
    ctx: MaybeHandle, freeze: UInt8s, observer: Annotated[Any, halfv_observer], user: Address, /
) -> Int32:
    """Run what was held through the model layer by layer; the observer sees each boundary."""
