#ifndef HALFV_COMPARE_H
#define HALFV_COMPARE_H

// For `halfv bench`, `halfv eval` and `halfv calibrate`: not part of the plug-in's promise, and only there when libllama was
// built with HALFV_COMPARE, the default.

#include "halfv.h"

#ifdef __cplusplus
extern "C" {
#endif

//
// other ways to choose tokens, to compare HalfV with. They take their layers and shares from the profile; pictures are then
// neither prepared nor topped up.
//

enum halfv_choice {
    HALFV_CHOICE_HALFV     = 0, // anchors and coverage in stage II, attention in stage III: the default
    HALFV_CHOICE_RANDOM    = 1,
    HALFV_CHOICE_UNIFORM   = 2, // evenly spread
    HALFV_CHOICE_ATTENTION = 3, // the last token's attention to all tokens, as FastV and PyramidDrop rank them
    HALFV_CHOICE_DART      = 4, // least like a few pivots; in stage III as ATTENTION
    HALFV_CHOICE_GIVEN     = 5, // by the chooser of halfv_set_chooser
};

// ATTENTION, DART and GIVEN hold back text before a picture as well, from an empty sequence on; `seed` is RANDOM's.
// HALFV_OK; HALFV_ERR_ARGUMENT: no such choice, or a picture waits for its question, or nobody to choose; HALFV_ERR_UNSUPPORTED
LLAMA_API int32_t halfv_set_choice(struct llama_context * ctx, int32_t choice, uint32_t seed);

// What a chooser sees where a stage begins: rows in prompt order, first the text before the picture, then the picture's tokens
// that are left, then the text after it, up to the question's last token. Other pictures are not among them.
struct halfv_choosing {
    uint32_t        size;      // sizeof(struct halfv_choosing), set by the library
    int32_t         stage;     // that begins: 2, 3 or one behind that
    int32_t         n_before;  // rows of text
    int32_t         n_visual;
    int32_t         n_after;   // rows of text
    int32_t         n_keep;    // how many visual ones to choose
    int32_t         n_embd;
    int32_t         n_head;
    int32_t         n_head_kv;
    int32_t         head_dim;
    const int32_t * index;     // [n_visual], which tokens of the picture these are
    const float   * states;    // [rows][n_embd], entering the stage, before any norm
    const float   * features;  // the same after the model's last norm, each of length 1
    const float   * keys;      // [rows][n_head_kv][head_dim], of the layer before, with RoPE
    const float   * queries;   // [n_before + n_after][n_head][head_dim], of text, likewise
    const float   * visual_queries; // [n_visual][n_head][head_dim]
};

// Writes at most n_keep different numbers from 0 to n_visual - 1, in any order, and to `flops` what that took; returns how
// many. A negative number fails the batch. The pointers are valid until it returns.
typedef int32_t (*halfv_chooser)(const struct halfv_choosing * seen, int32_t * chosen, double * flops, void * user);

// Who chooses under HALFV_CHOICE_GIVEN; null: nobody. HALFV_OK, HALFV_ERR_UNSUPPORTED; HALFV_ERR_ARGUMENT: a picture waits for
// its question
LLAMA_API int32_t halfv_set_chooser(struct llama_context * ctx, halfv_chooser chooser, void * user);

// The row of a token in the model's table of embeddings, [n_embd]: what its text is before the first layer.
// HALFV_OK; HALFV_ERR_ARGUMENT: no such token, or null
LLAMA_API int32_t halfv_token_embedding(const struct llama_model * model, int32_t token, float * row);

//
// looking inside an unpruned prompt, for calibration. The context needs a profile; the default one will do.
//

struct halfv_boundary {
    uint32_t        size;      // sizeof(struct halfv_boundary), set by the library
    int32_t         layer;     // which layer's input this is; the number of layers: the output of the last
    int32_t         n_tokens;
    int32_t         n_embd;
    int32_t         n_vocab;
    float           norm_eps;
    const float   * norm;      // [n_embd], of the model's final RMS norm
    const float   * states;    // [n_tokens][n_embd], in prompt order, before any norm; the first of several
    const uint8_t * visual;    // [n_tokens], 1 where a token is visual
    const float   * attention; // [n_tokens]: where the last token looks here, mean over heads, or null
    const float   * logits;    // [n_vocab], of the last token. At the end the model's; before that what they would
                               // be if this layer left the visual tokens as they are, null where not asked for
};

// Called at each boundary in turn; the pointers are valid until it returns. false stops.
typedef bool (*halfv_observer)(const struct halfv_boundary * boundary, void * user);

// From here on llama_decode only keeps what it is given: one sequence, into empty memory, without outputs. false, or a
// second true, forgets it.
// HALFV_OK, HALFV_ERR_UNSUPPORTED
LLAMA_API int32_t halfv_hold(struct llama_context * ctx, bool hold);

// Run what was held through the model layer by layer, unpruned, and leave the sequence as if it had been decoded (its
// last token asked for no output). `freeze` (null: none) has a flag per layer: whether to try that layer frozen, at the
// cost of all layers behind it; left out where it, or a layer behind it, is recurrent or has no cache of its own.
// Host memory: about five times the states of one boundary and the logits of one token.
// HALFV_OK; HALFV_NOTHING: nothing is held; HALFV_ERR_ARGUMENT: the prompt ends with a picture, or memory is not empty;
// HALFV_ERR_UNSUPPORTED, _MEMORY; HALFV_ERR_COMPUTE: failed, aborted or stopped. After an error the sequence is empty.
LLAMA_API int32_t halfv_observe(struct llama_context * ctx, const uint8_t * freeze, halfv_observer observer, void * user);

#ifdef __cplusplus
}
#endif

#endif // HALFV_COMPARE_H
