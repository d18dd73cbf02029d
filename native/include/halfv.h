#ifndef HALFV_H
#define HALFV_H

// HalfV for llama.cpp: prunes visual tokens inside llama_decode.
//
// A model file that carries a profile (GGUF keys halfv.*) is pruned without a call to anything below, and so is any model
// when HALFV_PROFILE in the environment names a profile or is one (JSON). This header is for
// programs that want to choose the profile, switch it, prepare a picture before its question, or see what was kept.
//
// Functions that return int32_t give HALFV_OK or another value listed above them; halfv_last_error() then says what was
// wrong, in one sentence. None throws. A context and its sequences belong to one thread at a time, as in llama.h.
//
// Structs begin with their size, so that a program or binding goes on working when a later library has more members; those
// are only ever added at the end. Set it before you hand a struct over, to be read or to be filled:
//     struct halfv_profile profile = { .size = sizeof(profile) };
// The library reads and fills what the size covers and takes defaults for members that it does not. A size that no version
// of the struct has, 0 or one from a newer header, is HALFV_ERR_ARGUMENT.

#include "llama.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define HALFV_PROFILE_VERSION 1

#define HALFV_OK               0
#define HALFV_NOTHING          1 // there is nothing of the kind asked for
#define HALFV_ERR_ARGUMENT    -1 // an argument is null or out of range, or a profile is invalid
#define HALFV_ERR_UNSUPPORTED -2 // this model or context runs unpruned
#define HALFV_ERR_MEMORY      -3 // out of memory, or no room in the KV cache
#define HALFV_ERR_COMPUTE     -4 // a graph failed or was aborted; memory is as it was before the call

// The last error of this thread, "" when there was none. Valid until the thread's next call.
LLAMA_API const char * halfv_last_error(void);

LLAMA_API const char * halfv_version(void);

//
// profile: which layers and shares. docs/gguf-format.md describes the fields.
//

enum halfv_rest {
    HALFV_REST_FROZEN  = 0, // tokens that stage III does not update keep giving K and V from frozen states
    HALFV_REST_DROPPED = 1, // they leave the deeper layers
};

enum halfv_query {
    HALFV_QUERY_LAST     = 0, // the prompt's last token chooses the anchors
    HALFV_QUERY_QUESTION = 1, // all text behind the last picture does, by what it looks at in that layer
};

#define HALFV_MAX_FURTHER 4
#define HALFV_MAX_WIDTH 255

struct halfv_profile {
    uint32_t size;              // sizeof(struct halfv_profile)
    uint32_t ivr_layer;         // first layer of stage II
    float    ivr_keep;          // share of the visual tokens that stage II sees, (0, 1]
    float    ivr_anchors;       // share of the kept that attention chooses, [0, 1]
    uint32_t ssr_layer;         // first layer of stage III; the number of layers: no stage III
    float    ssr_update;        // share of the original tokens that stage III updates, [0, 1]
    int32_t  ssr_rest;          // enum halfv_rest
    uint32_t min_visual_tokens; // smaller pictures are left whole
    bool     pixel_prune;       // whether patches that their neighbours predict stay out of the encoder; for libmtmd,
    float    pixel_tau;         // how far each of their 8-bit pixels may be from the prediction, [0, 255]
    float    visual_share;      // share of the context set aside for visual tokens, [0, 1]: deeper stages have cells
                                // for the text of the rest and the visual tokens that reach them; 0: text fills all
    float    input_keep;        // share of a picture's rows that go on from the encoder, for libmtmd, (0, 1];
                                // the shares above are of those
    uint32_t encoder_layer;     // from this layer on the encoder sees only some of a picture, for libmtmd
    float    encoder_keep;      // share of it that they see, (0, 1]; the rest follows what is most like it
    float    input_merge;       // share of a picture's rows that is left when alike ones are averaged, for
                                // libmtmd, (0, 1]; input_keep is of those
    uint32_t n_further;         // stages behind III, at most HALFV_MAX_FURTHER
    uint32_t further_layers[HALFV_MAX_FURTHER]; // the first layer of each, ascending
    float    further_keep[HALFV_MAX_FURTHER]; // share of the original tokens that it sees, [0, 1]; 0: text alone
    uint32_t ffn_layer;         // from this layer on, ivr_layer or later, visual tokens take only the first
    float    ffn_keep;          // channels of feed-forward networks: this share, in blocks of 32 or more, (0, 1]
    uint32_t heads_layer;       // from this layer on, ivr_layer or later, visual tokens have only the first groups
    float    heads_keep;        // of heads that share keys and values: this share, at least one, (0, 1]
    uint32_t neighbours_layer;  // from this layer on, ivr_layer or later, visual tokens see of visual ones only those
    uint32_t neighbours_width;  // before them in a square of this many rows and columns around them, odd; 0: all
    float    image_loss;        // pictures are made smaller while no part of them loses more than this, for libmtmd,
                                // [0, 1]: the share of pixels that change; 0: never
    int32_t  ivr_query;         // enum halfv_query: by whose attention anchors are chosen
    float    ivr_bias;          // attention to a kept visual token grows by this times the logarithm of how many
                                // tokens it stands for, [0, 1]; 0: by nothing
    bool     frames_prune;      // whether patches that the picture before showed in the same place stay out of the
    float    frames_tau;        // encoder, for libmtmd; how far each of their 8-bit pixels may be from it, [0, 255]
};

// keep = 1 and no stage III, for a model of n_layer layers: prunes nothing until it is changed. HALFV_OK, HALFV_ERR_ARGUMENT
LLAMA_API int32_t halfv_profile_default(struct halfv_profile * out, uint32_t n_layer);

// HALFV_OK, or HALFV_ERR_ARGUMENT with a sentence that names the key and the value
LLAMA_API int32_t halfv_profile_validate(const struct halfv_profile * profile, uint32_t n_layer);

// Whether contexts of this model can be pruned: its graphs can be cut between layers.
LLAMA_API bool halfv_model_supported(const struct llama_model * model);

// The profile that contexts and encoders made from now on will use. Where contexts cannot be pruned it is what the model's
// profile says of the encoder, with stages that keep everything.
// HALFV_OK; HALFV_NOTHING: the model has none; HALFV_ERR_ARGUMENT: what HALFV_PROFILE or its file says is invalid
LLAMA_API int32_t halfv_model_get_profile(const struct llama_model * model, struct halfv_profile * out);

// Set it (null: none), in place of what HALFV_PROFILE or the file says. Contexts that exist keep theirs. This and
// halfv_model_set_stage_cells may be called while another thread makes a context, which has the former or the new one.
// HALFV_OK; HALFV_ERR_ARGUMENT; HALFV_ERR_UNSUPPORTED: contexts cannot be pruned, and its stages do not keep everything
LLAMA_API int32_t halfv_model_set_profile(struct llama_model * model, const struct halfv_profile * profile);

// KV cells of stages for contexts made from now on; 0 (the default) leaves a stage as many as the profile gives it.
// Stage I holds every token. A stage that is too small makes llama_decode return 1, with memory unchanged.
// HALFV_OK, HALFV_ERR_ARGUMENT
LLAMA_API int32_t halfv_model_set_stage_cells(struct llama_model * model, uint32_t stage1, uint32_t stage2, uint32_t stage3);

//
// context
//

// The profile in force. HALFV_OK, HALFV_ERR_UNSUPPORTED
LLAMA_API int32_t halfv_get_profile(const struct llama_context * ctx, struct halfv_profile * out);

// Switch pruning at any time; pictures that are still waiting for their question follow the new setting.
// HALFV_OK, HALFV_ERR_UNSUPPORTED
LLAMA_API int32_t halfv_set_enabled(struct llama_context * ctx, bool enabled);

// HALFV_OK, HALFV_ERR_ARGUMENT, HALFV_ERR_UNSUPPORTED
LLAMA_API int32_t halfv_set_keep(struct llama_context * ctx, float keep);

// The same for one sequence, for servers whose requests choose. It holds for whatever the sequence settles until it is set
// again. enabled: only where the context is. keep: 0 is the context's. What other sequences do is not touched.
// HALFV_OK, HALFV_ERR_ARGUMENT, HALFV_ERR_UNSUPPORTED
LLAMA_API int32_t halfv_seq_set_enabled(struct llama_context * ctx, llama_seq_id seq, bool enabled);
LLAMA_API int32_t halfv_seq_set_keep(struct llama_context * ctx, llama_seq_id seq, float keep);

enum halfv_media {
    HALFV_MEDIA_VISUAL = 0, // the default for batches of embeddings
    HALFV_MEDIA_OTHER  = 1, // audio and the like: never pruned
    HALFV_MEDIA_SPARSE = 2, // visual, without some rows: their positions may leave gaps, else refused
};

// Says what the embedding batches from here on are, and that a new picture starts with them. mtmd calls it.
// Without it a picture is a run of visual tokens with no text in between. To an unpruned context only _SPARSE matters.
LLAMA_API void halfv_begin_media(struct llama_context * ctx, enum halfv_media media);

// Run what needs no question now, while the person still types: coverage is chosen and carried through stage II.
// The next question adds its anchors only, at most 2.5% of the picture or 8 tokens. The kept set differs from the exact mode, where anchors come first.
// HALFV_OK; HALFV_NOTHING: no picture is waiting, or all that waits is prepared; HALFV_ERR_UNSUPPORTED, _MEMORY, _COMPUTE
LLAMA_API int32_t halfv_prepare(struct llama_context * ctx, llama_seq_id seq);

// true: every question first prepares the pictures that wait for it, as halfv_prepare would when the last of them was in. When
// a question is removed they stay prepared, as far as the states of that fit too (halfv_set_undo_bytes), so the next one computes
// its anchors and its own text: for programs that ask several questions about a picture and know only llama.h. HALFV_PREPARE=1
// in the environment sets it for new contexts. The default is false: the exact mode.
// HALFV_OK, HALFV_ERR_UNSUPPORTED
LLAMA_API int32_t halfv_set_prepare(struct llama_context * ctx, bool prepare);

// A question that is removed (llama_memory_seq_rm and its like) leaves no trace: the pictures that it pruned, and the text
// between them and it, wait again, and the next question settles them as it would have in a fresh context. That takes
// their states of stage I, on the device or the host: n_embd and n_embd_k_gqa floats a token, of text its query too where the
// question chooses (HALFV_QUERY_QUESTION), up to this many bytes for all
// sequences of a context; the default is 512 MiB. A picture whose states do not fit is not pruned (HALFV_REASON_BUDGET).
// HALFV_OK, HALFV_ERR_UNSUPPORTED
LLAMA_API int32_t halfv_set_undo_bytes(struct llama_context * ctx, uint64_t bytes);

// The budget, and what is taken of it now; either may be null. HALFV_OK, HALFV_ERR_UNSUPPORTED
LLAMA_API int32_t halfv_get_undo_bytes(const struct llama_context * ctx, uint64_t * bytes, uint64_t * used);

// false: pictures stay as the last question left them, also when it is removed, so that the next one has only its own
// text to compute and answers depend on what was asked before. Pictures are then pruned whatever the budget is, and states
// are kept for halfv_topup as far as they fit. The default is true.
// HALFV_OK, HALFV_ERR_UNSUPPORTED
LLAMA_API int32_t halfv_set_undo(struct llama_context * ctx, bool undo);

// The next text of this sequence is a new question: when it asks for output, the pruned tokens that matter most to it
// (as many as anchors of a prepared picture) join the deeper stages at their own positions.
// HALFV_OK; HALFV_NOTHING: no pruned tokens are stored; HALFV_ERR_UNSUPPORTED
LLAMA_API int32_t halfv_topup(struct llama_context * ctx, llama_seq_id seq);

//
// the vision encoder, in libmtmd
//

enum halfv_attention {
    HALFV_ATTENTION_STOCK   = 0, // as llama.cpp computes it
    HALFV_ATTENTION_WINDOWS = 1, // window by window where the model has windows, not through a mask over all patches
    HALFV_ATTENTION_FAST    = 2, // and in bfloat16 on CPUs that multiply it; the default
};

// How encoders that this thread loads from now on compute. weights: "auto", the default, is the type that is fastest here
// and keeps the embeddings; "file", as they are; "off", as llama.cpp loads them; or a type: f16, bf16, q8_0, ...
// HALFV=off or 0 in the environment makes it "off" and HALFV_ATTENTION_STOCK. HALFV_OK, HALFV_ERR_ARGUMENT
LLAMA_API int32_t halfv_set_encoder(const char * weights, enum halfv_attention attention);

// What they get, HALFV=off considered; libmtmd asks for it. The name is valid until this thread's next halfv_set_encoder.
// HALFV_OK, HALFV_ERR_ARGUMENT
LLAMA_API int32_t halfv_get_encoder(const char ** weights, enum halfv_attention * attention);

//
// what happened
//

enum halfv_outcome {
    HALFV_OUTCOME_NONE     = 0, // no picture in this sequence
    HALFV_OUTCOME_PENDING  = 1, // waits for the question
    HALFV_OUTCOME_PRUNED   = 2,
    HALFV_OUTCOME_UNPRUNED = 3, // see reason
};

enum halfv_reason {
    HALFV_REASON_NONE       = 0,
    HALFV_REASON_SMALL      = 1, // fewer tokens than min_visual_tokens
    HALFV_REASON_DISABLED   = 2, // switched off, or a profile that prunes nothing
    HALFV_REASON_OUTPUTS    = 3, // the client asked for outputs on visual rows, or for embeddings of every row
    HALFV_REASON_SHARED     = 4, // tokens that belong to several sequences at once
    HALFV_REASON_BUDGET     = 5, // no room for what it takes to undo the question: halfv_set_undo_bytes
    HALFV_REASON_UNASKED    = 6, // it had to go on before a token that could be its question
};

struct halfv_stats {
    uint32_t size;           // sizeof(struct halfv_stats)
    int32_t  outcome;        // enum halfv_outcome, of the last picture
    int32_t  reason;         // enum halfv_reason
    uint32_t n_images;
    uint32_t n_visual;       // visual tokens given
    uint32_t n_kept;         // of them in stage II
    uint32_t n_deep;         // of them updated in stage III
    uint32_t n_pending;      // tokens that wait for a question
    uint32_t n_stored;       // pruned tokens whose states are kept
    double   flops_dense;    // from the first picture on: what the whole model would have cost, and what was spent
    double   flops_spent;
    int64_t  us_stage1;      // on a GPU, stages are timed until they are launched, and us_select waits for them
    int64_t  us_select;
    int64_t  us_stage2;
    int64_t  us_frozen;      // the K and V of frozen tokens
    int64_t  us_stage3;
    uint32_t kv_cells[3];    // in use by this sequence, per stage
    uint64_t kv_bytes[3];
    uint32_t kv_size[3];     // cells that a stage has, for this sequence or, if unified, for all of them
    uint32_t n_further[HALFV_MAX_FURTHER]; // visual tokens in each stage behind III, and the same of those
    uint32_t further_cells[HALFV_MAX_FURTHER];
    uint64_t further_bytes[HALFV_MAX_FURTHER];
    uint32_t further_size[HALFV_MAX_FURTHER];
};

// HALFV_OK, HALFV_ERR_ARGUMENT, HALFV_ERR_UNSUPPORTED
LLAMA_API int32_t halfv_get_stats(const struct llama_context * ctx, llama_seq_id seq, struct halfv_stats * out);

// Visual tokens of the i-th picture of a sequence; HALFV_ERR_ARGUMENT, HALFV_ERR_UNSUPPORTED
LLAMA_API int32_t halfv_image_size(const struct llama_context * ctx, llama_seq_id seq, uint32_t image);

// The indices, within that picture, of the tokens that reached a stage (2, 3 or one behind that), ascending. Writes at most
// `cap` of them and returns how many there are; HALFV_ERR_ARGUMENT, HALFV_ERR_UNSUPPORTED
LLAMA_API int32_t halfv_image_tokens(const struct llama_context * ctx, llama_seq_id seq, uint32_t image, int32_t stage,
                                     int32_t * out, int32_t cap);

// What halfv_stats would count for a prompt of text, one picture and text, from the picture on.
// HALFV_OK, HALFV_ERR_ARGUMENT
LLAMA_API int32_t halfv_flops(const struct llama_model * model, const struct halfv_profile * profile, uint32_t n_before,
                              uint32_t n_visual, uint32_t n_after, double * dense, double * spent);

#ifdef __cplusplus
}
#endif

#endif // HALFV_H
