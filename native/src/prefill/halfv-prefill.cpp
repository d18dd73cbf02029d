#include "halfv-prefill.h"
#include "halfv-cut.h"
#include "halfv-profile.h"
#include "halfv-profile-json.h"

#include "llama-batch.h"
#include "llama-context.h"
#include "llama-impl.h"
#include "llama-model.h"

#include <algorithm>
#include <cstdlib>
#include <new>

namespace halfv {

// pruning that was asked for and did not happen: in the picture's statistics, and once in the log
void prefill::report(image & im, halfv_reason reason) {
    im.reason = reason;
    if (warned & (1u << reason)) {
        return;
    }
    warned |= 1u << reason;
    switch (reason) {
        case HALFV_REASON_SMALL:
            LLAMA_LOG_INFO("HalfV: a picture was not pruned: it has %d tokens, fewer than min_visual_tokens = %u\n", im.n(), memory.profile.min_visual_tokens);
            break;
        case HALFV_REASON_DISABLED:
            LLAMA_LOG_INFO("HalfV: a picture was not pruned: pruning is switched off, or the profile keeps everything\n");
            break;
        case HALFV_REASON_OUTPUTS:
            LLAMA_LOG_WARN("HalfV: a picture was not pruned: outputs were asked for on visual rows, or embeddings of every row\n");
            break;
        case HALFV_REASON_SHARED:
            LLAMA_LOG_WARN("HalfV: a picture was not pruned: its tokens belong to several sequences at once\n");
            break;
        case HALFV_REASON_BUDGET:
            LLAMA_LOG_WARN("HalfV: a picture was not pruned: the states that undoing its question takes do not fit into %.0f MiB (halfv_set_undo_bytes)\n",
                    memory.undo_limit/1048576.0);
            break;
        case HALFV_REASON_UNASKED:
            LLAMA_LOG_WARN("HalfV: a picture was not pruned: it had to go on before a token that could be its question\n");
            break;
        case HALFV_REASON_NONE:
            break;
    }
}

// HALFV_UNDO_MB in the environment, for programs that do not know halfv.h; throws std::runtime_error when it is no number
static std::optional<uint64_t> wanted_undo_mb() {
    const char * given = getenv("HALFV_UNDO_MB");
    if (!given || !*given) {
        return std::nullopt;
    }
    const std::string text = given;
    if (text.find_first_not_of("0123456789") != std::string::npos || text.size() > 9) {
        throw std::runtime_error("halfv: HALFV_UNDO_MB = " + quoted(text, 64) + " is not valid: it must be a whole number of MiB, such as 256");
    }
    return std::stoull(text);
}

// HALFV_PREPARE in the environment, likewise
static bool wants_preparing() {
    const char * given = getenv("HALFV_PREPARE");
    const std::string text = given ? given : "";
    if (!text.empty() && text != "0" && text != "1") {
        throw std::runtime_error("halfv: HALFV_PREPARE = " + quoted(text, 64) + " is not valid: it must be 0 or 1");
    }
    return text == "1";
}

prefill_ptr prefill::attach(llama_context & ctx) {
    if (auto * memory = dynamic_cast<staged_memory *>(ctx.memory.get())) {
        const auto & p = memory->profile;
        LLAMA_LOG_INFO("%s: HalfV: keep %.3g of the visual tokens from layer %u, update %.3g from layer %u (rest %s)\n", __func__,
                p.ivr_keep, p.ivr_layer, p.ssr_update, p.ssr_layer, p.ssr_rest == HALFV_REST_FROZEN ? "frozen" : "dropped");
        for (uint32_t i = 0; i < p.n_further; ++i) {
            LLAMA_LOG_INFO("%s: HalfV: keep %.3g of them from layer %u\n", __func__, p.further_keep[i], p.further_layers[i]);
        }
        auto res = std::make_unique<prefill>(ctx, *memory);
        if (const auto mb = wanted_undo_mb()) {
            memory->undo_limit = *mb << 20;
            memory->undoes     = *mb > 0 && !memory->recurs();
        }
        memory->prepares = wants_preparing() && !memory->recurs();
        return res;
    }
    if (ctx.model.halfv_profile->exists()) {
        const auto & why = cuts_of(ctx.model).refusal;
        LLAMA_LOG_WARN("%s: HalfV: this model has a profile, but its architecture (%s) runs unpruned: %s\n", __func__,
                ctx.model.arch_name().c_str(), why.empty() ? "this kind of context is not pruned" : why.c_str());
    }
    return nullptr;
}

prefill::prefill(llama_context & ctx, staged_memory & memory) : memory(memory), ctx(ctx), cost(ctx.model) {}

void prefill::begin_media(llama_context & ctx, halfv_media media) {
    ctx.balloc->halfv_sparse = media == HALFV_MEDIA_SPARSE;
    if (auto * own = ctx.halfv_prefill.get()) {
        own->media     = media;
        own->new_image = true;
    }
}

bool prefill::prunes_now() const {
    return enabled && prunes(memory.profile, memory.bounds[n_stages]);
}

bool prefill::applies(const image & im) const {
    return prunes_now() && is_large(im);
}

bool prefill::is_large(const image & im) const {
    return im.n() >= (int64_t) memory.profile.min_visual_tokens;
}

//
// decode
//

static std::vector<llama_seq_id> sequences_of(const llama_batch & batch) {
    std::vector<llama_seq_id> res;
    for (int32_t i = 0; i < batch.n_tokens; ++i) {
        for (int32_t j = 0; j < batch.n_seq_id[i]; ++j) {
            if (std::find(res.begin(), res.end(), batch.seq_id[i][j]) == res.end()) {
                res.push_back(batch.seq_id[i][j]);
            }
        }
    }
    return res;
}

std::optional<int> prefill::decode(llama_memory_context_ptr & mctx) {
    try {
        return decode_batch(mctx);
    } catch (const std::bad_alloc &) {
        LLAMA_LOG_ERROR("%s: HalfV: out of host memory\n", __func__);
        return -2;
    } catch (const std::exception & err) {
        LLAMA_LOG_ERROR("%s: HalfV: %s\n", __func__, err.what());
        return -3;
    }
}

halfv_reason prefill::refusal(const llama_batch & batch, bool visual) const {
    const auto & cparams = ctx.cparams;
    const auto & taps = cparams.embeddings_layer_inp;
    if (!prunes_now()) {
        return HALFV_REASON_DISABLED;
    }
    if (cparams.embeddings || cparams.embeddings_nextn || std::find(taps.begin(), taps.end(), true) != taps.end()) {
        return HALFV_REASON_OUTPUTS;
    }
    for (int32_t i = 0; i < batch.n_tokens; ++i) {
        if (visual && batch.logits[i]) {
            return HALFV_REASON_OUTPUTS;
        }
        if (batch.n_seq_id[i] > 1) {
            return HALFV_REASON_SHARED;
        }
    }
    return HALFV_REASON_NONE;
}

bool prefill::is_lazy(llama_seq_id seq_id, bool visual) const {
    const auto * s = memory.find(seq_id);
    return visual || (s && s->lazy()) || (wants_attention() && memory.n_cells(0, seq_id) == 0);
}

std::optional<int> prefill::decode_batch(llama_memory_context_ptr & mctx) {
    const llama_batch & batch = ctx.balloc->get_batch();
    const bool visual = batch.embd && !batch.token && media != HALFV_MEDIA_OTHER;

    stopped = false;
    note_adapters();
    if (held) {
        return hold_batch(batch, visual);
    }
    if (!visual && !memory.any_open(batch) && !memory.any_lazy() && !wants_attention()) {
        return std::nullopt;
    }
    if (const auto reason = refusal(batch, visual); reason != HALFV_REASON_NONE) {
        return decode_whole(mctx, batch, visual, reason);
    }

    std::vector<share> lazy, ordinary;
    for (int32_t i = 0; i < batch.n_tokens; ++i) {
        const llama_seq_id seq_id = batch.seq_id[i][0];
        auto & parts = is_lazy(seq_id, visual) ? lazy : ordinary;
        auto part = std::find_if(parts.begin(), parts.end(), [&](const share & p) { return p.seq_id == seq_id; });
        if (part == parts.end()) {
            part = parts.insert(parts.end(), { seq_id, {}, false });
        }
        part->idxs.push_back(i);
        part->output = part->output || batch.logits[i];
    }
    if (lazy.empty()) {
        return decode_whole(mctx, batch, visual, HALFV_REASON_NONE);
    }

    for (const auto & part : lazy) {
        if (part.output) { unprepare_what_will_not_fit(part.seq_id, part.idxs.size()); }
        if (visual) { unprepare_what_goes_on(part.seq_id); }
    }
    auto transaction = std::make_unique<staged_memory::transaction>(memory, sequences_of(batch));
    if (!visual) {
        memory.close_images(batch);
    }

    std::vector<step> last;
    for (const auto & part : lazy) {
        int rc = stage1(part, visual);
        memory.settle_for_good(part.seq_id);
        if (rc == 0 && part.output) {
            rc = settle(part.seq_id, when::question, &last);
        }
        if (rc != 0) {
            return rc;
        }
    }
    for (auto & step : whole_steps(batch, std::move(ordinary))) { last.push_back(std::move(step)); }

    if (last.empty()) {
        if (ctx.output_reserve(0) == 0) {
            return -2;
        }
        transaction->commit();
        new_image = false;
        book_as_prompt();
        return 0;
    }

    // the caller maps outputs to rows in the order of the steps
    ctx.balloc->split_reset();
    auto & out_ids = ctx.balloc->get_out_ids();
    for (const auto & step : last) {
        for (uint32_t i = 0; i < step.ubatch.n_tokens; ++i) {
            if (step.ubatch.output[i]) { out_ids.push_back(step.ubatch.data->batch_idxs[i]); }
        }
    }

    auto staged = memory.init_steps(std::move(last));
    if (staged->get_status() != LLAMA_MEMORY_STATUS_SUCCESS) {
        LLAMA_LOG_WARN("%s: failed to find a memory slot for batch of size %d\n", __func__, batch.n_tokens);
        return 1;
    }
    const int64_t t_start = ggml_time_us();
    staged->transaction = std::move(transaction);
    staged->on_done = [this, lazy, t_start]() {
        new_image = false;
        book_as_prompt();
        for (const auto & part : lazy) {
            if (part.output) { memory.at(part.seq_id).stats.us_stage3 += ggml_time_us() - t_start; }
        }
    };
    mctx = std::move(staged);
    return std::nullopt;
}

// A batch through all layers. What its sequences still wait with goes first, taking their last token for the question.
std::optional<int> prefill::decode_whole(llama_memory_context_ptr & mctx, const llama_batch & batch, bool visual, halfv_reason reason) {
    const auto seq_ids = sequences_of(batch);
    for (const auto id : seq_ids) {
        unprepare_what_will_not_fit(id, 0);
        unprepare_what_nobody_asks(id);
    }
    auto transaction = std::make_unique<staged_memory::transaction>(memory, seq_ids);
    for (const auto id : seq_ids) {
        if (const auto * s = memory.find(id); s && s->lazy()) {
            if (const int rc = settle(id, when::question, nullptr)) {
                return rc;
            }
        }
    }
    if (visual) {
        for (const auto id : seq_ids) { memory.keep_lists(id); }
        note_unpruned(batch, reason);
    } else {
        memory.close_images(batch);
    }

    auto staged = memory.init_batch(*ctx.balloc, ctx.cparams.n_ubatch);
    if (staged->get_status() != LLAMA_MEMORY_STATUS_SUCCESS) {
        LLAMA_LOG_WARN("%s: failed to find a memory slot for batch of size %d\n", __func__, batch.n_tokens);
        return 1;
    }
    staged->transaction = std::move(transaction);
    staged->on_done     = [this]() { new_image = false; };
    mctx = std::move(staged);
    return std::nullopt;
}

void prefill::note_unpruned(const llama_batch & batch, halfv_reason reason) {
    for (int32_t i = 0; i < batch.n_tokens; ++i) {
        for (int32_t j = 0; j < batch.n_seq_id[i]; ++j) {
            memory.keep_lists(batch.seq_id[i][j]);
            auto & images = memory.at(batch.seq_id[i][j]).images;
            if (images.empty() || images.back().closed || (i == 0 && new_image)) {
                images.emplace_back();
            }
            auto & im = images.back();
            for (auto & list : im.reached) { list.push_back(im.n()); }
            im.positions.push_back(batch.pos[i]);
            im.settled = true;
            report(im, reason);
        }
    }
}

bool prefill::aborted() {
    stopped = stopped || (ctx.abort_callback && ctx.abort_callback(ctx.abort_callback_data));
    return stopped;
}

// llama_perf takes a batch of one token for generation; one that waits, or settles a picture, is still the prompt
void prefill::book_as_prompt() {
    if (ctx.n_queued_tokens == 1) {
        ctx.n_queued_tokens = 2;
        ctx.n_p_eval--;
    }
}

} // namespace halfv
