#include "halfv-api.h"
#include "halfv-cut.h"

#include "halfv-encoder-settings.h"
#include "halfv-profile.h"
#include "halfv-sized.h"
#include "halfv-switch.h"

#include "llama-model.h"

#include <algorithm>
#include <string>
#include <utility>

#ifndef HALFV_VERSION
#define HALFV_VERSION "unknown"
#endif

static thread_local std::string last_error;

// of halfv_set_encoder
static thread_local std::string     encoder_weights   = "auto";
static thread_local halfv_attention encoder_attention = HALFV_ATTENTION_FAST;

int32_t halfv::fail(int32_t code, std::string text) {
    last_error = std::move(text);
    return code;
}

using halfv::fail;
using halfv::guarded;
using halfv::with_prefill;

static int32_t check_seq(const llama_context * ctx, llama_seq_id seq) {
    const int64_t n = ctx->get_cparams().kv_unified ? LLAMA_MAX_SEQ : ctx->n_seq_max();
    if (seq < 0 || seq >= n) {
        return fail(HALFV_ERR_ARGUMENT, "halfv: sequence " + std::to_string(seq) + " does not exist: the context has " + std::to_string(n));
    }
    return HALFV_OK;
}

const char * halfv_last_error(void) { return last_error.c_str(); }
const char * halfv_version(void)    { return HALFV_VERSION; }

// throws std::runtime_error with the sentence of validate()
static halfv_profile valid_profile(const halfv_profile * given, uint32_t n_layer) {
    const halfv_profile profile = halfv::read_sized(given, halfv::default_profile(n_layer));
    const std::string wrong = halfv::validate(profile, n_layer);
    if (!wrong.empty()) {
        throw std::runtime_error("halfv: " + wrong);
    }
    return profile;
}

int32_t halfv_profile_default(halfv_profile * out, uint32_t n_layer) {
    return guarded([&]() -> int32_t {
        if (!out) {
            return fail(HALFV_ERR_ARGUMENT, "halfv: the place for the profile is null");
        }
        halfv::write_sized(out, halfv::default_profile(n_layer));
        return HALFV_OK;
    });
}

int32_t halfv_profile_validate(const halfv_profile * profile, uint32_t n_layer) {
    return guarded([&]() -> int32_t {
        if (!profile) {
            return fail(HALFV_ERR_ARGUMENT, "halfv: the profile is null");
        }
        valid_profile(profile, n_layer);
        return HALFV_OK;
    });
}

bool halfv_model_supported(const llama_model * model) {
    return model && halfv::cuts_of(*model).refusal.empty();
}

int32_t halfv_model_get_profile(const llama_model * model, halfv_profile * out) {
    return guarded([&]() -> int32_t {
        if (!model || !out) {
            return fail(HALFV_ERR_ARGUMENT, "halfv: the model or the place for its profile is null");
        }
        halfv::checked_size(out);
        if (!model->halfv_profile->exists()) {
            return HALFV_NOTHING;
        }
        const auto profile = model->halfv_profile->get(model->hparams.n_layer(), halfv::cuts_of(*model).refusal.empty());
        if (!profile) {
            return HALFV_NOTHING;
        }
        halfv::write_sized(out, *profile);
        return HALFV_OK;
    });
}

int32_t halfv_model_set_profile(llama_model * model, const halfv_profile * profile) {
    return guarded([&]() -> int32_t {
        if (!model) {
            return fail(HALFV_ERR_ARGUMENT, "halfv: the model is null");
        }
        if (!profile) {
            model->halfv_profile->set(std::nullopt);
            return HALFV_OK;
        }
        const uint32_t n_layer = model->hparams.n_layer();
        const auto & refusal = halfv::cuts_of(*model).refusal;
        halfv_profile given = halfv::read_sized(profile, halfv::default_profile(n_layer));
        if (!refusal.empty() && halfv::prunes(given, n_layer)) {
            return fail(HALFV_ERR_UNSUPPORTED, "halfv: the architecture " + model->arch_name() + " runs unpruned: " + refusal);
        }
        std::string wrong = halfv::make_usable(given, n_layer, refusal.empty());
        if (wrong.empty() && refusal.empty()) {
            wrong = halfv::unfit(*model, halfv::fitted(*model, given));
        }
        if (!wrong.empty()) {
            return fail(HALFV_ERR_ARGUMENT, "halfv: " + wrong);
        }
        model->halfv_profile->set(given);
        return HALFV_OK;
    });
}

int32_t halfv_model_set_stage_cells(llama_model * model, uint32_t stage1, uint32_t stage2, uint32_t stage3) {
    return guarded([&]() -> int32_t {
        if (!model) {
            return fail(HALFV_ERR_ARGUMENT, "halfv: the model is null");
        }
        model->halfv_profile->set_stage_cells({ stage1, stage2, stage3 });
        return HALFV_OK;
    });
}

int32_t halfv_get_profile(const llama_context * ctx, halfv_profile * out) {
    return with_prefill(ctx, [&](const halfv::prefill & prefill) -> int32_t {
        if (!out) {
            return fail(HALFV_ERR_ARGUMENT, "halfv: the place for the profile is null");
        }
        halfv::write_sized(out, prefill.memory.profile);
        return HALFV_OK;
    });
}

int32_t halfv_set_enabled(llama_context * ctx, bool enabled) {
    return with_prefill(ctx, [&](halfv::prefill & prefill) -> int32_t {
        if (std::exchange(prefill.enabled, enabled) != enabled) { prefill.memory.forget_preparations(); }
        return HALFV_OK;
    });
}

int32_t halfv_set_keep(llama_context * ctx, float keep) {
    return with_prefill(ctx, [&](halfv::prefill & prefill) -> int32_t {
        halfv_profile wanted = prefill.memory.profile;
        wanted.ivr_keep = keep;
        const std::string wrong = halfv::validate(wanted, prefill.memory.bounds[halfv::n_stages]);
        if (!wrong.empty()) {
            return fail(HALFV_ERR_ARGUMENT, "halfv: " + wrong);
        }
        prefill.memory.profile = wanted;
        prefill.memory.forget_preparations();
        return HALFV_OK;
    });
}

int32_t halfv_seq_set_enabled(llama_context * ctx, llama_seq_id seq, bool enabled) {
    return with_prefill(ctx, [&](halfv::prefill & prefill) -> int32_t {
        if (const int32_t rc = check_seq(ctx, seq)) {
            return rc;
        }
        if (std::exchange(prefill.own[seq].enabled, enabled) != enabled) { prefill.memory.forget_preparations(seq); }
        return HALFV_OK;
    });
}

int32_t halfv_seq_set_keep(llama_context * ctx, llama_seq_id seq, float keep) {
    return with_prefill(ctx, [&](halfv::prefill & prefill) -> int32_t {
        if (const int32_t rc = check_seq(ctx, seq)) {
            return rc;
        }
        halfv_profile wanted = prefill.memory.profile;
        wanted.ivr_keep = keep == 0.0f ? wanted.ivr_keep : keep;
        const std::string wrong = halfv::validate(wanted, prefill.memory.bounds[halfv::n_stages]);
        if (!wrong.empty()) {
            return fail(HALFV_ERR_ARGUMENT, "halfv: " + wrong);
        }
        if (std::exchange(prefill.own[seq].keep, keep) != keep) { prefill.memory.forget_preparations(seq); }
        return HALFV_OK;
    });
}

void halfv_begin_media(llama_context * ctx, halfv_media media) {
    if (ctx) { halfv::prefill::begin_media(*ctx, media); }
}

int32_t halfv_prepare(llama_context * ctx, llama_seq_id seq) {
    return with_prefill(ctx, [&](halfv::prefill & prefill) -> int32_t {
        if (const int32_t rc = check_seq(ctx, seq)) {
            return rc;
        }
        if (prefill.memory.recurs()) {
            return fail(HALFV_ERR_UNSUPPORTED, "halfv: no picture is prepared for a model with recurrent layers, which take tokens in order");
        }
        const int32_t rc = prefill.prepare(seq);
        return rc == HALFV_ERR_MEMORY  ? fail(rc, "halfv: no room in the KV cache or in memory to prepare the picture") :
               rc == HALFV_ERR_COMPUTE ? fail(rc, "halfv: preparing the picture failed or was aborted") : rc;
    });
}

int32_t halfv_set_prepare(llama_context * ctx, bool prepare) {
    return with_prefill(ctx, [&](halfv::prefill & prefill) -> int32_t {
        if (prepare && prefill.memory.recurs()) {
            return fail(HALFV_ERR_UNSUPPORTED, "halfv: no picture is prepared for a model with recurrent layers, which take tokens in order");
        }
        prefill.memory.forget_preparations();
        prefill.memory.prepares = prepare;
        return HALFV_OK;
    });
}

int32_t halfv_set_undo_bytes(llama_context * ctx, uint64_t bytes) {
    return with_prefill(ctx, [&](halfv::prefill & prefill) -> int32_t {
        prefill.memory.undo_limit = bytes;
        return HALFV_OK;
    });
}

int32_t halfv_get_undo_bytes(const llama_context * ctx, uint64_t * bytes, uint64_t * used) {
    return with_prefill(ctx, [&](const halfv::prefill & prefill) -> int32_t {
        if (bytes) { *bytes = prefill.memory.undo_limit; }
        if (used)  { *used  = prefill.memory.undo_bytes(true); }
        return HALFV_OK;
    });
}

int32_t halfv_set_undo(llama_context * ctx, bool undo) {
    return with_prefill(ctx, [&](halfv::prefill & prefill) -> int32_t {
        if (undo && prefill.memory.recurs()) {
            return fail(HALFV_ERR_UNSUPPORTED, "halfv: no question is undone in a model with recurrent layers, whose states have no way back");
        }
        prefill.memory.undoes = undo;
        return HALFV_OK;
    });
}

int32_t halfv_topup(llama_context * ctx, llama_seq_id seq) {
    return with_prefill(ctx, [&](halfv::prefill & prefill) -> int32_t {
        if (const int32_t rc = check_seq(ctx, seq)) {
            return rc;
        }
        if (prefill.memory.recurs()) {
            return fail(HALFV_ERR_UNSUPPORTED, "halfv: no tokens are brought back for a model with recurrent layers, which take tokens in order");
        }
        const auto * s = prefill.memory.find(seq);
        if (!s || prefill.choice != HALFV_CHOICE_HALFV || s->n_stored() == 0) {
            return HALFV_NOTHING;
        }
        prefill.memory.at(seq).new_question = true;
        return HALFV_OK;
    });
}

// the tokens that reached a stage, counted from 0, or the last before it that there is
static const std::vector<int32_t> & reached(const halfv::staged_memory & memory, const halfv::image & im, int stage) {
    while (stage > 1 && !memory.has_stage(stage)) { --stage; }
    return im.reached[stage - 1];
}

int32_t halfv_get_stats(const llama_context * ctx, llama_seq_id seq, halfv_stats * out) {
    return with_prefill(ctx, [&](const halfv::prefill & prefill) -> int32_t {
        if (!out) {
            return fail(HALFV_ERR_ARGUMENT, "halfv: the place for the statistics is null");
        }
        if (const int32_t rc = check_seq(ctx, seq)) {
            return rc;
        }
        const auto & memory = prefill.memory;
        halfv_stats stats = {};
        if (const auto * s = memory.find(seq)) {
            stats = s->stats;
            for (const auto & im : s->images) {
                stats.n_visual += im.n();
                stats.n_kept   += im.kept().size();
                stats.n_deep   += reached(memory, im, 2).size();
                for (int i = 0; i < HALFV_MAX_FURTHER; ++i) { stats.n_further[i] += memory.has_stage(3 + i) ? reached(memory, im, 3 + i).size() : 0; }
            }
            stats.n_images  = s->images.size();
            stats.n_pending = std::count_if(s->rows.begin(), s->rows.end(), [](const halfv::row & r) { return r.stage < 3; });
            stats.n_stored  = prefill.choice == HALFV_CHOICE_HALFV ? s->n_stored() : 0; // top-up is not for the others
            if (!s->images.empty()) {
                const auto & im = s->images.back();
                stats.reason  = im.reason;
                stats.outcome = !im.settled                        ? HALFV_OUTCOME_PENDING :
                                im.reason != HALFV_REASON_NONE     ? HALFV_OUTCOME_UNPRUNED : HALFV_OUTCOME_PRUNED;
            }
        }
        for (int stage = 0; stage < 3; ++stage) {
            stats.kv_cells[stage] = memory.n_cells(stage, seq);
            stats.kv_bytes[stage] = stats.kv_cells[stage]*memory.cell_bytes(stage);
            stats.kv_size [stage] = memory.stage_size(stage);
        }
        for (int i = 0; i < HALFV_MAX_FURTHER; ++i) {
            stats.further_cells[i] = memory.n_cells(3 + i, seq);
            stats.further_bytes[i] = stats.further_cells[i]*memory.cell_bytes(3 + i);
            stats.further_size [i] = memory.stage_size(3 + i);
        }
        halfv::write_sized(out, stats);
        return HALFV_OK;
    });
}

static const halfv::image * find_image(const llama_context * ctx, const halfv::prefill & prefill, llama_seq_id seq, uint32_t image) {
    if (check_seq(ctx, seq) != HALFV_OK) {
        return nullptr;
    }
    const auto * s = prefill.memory.find(seq);
    const size_t n = s ? s->images.size() : 0;
    if (image >= n) {
        fail(HALFV_ERR_ARGUMENT, "halfv: picture " + std::to_string(image) + " does not exist: sequence " + std::to_string(seq) + " has " + std::to_string(n));
        return nullptr;
    }
    return &s->images[image];
}

int32_t halfv_image_size(const llama_context * ctx, llama_seq_id seq, uint32_t image) {
    return with_prefill(ctx, [&](const halfv::prefill & prefill) -> int32_t {
        const auto * im = find_image(ctx, prefill, seq, image);
        return im ? im->n() : HALFV_ERR_ARGUMENT;
    });
}

int32_t halfv_image_tokens(const llama_context * ctx, llama_seq_id seq, uint32_t image, int32_t stage, int32_t * out, int32_t cap) {
    return with_prefill(ctx, [&](const halfv::prefill & prefill) -> int32_t {
        if (stage < 2 || stage > halfv::n_stages) {
            return fail(HALFV_ERR_ARGUMENT, "halfv: stage " + std::to_string(stage) + " is none of 2 to " + std::to_string(halfv::n_stages));
        }
        const auto * im = find_image(ctx, prefill, seq, image);
        if (!im) {
            return HALFV_ERR_ARGUMENT;
        }
        const auto & tokens = reached(prefill.memory, *im, stage - 1);
        if (out && cap > 0) {
            std::copy_n(tokens.begin(), std::min<size_t>(cap, tokens.size()), out);
        }
        return tokens.size();
    });
}

int32_t halfv_flops(const llama_model * model, const halfv_profile * profile, uint32_t n_before, uint32_t n_visual, uint32_t n_after,
                    double * dense, double * spent) {
    return guarded([&]() -> int32_t {
        if (!model || !profile || !dense || !spent) {
            return fail(HALFV_ERR_ARGUMENT, "halfv: the model, the profile or a place for FLOPs is null");
        }
        const halfv_profile valid = valid_profile(profile, model->hparams.n_layer());
        if (model->layers.size() < model->hparams.n_layer()) {
            return fail(HALFV_ERR_ARGUMENT, "halfv: the model was loaded without its weights");
        }
        halfv::cost_model(*model).prompt(valid, n_before, n_visual, n_after, *dense, *spent);
        return HALFV_OK;
    });
}

int32_t halfv_set_encoder(const char * weights, enum halfv_attention attention) {
    return guarded([&]() -> int32_t {
        if (!weights) {
            return fail(HALFV_ERR_ARGUMENT, "halfv: weights is null");
        }
        const std::string name = weights;
        if (name != "auto" && name != "file" && name != "off" && halfv::matrix_type(name) == GGML_TYPE_COUNT) {
            return fail(HALFV_ERR_ARGUMENT, "halfv: '" + name + "' is no type for an encoder's weights: use auto, file, off, or f16, bf16, q8_0, ...");
        }
        if (attention < HALFV_ATTENTION_STOCK || attention > HALFV_ATTENTION_FAST) {
            return fail(HALFV_ERR_ARGUMENT, "halfv: attention = " + std::to_string(attention) + " is none of enum halfv_attention");
        }
        encoder_weights   = name;
        encoder_attention = attention;
        return HALFV_OK;
    });
}

int32_t halfv_get_encoder(const char ** weights, enum halfv_attention * attention) {
    return guarded([&]() -> int32_t {
        if (!weights || !attention) {
            return fail(HALFV_ERR_ARGUMENT, "halfv: the place for the weights or the attention is null");
        }
        const bool off = halfv::switched_off();
        *weights   = off ? "off" : encoder_weights.c_str();
        *attention = off ? HALFV_ATTENTION_STOCK : encoder_attention;
        return HALFV_OK;
    });
}
