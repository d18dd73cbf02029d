// Every function of halfv.h from plain C: what it gives, and what it says to null and out-of-range arguments.
//
// test-capi MODEL OTHER_MODEL BAD_PROFILE_MODEL
//   MODEL              a small model of a supported architecture, at least 5 layers, without a profile
//   OTHER_MODEL        one of another architecture; a vocabulary is enough
//   BAD_PROFILE_MODEL  like MODEL, with a profile whose halfv.ivr.keep is 7

#include "capi.h"

static bool ascending_within(const int32_t * tokens, int32_t n, int32_t end) {
    for (int32_t i = 0; i < n; ++i) {
        if (tokens[i] < 0 || tokens[i] >= end || (i > 0 && tokens[i] <= tokens[i - 1])) {
            return false;
        }
    }
    return true;
}

//
// tests
//

static void test_encoder_settings(void) {
    CHECK_RC(halfv_set_encoder("bf16", HALFV_ATTENTION_WINDOWS), HALFV_OK);
    CHECK_ERR(halfv_set_encoder("q3", HALFV_ATTENTION_FAST), HALFV_ERR_ARGUMENT, "'q3'");
    CHECK_ERR(halfv_set_encoder(NULL, HALFV_ATTENTION_FAST), HALFV_ERR_ARGUMENT, "null");
    CHECK_ERR(halfv_set_encoder("auto", (enum halfv_attention) 3), HALFV_ERR_ARGUMENT, "attention = 3");
    const char * weights = NULL;
    enum halfv_attention attention = HALFV_ATTENTION_STOCK;
    CHECK_RC(halfv_get_encoder(&weights, &attention), HALFV_OK);
    CHECK(weights && strcmp(weights, "bf16") == 0 && attention == HALFV_ATTENTION_WINDOWS);
    CHECK_ERR(halfv_get_encoder(NULL, &attention), HALFV_ERR_ARGUMENT, "null");
    CHECK_ERR(halfv_get_encoder(&weights, NULL), HALFV_ERR_ARGUMENT, "null");
    CHECK_RC(halfv_set_encoder("auto", HALFV_ATTENTION_FAST), HALFV_OK);
}

static void test_profile_rules(void) {
    CHECK(strlen(halfv_version()) > 0);

    struct halfv_profile good = { .size = sizeof(good) };
    CHECK_RC(halfv_profile_default(&good, 24), HALFV_OK);
    CHECK_ERR(halfv_profile_default(NULL, 24), HALFV_ERR_ARGUMENT, "null");
    CHECK(good.ivr_keep == 1.0f && good.ssr_layer == 24);
    CHECK_RC(halfv_profile_validate(&good, 24), HALFV_OK);
    CHECK_ERR(halfv_profile_validate(NULL, 24), HALFV_ERR_ARGUMENT, "null");
    CHECK_ERR(halfv_profile_validate(&good, 0), HALFV_ERR_ARGUMENT, "halfv.ivr.layer");

    // each field alone, out of range
#define BAD(field, value, word) do { \
        struct halfv_profile bad = good; \
        bad.field = value; \
        CHECK_ERR(halfv_profile_validate(&bad, 24), HALFV_ERR_ARGUMENT, word); \
    } while (0)
    BAD(ivr_layer, 0, "halfv.ivr.layer = 0 ");
    BAD(ivr_layer, 24, "halfv.ivr.layer = 24 ");
    BAD(ivr_layer, UINT32_MAX, "halfv.ivr.layer");
    BAD(ivr_keep, 0.0f, "halfv.ivr.keep = 0 ");
    BAD(ivr_keep, -0.5f, "halfv.ivr.keep = -0.5 ");
    BAD(ivr_keep, 1.5f, "halfv.ivr.keep = 1.5 ");
    BAD(ivr_keep, NAN, "halfv.ivr.keep");
    BAD(ivr_keep, INFINITY, "halfv.ivr.keep");
    BAD(ivr_anchors, -0.1f, "halfv.ivr.anchors");
    BAD(ivr_anchors, 1.1f, "halfv.ivr.anchors");
    BAD(ivr_anchors, NAN, "halfv.ivr.anchors");
    BAD(ssr_layer, 1, "halfv.ssr.layer = 1 ");
    BAD(ssr_layer, 25, "halfv.ssr.layer = 25 ");
    BAD(ssr_update, -0.1f, "halfv.ssr.update");
    BAD(ssr_update, 1.1f, "halfv.ssr.update");
    BAD(ssr_update, NAN, "halfv.ssr.update");
    BAD(input_keep, 0.0f, "halfv.input.keep = 0 ");
    BAD(input_keep, 1.5f, "halfv.input.keep = 1.5 ");
    BAD(input_keep, NAN, "halfv.input.keep");
    BAD(encoder_layer, 0, "halfv.encoder.layer = 0 ");
    BAD(encoder_keep, 0.0f, "halfv.encoder.keep = 0 ");
    BAD(encoder_keep, 1.5f, "halfv.encoder.keep = 1.5 ");
    BAD(ssr_rest, 2, "halfv.ssr.rest = 2 ");
    BAD(ssr_rest, -1, "halfv.ssr.rest = -1 ");
#undef BAD
}

static void test_model(struct llama_model * model) {
    const uint32_t n_layer = (uint32_t) llama_model_n_layer(model);
    struct halfv_profile profile = test_profile(model), out = { .size = sizeof(out) };

    CHECK(halfv_model_supported(model));
    CHECK(!halfv_model_supported(NULL));

    CHECK_RC(halfv_model_get_profile(model, &out), HALFV_NOTHING);
    CHECK_ERR(halfv_model_get_profile(NULL, &out), HALFV_ERR_ARGUMENT, "null");
    CHECK_ERR(halfv_model_get_profile(model, NULL), HALFV_ERR_ARGUMENT, "null");

    CHECK_ERR(halfv_model_set_profile(NULL, &profile), HALFV_ERR_ARGUMENT, "null");
    profile.ssr_layer = n_layer + 1;
    CHECK_ERR(halfv_model_set_profile(model, &profile), HALFV_ERR_ARGUMENT, "halfv.ssr.layer");
    CHECK_RC(halfv_model_get_profile(model, &out), HALFV_NOTHING);
    profile.ssr_layer = n_layer;
    CHECK_RC(halfv_model_set_profile(model, &profile), HALFV_OK);
    CHECK_RC(halfv_model_get_profile(model, &out), HALFV_OK);
    CHECK(memcmp(&out, &profile, sizeof(out)) == 0);
    CHECK_RC(halfv_model_set_profile(model, NULL), HALFV_OK);
    CHECK_RC(halfv_model_get_profile(model, &out), HALFV_NOTHING);

    CHECK_ERR(halfv_model_set_stage_cells(NULL, 0, 0, 0), HALFV_ERR_ARGUMENT, "null");
    CHECK_RC(halfv_model_set_stage_cells(model, 0, 0, 0), HALFV_OK);
}

// A program built with an older header knows fewer members: those behind are neither read nor written.
static void test_sizes(struct llama_model * model) {
    const uint32_t n_layer = (uint32_t) llama_model_n_layer(model);
    const uint32_t before_pixels = offsetof(struct halfv_profile, pixel_prune);
    struct halfv_profile older = { .size = before_pixels }, out = { .size = sizeof(out) };
    older.pixel_tau = -7.0f;
    CHECK_RC(halfv_profile_default(&older, n_layer), HALFV_OK);
    CHECK(older.size == before_pixels && older.ssr_layer == n_layer && older.pixel_tau == -7.0f);
    older.pixel_prune = true; // would be invalid with such a tau
    CHECK_RC(halfv_profile_validate(&older, n_layer), HALFV_OK);
    CHECK_RC(halfv_model_set_profile(model, &older), HALFV_OK);
    CHECK_RC(halfv_model_get_profile(model, &out), HALFV_OK);
    CHECK(out.size == sizeof(out) && out.ssr_layer == n_layer && !out.pixel_prune && out.pixel_tau == 0.0f);
    CHECK_RC(halfv_model_get_profile(model, &older), HALFV_OK);
    CHECK(older.size == before_pixels && older.pixel_prune && older.pixel_tau == -7.0f);

    struct llama_context * ctx = new_context(model);
    require(ctx != NULL, "no context with a profile");
    struct halfv_stats few;
    memset(&few, 0x5a, sizeof(few));
    const struct halfv_stats untouched = few;
    few.size = offsetof(struct halfv_stats, kv_cells);
    llama_pos pos = prompt_without_question(ctx, N_IMG);
    CHECK_RC(halfv_get_stats(ctx, 0, &few), HALFV_OK);
    CHECK(few.size == offsetof(struct halfv_stats, kv_cells) && few.n_visual == N_IMG && pos == 4 + N_IMG);
    CHECK(memcmp(few.kv_cells, untouched.kv_cells, sizeof(few) - few.size) == 0);

    // none of these can be
    const uint32_t sizes[] = { 0, 4, before_pixels - 4, before_pixels + 1, sizeof(older) + 4, UINT32_MAX };
    double dense, spent;
    for (size_t i = 0; i < sizeof(sizes)/sizeof(sizes[0]); ++i) {
        struct halfv_profile profile = older;
        char word[32];
        snprintf(word, sizeof(word), "size = %u ", sizes[i]);
        profile.size = sizes[i];
        CHECK_ERR(halfv_profile_default(&profile, n_layer), HALFV_ERR_ARGUMENT, word);
        CHECK_ERR(halfv_profile_validate(&profile, n_layer), HALFV_ERR_ARGUMENT, word);
        CHECK_ERR(halfv_model_set_profile(model, &profile), HALFV_ERR_ARGUMENT, word);
        CHECK_ERR(halfv_model_get_profile(model, &profile), HALFV_ERR_ARGUMENT, word);
        CHECK_ERR(halfv_get_profile(ctx, &profile), HALFV_ERR_ARGUMENT, word);
        CHECK_ERR(halfv_flops(model, &profile, 4, N_IMG, 5, &dense, &spent), HALFV_ERR_ARGUMENT, word);
        CHECK(profile.size == sizes[i] && profile.ivr_keep == older.ivr_keep);
    }
    const uint32_t stats_sizes[] = { 0, 8, offsetof(struct halfv_stats, kv_cells) - 8, sizeof(few) - 4, sizeof(few) + 8, UINT32_MAX };
    for (size_t i = 0; i < sizeof(stats_sizes)/sizeof(stats_sizes[0]); ++i) {
        few.size = stats_sizes[i];
        CHECK_ERR(halfv_get_stats(ctx, 0, &few), HALFV_ERR_ARGUMENT, "size = ");
    }
    llama_free(ctx);
    CHECK_RC(halfv_model_set_profile(model, NULL), HALFV_OK);
}

static void test_other_architecture(struct llama_model * model) {
    struct halfv_profile profile = test_profile(model);
    CHECK(!halfv_model_supported(model));
    CHECK_RC(halfv_model_get_profile(model, &profile), HALFV_NOTHING);
    CHECK_ERR(halfv_model_set_profile(model, &profile), HALFV_ERR_UNSUPPORTED, "architecture");
    CHECK_RC(halfv_profile_default(&profile, llama_model_n_layer(model)), HALFV_OK);
    profile.input_keep = 0.5f; // for the encoder
    CHECK_RC(halfv_model_set_profile(model, &profile), HALFV_OK);
    profile.input_keep = 0.0f;
    CHECK_RC(halfv_model_get_profile(model, &profile), HALFV_OK);
    CHECK(profile.input_keep == 0.5f);
    CHECK_RC(halfv_model_set_profile(model, NULL), HALFV_OK);
}

static void test_bad_file(struct llama_model * model) {
    struct halfv_profile profile = { .size = sizeof(profile) };
    CHECK_ERR(halfv_model_get_profile(model, &profile), HALFV_ERR_ARGUMENT, "halfv.ivr.keep = 7 ");
    CHECK(new_context(model) == NULL);

    // the program lives, and can go on without it
    CHECK_RC(halfv_model_set_profile(model, NULL), HALFV_OK);
    struct llama_context * ctx = new_context(model);
    require(ctx != NULL, "no context after the bad profile was taken away");
    llama_pos pos = prompt_without_question(ctx, N_IMG);
    CHECK(feed(ctx, false, 4, true, &pos) == 0);
    llama_free(ctx);
}

// what each function of a context says to a context that is null or unpruned
static void test_refusals(struct llama_context * ctx, int32_t code, const char * word) {
    struct halfv_profile profile = { .size = sizeof(profile) };
    struct halfv_stats stats = { .size = sizeof(stats) };
    int32_t tokens[4];
    CHECK_ERR(halfv_get_profile(ctx, &profile), code, word);
    CHECK_ERR(halfv_set_enabled(ctx, false), code, word);
    CHECK_ERR(halfv_set_keep(ctx, 0.5f), code, word);
    CHECK_ERR(halfv_seq_set_enabled(ctx, 0, false), code, word);
    CHECK_ERR(halfv_seq_set_keep(ctx, 0, 0.5f), code, word);
    CHECK_ERR(halfv_prepare(ctx, 0), code, word);
    CHECK_ERR(halfv_set_prepare(ctx, true), code, word);
    CHECK_ERR(halfv_set_undo_bytes(ctx, 1 << 20), code, word);
    CHECK_ERR(halfv_get_undo_bytes(ctx, NULL, NULL), code, word);
    CHECK_ERR(halfv_set_undo(ctx, false), code, word);
    CHECK_ERR(halfv_topup(ctx, 0), code, word);
    CHECK_ERR(halfv_get_stats(ctx, 0, &stats), code, word);
    CHECK_ERR(halfv_image_size(ctx, 0, 0), code, word);
    CHECK_ERR(halfv_image_tokens(ctx, 0, 0, 2, tokens, 4), code, word);
    CHECK_ERR(halfv_hold(ctx, true), code, word);
    CHECK_ERR(halfv_observe(ctx, NULL, NULL, NULL), code, word);
    halfv_begin_media(ctx, HALFV_MEDIA_OTHER);
    halfv_begin_media(ctx, HALFV_MEDIA_VISUAL);
}

static void test_arguments(struct llama_context * ctx, const struct halfv_profile * profile) {
    struct halfv_profile out = { .size = sizeof(out) };
    CHECK_RC(halfv_get_profile(ctx, &out), HALFV_OK);
    CHECK(memcmp(&out, profile, sizeof(out)) == 0);
    CHECK_ERR(halfv_get_profile(ctx, NULL), HALFV_ERR_ARGUMENT, "null");

    CHECK_ERR(halfv_set_keep(ctx, 0.0f), HALFV_ERR_ARGUMENT, "halfv.ivr.keep = 0 ");
    CHECK_ERR(halfv_set_keep(ctx, 1.01f), HALFV_ERR_ARGUMENT, "halfv.ivr.keep = 1.01 ");
    CHECK_ERR(halfv_set_keep(ctx, NAN), HALFV_ERR_ARGUMENT, "halfv.ivr.keep");
    CHECK_RC(halfv_get_profile(ctx, &out), HALFV_OK);
    CHECK(out.ivr_keep == profile->ivr_keep);
    CHECK_ERR(halfv_seq_set_keep(ctx, 0, 1.01f), HALFV_ERR_ARGUMENT, "halfv.ivr.keep = 1.01 ");
    CHECK_ERR(halfv_seq_set_keep(ctx, 0, NAN), HALFV_ERR_ARGUMENT, "halfv.ivr.keep");
    CHECK_ERR(halfv_seq_set_keep(ctx, -1, 0.5f), HALFV_ERR_ARGUMENT, "sequence -1 ");
    CHECK_ERR(halfv_seq_set_enabled(ctx, -1, false), HALFV_ERR_ARGUMENT, "sequence -1 ");
    CHECK_RC(halfv_set_keep(ctx, 1.0f), HALFV_OK);
    CHECK_RC(halfv_set_keep(ctx, profile->ivr_keep), HALFV_OK);

    const llama_seq_id no_seq[] = { -1, 1, INT32_MAX, INT32_MIN };
    struct halfv_stats stats = { .size = sizeof(stats) };
    int32_t tokens[4];
    for (size_t i = 0; i < sizeof(no_seq)/sizeof(no_seq[0]); ++i) {
        CHECK_ERR(halfv_prepare(ctx, no_seq[i]), HALFV_ERR_ARGUMENT, "sequence");
        CHECK_ERR(halfv_topup(ctx, no_seq[i]), HALFV_ERR_ARGUMENT, "sequence");
        CHECK_ERR(halfv_get_stats(ctx, no_seq[i], &stats), HALFV_ERR_ARGUMENT, "sequence");
        CHECK_ERR(halfv_image_size(ctx, no_seq[i], 0), HALFV_ERR_ARGUMENT, "sequence");
        CHECK_ERR(halfv_image_tokens(ctx, no_seq[i], 0, 2, tokens, 4), HALFV_ERR_ARGUMENT, "sequence");
    }
    CHECK_ERR(halfv_get_stats(ctx, 0, NULL), HALFV_ERR_ARGUMENT, "null");

    // nothing there yet
    CHECK_RC(halfv_prepare(ctx, 0), HALFV_NOTHING);
    CHECK_RC(halfv_topup(ctx, 0), HALFV_NOTHING);
    CHECK_ERR(halfv_image_size(ctx, 0, 0), HALFV_ERR_ARGUMENT, "picture 0 ");
    CHECK_ERR(halfv_image_tokens(ctx, 0, 0, 2, tokens, 4), HALFV_ERR_ARGUMENT, "picture 0 ");
    stats = stats_of(ctx);
    CHECK(stats.outcome == HALFV_OUTCOME_NONE && stats.reason == HALFV_REASON_NONE);
    CHECK(stats.n_images == 0 && stats.n_visual == 0 && stats.n_pending == 0 && stats.kv_cells[0] == 0);
}

static void test_picture(struct llama_context * ctx) {
    llama_pos pos = prompt_without_question(ctx, N_IMG);
    struct halfv_stats stats = stats_of(ctx);
    CHECK(stats.outcome == HALFV_OUTCOME_PENDING && stats.n_images == 1 && stats.n_visual == N_IMG);
    CHECK(stats.n_pending == N_IMG && stats.kv_cells[0] == 4 + N_IMG && stats.kv_cells[1] == 4);
    CHECK(halfv_image_size(ctx, 0, 0) == N_IMG);
    CHECK(halfv_image_tokens(ctx, 0, 0, 2, NULL, 0) == 0);

    CHECK(feed(ctx, false, 5, true, &pos) == 0);
    CHECK(llama_get_logits_ith(ctx, -1) != NULL);
    stats = stats_of(ctx);
    CHECK(stats.outcome == HALFV_OUTCOME_PRUNED && stats.reason == HALFV_REASON_NONE);
    CHECK(stats.n_kept == N_IMG/2 && stats.n_deep == N_IMG/10 && stats.n_pending == 0);
    CHECK(stats.flops_spent > 0 && stats.flops_spent < stats.flops_dense);
    CHECK(stats.us_stage1 > 0 && stats.us_stage2 > 0 && stats.us_stage3 > 0 && stats.us_select >= 0);
    CHECK(stats.kv_cells[0] == 9 + N_IMG && stats.kv_cells[1] == 9 + N_IMG/2 && stats.kv_cells[2] == 9 + N_IMG/10);
    for (int i = 0; i < 3; ++i) {
        CHECK(stats.kv_bytes[i] > 0 && stats.kv_bytes[i] % stats.kv_cells[i] == 0);
        CHECK(stats.kv_size[i] >= stats.kv_cells[i]);
    }

    int32_t kept[N_IMG], deep[N_IMG], few[N_IMG];
    CHECK(halfv_image_tokens(ctx, 0, 0, 2, kept, N_IMG) == N_IMG/2);
    CHECK(halfv_image_tokens(ctx, 0, 0, 3, deep, N_IMG) == N_IMG/10);
    CHECK(ascending_within(kept, N_IMG/2, N_IMG) && ascending_within(deep, N_IMG/10, N_IMG));
    few[3] = -7;
    CHECK(halfv_image_tokens(ctx, 0, 0, 2, few, 3) == N_IMG/2);
    CHECK(memcmp(few, kept, 3*sizeof(int32_t)) == 0 && few[3] == -7);
    few[0] = -7;
    CHECK(halfv_image_tokens(ctx, 0, 0, 2, few, -1) == N_IMG/2 && few[0] == -7);
    CHECK_ERR(halfv_image_tokens(ctx, 0, 0, 1, few, 3), HALFV_ERR_ARGUMENT, "stage 1 ");
    CHECK_ERR(halfv_image_tokens(ctx, 0, 0, 8, few, 3), HALFV_ERR_ARGUMENT, "stage 8 ");
    CHECK_ERR(halfv_image_tokens(ctx, 0, 1, 2, few, 3), HALFV_ERR_ARGUMENT, "picture 1 ");
    CHECK_ERR(halfv_image_size(ctx, 0, UINT32_MAX), HALFV_ERR_ARGUMENT, "picture 4294967295 ");
}

static void test_switches(struct llama_context * ctx, float keep) {
    CHECK_RC(halfv_set_enabled(ctx, false), HALFV_OK);
    llama_pos pos = prompt_without_question(ctx, N_IMG);
    CHECK(feed(ctx, false, 5, true, &pos) == 0);
    struct halfv_stats stats = stats_of(ctx);
    CHECK(stats.outcome == HALFV_OUTCOME_UNPRUNED && stats.reason == HALFV_REASON_DISABLED);
    CHECK(stats.kv_cells[2] == 9 + N_IMG);
    CHECK_RC(halfv_set_enabled(ctx, true), HALFV_OK);

    CHECK_RC(halfv_set_keep(ctx, 0.25f), HALFV_OK);
    pos = prompt_without_question(ctx, N_IMG);
    CHECK(feed(ctx, false, 5, true, &pos) == 0);
    CHECK(stats_of(ctx).n_kept == N_IMG/4);
    CHECK_RC(halfv_set_keep(ctx, keep), HALFV_OK);

    // the same for one sequence, and back
    CHECK_RC(halfv_seq_set_keep(ctx, 0, 0.75f), HALFV_OK);
    pos = prompt_without_question(ctx, N_IMG);
    CHECK(feed(ctx, false, 5, true, &pos) == 0);
    CHECK(stats_of(ctx).n_kept == N_IMG*3/4);
    CHECK_RC(halfv_seq_set_enabled(ctx, 0, false), HALFV_OK);
    pos = prompt_without_question(ctx, N_IMG);
    CHECK(feed(ctx, false, 5, true, &pos) == 0);
    stats = stats_of(ctx);
    CHECK(stats.outcome == HALFV_OUTCOME_UNPRUNED && stats.reason == HALFV_REASON_DISABLED && stats.kv_cells[2] == 9 + N_IMG);
    CHECK_RC(halfv_seq_set_enabled(ctx, 0, true), HALFV_OK);
    CHECK_RC(halfv_seq_set_keep(ctx, 0, 0.0f), HALFV_OK);
    struct halfv_profile profile = { .size = sizeof(profile) };
    CHECK_RC(halfv_get_profile(ctx, &profile), HALFV_OK);
    CHECK(profile.ivr_keep == keep);
    pos = prompt_without_question(ctx, N_IMG);
    CHECK(feed(ctx, false, 5, true, &pos) == 0);
    CHECK(stats_of(ctx).n_kept == (uint32_t) (N_IMG*keep + 0.5f));

    // sound is left whole
    halfv_begin_media(ctx, HALFV_MEDIA_OTHER);
    pos = prompt_without_question(ctx, N_IMG);
    CHECK(feed(ctx, false, 5, true, &pos) == 0);
    stats = stats_of(ctx);
    CHECK(stats.n_visual == 0 && stats.kv_cells[2] == 9 + N_IMG);

    // two pictures with nothing in between, told apart by the caller
    halfv_begin_media(ctx, HALFV_MEDIA_VISUAL);
    pos = prompt_without_question(ctx, N_IMG);
    halfv_begin_media(ctx, HALFV_MEDIA_VISUAL);
    CHECK(feed(ctx, true, N_IMG, false, &pos) == 0);
    CHECK(feed(ctx, false, 5, true, &pos) == 0);
    stats = stats_of(ctx);
    CHECK(stats.n_images == 2 && stats.n_visual == 2*N_IMG && stats.n_kept == N_IMG);
}

static void test_prepare_and_topup(struct llama_context * ctx) {
    const int32_t n_anchors = N_IMG/2/5;

    uint64_t budget = 0, used = 1;
    CHECK_RC(halfv_get_undo_bytes(ctx, &budget, &used), HALFV_OK);
    CHECK(budget == 512u << 20);
    CHECK_RC(halfv_set_undo_bytes(ctx, UINT64_MAX), HALFV_OK);
    llama_pos pos = prompt_without_question(ctx, N_IMG);
    CHECK_RC(halfv_prepare(ctx, 0), HALFV_OK);
    struct halfv_stats stats = stats_of(ctx);
    CHECK(stats.outcome == HALFV_OUTCOME_PENDING && stats.n_pending > 0);
    CHECK(stats.n_kept == (uint32_t) (N_IMG/2 - n_anchors) && stats.kv_cells[1] == 4 + stats.n_kept);

    CHECK(feed(ctx, false, 5, true, &pos) == 0);
    stats = stats_of(ctx);
    CHECK(stats.outcome == HALFV_OUTCOME_PRUNED && stats.n_pending == 0);
    CHECK(stats.n_kept == N_IMG/2 && stats.n_stored == N_IMG/2);
    CHECK_RC(halfv_prepare(ctx, 0), HALFV_NOTHING);

    CHECK_RC(halfv_topup(ctx, 0), HALFV_OK);
    CHECK(feed(ctx, false, 5, true, &pos) == 0);
    stats = stats_of(ctx);
    CHECK(stats.n_kept == (uint32_t) (N_IMG/2 + n_anchors) && stats.n_stored == (uint32_t) (N_IMG/2 - n_anchors));

    int32_t kept[N_IMG];
    CHECK(halfv_image_tokens(ctx, 0, 0, 2, kept, N_IMG) == (int32_t) stats.n_kept);
    CHECK(ascending_within(kept, (int32_t) stats.n_kept, N_IMG));

    CHECK_RC(halfv_get_undo_bytes(ctx, &budget, &used), HALFV_OK);
    CHECK(budget == UINT64_MAX && used > 0);

    // without room for what undoing takes a picture stays whole; where nothing is undone, there is only nothing to bring back
    CHECK_RC(halfv_set_undo_bytes(ctx, 0), HALFV_OK);
    pos = prompt_without_question(ctx, N_IMG);
    CHECK(feed(ctx, false, 5, true, &pos) == 0);
    stats = stats_of(ctx);
    CHECK(stats.outcome == HALFV_OUTCOME_UNPRUNED && stats.reason == HALFV_REASON_BUDGET && stats.n_kept == N_IMG);
    CHECK_RC(halfv_topup(ctx, 0), HALFV_NOTHING);
    CHECK_RC(halfv_set_undo(ctx, false), HALFV_OK);
    pos = prompt_without_question(ctx, N_IMG);
    CHECK(feed(ctx, false, 5, true, &pos) == 0);
    CHECK(stats_of(ctx).n_kept == N_IMG/2);
    CHECK_RC(halfv_topup(ctx, 0), HALFV_NOTHING);
    CHECK_RC(halfv_set_undo(ctx, true), HALFV_OK);
    CHECK_RC(halfv_set_undo_bytes(ctx, budget), HALFV_OK);
}

static void test_flops(struct llama_context * ctx, const struct halfv_profile * profile) {
    const struct llama_model * model = llama_get_model(ctx);
    double dense = 0, spent = 0;
    llama_pos pos = prompt_without_question(ctx, N_IMG);
    CHECK(feed(ctx, false, 5, true, &pos) == 0);
    const struct halfv_stats stats = stats_of(ctx);
    CHECK_RC(halfv_flops(model, profile, 4, N_IMG, 5, &dense, &spent), HALFV_OK);
    CHECK(fabs(dense/stats.flops_dense - 1) < 1e-9 && fabs(spent/stats.flops_spent - 1) < 1e-9);

    CHECK_RC(halfv_flops(model, profile, 4, profile->min_visual_tokens - 1, 5, &dense, &spent), HALFV_OK);
    CHECK(dense > 0 && spent == dense);

    struct halfv_profile bad = *profile;
    bad.ivr_keep = 7.0f;
    CHECK_ERR(halfv_flops(model, &bad, 4, N_IMG, 5, &dense, &spent), HALFV_ERR_ARGUMENT, "halfv.ivr.keep = 7 ");
    CHECK_ERR(halfv_flops(NULL, profile, 4, N_IMG, 5, &dense, &spent), HALFV_ERR_ARGUMENT, "null");
    CHECK_ERR(halfv_flops(model, NULL, 4, N_IMG, 5, &dense, &spent), HALFV_ERR_ARGUMENT, "null");
    CHECK_ERR(halfv_flops(model, profile, 4, N_IMG, 5, NULL, &spent), HALFV_ERR_ARGUMENT, "null");
    CHECK_ERR(halfv_flops(model, profile, 4, N_IMG, 5, &dense, NULL), HALFV_ERR_ARGUMENT, "null");
}

int main(int argc, char ** argv) {
    if (argc != 4) {
        fprintf(stderr, "usage: %s MODEL OTHER_MODEL BAD_PROFILE_MODEL (tests/native/test_capi.py makes them)\n", argv[0]);
        return 77;
    }
    llama_backend_init();
    CHECK(strcmp(halfv_last_error(), "") == 0);
    test_encoder_settings();
    test_profile_rules();

    struct llama_model * other = load_model(argv[2], true);
    test_other_architecture(other);
    llama_model_free(other);

    struct llama_model * bad = load_model(argv[3], false);
    test_bad_file(bad);
    llama_model_free(bad);

    struct llama_model * model = load_model(argv[1], false);
    test_model(model);
    test_sizes(model);
    test_refusals(NULL, HALFV_ERR_ARGUMENT, "null");
    struct llama_context * plain = new_context(model);
    require(plain != NULL, "no context");
    test_refusals(plain, HALFV_ERR_UNSUPPORTED, "unpruned");

    const struct halfv_profile profile = test_profile(model);
    CHECK_RC(halfv_model_set_profile(model, &profile), HALFV_OK);
    test_refusals(plain, HALFV_ERR_UNSUPPORTED, "unpruned"); // contexts that exist keep theirs
    llama_free(plain);

    struct llama_context * ctx = new_context(model);
    require(ctx != NULL, "no context with a profile");
    test_arguments(ctx, &profile);
    test_picture(ctx);
    test_switches(ctx, profile.ivr_keep);
    test_prepare_and_topup(ctx);
    test_flops(ctx, &profile);
    llama_free(ctx);

    struct halfv_profile frozen = profile;
    frozen.ssr_rest = HALFV_REST_FROZEN;
    CHECK_RC(halfv_model_set_profile(model, &frozen), HALFV_OK);
    ctx = new_context(model);
    require(ctx != NULL, "no context with frozen tokens");
    test_flops(ctx, &frozen);
    llama_free(ctx);

    llama_model_free(model);
    llama_backend_free();
    printf("%d checks, %d failed\n", n_checked, n_failed);
    return n_failed == 0 ? 0 : 1;
}
