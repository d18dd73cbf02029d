#ifndef HALFV_COMPARE_H
#define HALFV_COMPARE_H

// Other ways to choose tokens, to compare HalfV with: for `halfv bench` and `halfv eval`, not part of the plug-in's promise.
// They take their layers and shares from the profile; pictures are then neither prepared nor topped up.

#include "halfv.h"

#ifdef __cplusplus
extern "C" {
#endif

enum halfv_choice {
    HALFV_CHOICE_HALFV     = 0, // anchors and coverage in stage II, attention in stage III: the default
    HALFV_CHOICE_RANDOM    = 1,
    HALFV_CHOICE_UNIFORM   = 2, // evenly spread
    HALFV_CHOICE_ATTENTION = 3, // the last token's attention to all tokens, as FastV and PyramidDrop rank them
    HALFV_CHOICE_DART      = 4, // least like a few pivots; in stage III as ATTENTION
};

// ATTENTION and DART hold back text before a picture as well, from an empty sequence on; `seed` is RANDOM's.
// HALFV_OK; HALFV_ERR_ARGUMENT: no such choice, or a picture waits for its question; HALFV_ERR_UNSUPPORTED
LLAMA_API int32_t halfv_set_choice(struct llama_context * ctx, int32_t choice, uint32_t seed);

#ifdef __cplusplus
}
#endif

#endif // HALFV_COMPARE_H
