// A call that is aborted, or has no room, changes nothing, and the one after it gives what it always gave.
//
// test-unchanged MODEL: a small model of a supported architecture, at least 5 layers, without a profile

#include "capi.h"

static bool same_memory(const struct halfv_stats * a, const struct halfv_stats * b) {
    return a->outcome == b->outcome && a->n_pending == b->n_pending && a->n_kept == b->n_kept &&
           memcmp(a->kv_cells, b->kv_cells, sizeof(a->kv_cells)) == 0;
}

// aborted at every node, a call changes nothing, and the one that is let through gives what it always gave
static void test_aborted(struct llama_context * ctx) {
    const size_t n_vocab = (size_t) llama_vocab_n_tokens(llama_model_get_vocab(llama_get_model(ctx)));
    float * expected = malloc(n_vocab*sizeof(float));
    require(expected != NULL, "no memory");

    for (int prepared = 0; prepared < 2; ++prepared) {
        llama_pos pos = prompt_without_question(ctx, N_IMG);
        if (prepared) {
            CHECK_RC(halfv_prepare(ctx, 0), HALFV_OK);
        }
        CHECK(feed(ctx, false, 5, true, &pos) == 0);
        memcpy(expected, llama_get_logits_ith(ctx, -1), n_vocab*sizeof(float));

        int n_aborted = 0, left, rc;
        struct halfv_stats before, after;
        pos = prompt_without_question(ctx, N_IMG);
        if (prepared) {
            before = stats_of(ctx);
            for (;; ++n_aborted) {
                left = n_aborted;
                llama_set_abort_callback(ctx, countdown, &left);
                rc = halfv_prepare(ctx, 0);
                if (rc != HALFV_ERR_COMPUTE) {
                    break;
                }
                after = stats_of(ctx);
                CHECK(same_memory(&before, &after));
            }
            CHECK(rc == HALFV_OK && n_aborted > 20);
            llama_set_abort_callback(ctx, NULL, NULL);
        }
        before    = stats_of(ctx);
        n_aborted = 0;
        for (;; ++n_aborted) {
            left = n_aborted;
            llama_set_abort_callback(ctx, countdown, &left);
            rc = feed(ctx, false, 5, true, &pos);
            if (rc != 2) {
                break;
            }
            after = stats_of(ctx);
            CHECK(same_memory(&before, &after));
        }
        CHECK(rc == 0 && n_aborted > 40);
        llama_set_abort_callback(ctx, NULL, NULL);
        CHECK(memcmp(expected, llama_get_logits_ith(ctx, -1), n_vocab*sizeof(float)) == 0);
        CHECK(stats_of(ctx).n_kept == N_IMG/2);
    }
    free(expected);
}

static void test_small_stage(struct llama_model * model) {
    CHECK_RC(halfv_model_set_stage_cells(model, 0, 256, 256), HALFV_OK);
    struct llama_context * ctx = new_context(model);
    require(ctx != NULL, "no context with small stages");
    llama_pos pos = prompt_without_question(ctx, 700);
    const struct halfv_stats before = stats_of(ctx);
    CHECK_ERR(halfv_prepare(ctx, 0), HALFV_ERR_MEMORY, "KV cache");
    struct halfv_stats after = stats_of(ctx);
    CHECK(same_memory(&before, &after));
    CHECK(feed(ctx, false, 5, true, &pos) == 1);
    after = stats_of(ctx);
    CHECK(same_memory(&before, &after));

    CHECK_RC(halfv_set_keep(ctx, 0.25f), HALFV_OK);
    CHECK(feed(ctx, false, 5, true, &pos) == 0);
    CHECK(stats_of(ctx).n_kept == 700/4);
    llama_free(ctx);
    CHECK_RC(halfv_model_set_stage_cells(model, 0, 0, 0), HALFV_OK);
}

int main(int argc, char ** argv) {
    if (argc != 2) {
        fprintf(stderr, "usage: %s MODEL (tests/native/test_capi.py makes it)\n", argv[0]);
        return 77;
    }
    llama_backend_init();
    struct llama_model * model = load_model(argv[1], false);
    struct halfv_profile profile = test_profile(model);
    CHECK_RC(halfv_model_set_profile(model, &profile), HALFV_OK);
    test_small_stage(model);
    for (int frozen = 0; frozen < 2; ++frozen) {
        profile.ssr_rest = frozen ? HALFV_REST_FROZEN : HALFV_REST_DROPPED;
        CHECK_RC(halfv_model_set_profile(model, &profile), HALFV_OK);
        struct llama_context * ctx = new_context(model);
        require(ctx != NULL, "no context");
        test_aborted(ctx);
        llama_free(ctx);
    }
    llama_model_free(model);
    llama_backend_free();
    printf("%d checks, %d failed\n", n_checked, n_failed);
    return n_failed == 0 ? 0 : 1;
}
