"""halfv.h, in the header's order, the C declaration above each name."""

# mypy: disable-error-code="empty-body"

from ctypes import POINTER, Structure, c_float, c_uint32, c_uint64, sizeof
from typing import TYPE_CHECKING, Annotated, Any

from halfv_cpp.c_types import (
    Address,
    Bool,
    Double,
    Doubles,
    Float,
    Handles,
    Int,
    Int32,
    Int32s,
    Int64,
    MaybeHandle,
    Text,
    UInt32,
    UInt64,
    UInt64s,
    functions_of,
    structure,
)

if TYPE_CHECKING:
    from halfv_cpp.c_types import To

function = functions_of("llama")

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
@function
def halfv_last_error() -> Text:
    """The last error of this thread, b"" when there was none."""


# LLAMA_API const char * halfv_version(void);
@function
def halfv_version() -> Text: ...


#
# profile: which layers and shares
#

# enum halfv_rest {
#     HALFV_REST_FROZEN  = 0, // tokens that stage III does not update keep giving K and V from frozen states
#     HALFV_REST_DROPPED = 1, // they leave the deeper layers
# };
HALFV_REST_FROZEN = 0
HALFV_REST_DROPPED = 1


# enum halfv_query {
#     HALFV_QUERY_LAST     = 0, // the prompt's last token chooses the anchors
#     HALFV_QUERY_QUESTION = 1, // all text behind the last picture does, by what it looks at in that layer
# };
HALFV_QUERY_LAST = 0
HALFV_QUERY_QUESTION = 1


# #define HALFV_MAX_FURTHER 4
# #define HALFV_MAX_WIDTH 255
HALFV_MAX_FURTHER = 4
HALFV_MAX_WIDTH = 255


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
#     float    visual_share;      // share of the context set aside for visual tokens, [0, 1]: deeper stages have cells
#                                 // for the text of the rest and the visual tokens that reach them; 0: text fills all
#     float    input_keep;        // share of a picture's rows that go on from the encoder, for libmtmd, (0, 1];
#                                 // the shares above are of those
#     uint32_t encoder_layer;     // from this layer on the encoder sees only some of a picture, for libmtmd
#     float    encoder_keep;      // share of it that they see, (0, 1]; the rest follows what is most like it
#     float    input_merge;       // share of a picture's rows that is left when alike ones are averaged, for
#                                 // libmtmd, (0, 1]; input_keep is of those
#     uint32_t n_further;         // stages behind III, at most HALFV_MAX_FURTHER
#     uint32_t further_layers[HALFV_MAX_FURTHER]; // the first layer of each, ascending
#     float    further_keep[HALFV_MAX_FURTHER]; // share of the original tokens that it sees, [0, 1]; 0: text alone
#     uint32_t ffn_layer;         // from this layer on, ivr_layer or later, visual tokens take only the first
#     float    ffn_keep;          // channels of feed-forward networks: this share, in blocks of 32 or more, (0, 1]
#     uint32_t heads_layer;       // from this layer on, ivr_layer or later, visual tokens have only the first groups
#     float    heads_keep;        // of heads that share keys and values: this share, at least one, (0, 1]
#     uint32_t neighbours_layer;  // from this layer on, ivr_layer or later, visual tokens see of visual ones only those
#     uint32_t neighbours_width;  // before them in a square of this many rows and columns around them, odd; 0: all
#     float    image_loss;        // pictures are made smaller while no part of them loses more than this, for libmtmd,
#                                 // [0, 1]: the share of pixels that change; 0: never
#     int32_t  ivr_query;         // enum halfv_query: by whose attention anchors are chosen
#     float    ivr_bias;          // attention to a kept visual token grows by this times the logarithm of how many
#                                 // tokens it stands for, [0, 1]; 0: by nothing
#     bool     frames_prune;      // whether patches that the picture before showed in the same place stay out of the
#     float    frames_tau;        // encoder, for libmtmd; how far each of their 8-bit pixels may be from it, [0, 255]
# };
@structure
class halfv_profile(Structure):  # noqa: N801
    size: UInt32
    ivr_layer: UInt32
    ivr_keep: Float
    ivr_anchors: Float
    ssr_layer: UInt32
    ssr_update: Float
    ssr_rest: Int32
    min_visual_tokens: UInt32
    pixel_prune: Bool
    pixel_tau: Float
    visual_share: Float
    input_keep: Float
    encoder_layer: UInt32
    encoder_keep: Float
    input_merge: Float
    n_further: UInt32
    further_layers: Annotated[Any, c_uint32 * HALFV_MAX_FURTHER]
    further_keep: Annotated[Any, c_float * HALFV_MAX_FURTHER]
    ffn_layer: UInt32
    ffn_keep: Float
    heads_layer: UInt32
    heads_keep: Float
    neighbours_layer: UInt32
    neighbours_width: UInt32
    image_loss: Float
    ivr_query: Int32
    ivr_bias: Float
    frames_prune: Bool
    frames_tau: Float

    def __init__(self, **values: Any) -> None:
        # JSON has lists where ctypes wants tuples
        fields = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
        super().__init__(sizeof(halfv_profile), **fields)


# LLAMA_API int32_t halfv_profile_default(struct halfv_profile * out, uint32_t n_layer);
@function
def halfv_profile_default(out: Annotated["To[halfv_profile]", POINTER(halfv_profile)], n_layer: UInt32, /) -> Int32:
    """keep = 1 and no stage III, for a model of n_layer layers: prunes nothing until it is changed."""


# LLAMA_API int32_t halfv_profile_validate(const struct halfv_profile * profile, uint32_t n_layer);
@function
def halfv_profile_validate(
    profile: Annotated["To[halfv_profile]", POINTER(halfv_profile)], n_layer: UInt32, /
) -> Int32:
    """HALFV_OK, or HALFV_ERR_ARGUMENT with a sentence that names the key and the value."""


# LLAMA_API bool halfv_model_supported(const struct llama_model * model);
@function
def halfv_model_supported(model: MaybeHandle, /) -> Bool:
    """Whether contexts of this model can be pruned: its graphs can be cut between layers."""


# LLAMA_API int32_t halfv_model_get_profile(const struct llama_model * model, struct halfv_profile * out);
@function
def halfv_model_get_profile(
    model: MaybeHandle, out: Annotated["To[halfv_profile]", POINTER(halfv_profile)], /
) -> Int32:
    """The profile that contexts and encoders made from now on will use; HALFV_NOTHING: the model has none."""


# LLAMA_API int32_t halfv_model_set_profile(struct llama_model * model, const struct halfv_profile * profile);
@function
def halfv_model_set_profile(
    model: MaybeHandle, profile: Annotated["To[halfv_profile]", POINTER(halfv_profile)], /
) -> Int32:
    """Set it (None: none), in place of what the file says. Contexts that exist keep theirs."""


# LLAMA_API int32_t halfv_model_set_stage_cells(struct llama_model * model,
#                                               uint32_t stage1, uint32_t stage2, uint32_t stage3);
@function
def halfv_model_set_stage_cells(model: MaybeHandle, stage1: UInt32, stage2: UInt32, stage3: UInt32, /) -> Int32:
    """KV cells of each stage for contexts made from now on; 0 gives a stage as many as n_ctx asks for."""


#
# context
#


# LLAMA_API int32_t halfv_get_profile(const struct llama_context * ctx, struct halfv_profile * out);
@function
def halfv_get_profile(ctx: MaybeHandle, out: Annotated["To[halfv_profile]", POINTER(halfv_profile)], /) -> Int32:
    """The profile in force."""


# LLAMA_API int32_t halfv_set_enabled(struct llama_context * ctx, bool enabled);
@function
def halfv_set_enabled(ctx: MaybeHandle, enabled: Bool, /) -> Int32:
    """Switch pruning at any time; pictures that still wait for their question follow the new setting."""


# LLAMA_API int32_t halfv_set_keep(struct llama_context * ctx, float keep);
@function
def halfv_set_keep(ctx: MaybeHandle, keep: Float, /) -> Int32: ...


# LLAMA_API int32_t halfv_seq_set_enabled(struct llama_context * ctx, llama_seq_id seq, bool enabled);
@function
def halfv_seq_set_enabled(ctx: MaybeHandle, seq: Int32, enabled: Bool, /) -> Int32: ...


# LLAMA_API int32_t halfv_seq_set_keep(struct llama_context * ctx, llama_seq_id seq, float keep);
@function
def halfv_seq_set_keep(ctx: MaybeHandle, seq: Int32, keep: Float, /) -> Int32: ...


# enum halfv_media {
#     HALFV_MEDIA_VISUAL = 0, // the default for batches of embeddings
#     HALFV_MEDIA_OTHER  = 1, // audio and the like: never pruned
#     HALFV_MEDIA_SPARSE = 2, // visual, without some rows: their positions may leave gaps, else refused
# };
HALFV_MEDIA_VISUAL = 0
HALFV_MEDIA_OTHER = 1
HALFV_MEDIA_SPARSE = 2


# LLAMA_API void halfv_begin_media(struct llama_context * ctx, enum halfv_media media);
@function
def halfv_begin_media(ctx: MaybeHandle, media: Int, /) -> None:
    """Says what the embedding batches from here on are, and that a new picture starts with them."""


# LLAMA_API int32_t halfv_prepare(struct llama_context * ctx, llama_seq_id seq);
@function
def halfv_prepare(ctx: MaybeHandle, seq: Int32, /) -> Int32:
    """Run what needs no question now; HALFV_NOTHING: no picture is waiting."""


# LLAMA_API int32_t halfv_set_prepare(struct llama_context * ctx, bool prepare);
@function
def halfv_set_prepare(ctx: MaybeHandle, prepare: Bool, /) -> Int32:
    """True: every question first prepares the pictures that wait for it, and they stay so when it is removed."""


# LLAMA_API int32_t halfv_set_undo_bytes(struct llama_context * ctx, uint64_t bytes);
@function
def halfv_set_undo_bytes(ctx: MaybeHandle, bytes: UInt64, /) -> Int32:
    """Up to this many bytes of host memory for what undoing removed questions takes; a picture beyond it is whole."""


# LLAMA_API int32_t halfv_get_undo_bytes(const struct llama_context * ctx, uint64_t * bytes, uint64_t * used);
@function
def halfv_get_undo_bytes(ctx: MaybeHandle, bytes: UInt64s, used: UInt64s, /) -> Int32:
    """The budget, and what is taken of it now."""


# LLAMA_API int32_t halfv_set_undo(struct llama_context * ctx, bool undo);
@function
def halfv_set_undo(ctx: MaybeHandle, undo: Bool, /) -> Int32:
    """False: pictures stay as the last question left them, also when it is removed."""


# LLAMA_API int32_t halfv_topup(struct llama_context * ctx, llama_seq_id seq);
@function
def halfv_topup(ctx: MaybeHandle, seq: Int32, /) -> Int32:
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
@function
def halfv_set_encoder(weights: Text, attention: Int, /) -> Int32:
    """How encoders that this thread loads from now on compute; weights: b"auto", b"file", b"off" or a type."""


# LLAMA_API int32_t halfv_get_encoder(const char ** weights, enum halfv_attention * attention);
@function
def halfv_get_encoder(weights: Handles, attention: Address, /) -> Int32:
    """What they get, HALFV=off considered; libmtmd asks for it."""


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
#     HALFV_REASON_BUDGET     = 5, // no room for what it takes to undo the question: halfv_set_undo_bytes
#     HALFV_REASON_UNASKED    = 6, // it had to go on before a token that could be its question
# };
HALFV_REASON_NONE = 0
HALFV_REASON_SMALL = 1
HALFV_REASON_DISABLED = 2
HALFV_REASON_OUTPUTS = 3
HALFV_REASON_SHARED = 4
HALFV_REASON_BUDGET = 5
HALFV_REASON_UNASKED = 6


# struct halfv_stats {
#     uint32_t size;           // sizeof(struct halfv_stats)
#     int32_t  outcome;        // enum halfv_outcome, of the last picture
#     int32_t  reason;         // enum halfv_reason
#     uint32_t n_images;
#     uint32_t n_visual;       // visual tokens given
#     uint32_t n_kept;         // of them in stage II
#     uint32_t n_deep;         // of them updated in stage III
#     uint32_t n_pending;      // tokens that wait for a question
#     uint32_t n_stored;       // pruned tokens whose states are kept
#     double   flops_dense;    // from the first picture on: what the whole model would have cost, and what was spent
#     double   flops_spent;
#     int64_t  us_stage1;      // on a GPU, stages are timed until they are launched, and us_select waits for them
#     int64_t  us_select;
#     int64_t  us_stage2;
#     int64_t  us_frozen;      // the K and V of frozen tokens
#     int64_t  us_stage3;
#     uint32_t kv_cells[3];    // in use by this sequence, per stage
#     uint64_t kv_bytes[3];
#     uint32_t kv_size[3];     // cells that a stage has, for this sequence or, if unified, for all of them
#     uint32_t n_further[HALFV_MAX_FURTHER]; // visual tokens in each stage behind III, and the same of those
#     uint32_t further_cells[HALFV_MAX_FURTHER];
#     uint64_t further_bytes[HALFV_MAX_FURTHER];
#     uint32_t further_size[HALFV_MAX_FURTHER];
# };
@structure
class halfv_stats(Structure):  # noqa: N801
    size: UInt32
    outcome: Int32
    reason: Int32
    n_images: UInt32
    n_visual: UInt32
    n_kept: UInt32
    n_deep: UInt32
    n_pending: UInt32
    n_stored: UInt32
    flops_dense: Double
    flops_spent: Double
    us_stage1: Int64
    us_select: Int64
    us_stage2: Int64
    us_frozen: Int64
    us_stage3: Int64
    kv_cells: Annotated[Any, c_uint32 * 3]
    kv_bytes: Annotated[Any, c_uint64 * 3]
    kv_size: Annotated[Any, c_uint32 * 3]
    n_further: Annotated[Any, c_uint32 * HALFV_MAX_FURTHER]
    further_cells: Annotated[Any, c_uint32 * HALFV_MAX_FURTHER]
    further_bytes: Annotated[Any, c_uint64 * HALFV_MAX_FURTHER]
    further_size: Annotated[Any, c_uint32 * HALFV_MAX_FURTHER]

    def __init__(self) -> None:
        super().__init__(sizeof(halfv_stats))


# LLAMA_API int32_t halfv_get_stats(const struct llama_context * ctx, llama_seq_id seq, struct halfv_stats * out);
@function
def halfv_get_stats(
    ctx: MaybeHandle, seq: Int32, out: Annotated["To[halfv_stats]", POINTER(halfv_stats)], /
) -> Int32: ...


# LLAMA_API int32_t halfv_image_size(const struct llama_context * ctx, llama_seq_id seq, uint32_t image);
@function
def halfv_image_size(ctx: MaybeHandle, seq: Int32, image: UInt32, /) -> Int32:
    """Visual tokens of the i-th picture of a sequence."""


# LLAMA_API int32_t halfv_image_tokens(const struct llama_context * ctx, llama_seq_id seq, uint32_t image,
#                                      int32_t stage, int32_t * out, int32_t cap);
@function
def halfv_image_tokens(ctx: MaybeHandle, seq: Int32, image: UInt32, stage: Int32, out: Int32s, cap: Int32, /) -> Int32:
    """Indices, within that picture, of the tokens that reached a stage (2 or 3); returns how many there are."""


# LLAMA_API int32_t halfv_flops(const struct llama_model * model, const struct halfv_profile * profile,
#                               uint32_t n_before, uint32_t n_visual, uint32_t n_after,
#                               double * dense, double * spent);
@function
def halfv_flops(
    model: MaybeHandle,
    profile: Annotated["To[halfv_profile]", POINTER(halfv_profile)],
    n_before: UInt32,
    n_visual: UInt32,
    n_after: UInt32,
    dense: Doubles,
    spent: Doubles,
    /,
) -> Int32:
    """What halfv_stats would count for a prompt of text, one picture and text, from the picture on."""
