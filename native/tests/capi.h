#pragma once

// What the C programs share: checks, and a client of llama.h.

#include "halfv-compare.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define N_CTX 1024
#define N_IMG 60

static int n_failed  = 0;
static int n_checked = 0;

static void check(bool ok, const char * what, int line) {
    n_checked++;
    if (!ok) {
        n_failed++;
        fprintf(stderr, "line %d: %s; last error: \"%s\"\n", line, what, halfv_last_error());
    }
}

// the code, and a sentence that has `word` in it when that code is an error
static void check_rc(int32_t rc, int32_t expected, const char * word, const char * what, int line) {
    if (rc != expected) {
        fprintf(stderr, "returned %d, expected %d; ", rc, expected);
    }
    check(rc == expected, what, line);
    if (rc == expected && rc < 0) {
        check(strstr(halfv_last_error(), word) != NULL, what, line);
    }
}

#define CHECK(condition)           check(condition, #condition, __LINE__)
#define CHECK_RC(call, code)       check_rc(call, code, "", #call, __LINE__)
#define CHECK_ERR(call, code, word) check_rc(call, code, word, #call, __LINE__)

static void require(bool ok, const char * what) {
    if (!ok) {
        fprintf(stderr, "cannot go on: %s\n", what);
        exit(1);
    }
}

//
// a client
//

static struct llama_model * load_model(const char * path, bool vocab_only) {
    struct llama_model_params params = llama_model_default_params();
    params.vocab_only = vocab_only;
    struct llama_model * model = llama_model_load_from_file(path, params);
    require(model != NULL, path);
    return model;
}

static struct llama_context * new_context(struct llama_model * model) {
    struct llama_context_params params = llama_context_default_params();
    params.n_ctx     = N_CTX;
    params.n_batch   = N_CTX;
    params.n_ubatch  = 64;
    params.n_seq_max = 1;
    params.n_threads = params.n_threads_batch = 1; // threads that wait for each other are slow on a busy machine
    return llama_init_from_model(model, params);
}

// n tokens, or n rows of an imaginary picture; `pos` goes on behind them
static int32_t feed(struct llama_context * ctx, bool picture, int32_t n, bool output, llama_pos * pos) {
    const struct llama_model * model = llama_get_model(ctx);
    const enum llama_rope_type rope  = llama_model_rope_type(model);
    const int32_t width = llama_model_n_embd_inp(model);
    const int32_t n_pos = rope == LLAMA_ROPE_TYPE_MROPE || rope == LLAMA_ROPE_TYPE_IMROPE ? 4 : 1;

    llama_token    token[N_CTX];
    llama_pos      place[4*N_CTX];
    int32_t        n_seq_id[N_CTX];
    llama_seq_id   seq  = 0;
    llama_seq_id * seq_id[N_CTX];
    int8_t         logits[N_CTX];
    float *        embd = (float *) malloc((size_t) n*width*sizeof(float));

    require(n <= N_CTX && embd != NULL, "a batch is too long");
    for (int32_t i = 0; i < n; ++i) {
        token[i]    = 40 + i % 100;
        n_seq_id[i] = 1;
        seq_id[i]   = &seq;
        logits[i]   = output && i == n - 1;
        for (int32_t j = 0; j < n_pos; ++j) {
            place[j*n + i] = *pos + i;
        }
        for (int32_t j = 0; j < width; ++j) {
            embd[(size_t) i*width + j] = (float) ((i*i*7 + i*j*31 + j*j*3) % 101 - 50)/25.0f;
        }
    }

    struct llama_batch batch;
    memset(&batch, 0, sizeof(batch));
    batch.n_tokens = n;
    batch.token    = picture ? NULL : token;
    batch.embd     = picture ? embd : NULL;
    batch.pos      = place;
    batch.n_seq_id = n_seq_id;
    batch.seq_id   = seq_id;
    batch.logits   = logits;
    const int32_t rc = llama_decode(ctx, batch);
    free(embd);
    if (rc == 0) {
        *pos += n;
    }
    return rc;
}

static llama_pos prompt_without_question(struct llama_context * ctx, int32_t n_image) {
    llama_pos pos = 0;
    llama_memory_clear(llama_get_memory(ctx), true);
    CHECK(feed(ctx, false, 4, false, &pos) == 0);
    CHECK(feed(ctx, true, n_image, false, &pos) == 0);
    return pos;
}

static struct halfv_stats stats_of(struct llama_context * ctx) {
    struct halfv_stats stats;
    memset(&stats, 0xff, sizeof(stats));
    stats.size = sizeof(stats);
    CHECK_RC(halfv_get_stats(ctx, 0, &stats), HALFV_OK);
    return stats;
}

static struct halfv_profile test_profile(const struct llama_model * model) {
    struct halfv_profile profile = { .size = sizeof(profile) };
    CHECK_RC(halfv_profile_default(&profile, (uint32_t) llama_model_n_layer(model)), HALFV_OK);
    profile.ivr_layer   = 2;
    profile.ivr_keep    = 0.5f;
    profile.ivr_anchors = 0.2f;
    profile.ssr_layer   = 4;
    profile.ssr_update  = 0.1f;
    profile.min_visual_tokens = 16;
    return profile;
}

// aborts once the countdown has run out
static bool countdown(void * data) {
    int * left = (int *) data;
    return (*left)-- <= 0;
}
