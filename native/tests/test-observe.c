// halfv_hold and halfv_observe from plain C: what an observer is shown, and what happens when it cannot be.
//
// test-observe MODEL: a small model of a supported architecture, 5 to 64 layers

#include "capi.h"

struct seen {
    int32_t n_boundaries, n_layer, stop_at;
    float * logits; // of the whole model
    double  furthest; // of the frozen logits from these
    bool    fine;
};

// fmax would need libm
static double larger(double a, double b) {
    return a > b ? a : b;
}

static bool watch(const struct halfv_boundary * at, void * user) {
    struct seen * seen = user;
    const bool is_end = at->layer == seen->n_layer;
    seen->fine = seen->fine && at->size == sizeof(*at) && at->layer == seen->n_boundaries && at->n_tokens == 9 + N_IMG && at->states && at->norm;
    seen->fine = seen->fine && !at->visual[3] && at->visual[4] && at->visual[3 + N_IMG] && !at->visual[4 + N_IMG];
    seen->fine = seen->fine && (at->attention == NULL) == is_end && (at->logits != NULL) == (is_end || at->layer == 1);
    double sum = is_end;
    for (int32_t i = 0; at->attention && i < at->n_tokens; ++i) {
        sum += at->attention[i];
    }
    seen->fine = seen->fine && fabs(sum - 1) < 1e-4;
    for (int32_t i = 0; at->logits && i < at->n_vocab; ++i) {
        if (is_end) {
            seen->furthest = larger(seen->furthest, fabs(at->logits[i] - seen->logits[i]));
        }
        seen->logits[i] = at->logits[i];
    }
    return seen->n_boundaries++ != seen->stop_at;
}

static llama_pos hold_prompt(struct llama_context * ctx) {
    llama_memory_clear(llama_get_memory(ctx), true);
    CHECK_RC(halfv_hold(ctx, true), HALFV_OK);
    llama_pos pos = 0;
    CHECK(feed(ctx, false, 4, false, &pos) == 0);
    CHECK(feed(ctx, true, N_IMG, false, &pos) == 0);
    return pos;
}

static void test_observe(struct llama_context * ctx) {
    const struct llama_model * model = llama_get_model(ctx);
    const int32_t n_layer = llama_model_n_layer(model), n_vocab = llama_vocab_n_tokens(llama_model_get_vocab(model));
    uint8_t freeze[64] = { 0, 1 };
    require(n_layer <= 64, "a model of at most 64 layers");
    float * logits = malloc((size_t) n_vocab*sizeof(float));
    require(logits != NULL, "no memory");

    CHECK_RC(halfv_observe(ctx, freeze, watch, NULL), HALFV_NOTHING);
    CHECK_ERR(halfv_observe(ctx, freeze, NULL, NULL), HALFV_ERR_ARGUMENT, "observer");

    struct seen seen = { 0, n_layer, -1, logits, 0, true };
    llama_pos pos = hold_prompt(ctx);
    CHECK(stats_of(ctx).kv_cells[0] == 0);
    CHECK(feed(ctx, false, 5, true, &pos) == -1); // an output
    CHECK(feed(ctx, false, 5, false, &pos) == 0);
    CHECK_RC(halfv_observe(ctx, freeze, watch, &seen), HALFV_OK);
    CHECK(seen.fine && seen.n_boundaries == n_layer + 1 && seen.furthest > 0.01);
    CHECK_RC(halfv_observe(ctx, freeze, watch, &seen), HALFV_NOTHING);
    CHECK_RC(halfv_hold(ctx, false), HALFV_OK);

    // as if it had been decoded: the last token again gives the same
    for (int stage = 0; stage < 3; ++stage) {
        CHECK(stats_of(ctx).kv_cells[stage] == 9 + N_IMG);
    }
    CHECK(llama_memory_seq_rm(llama_get_memory(ctx), 0, pos - 1, -1));
    llama_token last = 40 + 4;
    CHECK(llama_decode(ctx, llama_batch_get_one(&last, 1)) == 0);
    const float * again = llama_get_logits_ith(ctx, -1);
    double furthest = 0;
    for (int32_t i = 0; i < n_vocab; ++i) {
        furthest = larger(furthest, fabs(again[i] - logits[i]));
    }
    CHECK(furthest < 1e-2); // f16 KV, another batch size

    // stopped, ended with a picture, into memory that is not empty, given up
    seen = (struct seen) { 0, n_layer, 2, logits, 0, true };
    pos = hold_prompt(ctx);
    CHECK(feed(ctx, false, 5, false, &pos) == 0);
    CHECK_ERR(halfv_observe(ctx, NULL, watch, &seen), HALFV_ERR_COMPUTE, "stopped");
    CHECK(seen.n_boundaries == 3 && stats_of(ctx).kv_cells[0] == 0);
    hold_prompt(ctx);
    CHECK_ERR(halfv_observe(ctx, NULL, watch, &seen), HALFV_ERR_ARGUMENT, "end with text");
    pos = hold_prompt(ctx);
    CHECK_RC(halfv_hold(ctx, false), HALFV_OK);
    pos = 0;
    CHECK(feed(ctx, false, 5, false, &pos) == 0);
    CHECK_RC(halfv_hold(ctx, true), HALFV_OK);
    CHECK(feed(ctx, false, 5, false, &pos) == 0);
    CHECK_ERR(halfv_observe(ctx, NULL, watch, &seen), HALFV_ERR_ARGUMENT, "empty");

    int left = 30;
    pos = hold_prompt(ctx);
    CHECK(feed(ctx, false, 5, false, &pos) == 0);
    llama_set_abort_callback(ctx, countdown, &left);
    CHECK_ERR(halfv_observe(ctx, freeze, watch, &seen), HALFV_ERR_COMPUTE, "aborted");
    llama_set_abort_callback(ctx, NULL, NULL);
    CHECK(stats_of(ctx).kv_cells[0] == 0);
    CHECK_RC(halfv_hold(ctx, false), HALFV_OK);

    // and pruning goes on as ever
    pos = prompt_without_question(ctx, N_IMG);
    CHECK(feed(ctx, false, 5, true, &pos) == 0);
    CHECK(stats_of(ctx).n_kept == N_IMG/2);
    free(logits);
}

int main(int argc, char ** argv) {
    if (argc != 2) {
        fprintf(stderr, "usage: %s MODEL (tests/native/test_capi.py makes it)\n", argv[0]);
        return 77;
    }
    llama_backend_init();
    struct llama_model * model = llama_model_load_from_file(argv[1], llama_model_default_params());
    require(model != NULL, argv[1]);
    const struct halfv_profile profile = test_profile(model);
    CHECK_RC(halfv_model_set_profile(model, &profile), HALFV_OK);
    struct llama_context * ctx = new_context(model);
    require(ctx != NULL, "no context with a profile");
    test_observe(ctx);
    llama_free(ctx);
    llama_model_free(model);
    llama_backend_free();
    printf("%d checks, %d failed\n", n_checked, n_failed);
    return n_failed == 0 ? 0 : 1;
}
