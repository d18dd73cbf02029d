#ifndef HALFV_MTMD_H
#define HALFV_MTMD_H

// What libmtmd says beside mtmd.h: of pictures of which only some rows go on to the language model (halfv.input.keep), of
// frames of one scene, and of how far an encoder is.

#include "halfv.h"
#include "mtmd.h"

#ifdef __cplusplus
extern "C" {
#endif

// halfv_begin_media with what the chunk is. mtmd_helper_decode_image_chunk calls it for the context that it feeds; others that
// are given the same rows, as a draft model's is, have to be told as well. ctx may be null.
MTMD_API void halfv_begin_chunk(struct llama_context * ctx, const mtmd_input_chunk * chunk);

// mtmd_image_tokens_get_n_tokens counts the rows that go on, and mtmd_encode_chunk and its like leave just these.

// Rows that the encoder and its projector give of a picture, or of one tile of it, before any choice among them.
MTMD_API size_t halfv_picture_rows(const mtmd_image_tokens * picture);

// Tokens that the picture would have become in its own size, where it was made smaller (halfv.image.loss); else 0. What a
// model says of places counts in the smaller one: nx*ny tokens, mtmd_image_tokens_get_nx and _ny.
MTMD_API size_t halfv_picture_full_tokens(const mtmd_image_tokens * picture);

// Where in the picture's grid, row by row, each of them is: 0, 1, 2, ... but for patches that stayed out of the encoder.
// Writes at most `cap` and returns how many there are.
MTMD_API int32_t halfv_picture_places(const mtmd_image_tokens * picture, int32_t * out, int32_t cap);

// Groups of patches of which the encoder's later layers see only some (halfv.encoder.keep), and how many: 0 and 0 where they see
// everything, as in a picture that is small or an encoder that always runs whole.
MTMD_API int32_t halfv_picture_groups(const mtmd_image_tokens * picture, int32_t * n_seen);

// The last layer that halfv.encoder.layer can name for this encoder; 0: it always runs whole.
MTMD_API int32_t halfv_last_cut(const mtmd_context * ctx);

// What the pictures of a message showed so far (halfv.frames.tau). mtmd_tokenize compares those of one text by itself, up to a
// token that ends a message. A program that hands them over one by one keeps this between the calls, for one thread at a time.
typedef struct halfv_frames halfv_frames;
MTMD_API halfv_frames * halfv_frames_init(void); // null: out of memory
MTMD_API void halfv_frames_free(halfv_frames * frames);

// Texts that this thread tokenizes from now on go on with these frames; null: each has its own.
MTMD_API void halfv_follow_frames(halfv_frames * frames);

#define HALFV_ROWS_UNKNOWN -1

// Which of them go on, ascending: writes at most `cap` and returns how many there are. HALFV_ROWS_UNKNOWN: that is not
// known before the chunk, or one that it is a copy of, has been encoded. Copies know it as soon as it is, saved chunks if it was.
MTMD_API int32_t halfv_picture_kept(const mtmd_image_tokens * picture, int32_t * out, int32_t cap);

// For a program that keeps embeddings, and with them the rows that they are of: a chunk that was not encoded knows them as well.
// HALFV_OK; HALFV_ERR_ARGUMENT: not as many as its tokens, ascending rows of the picture, or all of its rows go on anyway
MTMD_API int32_t halfv_picture_set_kept(const mtmd_image_tokens * picture, const int32_t * rows, int32_t n);

// The share of a picture, or of one tile of it, that the encoder is through with, above 0 and at most 1. Called on the thread
// that encodes, which must not call into libmtmd from there.
typedef void (*halfv_encode_callback)(float share, void * user_data);

// Watches what this thread encodes from now on; a callback of NULL ends that. At most one call every so many seconds, and none
// for what takes less; 0: one after every layer. mtmd_context_params.cb_eval is no longer called once this has been used.
MTMD_API void halfv_watch_encoding(halfv_encode_callback callback, void * user_data, float every_sec);

#ifdef __cplusplus
}
#endif

#endif // HALFV_MTMD_H
